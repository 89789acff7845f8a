"""Outputs of the Toom-Cook form that wait in scratch: channels first, unit by unit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from kernels import Kernel, target
from turns import turns

from benchmarks.assembly import hottest
from tvmconv import schedules
from tvmconv.codegen import lowering
from tvmconv.compute import lower
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.toom_cook import ToomCookForm
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import toom_cook, toom_cook_cycles


def tiled(config: LayerConfig, shape: tuple[int, ...], **changes: object) -> Tiling:
    """The rule's tiling for this processor, with other decisions."""
    found = toom_cook.require(Workload.of(config, shape), target())
    return dataclasses.replace(found, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("strides", "vector", "width"),
    turns((((1, 1, 1),), ((2, 2, 2),), ((3, 1, 2),), ((1, 3, 3),)), (4, 16), (5, 16)),
)
def test_every_unit_leaves(strides: tuple[int, int, int], vector: int, width: int) -> None:
    kernel = tuple(2 * s + (s == 1) for s in strides)
    # Whole registers and lines, and what is left of them; blocks that reach over the end.
    config = LayerConfig(
        vector + 6, kernel, strides, "same", activation="relu", data_format="channels_first"
    )
    shape, rng = (2, 9, 5, 3, width), np.random.default_rng(width)
    x, taps, bias = (
        rng.integers(-3, 4, some).astype(np.float32)
        for some in (shape, config.kernel_shape(9), (config.filters,))
    )
    # Longer tiles round.
    tiling = tiled(config, shape, vector=vector, registers=1, width=3, dots=0, outputs=(2, 2, 2))
    tiles = ToomCookForm(Workload.of(config, shape), tiling).axes[2].tiles
    tiling = dataclasses.replace(tiling, block=(2, 1, tiles))
    y = Kernel(config, shape, tiling=tiling)(x, taps, bias, rng)
    assert np.array_equal(y, conv3d_transpose(config, x, taps, bias))


@pytest.mark.parametrize(
    ("policy", "activation"), turns(("float32", "float16", "bfloat16"), ("tanh", "softmax"))
)
def test_rows_are_finished_where_they_leave(activation: str, policy: str) -> None:
    config = LayerConfig(
        19, 4, 2, "same", activation=activation, data_format="channels_first", dtype=policy
    )
    shape, rng = (1, 16, 3, 4, 10), np.random.default_rng(3)
    compute = numpy_dtype(config.compute_dtype)
    x, taps, bias = (
        (rng.standard_normal(some) / 8).astype(compute)
        for some in (shape, config.kernel_shape(16), (config.filters,))
    )
    work = Workload.of(config, shape)
    tiling = tiled(config, shape)
    assert ToomCookForm(work, tiling).waits == (activation == "tanh")
    y = Kernel(config, shape, tiling=tiling)(x, taps, bias, rng).astype(np.float64)
    expected = conv3d_transpose(config, x, taps, bias).astype(np.float64)
    rounding = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}[policy]
    assert np.abs(y - expected).max() <= rounding


@pytest.mark.parametrize(("vector", "asked"), [(16, True), (8, False)])
def test_pieces_and_rows_are_asked_for(vector: int, asked: bool) -> None:
    """Where registers hold a line there are slots to ask for what leaves after a row of tiles."""
    config = LayerConfig(2 * vector, 4, 2, "same", data_format="channels_first")
    shape = (1, 32, 4, 6, 16)
    tiling = tiled(config, shape, vector=vector, registers=2, width=4, outputs=(2, 2, 2))
    tiling = dataclasses.replace(tiling, block=(1, 2, 8), shared=0)
    script = lower(Workload.of(config, shape), tiling).kernel.script()
    found = [line for line in script.splitlines() if "T.prefetch(" in line]
    assert any("output[" in line for line in found) == asked
    # Rows of input come to the second-level cache.
    assert any("input[" in line and ", 0, 2, 1)" in line for line in found)


def test_many_pieces_leave_with_register_tiles_and_their_lines_are_asked_for_once() -> None:
    """On Zen 4. Register tiles of two widths, rows and blocks over the end, channels left over."""
    config = LayerConfig(37, (2, 1, 1), data_format="channels_first")
    shape, rng = (2, 40, 7, 9, 23), np.random.default_rng(5)
    work = Workload.of(config, shape).joined()
    x, taps, bias = (
        rng.integers(-3, 4, some).astype(np.float32)
        for some in (shape, config.kernel_shape(40), (config.filters,))
    )
    tiling = toom_cook.require(work, target())
    tiling = dataclasses.replace(
        tiling, vector=16, registers=2, width=8, outputs=(2, 1, 1), shared=0, dots=0, last=0,
        block=(2, 2, 69), stretch=8, paired=False, masked=False, compact=True,
    )  # fmt: skip
    script = lower(work, tiling).kernel.script()
    asked = [line for line in script.splitlines() if "T.prefetch(" in line and "output[" in line]
    # 2 x 5 x 5 pieces leave in 3 x 2 turns of a row of 9 register tiles, of 10 steps each: with all
    # pieces of a row each step would ask for 9 lines.
    assert 0 < len(asked) <= 4 * 2
    y = Kernel(config, shape, tiling=tiling)(x, taps, bias, rng)
    assert np.array_equal(y, conv3d_transpose(config, x, taps, bias))


