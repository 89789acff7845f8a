"""The default rules: legal on every target, sensible by their own model, fast in the end."""

from __future__ import annotations

import itertools
import platform
import re
from collections.abc import Iterator

import pytest
from kernels import runs_here, target
from turns import turns

from tvmconv import schedules
from tvmconv.codegen import lowering
from tvmconv.compute import legality, lower
from tvmconv.compute.frame import positions
from tvmconv.compute.phase import PhaseForm, border, needs_packing
from tvmconv.compute.tiling import Tiling, cut
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.schedules.cpu import column, dot
from tvmconv.schedules.cpu.pace import of_widest
from tvmconv.schedules.cpu.phase import register_tile, tile_cost, tile_cycles
from tvmconv.targets import CpuTarget

MACHINES = ("x86-64-v2", "x86-64-v3", "x86-64-v4", "cortex-a76", "native")
#: SSE, AVX2, AVX-512, NEON: bits of a register, and registers.
REGISTERS = {"x86-64-v2": (128, 15), "x86-64-v3": (256, 16), "x86-64-v4": (512, 32)} | {
    "cortex-a76": (128, 32)
}
#: Layers of the stereo network PSMNet, of 3D-GAN and of a 3-D U-Net.
HOT = {
    "psm_conv5": (LayerConfig(64, 3, strides=2, padding="same"), (1, 12, 16, 32, 64)),
    "gan_g4": (LayerConfig(64, 4, strides=2, padding="same"), (1, 16, 16, 16, 128)),
    "unet_up4": (LayerConfig(64, 2, strides=2), (1, 32, 32, 32, 128)),
}


def layers() -> Iterator[Workload]:
    """Layers over the whole space: kernels, strides, filters, layouts, dtypes, sizes."""
    kernels: list[tuple[int, int, dict[str, object]]] = [
        (2, 2, {}), (3, 2, {"padding": "same"}), (4, 2, {"padding": "same"}), (3, 1, {}),
        (1, 3, {}), (3, 1, {"dilation_rate": 2}), (5, 4, {"padding": "same"}),
    ]  # fmt: skip
    for (kernel, stride, more), filters, channels, first, dtype, size in itertools.product(
        kernels, (1, 3, 16, 37, 64, 256), (1, 64), (False, True), ("float32", "float64"), (1, 7, 32)
    ):
        shape = (1, channels, 4, 5, size) if first else (1, 4, 5, size, channels)
        layout = "channels_first" if first else "channels_last"
        config = LayerConfig(
            filters, kernel, strides=stride, data_format=layout, dtype=dtype, **more
        )
        yield Workload.of(config, shape)


LAYERS = list(layers())


def assert_legal(tiling: Tiling, work: Workload, machine: CpuTarget) -> None:
    size = 64 if work.accumulate_dtype == "float64" else 32
    assert 1 <= tiling.vector * size <= machine.vector_bits
    assert tiling.rows >= 1
    assert tiling.planes >= 1
    if tiling.form == "phase":
        # The sums, the weights of a step, one broadcast input.
        assert tiling.width * tiling.registers + tiling.registers + 1 <= machine.vector_registers
        folded = work.folded() if tiling.fold else work
        assert tiling.fold == (folded is not work)
        assert tiling.pack or not needs_packing(folded)
        if tiling.splits > 1:
            blocks, rest = divmod(folded.plan.filters, tiling.vector * tiling.registers)
            if rest:
                assert tiling.stretch
                assert PhaseForm(work, tiling).is_uneven
            else:
                assert blocks % tiling.splits == 0
            assert tiling.stationary or not work.plan.channels_first
            assert not work.mixed_axes
    elif tiling.form == "voxel":
        # The sums of a pass, the inputs, and a weight where it serves several of them.
        shared = tiling.width > 1
        used = tiling.registers * tiling.width + tiling.width + shared
        assert used <= machine.vector_registers
        assert tiling.splits == 1
        assert work.plan.filters < machine.vector_bits // size
    elif tiling.form == "columns":
        first = work.plan.channels_first
        # The sums; the weights of a step and an input, or the inputs and perhaps a weight.
        beside = tiling.width + (tiling.width > 1) if first else tiling.registers + 1
        if tiling.tall and tiling.width < tiling.registers:
            beside = tiling.width + 1
        assert tiling.width * tiling.registers + beside <= machine.vector_registers
        assert tiling.reduced in column.reducible(work)
        assert not first or 4 <= tiling.vector <= work.plan.axes[2].size
        assert work.plan.filters < machine.vector_bits // size
    elif tiling.form == "matrix":
        # The sums, the inputs and a weight.
        sums = tiling.registers * work.plan.axes[2].stride * tiling.width
        assert sums + tiling.width + 1 <= machine.vector_registers
        assert legality.refusal(work.joined(), tiling) is None
    elif tiling.form == "dots":
        assert tiling.width in dot.widths(work, machine.vector_registers)
        assert work.plan.in_channels % tiling.vector == 0
        assert work.plan.filters < machine.vector_bits // size
    else:
        assert tiling.form == "definition"
        assert tiling.registers + 2 <= machine.vector_registers


