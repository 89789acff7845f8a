"""Two bfloat16 channels as one of 32 bits: products, weights, and which layers take them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from kernels import Kernel, runs_here, target

from tvmconv import compute, schedules
from tvmconv.compute.phase import PhaseForm, computed
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu.coupled import coupled_tiling
from tvmconv.schedules.cpu.phase_halves import halved
from tvmconv.schedules.several import decide_several
from tvmconv.schedules.space import Space

BFLOAT16 = numpy_dtype("bfloat16")
SAME: dict[str, Any] = {"padding": "same", "dtype": "bfloat16"}
#: Layers, and their input channels.
LAYERS: dict[str, tuple[LayerConfig, int]] = {
    "kernel = stride": (LayerConfig(20, (2, 1, 3), (2, 1, 3), **SAME, activation="relu"), 6),
    "one tap": (LayerConfig(33, 1, dtype="mixed_bfloat16"), 18),
    "uneven taps": (LayerConfig(17, (3, 2, 4), (2, 1, 3), **SAME), 4),
    "valid": (LayerConfig(12, (3, 2, 4), (1, 2, 2), dtype="mixed_bfloat16"), 10),
    "dilated": (LayerConfig(9, (2, 2, 3), dilation_rate=(2, 1, 3), dtype="bfloat16"), 6),
    "outputs without an input": (LayerConfig(8, (1, 2, 3), 4, output_padding=1, **SAME), 8),
    "no bias": (LayerConfig(24, 3, use_bias=False, **SAME), 14),
    "a softmax": (LayerConfig(8, (1, 2, 3), activation="softmax", **SAME), 4),
}
SIZES = (3, 4, 7)
#: With the instruction, which few processors have, and with the formula in its place.
CASES = [*((name, "znver4") for name in LAYERS), ("one tap", "x86-64-v3"),
         ("uneven taps", "x86-64-v3"), ("kernel = stride", "x86-64-v2")]  # fmt: skip


def work_of(name: str) -> Workload:
    """The workload of a layer."""
    config, channels = LAYERS[name]
    return Workload.of(config, (1, *SIZES, channels)).joined()


def tilings(work: Workload) -> dict[str, Tiling]:
    """Coupled tilings: the rule's, in half registers, copied, of weights that stay."""
    base = coupled_tiling(work, target("znver4"))
    assert base is not None and base.coupled and not base.stationary
    found = {
        "the rule's": base,
        "in halves": halved(work, target("znver4"), base),
        "copied": dataclasses.replace(
            base, pack=True, vector=4, registers=1, width=3, channels_outer=False, splits=1
        ),
    }
    if not work.mixed_axes:
        found["stationary"] = dataclasses.replace(
            base, stationary=True, splits=1, rows=1, stretch=work.plan.in_channels // 2
        )
    return found


@pytest.mark.parametrize(("name", "machine"), CASES)
def test_they_compute_the_layer(name: str, machine: str) -> None:
    if not runs_here(machine):
        pytest.skip(f"this processor does not run code for {machine}")
    config, channels = LAYERS[name]
    shape = (1, *SIZES, channels)
    rng = np.random.default_rng(channels)
    kernel_shape, *bias_shape = config.weight_shapes(channels)
    stored = numpy_dtype(config.variable_dtype)
    # Whole numbers, whose products and sums are exact in any order.
    x = rng.integers(-9, 9, shape).astype(BFLOAT16)
    kernel = rng.integers(-9, 9, kernel_shape).astype(stored)
    bias = rng.integers(-9, 9, bias_shape[0]).astype(stored) if bias_shape else None
    expected = conv3d_transpose(config, x, kernel, bias).astype(BFLOAT16)
    for kind, tiling in tilings(work_of(name)).items():
        y = Kernel(config, shape, tiling=tiling, machine=machine)(x, kernel, bias, rng)
        assert y.dtype == BFLOAT16
        # A softmax may differ in the last bit.
        error = 2.0**-7 if config.activation.name == "softmax" else 0.0
        found, wanted = y.astype(np.float32), expected.astype(np.float32)
        np.testing.assert_allclose(found, wanted, rtol=error, atol=error / 4, err_msg=kind)


@pytest.mark.parametrize("machine", ["x86-64-v3", "znver4"])
def test_what_is_not_finite_stays_where_it_belongs(machine: str) -> None:
    if not runs_here(machine):
        pytest.skip(f"this processor does not run code for {machine}")
    config, channels = LAYERS["uneven taps"]
    shape = (1, *SIZES, channels)
    rng = np.random.default_rng(3)
    kernel_shape, bias_shape = config.weight_shapes(channels)
    x = rng.integers(1, 9, shape).astype(BFLOAT16)
    x.ravel()[[0, 57, 200]] = np.inf, np.nan, -np.inf
    kernel = rng.integers(1, 9, kernel_shape).astype(BFLOAT16)
    bias = rng.integers(1, 9, bias_shape).astype(BFLOAT16)
    expected = conv3d_transpose(config, x, kernel, bias).astype(BFLOAT16).astype(np.float32)
    assert {np.isnan(expected).any(), np.isposinf(expected).any()} == {True}
    for tiling in tilings(work_of("uneven taps")).values():
        y = Kernel(config, shape, tiling=tiling, machine=machine)(x, kernel, bias, rng)
        np.testing.assert_array_equal(y.astype(np.float32), expected)