@pytest.mark.parametrize(
    ("filters", "vector", "policy"),
    turns(((32, 16), (37, 16), (19, 8)), ("float32", "float16")),
)
def test_few_channels_may_leave_together(filters: int, vector: int, policy: str) -> None:
    config = LayerConfig(filters, 4, 2, "same", data_format="channels_first", dtype=policy)
    shape, rng = (1, 16, 3, 4, 37), np.random.default_rng(4)
    compute = numpy_dtype(config.compute_dtype)
    x, taps, bias = (
        (rng.standard_normal(some) / 8).astype(compute)
        for some in (shape, config.kernel_shape(16), (config.filters,))
    )
    tiling = tiled(config, shape, vector=vector, registers=1, width=4, outputs=(2, 2, 2))
    # All tiles of a row.
    tiling = dataclasses.replace(tiling, block=(1, 1, 19))
    found = [
        Kernel(config, shape, tiling=dataclasses.replace(tiling, stretch=stretch))(
            x, taps, bias, rng
        )
        for stretch in (0, 8)
    ]
    # They are moved, and nothing else.
    np.testing.assert_array_equal(found[1], found[0])
    expected = conv3d_transpose(config, x, taps, bias).astype(np.float64)
    rounding = {"float32": 1e-5, "float16": 2e-3}[policy]
    assert np.abs(found[0].astype(np.float64) - expected).max() <= rounding


def test_eight_lines_leave_together_where_a_set_holds_eight() -> None:
    """On Zen 4: and scratch that its own cache holds is chosen for the weights that it reads."""
    config = LayerConfig(32, 5, 2, "same", data_format="channels_first")
    on = dataclasses.replace(target("znver4"), l2_bytes=1 << 20, cores=2)
    work = Workload.of(config, (1, 32, 16, 16, 16))
    best = toom_cook.require(work, on)
    # Axes summed again, one or two, cost the same here.
    assert (best.stretch, best.block) == (8, (2, 1, 4))
    assert toom_cook.require(work, dataclasses.replace(on, cpu="znver5")).stretch == 0
    last = Workload.of(
        dataclasses.replace(config, data_format="channels_last"), (1, 16, 16, 16, 32)
    )
    assert toom_cook.require(last, on).stretch == 0


def test_scratch_holds_two_units() -> None:
    config = LayerConfig(64, 4, 2, "same", data_format="channels_first")
    work = Workload.of(config, (1, 64, 16, 16, 16))
    tiling = tiled(config, (1, 64, 16, 16, 16), outputs=(2, 2, 2), block=(2, 3, 8))
    form = ToomCookForm(work, tiling)
    assert form.rows_shape == (2, 4, 6, 32, 64)
    # A block has four units.
    assert 2 * np.prod(form.rows_shape[1:]) == np.prod((8, 12, 32, 64)) / 2


@pytest.mark.parametrize("machine", ["znver5", "znver3"])
def test_outputs_that_wait_want_little_scratch(machine: str) -> None:
    config = LayerConfig(64, 4, 2, "same", data_format="channels_first")
    work, on = Workload.of(config, (1, 128, 16, 16, 16)), target(machine)
    best = ToomCookForm(work, toom_cook.require(work, on))
    every = [one.tiling for one in toom_cook._candidates(work, on, None, alone=True)]
    cheapest = min(
        (ToomCookForm(work, one) for one in every), key=lambda f: toom_cook_cycles.cycles(f, on)
    )
    assert best.offsets[-1] <= cheapest.offsets[-1]
    assert toom_cook_cycles.cycles(best, on) <= 1.03 * toom_cook_cycles.cycles(cheapest, on)
    last = Workload.of(
        dataclasses.replace(config, data_format="channels_last"), (1, 16, 16, 16, 128)
    )
    whole = {one.tiling.registers for one in toom_cook._candidates(last, on, None, alone=True)}
    # Channels last, too, take half the registers where these hold a line.
    if on.vector_bits < 512 and all(registers % 2 == 0 for registers in whole):
        assert {one.registers for one in every} == whole | {r // 2 for r in whole}
    if on.vector_bits == 512:
        assert {one.registers for one in every} == whole == {2, 4}


def test_many_weights_want_large_blocks() -> None:
    """Weights beyond the core's own cache are read once a block."""
    work = Workload.of(LayerConfig(64, 4, 2, "same"), (1, 19, 19, 19, 128))
    machine = target("znver5")
    best = toom_cook.require(work, machine)
    small = dataclasses.replace(best, block=(1, 1, best.block[2]))
    big, little = (ToomCookForm(work, tiling) for tiling in (best, small))
    assert big.packed_size * 4 > 4 << 20
    assert toom_cook_cycles.cycles(little, machine) > 1.05 * toom_cook_cycles.cycles(big, machine)


@pytest.mark.parametrize("machine", ["x86-64-v2", "x86-64-v3", "x86-64-v4", "cortex-a76"])
def test_products_keep_off_the_stack(machine: str) -> None:
    config = LayerConfig(64, 4, 2, "same", data_format="channels_first")
    work, on = Workload.of(config, (1, 128, 16, 16, 16)), target(machine)
    tiling = toom_cook.require(work, on)
    code = lowering.emit({"k": schedules.apply(lower(work, tiling)).kernel}, on)
    loop = hottest(code.text("s"), on.triple)
    assert loop.products >= 4, loop.lines
    assert loop.stack == 0, loop.lines