@pytest.mark.parametrize("name", REGISTERS)
def test_what_the_targets_have(name: str) -> None:
    machine = target(name)
    assert (machine.vector_bits, machine.vector_registers) == REGISTERS[name]


@pytest.mark.parametrize(("name", "part"), turns(MACHINES, range(3)))
def test_defaults_are_legal(name: str, part: int) -> None:
    machine = target(name)
    for work in LAYERS[part::3]:
        assert_legal(schedules.decide(work, machine), work, machine)
        exact = schedules.decide(work, machine, exact=True)
        assert_legal(exact, work, machine)
        assert exact.form in ("columns", "definition", "dots") or border(work) == (0, 0)


@pytest.mark.parametrize("name", MACHINES)
def test_defaults_do_not_depend_on_chance(name: str) -> None:
    machine = target(name)
    for work in LAYERS[:40]:
        assert schedules.decide(work, machine) == schedules.decide(work, machine)


def test_few_filters_take_lanes_of_voxels_and_many_take_lanes_of_channels() -> None:
    machine = target("x86-64-v3")

    def form(filters: int) -> str:
        config = LayerConfig(filters, 3, strides=2, padding="same")
        return schedules.decide(Workload.of(config, (1, 8, 16, 64, 16)), machine).form

    assert form(1) == "voxel"
    assert form(8) == form(64) == "phase"


def test_few_filters_after_many_channels_leave_the_input_as_it_lies() -> None:
    shape = (1, 16, 32, 32, 64)
    for machine in map(target, ("x86-64-v3", "x86-64-v4")):
        config = LayerConfig(1, 4, strides=2, padding="same")
        found = schedules.decide(Workload.of(config, shape), machine)
        # Both phases of the depth and of the height have two taps.
        assert (found.form, found.reduced) in {("columns", 1), ("columns", 2)}
        odd = LayerConfig(1, 3, strides=2, padding="same")
        assert list(column.reducible(Workload.of(odd, shape))) == [0]


def test_folding_where_kernel_and_stride_are_equal() -> None:
    for filters in (16, 64):
        work = Workload.of(LayerConfig(filters, 2, strides=2), (1, 8, 8, 8, 32))
        assert schedules.decide(work, target("x86-64-v3")).fold


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_weights_of_a_small_volume_are_read_once(layout: str) -> None:
    def chosen(config: LayerConfig, *sizes: int) -> tuple[Tiling, int]:
        first = layout == "channels_first"
        shape = (1, sizes[3], *sizes[:3]) if first else (1, *sizes)
        work = Workload.of(config, shape)
        tiling = schedules.decide(work, target("x86-64-v4"))
        return tiling, 4 * lower(work, tiling).scratch_size

    for config, channels in (
        (LayerConfig(320, 2, strides=2, data_format=layout), 320),
        (LayerConfig(256, 4, strides=2, padding="same", data_format=layout), 512),
    ):
        tiling, scratch = chosen(config, 4, 4, 4, channels)
        assert tiling.stationary
        assert tiling.splits > 1
        assert scratch < 1 << 20
    # A kernel of which a row of voxels makes enough.
    assert not chosen(LayerConfig(320, 2, strides=2, data_format=layout), 4, 4, 32, 320)[
        0
    ].stationary
    # Few channels of many rows: with channels first all of them would wait in scratch.
    many = LayerConfig(2048, 3, strides=2, padding="same", data_format=layout)
    tiling, scratch = chosen(many, 64, 64, 4, 8)
    assert tiling.stationary == (layout == "channels_last")
    assert scratch < 4 << 20


def test_rows_and_splits_leave_enough_tiles_for_the_cores() -> None:
    for name, (config, shape) in HOT.items():
        for machine in map(target, MACHINES):
            work = Workload.of(config, shape)
            tiles = lower(work, schedules.decide(work, machine)).tiles_per_sample
            assert tiles >= 2 * machine.cores, name


