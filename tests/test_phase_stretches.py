"""Stationary tiles that take their weights stretch by stretch: the same bits, in another order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernels import Kernel, target, variants
from turns import few

from benchmarks import static
from tvmconv import schedules
from tvmconv.compute.phase import PhaseForm
from tvmconv.compute.phase_stretches import _least_rows
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.geometry import Axis
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import phase, phase_space

FIRST = {"data_format": "channels_first"}
SAME: dict[str, Any] = {"padding": "same"}
#: Layers and the sizes of their input: planes, rows, voxels, channels.
LAYERS: dict[str, tuple[LayerConfig, tuple[int, ...]]] = {
    "folded": (LayerConfig(16, 2, strides=2), (3, 2, 5, 6)),
    "blocks of two sizes": (LayerConfig(20, 4, strides=2, **SAME), (3, 4, 5, 6)),
    "blocks of two sizes, channels first": (LayerConfig(21, (1, 2, 3), strides=2, **FIRST),
                                            (3, 2, 5, 6)),
    "folded, padded": (LayerConfig(16, 2, strides=2, output_padding=1), (3, 2, 5, 6)),
    "a border": (LayerConfig(16, 4, strides=2, **SAME), (3, 4, 5, 12)),
    "channels first": (LayerConfig(16, 4, strides=2, **SAME, **FIRST), (3, 4, 5, 12)),
    "one tap, channels first": (LayerConfig(32, 2, strides=2, activation="tanh", **FIRST),
                                (2, 3, 7, 6)),
    "uneven taps": (LayerConfig(16, (3, 5, 4), strides=(2, 3, 3), activation="relu"),
                    (2, 3, 4, 6)),
    "phases without taps": (LayerConfig(16, (1, 2, 1), strides=(2, 3, 2)), (2, 3, 4, 6)),
    "dilated": (LayerConfig(16, (3, 2, 2), dilation_rate=(2, 3, 2)), (3, 2, 4, 6)),
    "a short last block": (LayerConfig(22, (3, 2, 5), strides=(1, 2, 2), **SAME), (2, 3, 4, 6)),
    "a short last block, phases without taps": (LayerConfig(22, (1, 2, 1), strides=(2, 3, 2)),
                                                (2, 3, 4, 6)),
    "stride 1": (LayerConfig(16, 3, **SAME), (3, 3, 6, 6)),
    "a long activation": (LayerConfig(16, 3, strides=2, activation="gelu"), (2, 2, 4, 6)),
}  # fmt: skip


def stationary(work: Workload, stretch: int, splits: int = 0) -> Tiling:
    """A tiling of stationary tiles; of one block of channels each where all are equal."""
    default = phase.decide(work, target())
    assert default is not None
    tiling = variants(
        default, vector=4, registers=2, width=3, rows=1, splits=1, stationary=True, stretch=stretch
    )
    found = PhaseForm(work, tiling).groups
    return variants(tiling, splits=splits or (found[0].blocks if len(found) == 1 else 1))


@pytest.mark.parametrize("turn", few(range(3), (0,)))
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "float32") for name in LAYERS),
        *((name, "float64") for name in ("folded", "uneven taps")),
        ("a border", "mixed_bfloat16"),
    ],
)
def test_the_bits_are_those_of_rows_that_take_all(name: str, dtype: str, turn: int) -> None:
    layer, sizes = LAYERS[name]
    layer = LayerConfig.from_keras({**layer.get_config(), "dtype": dtype})
    sample = (sizes[3], *sizes[:3]) if layer.data_format == "channels_first" else sizes
    work = Workload.of(layer, (-1, *sample))
    channels = work.plan.in_channels
    rng = np.random.default_rng(11)
    x = rng.standard_normal((2, *sample)).astype(np.float32)
    kernel = rng.standard_normal(layer.kernel_shape(channels)).astype(np.float32)
    bias = rng.standard_normal(layer.filters).astype(np.float32)
    x.ravel()[[5, 111]] = np.inf, np.nan
    expected = Kernel(layer, work.plan.input_shape, tiling=stationary(work, 0))(x, kernel, bias)
    ways = [(channels // 3, 0), (channels, 0), (channels // 2, 1)]
    blocks = PhaseForm(work, stationary(work, channels)).groups
    if len(blocks) == 2 and layer.data_format == "channels_last":
        ways.append((channels // 2, blocks[0].blocks + 1))
    for stretch, splits in ways[(len(name) + turn) % 3 :: 3]:
        tiling = stationary(work, stretch, splits)
        assert PhaseForm(work, tiling).stretch == stretch
        # Any range of tiles, from the middle of a sample into the next.
        y = Kernel(layer, work.plan.input_shape, tiling=tiling)(x, kernel, bias, rng)
        assert y.tobytes() == expected.tobytes()
    with np.errstate(invalid="ignore"):
        wanted = conv3d_transpose(layer, x, kernel, bias)
    tolerance = {"float64": 1e-9, "float32": 1e-4}.get(dtype, 0.1)
    y = expected.astype(np.float64)
    np.testing.assert_allclose(y, wanted, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_sums_stay_in_registers_where_a_stretch_is_all_that_they_have() -> None:
    def form(name: str, stretch: int) -> PhaseForm:
        layer, sizes = LAYERS[name]
        work = Workload.of(layer, (1, *sizes))
        return PhaseForm(work, stationary(work, stretch))

    assert form("folded", 6).sums_stay
    assert form("folded", 6).sums_shape == (0, 0, 0, 0)
    assert form("folded", 3).sums_shape == (3, 2, 5, 8)
    # Some outputs have no input.
    assert not form("folded, padded", 6).sums_stay
    assert not form("phases without taps", 6).sums_stay
    assert form("a border", 12).sums_shape == (3, 4, 5, 8)
    # The channels are not so many times four.
    assert form("folded", 4).stretch == 0
    one = form("folded", 6)
    assert PhaseForm(one.work, variants(one.tiling, stationary=False)).stretch == 0


def test_a_stretch_is_taken_by_the_voxels_that_its_tap_reaches() -> None:
    def reached(layer: LayerConfig, size: int) -> list[list[tuple[int, int, tuple[int, int]]]]:
        work = Workload.of(layer, (1, 2, 2, size, 6))
        form = PhaseForm(work, stationary(work, 6))
        return [form.reached(one) for one in work.plan.axes[2].phases]

    assert reached(LayerConfig(16, 4, strides=2, **SAME), 4) == [
        [(0, 1, (0, 3)), (1, 1, (0, 4))], [(0, 1, (0, 4)), (1, 1, (1, 4))],
    ]  # fmt: skip
    # Taps without an input are left out.
    assert reached(LayerConfig(16, 5, **SAME), 2) == [
        [(1, 1, (0, 1)), (2, 1, (0, 2)), (3, 1, (1, 2))]
    ]
    # Taps that reach the same voxels are one loop.
    assert reached(LayerConfig(16, (2, 2, 4), strides=2), 3)[0] == [
        (0, 1, (0, 3)), (1, 1, (1, 4)),
    ]  # fmt: skip
    assert reached(LayerConfig(16, 2, strides=2, output_padding=1), 3)[0] == [(0, 1, (0, 3))]
    # So many loops would be too much code.
    assert reached(LayerConfig(20, 11, **SAME), 9) == [[(0, 11, (0, 9))]]


def test_a_short_last_block_is_a_task_tile_of_its_own() -> None:
    def decided(data_format: str) -> PhaseForm:
        layer = LayerConfig(200, 3, padding="same", data_format=data_format)
        sizes = (4, 4, 4)
        shape = (1, 512, *sizes) if data_format == "channels_first" else (1, *sizes, 512)
        work = Workload.of(layer, shape)
        return PhaseForm(work, schedules.decide(work, target("x86-64-v3"), algorithm="direct"))

    form = decided("channels_last")
    full, rest = form.groups
    assert form.tiling.stretch
    assert form.tiling.splits == form.tiles.count == full.blocks + 1
    assert [form.share(full), form.share(rest)] == [1, 1]
    assert form.first_block(full, 3) == 3
    assert int(form.first_block(rest, full.blocks)) == 0
    # The search has it, and no such tile without stretches.
    space = phase_space.variants(form.work, target("x86-64-v3"))
    (one,) = [one for one in space if one.base.structure == form.tiling.structure]
    assert one.values(form.tiling)
    assert one.fits(form.tiling)
    assert not one.fits(variants(form.tiling, stretch=0))
    # Rows that wait in scratch have all channels.
    assert not decided("channels_first").is_uneven


def test_the_fewest_rows_of_a_tap() -> None:
    def axis(size: int, **arguments: Any) -> Axis:
        work = Workload.of(LayerConfig(4, **arguments), (1, size, size, size, 4))
        return work.plan.axes[0]

    assert _least_rows(axis(4, kernel_size=2, strides=2)) == 4
    assert _least_rows(axis(4, kernel_size=4, strides=2, padding="same")) == 3
    assert _least_rows(axis(1, kernel_size=4, strides=2, padding="same")) == 1


@pytest.mark.parametrize("name", ["x86-64-v4", "x86-64-v3"])
def test_the_rule_fills_the_first_level_cache(name: str) -> None:
    machine = target(name)

    def decided(config: LayerConfig, channels: int) -> tuple[Workload, Tiling]:
        work = Workload.of(config, (1, 4, 4, 4, channels))
        tiling = schedules.decide(work, machine, algorithm="direct")
        assert tiling.stationary
        found = phase_space.variants(work, machine)
        assert any(one.base.stationary and one.base.stretch for one in found)
        return work, tiling

    work, tiling = decided(LayerConfig(256, 4, strides=2, padding="same"), 512)
    block = tiling.stretch * tiling.vector * tiling.registers * 4
    assert machine.l1_bytes / 4 < block < machine.l1_bytes
    assert not PhaseForm(work, tiling).sums_stay
    # Blocks of channels that are not equal.
    assert decided(LayerConfig(200, 4, strides=2, padding="same"), 512)[1].stretch >= 64
    work, tiling = decided(LayerConfig(256, 2, strides=2), 512)
    assert tiling.stretch == 512
    assert PhaseForm(work, tiling).sums_stay
    # A prime number of channels has no stretch of some of them.
    assert decided(LayerConfig(256, 4, strides=2, padding="same"), 509)[1].stretch == 0


@pytest.mark.parametrize("name", ["x86-64-v4", "x86-64-v3"])
def test_the_loop_holds_its_sums_in_registers(name: str) -> None:
    for layer in ("gan_g2", "unetr_dec5"):
        loop = static.loop_of(layer, name, "direct")
        assert any("prefetch" in line for line in loop.lines)
        assert loop.products >= 12
        assert loop.stack == 0