def test_subnormal_numbers_may_count_as_zeros() -> None:
    config, channels = LAYERS["one tap"]
    shape = (1, *SIZES, channels)
    kernel_shape, bias_shape = config.weight_shapes(channels)
    x = np.full(shape, 2.0**-130, BFLOAT16)
    tiling = tilings(work_of("one tap"))["the rule's"]
    y = Kernel(config, shape, tiling=tiling)(
        x, np.ones(kernel_shape, np.float32), np.zeros(bias_shape, np.float32)
    )
    assert np.all(np.abs(y.astype(np.float64)) <= channels * 2.0**-130)


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16"])
@pytest.mark.parametrize("filters", [16, 21])
def test_weights_are_packed_bit_for_bit_by_both_packers(dtype: str, filters: int) -> None:
    config = LayerConfig(filters, (3, 2, 2), (2, 1, 2), dtype=dtype)
    work = Workload.of(config, (1, *SIZES, 6))
    rng = np.random.default_rng(filters)
    kernel_shape, bias_shape = config.weight_shapes(6)
    stored = numpy_dtype(config.variable_dtype)
    kernel = rng.standard_normal(kernel_shape).astype(stored)
    kernel.ravel()[:3] = np.inf, np.nan, -0.0
    bias = rng.standard_normal(bias_shape).astype(stored)
    for fold in (False, True):
        tiling = Tiling("phase", 16, 1, 4, 1, fold=fold, coupled=True)
        made = Kernel(config, (1, *SIZES, 6), tiling=tiling)
        form = PhaseForm(work, tiling)
        packed = form.pack(kernel, bias)
        assert made.packed(kernel, bias).tobytes() == packed.tobytes()
        # Half the numbers of float32's weights.
        whole = PhaseForm(work, dataclasses.replace(tiling, coupled=False)).pack(kernel, bias)
        last = form.groups[-1]
        lanes = last.lane_offset + last.blocks * last.lanes
        assert 2 * (packed.size - lanes) == whole.size - lanes


@pytest.mark.parametrize("algorithm", ["auto", "direct"])
@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16"])
def test_which_layers_are_coupled(dtype: str, algorithm: str) -> None:
    def chosen(channels: int = 128, name: str = "znver4", filters: int = 64, **more: Any) -> Tiling:
        config = LayerConfig(filters, 2, 2, **{"dtype": dtype, **more})
        first = config.data_format == "channels_first"
        shape = (1, channels, 16, 16, 16) if first else (1, 16, 16, 16, channels)
        return schedules.decide(Workload.of(config, shape), target(name), algorithm=algorithm)

    assert chosen().coupled and chosen().form == "phase"
    assert not chosen(127).coupled
    assert not chosen(data_format="channels_first").coupled
    assert not chosen(dtype="float16").coupled and not chosen(dtype="float32").coupled
    assert chosen(filters=1).form == "dots"
    for name in ("sapphirerapids", "znver3", "x86-64-v4"):
        assert not chosen(name=name).coupled


def test_toom_cook_is_taken_where_it_saves_more() -> None:
    config = LayerConfig(256, 4, 2, "same", dtype="bfloat16")
    work = Workload.of(config, (1, 16, 16, 16, 512))
    assert schedules.decide(work, target("znver4"), algorithm="auto").form == "toom-cook"
    assert schedules.decide(work, target("znver4")).coupled


def test_weights_that_processors_share_are_not_coupled() -> None:
    work = work_of("one tap")
    machines = [target("x86-64-v3"), target("znver4")]
    rows = decide_several([work], machines)
    assert [tiling.coupled for row in rows for tiling in row] == [False, False]
    layouts = {compute.layout(work, row[0]) for row in rows}
    assert len(layouts) == 1
    assert decide_several([work], machines[1:])[0][0].coupled


def test_processors_that_share_weights_take_toom_cook_where_one_would_couple() -> None:
    work = Workload.of(LayerConfig(64, 3, 2, "same", dtype="bfloat16"), (1, 12, 12, 12, 64))
    machines = [target("znver4"), target("haswell")]
    assert schedules.decide(work, machines[0], algorithm="auto").coupled
    rows = decide_several([work], machines, algorithm="auto")
    assert [row[0].form for row in rows] == ["toom-cook", "toom-cook"]


def test_shapes_of_a_layer_share_coupled_weights() -> None:
    config = LayerConfig(96, 3, 2, "same", dtype="bfloat16")
    works = [Workload.of(config, (1, *size, 48)) for size in ((3, 4, 5), (20, 24, 28), (1, 1, 1))]
    found = schedules.decide_all(works, target("znver4"))
    assert {tiling.coupled for tiling in found} == {True}
    pairs = zip(works, found, strict=True)
    assert len({compute.layout(work.joined(), tiling) for work, tiling in pairs}) == 1


def test_tuning_may_take_them_or_not() -> None:
    work = work_of("valid")
    space = Space.of(work, target("znver4"))
    kinds = {variant.base.coupled for variant in space.variants if variant.base.form == "phase"}
    assert kinds == {False, True}
    assert any(variant.values(space.default) is not None for variant in space.variants)
    elsewhere = Space.of(work, target("haswell"))
    assert not any(variant.base.coupled for variant in elsewhere.variants)


def test_the_kernel_is_made_of_the_instruction() -> None:
    work = work_of("one tap")
    tiling = tilings(work)["the rule's"]
    inner = computed(work, tiling)
    assert inner.plan.in_channels == work.plan.in_channels // 2 and inner.coupled
    for name, there in (("znver4", True), ("x86-64-v3", False)):
        text = assembly(work, tiling, name)
        assert ("vdpbf16ps" in text) is there


def assembly(work: Workload, tiling: Tiling, name: str) -> str:
    """The kernel's code for a processor."""
    from tvmconv.codegen import lowering

    scheduled = schedules.apply(compute.lower(work, tiling))
    return lowering.emit({"kernel": scheduled.kernel}, target(name), 2).text("s")
