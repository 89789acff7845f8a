"""Ends of rows without the products of the border: the same bits, and fewer products."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from kernels import Kernel, target, variants

from tvmconv.compute import phase as phase_form
from tvmconv.compute.phase import PhaseForm
from tvmconv.compute.tiling import Piece, Tiling, pieces
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import phase
from tvmconv.schedules.cpu.phase_cycles import row_cycles

FIRST = {"data_format": "channels_first"}
SAME: dict[str, Any] = {"padding": "same"}
#: Layers, the voxels of a row, and what their tiling is beside the usual.
LAYERS: dict[str, tuple[LayerConfig, int, dict[str, Any]]] = {
    "stride 1": (LayerConfig(12, (2, 3, 5), **SAME), 7, {}),
    "one tile": (LayerConfig(8, (2, 3, 5), **SAME), 3, {}),
    "fewer voxels than taps": (LayerConfig(8, (2, 1, 7), **SAME), 2, {}),
    "valid": (LayerConfig(20, (3, 2, 4), strides=(1, 2, 2)), 5, {}),
    "uneven taps": (LayerConfig(12, (2, 2, 5), strides=(2, 1, 3), activation="relu"), 11, {}),
    "dilated": (LayerConfig(12, (2, 2, 3), dilation_rate=(2, 1, 3)), 8, {}),
    "outputs without an input": (LayerConfig(8, (1, 2, 3), strides=2, output_padding=1), 6, {}),
    "channels first": (LayerConfig(13, (2, 2, 4), strides=(1, 2, 2), **SAME, **FIRST), 6, {}),
    "a long activation": (LayerConfig(8, (1, 2, 3), activation="gelu"), 5, {}),
    "parts": (LayerConfig(16, (2, 2, 5), **SAME), 6, {"splits": 2}),
    "channels inside": (LayerConfig(20, (2, 2, 5), **SAME), 9, {"channels_outer": False}),
    "parts, channels inside": (LayerConfig(32, (2, 2, 3), **SAME), 5,
                               {"splits": 2, "channels_outer": False}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "float32") for name in LAYERS),
        ("uneven taps", "float64"),
        ("valid", "mixed_bfloat16"),
    ],
)
def test_the_bits_are_those_with_the_border(
    name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, voxels, changes = LAYERS[name]
    layer = LayerConfig.from_keras({**layer.get_config(), "dtype": dtype})
    first = layer.data_format == "channels_first"
    sample = (6, 3, 4, voxels) if first else (3, 4, voxels, 6)
    work = Workload.of(layer, (-1, *sample))
    default = phase.decide(work, target())
    assert default is not None
    tiling = variants(default, vector=4, registers=2, width=3, rows=2, stationary=False, **changes)
    assert PhaseForm(work, tiling).skips_border
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, *sample)).astype(np.float32)
    kernel = rng.standard_normal(layer.kernel_shape(6)).astype(np.float32)
    bias = rng.standard_normal(layer.filters).astype(np.float32)
    x.ravel()[[5, 111]] = np.inf, np.nan
    y = Kernel(layer, work.plan.input_shape, tiling=tiling)(x, kernel, bias, rng)
    monkeypatch.setattr(phase_form, "_LEAST_WASTED", 1.0)
    assert not PhaseForm(work, tiling).skips_border
    expected = Kernel(layer, work.plan.input_shape, tiling=tiling)(x, kernel, bias)
    assert y.tobytes() == expected.tobytes()
    with np.errstate(invalid="ignore"):
        wanted = conv3d_transpose(layer, x, kernel, bias)
    tolerance = {"float64": 1e-9, "float32": 1e-4}.get(dtype, 0.1)
    np.testing.assert_allclose(
        y.astype(np.float64), wanted, rtol=tolerance, atol=tolerance, equal_nan=True
    )


def form(layer: LayerConfig, size: int, width: int = 4, **changes: Any) -> PhaseForm:
    """A form with a row of so many voxels."""
    work = Workload.of(layer, (1, 8, 8, size, 16))
    return PhaseForm(work, Tiling("phase", 8, 2, width, 1, **changes))


def test_the_ends_of_a_row_stand_alone() -> None:
    axis = form(LayerConfig(16, 3, **SAME), 19).folded.plan.axes[2]
    (only,) = axis.phases
    found = pieces(axis, only, 4)
    assert found == [
        Piece(0, 1, 4, False), Piece(4, 3, 4, True), Piece(16, 1, 3, False),
    ]  # fmt: skip
    assert [piece.reached(axis, only, 0) for piece in found] == [(0, 4), (0, 4), (0, 2)]
    assert [piece.reached(axis, only, 1) for piece in found] == [(0, 4), (0, 4), (0, 3)]
    assert [piece.reached(axis, only, 2) for piece in found] == [(1, 4), (0, 4), (0, 3)]


@pytest.mark.parametrize(
    ("filters", "registers", "width", "widths"),
    [
        (64, 3, 4, [4, 6]),
        (56, 3, 4, [4, 12]),
        (40, 2, 6, [6, 12]),
        # Never more sums than the other blocks have, and no more than it takes.
        (40, 2, 4, [4, 8]),
        (48, 4, 6, [6, 6]),
        (40, 4, 6, [6, 12]),
        (48, 3, 4, [4]),
    ],
)
def test_a_shorter_last_block_has_more_voxels(
    filters: int, registers: int, width: int, widths: list[int]
) -> None:
    work = Workload.of(LayerConfig(filters, 3, **SAME), (1, 8, 8, 32, 16))
    made = PhaseForm(work, Tiling("phase", 8, registers, width, 1))
    assert [made.width(group) for group in made.groups] == widths
    flat = Workload.of(LayerConfig(filters, 1), (1, 8, 8, 32, 16))
    flowing = PhaseForm(flat, dataclasses.replace(made.tiling, pack=False))
    assert {flowing.width(group) for group in flowing.groups} == {width}


def test_where_it_is_worth_the_code() -> None:
    assert form(LayerConfig(16, 3, **SAME), 16).skips_border
    # Less than one product in 25.
    assert not form(LayerConfig(16, 3, **SAME), 17).skips_border
    # No border; its own rule; no row of its own.
    assert not form(LayerConfig(16, 2, strides=2), 8).skips_border
    assert not form(LayerConfig(16, 3, **SAME), 8, stationary=True).skips_border
    # Too much code.
    assert form(LayerConfig(16, 13, **SAME), 12, width=6).skips_border
    assert not form(LayerConfig(16, 13, **SAME), 12, width=2).skips_border


def test_the_model_counts_them_out() -> None:
    layer = LayerConfig(24, 5, **SAME)
    tiling = Tiling("phase", 8, 3, 4, 1)
    few, many = (
        row_cycles(PhaseForm(Workload.of(layer, (1, 8, 8, size, 64)), tiling)) for size in (4, 256)
    )
    # 14 of 20 pairs of a voxel and a tap; with two voxels the products wait for each other.
    assert few / (many / 64) == pytest.approx((4 + 4.5 + 6 + 4.5 + 4) / 30)
