"""Stores past the caches: any address of the output, forced tilings, their rule, their code."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from golden_files import Case, assert_close, cases
from kernels import Kernel, target, whole_numbers

from tvmconv import schedules
from tvmconv.codegen import lowering
from tvmconv.compute import legality, lower
from tvmconv.compute.pairs import serves
from tvmconv.compute.streaming import STREAM
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import stream
from tvmconv.schedules.space import Space

_TWO: dict[str, Any] = {"kernel_size": 2, "strides": 2}
_FIRST: dict[str, Any] = {**_TWO, "data_format": "channels_first"}
PAIRS = Tiling("pairs", 16, 1, 7, 2, stretch=100)
PAIRS_FIRST = Tiling("pairs", 16, 4, 1, 2, stretch=100)
PHASE = Tiling("phase", 16, 2, 5, 2, fold=True, pack=False)
#: Rows of which parts leave scratch, the last channels in fewer registers.
COOK = Tiling(
    "toom-cook", 16, 1, 4, 1, outputs=(1, 2, 2), block=(1, 1, 4), stretch=8, compact=True,
)  # fmt: skip
#: Layers whose register tiles fill lines.
LAYERS: dict[str, tuple[dict[str, Any], tuple[int, ...], Tiling]] = {
    "pairs": ({"filters": 24, **_TWO}, (2, 2, 3, 5, 24), PAIRS),
    "pairs, asked for": (
        {"filters": 16, **_TWO}, (1, 3, 3, 5, 31), dataclasses.replace(PAIRS, fetch=True),
    ),
    "pairs, gelu": ({"filters": 8, "activation": "gelu", **_TWO}, (1, 2, 3, 5, 24), PAIRS),
    "pairs, first": ({"filters": 6, **_FIRST}, (2, 25, 2, 3, 16), PAIRS_FIRST),
    "pairs, first, flat height": (
        {"filters": 6, "kernel_size": (2, 1, 2), "strides": (2, 1, 2),
         "data_format": "channels_first"}, (1, 25, 2, 4, 12), PAIRS_FIRST,
    ),
    "pairs, first, half": (
        {"filters": 6, "dtype": "float16", **_FIRST}, (2, 25, 2, 3, 16), PAIRS_FIRST,
    ),
    "pairs, first, brain": (
        {"filters": 6, "dtype": "mixed_bfloat16", **_FIRST}, (2, 25, 2, 3, 16), PAIRS_FIRST,
    ),
    "pairs, first, gelu": (
        {"filters": 6, "activation": "gelu", **_FIRST}, (1, 25, 2, 3, 16), PAIRS_FIRST,
    ),
    "toom-cook": (
        {"filters": 20, "kernel_size": (1, 3, 3), "strides": (1, 1, 2), "padding": "same",
         "data_format": "channels_first"}, (2, 33, 2, 3, 16), COOK,
    ),
    "toom-cook, half lines": (
        {"filters": 16, "kernel_size": (1, 3, 3), "strides": (1, 1, 2), "padding": "same",
         "data_format": "channels_first"}, (2, 9, 2, 3, 24),
        dataclasses.replace(COOK, vector=8, block=(1, 1, 12), stretch=0),
    ),
    "phase": ({"filters": 24, **_TWO}, (2, 2, 3, 7, 9), PHASE),
    "phase, half": (
        {"filters": 32, "dtype": "float16", **_TWO}, (2, 2, 3, 7, 9),
        dataclasses.replace(PHASE, pack=True),
    ),
    "phase, brain": (
        {"filters": 16, "dtype": "mixed_bfloat16", **_TWO}, (2, 2, 3, 7, 9),
        dataclasses.replace(PHASE, pack=True),
    ),
    "phase, double": (
        {"filters": 16, "dtype": "float64", **_TWO}, (1, 2, 3, 7, 9),
        dataclasses.replace(PHASE, vector=8),
    ),
    "phase, short registers": (
        {"filters": 24, **_TWO}, (1, 2, 3, 7, 9), dataclasses.replace(PHASE, vector=4, registers=4),
    ),
    "phase, two groups": (
        {"filters": 48, "kernel_size": 2, "strides": 3}, (1, 2, 2, 5, 6),
        dataclasses.replace(PHASE, fold=False),
    ),
    "phase, mostly bias": (
        {"filters": 32, "kernel_size": 1, "strides": (2, 3, 2)}, (2, 2, 2, 5, 6),
        dataclasses.replace(PHASE, fold=False, splits=1),
    ),
    "phase, some taps": (
        {"filters": 16, "kernel_size": (3, 2, 5), "strides": 2, "padding": "same"},
        (1, 3, 3, 6, 5), dataclasses.replace(PHASE, fold=False, pack=True),
    ),
    "phase, edges": (
        {"filters": 16, "kernel_size": 5, "strides": 1, "padding": "same"}, (1, 2, 3, 5, 4),
        dataclasses.replace(PHASE, fold=False, pack=True),
    ),
}  # fmt: skip


def _is_split(case: Case) -> bool:
    work = Workload.of(case.config, case.x.shape)
    return not work.empty and all(axis.kernel <= axis.stride for axis in work.plan.axes)


def streamed(name: str) -> tuple[LayerConfig, tuple[int, ...], Tiling]:
    arguments, shape, tiling = LAYERS[name]
    return LayerConfig(**arguments), shape, dataclasses.replace(tiling, stream=True)


def numbers(config: LayerConfig, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Whole ones, and the output; of an activation with other values, what it rounds to."""
    x, kernel, bias = whole_numbers(config, shape, np.random.default_rng(5))
    return x, kernel, bias, conv3d_transpose(config, x, kernel, bias)