def test_blocks_of_rows_are_even() -> None:
    # 17 rows in blocks of 16 would leave one of a single row.
    for size, machine in itertools.product((5, 11, 13, 16, 19, 33), map(target, MACHINES)):
        config = LayerConfig(64, 4, strides=2, padding="same")
        work = Workload.of(config, (1, size, size, 16, 32))
        tiling = schedules.decide(work, machine, algorithm="direct")
        assert tiling.form == "phase"
        count = positions(work.plan.axes[1])
        blocks = -(-count // tiling.rows)
        assert blocks * tiling.rows - count < blocks


def test_shapes_of_one_layer_share_their_weights() -> None:
    config = LayerConfig(40, 3, strides=2, padding="same")
    shapes = [(1, 4, 4, 4, 8), (1, 3, 5, 31, 8), (2, 1, 1, 1, 8)]
    for filters, machine in itertools.product((1, 3, 40, 64), map(target, MACHINES)):
        layer = LayerConfig.from_keras({**config.get_config(), "filters": filters})
        works = [Workload.of(layer, shape) for shape in shapes]
        tilings = schedules.decide_all(works, machine)
        for work, tiling in zip(works, tilings, strict=True):
            assert_legal(tiling, work, machine)
        made = [lower(work, tiling) for work, tiling in zip(works, tilings, strict=True)]
        assert len({str(one.layout) for one in made}) == 1


def test_the_model_of_the_core() -> None:
    # Two multiply-adds a cycle, and never less than four cycles of latency in flight.
    assert tile_cost(4, 2) == 4
    assert tile_cost(12, 2) == 12
    assert tile_cost(1, 1) == tile_cost(2, 2) == 4
    for width, registers in itertools.product(range(1, 16), range(1, 5)):
        cost = tile_cost(width, registers)
        assert cost <= tile_cost(width + 1, registers)
        assert cost <= tile_cost(width, registers + 1)
        # A larger tile never costs more for each product.
        assert tile_cost(2 * width, registers) <= 2 * cost
        assert cost >= width * registers / 2


@pytest.mark.parametrize(("vector", "available"), [(4, 16), (8, 16), (16, 32), (4, 32)])
def test_register_tiles_fill_the_registers_and_waste_nothing(vector: int, available: int) -> None:
    for filters, count in itertools.product((vector, 3 * vector, 64, 256), (1, 7, 16, 17, 64)):
        tile = register_tile(filters, [count, count], vector, available)
        assert tile.width * tile.registers + tile.registers + 1 <= available
        assert tile.registers == 1 or (tile.registers - 1) * vector < filters
        assert tile.width <= count
    long = register_tile(64, [64, 64], vector, available)
    assert tile_cost(long.width, long.registers) == long.width * long.registers / 2
    assert register_tile(1, [0], vector, available).width == 1


def test_few_channels_first_take_columns_on_zen_3_where_rows_are_whole_registers() -> None:
    first = {"padding": "same", "data_format": "channels_first"}
    for filters, shape in ((1, (32, 24, 40, 72)), (2, (24, 64, 96, 128)), (4, (32, 30, 40, 64))):
        config = LayerConfig(filters, 3, strides=2, **first)
        for other, cpu, form in (
            (shape, "znver3", "columns"),
            ((*shape[:3], shape[3] - 2), "znver3", "voxel"),
            (shape, "haswell", "voxel"),
        ):
            work = Workload.of(config, (1, *other))
            assert schedules.decide(work, target(cpu), algorithm="direct").form == form


def test_outputs_in_memory_want_few_lines_at_once_and_whole_rows() -> None:
    for width, registers in itertools.product(range(1, 16), range(1, 5)):
        near = tile_cycles(width, registers, 64)
        assert near >= 64 * tile_cost(width, registers)
        assert tile_cycles(width, registers, 64, far=True) >= near
        assert tile_cycles(width, registers, 64, far=True, runs=width) > near
    near_tile = register_tile(64, [64], 16, 32, steps=64)
    far_tile = register_tile(64, [64], 16, 32, steps=64, far=True)
    # A row of 64 channels is written at once, a few voxels at a time.
    assert far_tile.registers == 4
    assert far_tile.width * far_tile.registers < near_tile.width * near_tile.registers
    # Long sums outweigh both.
    long = register_tile(64, [64], 16, 32, steps=1 << 20, far=True)
    assert tile_cost(long.width, long.registers) == long.width * long.registers / 2


def test_lines_of_outputs_in_memory_are_counted_in_bytes() -> None:
    # A voxel of two registers of half a line is one line and one more.
    whole = tile_cycles(12, 2, 64, far=True)
    half = tile_cycles(12, 2, 64, far=True, register_bytes=32)
    assert tile_cycles(12, 2, 64) < half < whole
    assert tile_cycles(6, 2, 64, far=True, register_bytes=32) == tile_cycles(6, 2, 64)


def test_of_tiles_with_as_many_products_the_one_with_fewer_loads_is_taken() -> None:
    # 16 registers: 4 x 3 loads 7 for 12 products, 6 x 2 loads 8, 5 x 2 7 for 10.
    three = register_tile(96, [60], 8, 16, steps=128)
    assert (three.registers, three.width) == (3, 4)
    assert register_tile(96, [60], 8, 16, steps=128, load=0.0).registers < 3
    # 64 lanes are no blocks of three registers.
    assert register_tile(64, [60], 8, 16, steps=128).registers == 2
    # Whole lines of two registers.
    assert register_tile(96, [60], 8, 16, steps=128, line=2).registers == 2
    assert register_tile(72, [60], 8, 16, steps=128, line=2).registers == 3


def test_a_register_tile_is_as_wide_as_the_tiles_of_its_rows() -> None:
    for count, available in itertools.product((1, 7, 8, 16, 32, 33), (16, 32)):
        tile = register_tile(32, [count], 8, available)
        assert tile.width == max(voxels for _, voxels in cut(count, tile.width))


def test_an_input_that_no_cache_holds_is_walked_where_it_lies() -> None:
    machine = target("x86-64-v3")
    decoder = Workload.of(LayerConfig(128, 2, strides=2), (1, 6, 6, 6, 768))
    assert machine.l2_bytes < 4 * 6**3 * 768
    assert schedules.decide(decoder, machine).stationary
    # A copy of it would be scratch, and an input that is larger than the kernel is read once.
    padded = Workload.of(LayerConfig(128, 4, strides=2, padding="same"), (1, 6, 6, 6, 768))
    many = Workload.of(LayerConfig(128, 2, strides=2), (1, 20, 20, 6, 768))
    assert not schedules.decide(padded, machine).stationary
    assert not schedules.decide(many, machine).stationary


def loops(assembly: str) -> Iterator[str]:
    """The loops of one basic block: from a label to the jump back to it."""
    for block in re.split(r"^(?=\.?LBB\w+:)", assembly, flags=re.MULTILINE):
        label = block.partition(":")[0]
        match = re.search(rf"\bj\w+\s+{re.escape(label)}\b", block)
        if match:
            yield block[: match.start()]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 assembly")
@pytest.mark.parametrize("machine", ["x86-64-v3", "x86-64-v4", "native"])
@pytest.mark.parametrize("name", HOT)
def test_hot_loops_multiply_from_registers(name: str, machine: str) -> None:
    if machine == "native" and not runs_here("x86-64-v3"):
        pytest.skip("this processor has no fused multiply-add")
    config, shape = HOT[name]
    work = Workload.of(config, shape)
    found = lower(work, schedules.decide(work, target(machine)))
    assembly = lowering.emit({"k": schedules.apply(found).kernel}, target(machine)).text("s")
    hot = [loop for loop in loops(assembly) if loop.count("vfmadd") >= 8]
    assert hot
    for loop in hot:
        assert not re.search(r"vmov\w+\s+%[xyz]mm\d+, [^,]*\(%rsp\)", loop), f"a spill:\n{loop}"
        lines = [line.strip() for line in loop.splitlines()[1:]]
        instructions = [line for line in lines if line and ":" not in line]
        share = loop.count("vfmadd") / len(instructions)
        assert share > 0.3, f"{share:.2f} of the instructions multiply:\n{loop}"
    # The sums of the largest register tile, in one loop.
    folded = work.folded() if found.tiling.fold else work
    counts = [one.count for one in folded.plan.axes[2].phases]
    widest = max(width for count in counts for _, width in cut(count, found.tiling.width))
    assert max(loop.count("vfmadd") for loop in hot) >= widest * found.tiling.registers


def test_narrow_registers_of_zen_4_take_half_the_time_of_whole_ones() -> None:
    # By measurement on Zen 4: the first of each two took 0.4 to 0.7 of the time of the second.
    work = Workload.of(LayerConfig(5, 2, strides=3), (1, 52, 52, 52, 16))
    assert schedules.decide(work, target("znver4"), algorithm="auto").form == "phase"
    assert schedules.decide(work, target("znver5"), algorithm="auto").form == "columns"
    for name, share in (("znver3", 1.0), ("znver4", 0.5), ("znver5", 1.0)):
        machine = target(name)
        assert of_widest(machine, 8, 4) == share
        assert of_widest(machine, machine.vector_bits // 32, 4) == 1.0