def same(config: LayerConfig, y: np.ndarray, expected: np.ndarray) -> None:
    if config.activation.name == "linear":
        np.testing.assert_array_equal(y.astype(np.float64), expected)
    else:
        np.testing.assert_allclose(y.astype(np.float64), expected, atol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_an_output_may_begin_anywhere(name: str) -> None:
    config, shape, tiling = streamed(name)
    made = Kernel(config, shape, tiling=tiling)
    assert stream.serves(made.work.joined(), tiling)
    x, kernel, bias, expected = numbers(config, shape)
    packed = made.lowered.pack(kernel, bias)
    begins = made.run(x, packed, begin=0)
    same(config, begins, expected)
    for begin in range(begins.itemsize, 64, begins.itemsize):
        assert made.run(x, packed, begin=begin).tobytes() == begins.tobytes()


@pytest.mark.parametrize("name", LAYERS)
def test_tasks_may_be_cut_anywhere(name: str) -> None:
    config, shape, tiling = streamed(name)
    x, kernel, bias, _ = numbers(config, shape)
    made = Kernel(config, shape, tiling=tiling)(x, kernel, bias, np.random.default_rng(1), begin=0)
    plain = Kernel(config, shape, tiling=LAYERS[name][2])(x, kernel, bias)
    assert plain.tobytes() == made.tobytes()


@pytest.mark.parametrize("case", [one for one in cases() if _is_split(one)], ids=str)
def test_golden_cases_of_kernel_and_stride_alike(case: Case) -> None:
    work = Workload.of(case.config, case.x.shape)
    found = [dataclasses.replace(schedules.decide(work, target()), stream=True)]
    if serves(work.joined()):
        wide = Tiling("pairs", 16, 4 if work.plan.channels_first else 1, 5, 2, stretch=9)
        legal = legality.refusal(work.joined(), wide) is None
        assert legal or math.prod(axis.size for axis in work.plan.axes) < wide.vector
        found += [dataclasses.replace(wide, stream=True)] if legal else []
    for tiling in found:
        made = Kernel(case.config, case.x.shape, tiling=tiling)
        for begin in (0, 16):
            y = made(case.x, case.arrays["kernel"], case.bias, np.random.default_rng(1), begin)
            assert_close(y, case)


#: What no register tile fills lines of.
OTHERS: dict[str, tuple[dict[str, Any], tuple[int, ...], Tiling]] = {
    "pairs, half": ({"filters": 16, "dtype": "float16", **_TWO}, (1, 2, 3, 5, 24), PAIRS),
    "pairs, 10 filters": ({"filters": 10, **_TWO}, (1, 2, 3, 5, 24), PAIRS),
    "pairs, short registers": (
        {"filters": 16, **_TWO}, (1, 2, 3, 5, 24), dataclasses.replace(PAIRS, vector=4, width=4),
    ),
    "pairs, first, parts of rows": ({"filters": 6, **_FIRST}, (2, 25, 2, 3, 15), PAIRS_FIRST),
    "toom-cook, parts of lines": (
        {"filters": 16, "kernel_size": (1, 3, 3), "strides": (1, 1, 2), "padding": "same",
         "data_format": "channels_first"}, (1, 9, 2, 3, 16),
        dataclasses.replace(COOK, width=3, block=(1, 1, 3)),
    ),
    "phase, 10 filters": ({"filters": 10, **_TWO}, (2, 2, 3, 7, 9), PHASE),
    "phase, first": (
        {"filters": 16, **_FIRST}, (1, 9, 2, 3, 16), dataclasses.replace(PHASE, fold=False),
    ),
    "phase, mixing": (
        {"filters": 16, "activation": "softmax", **_TWO}, (1, 2, 3, 7, 9),
        dataclasses.replace(PHASE, fold=False),
    ),
    "phase, long activation": ({"filters": 16, "activation": "gelu", **_TWO}, (1, 2, 3, 7, 9),
        PHASE),
    "phase, stationary": (
        {"filters": 32, **_TWO}, (1, 2, 3, 7, 9), dataclasses.replace(PHASE, stationary=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_stored_as_before(name: str) -> None:
    arguments, shape, tiling = OTHERS[name]
    work = Workload.of(LayerConfig(**arguments), shape).joined()
    assert not stream.serves(work, tiling)
    kernels = [lower(work, dataclasses.replace(tiling, stream=on)).kernel for on in (False, True)]
    assert not calls(kernels[1])
    assert str(kernels[0]) == str(kernels[1])


def calls(kernel: Any) -> bool:
    """Whether a kernel stores past the caches."""
    return STREAM in str(kernel)


def test_the_code_stores_whole_lines_past_the_caches() -> None:
    for name, cpu, registers in (
        ("pairs", "znver4", "zmm"), ("pairs, first", "znver4", "zmm"), ("phase", "znver4", "zmm"),
        ("phase, short registers", "haswell", "xmm"),
    ):  # fmt: skip
        config, shape, tiling = streamed(name)
        work = Workload.of(config, shape)
        lines = assembly(work, tiling, cpu)
        stores = [line for line in lines if "movnt" in line]
        assert stores
        assert all(f"%{registers}" in line for line in stores)
        assert any("sfence" in line for line in lines)
        assert not any("movnt" in line for line in assembly(work, LAYERS[name][2], cpu))


def assembly(work: Workload, tiling: Tiling, cpu: str) -> list[str]:
    """The instructions of a kernel."""
    kernel = schedules.apply(lower(work, tiling)).kernel
    return lowering.emit({"k": kernel}, target(cpu)).text("s").splitlines()


def on(name: str, size: int = 32 << 20) -> Any:
    return dataclasses.replace(target(name), cores=2, last_level_bytes=size)


def chosen(config: LayerConfig, shape: tuple[int, ...], machine: Any) -> Tiling:
    return schedules.decide(Workload.of(config, shape), machine, algorithm="auto")


@pytest.mark.parametrize("form", ["pairs", "phase"])
def test_the_rule_takes_outputs_that_are_larger_than_the_last_cache(form: str) -> None:
    channels = 64 if form == "pairs" else 8
    config, shape = LayerConfig(32, 2, strides=2), (1, 32, 32, 32, channels)
    size = 64**3 * 32 * 4
    for cache, streams in ((size - 1, True), (size, False)):
        tiling = chosen(config, shape, on("znver4", cache))
        assert (tiling.form, tiling.stream) == (form, streams)
    batch = chosen(config, (2, *shape[1:]), on("znver4", size))
    assert batch.stream
    assert not chosen(LayerConfig(30, 2, strides=2), (1, 40, 40, 40, channels), on("znver4")).stream


@pytest.mark.parametrize("cpu", ["znver3", "znver4"])
def test_rows_of_channels_first_leave_past_the_caches_on_zen(cpu: str) -> None:
    first = {"padding": "same", "data_format": "channels_first"}
    config, shape = LayerConfig(32, 3, strides=2, **first), (1, 64, 8, 8, 32)
    size = 16 * 16 * 64 * 32 * 4
    for cache, streams in ((size - 1, True), (size, False)):
        tiling = chosen(config, shape, on(cpu, cache))
        assert (tiling.form, tiling.stream) == ("toom-cook", streams)
    tiling = chosen(config, shape, on("sapphirerapids", 1 << 10))
    assert (tiling.form, tiling.stream) == ("toom-cook", False)
    # Rows of voxels that fill no lines.
    assert not chosen(config, (*shape[:4], 31), on(cpu, 1 << 10)).stream


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kernel", [1, 2])
def test_registers_of_half_width_are_not_lines(dtype: str, kernel: int) -> None:
    shape = (1, 64, 64, 64, 64)
    assert chosen(LayerConfig(64, kernel, strides=2), shape, on("znver4")).stream
    assert not chosen(LayerConfig(64, kernel, strides=2, dtype=dtype), shape, on("znver4")).stream


def test_only_where_it_was_measured_or_stores_are_the_time() -> None:
    shape = (1, 48, 48, 48, 32)
    for name in ("haswell", "sapphirerapids", "cortex-a76", "riscv64-rvv"):
        assert not chosen(LayerConfig(32, 2, strides=2), shape, on(name)).stream
        mostly_bias = chosen(LayerConfig(32, 1, strides=2), shape, on(name)).stream
        assert mostly_bias == (target(name).architecture == "x86_64")
    # Half of the outputs have an input; two of three.
    for kernel, strides, streams in (
        (1, (1, 1, 2), True), ((2, 1, 1), (3, 1, 1), False), ((2, 1, 1), (3, 2, 1), True),
    ):  # fmt: skip
        config = LayerConfig(64, kernel, strides=strides)
        tiling = chosen(config, shape, on("haswell", 1 << 20))
        assert (tiling.form, tiling.stream) == ("phase", streams)


def test_registers_of_half_a_line_fill_lines_in_pairs_on_zen_3() -> None:
    shape = (1, 64, 64, 64, 64)
    tiling = chosen(LayerConfig(32, 2, strides=2), shape, on("znver3"))
    assert (tiling.vector, tiling.registers % 2, tiling.stream) == (8, 0, True)
    # The caches hold it, or filters are no lines: the tile of the products.
    for filters, cache in ((32, 1 << 30), (36, 1 << 20)):
        tiling = chosen(LayerConfig(filters, 2, strides=2), shape, on("znver3", cache))
        assert (tiling.registers, tiling.stream) == (3, False)


def test_tuning_may_change_it() -> None:
    for channels, form in ((64, "pairs"), (8, "phase")):
        work = Workload.of(LayerConfig(32, 2, strides=2), (1, 32, 32, 32, channels)).joined()
        machine = on("znver4")
        space = Space.of(work, machine)
        default = space.default
        assert isinstance(default, Tiling) and default.form == form
        for other in (default, dataclasses.replace(default, stream=not default.stream)):
            assert space.find(other) is not None


@pytest.mark.parametrize("name", ["cortex-a76", "riscv64-rvv", "armv7-neon", "wasm32-simd"])
def test_other_architectures_have_code_for_a_forced_tiling(name: str) -> None:
    config, shape, tiling = streamed("phase, short registers")
    assert assembly(Workload.of(config, shape), tiling, name)
