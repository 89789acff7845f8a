"""Random legal layers with random tilings on emulated GPU threads, against the reference.

Twice: all loops serial through LLVM, and the CUDA C itself with threads in several orders, which
must not change a bit.
"""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
from cuda_samples import TARGETS, Emulated, Serial, needs_gcc
from random_layers import check
from test_properties import Example, draw

from tvmconv.compute.cuda import lower
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.compute.workload import Workload
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules import cuda as rules
from tvmconv.schedules.cuda import definition, small

SERIAL, EMULATED, NIGHTLY = range(60), range(1000, 1020), range(2000, 2400)


def any_tiling(rng: random.Random, work: Workload) -> CudaTiling:
    """The default of the rules, or any other legal one."""
    kind = rng.random()
    default = rules.decide(work, TARGETS)
    double = work.accumulate_dtype == "float64"
    if kind < 0.2 or work.empty:
        return default
    if kind < 0.4 or work.activation.name == "glu" or 0 in work.plan.input_shape[1:]:
        by_definition = definition.decide(work, TARGETS)
        lanes = rng.choice((1, 2) if double else (1, 2, 4))
        lanes = lanes if work.activation.name != "glu" else 1
        return dataclasses.replace(by_definition, lanes=lanes, threads=rng.choice((32, 64, 256)))
    if work.input_dtype in ("float16", "bfloat16") and kind < 0.75:
        rows, columns, down, across = rng.choice(
            ((32, 32, 16, 16), (64, 32, 32, 16), (32, 64, 16, 32))
        )
        threads = 32 * (rows // down) * (columns // across)
        depth = rng.choice((16, 32))
        return CudaTiling("wmma", threads, across, down, rows, columns, depth, 2)
    if kind > 0.9:
        lanes = rng.choice((1, 2) if double else (1, 2, 4))
        voxels, warps = rng.choice((1, 2, 4)), rng.choice((1, 2, 4))
        return CudaTiling("split", 32 * warps, lanes, voxels, voxels, 32 * lanes)
    if work.plan.filters < 8 and kind < 0.8:
        return any_small(rng, work)
    while True:
        unit = 2 if double else 4
        lanes, voxels = unit * rng.choice((1, 2)), unit * rng.choice((1, 2))
        rows, columns = rng.choice((16, 32, 64, 128)), rng.choice((16, 32, 64, 128))
        depth, parts = rng.choice((4, 8, 16)), rng.choice((1, 1, 2, 4))
        threads = rows * columns // (lanes * voxels) * parts
        loads = rows * depth // unit
        whole = loads % threads == 0 or threads % loads == 0
        if 32 <= threads <= 256 and threads % 32 == 0 and whole and rows * depth % threads == 0:
            blocks = rng.choice((1, 1, 2, 3, 8)) if work.plan.batch > 0 else 1
            return CudaTiling(
                "gemm", threads, lanes, voxels, rows, columns, depth, 2, sum_blocks=blocks
            )


def any_small(rng: random.Random, work: Workload) -> CudaTiling:
    """A tiling of the form for few filters, its shared memory bounded."""
    voxels, depth = rng.choice((1, 2, 4)), rng.choice((2, 4, 8))
    tiling = small.shaped(work, voxels, depth)
    if rng.random() < 0.5:
        d, h, w = rng.choice((1, 2)), rng.choice((1, 3, 4)), rng.choice((11, 16, 32))
        threads = d * h * w
        tiling = dataclasses.replace(
            tiling, threads=threads, block_voxels=threads * voxels, width=w, height=h
        )
    while lower(work, tiling).kernels()[0].shared_bytes > 48 << 10:
        tiling = dataclasses.replace(tiling, depth=tiling.depth // 2)
    parts = rng.choice((1, 2)) if tiling.depth > 1 else 1
    return dataclasses.replace(tiling, threads=parts * tiling.threads)


def example_of(seed: int) -> tuple[Example, CudaTiling]:
    rng = random.Random(seed)
    example = draw(rng)
    return example, any_tiling(rng, example.work)


@pytest.mark.parametrize("seed", SERIAL)
def test_serial(seed: int) -> None:
    check(Serial, *example_of(seed), (0,))


@needs_gcc
@pytest.mark.parametrize("seed", EMULATED)
def test_emulated(seed: int) -> None:
    check(Emulated, *example_of(seed), (0, 1, seed))


@pytest.mark.nightly
@needs_gcc
@pytest.mark.parametrize("seed", NIGHTLY)
def test_emulated_nightly(seed: int) -> None:
    check(Emulated, *example_of(seed), (0, 1, seed))


@needs_gcc
def test_an_output_wider_than_the_sums() -> None:
    example, tiling = example_of(2032)
    assert (example.work.accumulate_dtype, example.work.output_dtype) == ("float32", "float64")
    check(Emulated, example, tiling, (0, 1))


@needs_gcc
def test_a_missing_barrier_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from tvmconv.compute.cuda.threads import Threads
    from tvmconv.config import LayerConfig

    tiling = CudaTiling("gemm", 64, 4, 4, 32, 32, 8, 2)
    monkeypatch.setattr(Threads, "barrier", lambda _self: None)
    config = LayerConfig(32, 3, padding="same")
    layer = Emulated(config, (1, 4, 4, 4, 16), tiling)
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal(config.kernel_shape(16)).astype(np.float32)
    x = rng.standard_normal((1, 4, 4, 4, 16)).astype(np.float32)
    bias = np.zeros(32, np.float32)
    expected = conv3d_transpose(config, x, kernel, bias)
    results = [layer.run(x, kernel, bias, order) for order in (0, 1, 2)]
    assert not all(np.allclose(one, expected, atol=1e-3) for one in results)


@needs_gcc
def test_a_barrier_that_some_threads_miss_is_noticed() -> None:
    import ctypes

    from cuda_samples import emulate, load

    from tvmconv.codegen.cuda.parts import CudaCode, CudaShape, Launch

    launch = Launch("k", (1, 1, 1), False, (32, 1, 1), 0, ("batch",))
    text = """extern "C" __global__ void k(int64_t batch);
    extern "C" __global__ void k(int64_t batch) { if (threadIdx.x < batch) __syncthreads(); }"""
    shape = CudaShape((1,) * 5, (1,) * 5, (launch,))
    code = CudaCode(text, b"", (), (shape,), 0, 0, 4, None, ({},), None)  # type: ignore[arg-type]
    library = load(code)
    emulate(library, "k", launch.grid, launch.block, [ctypes.c_int64(32)])
    with pytest.raises(AssertionError, match="some threads do not reach"):
        emulate(library, "k", launch.grid, launch.block, [ctypes.c_int64(7)])


@pytest.mark.parametrize(
    "tiling",
    [
        CudaTiling("split", 32, 2, 1, 1, 64),
        CudaTiling("gemm", 64, 4, 4, 32, 32, 8, 2),
        CudaTiling("definition", 64, 4),
    ],
    ids=lambda tiling: tiling.form,
)
def test_one_half_width_channel_past_whole_vectors_stays_inside(tiling: CudaTiling) -> None:
    from tvmconv.config import LayerConfig

    config = LayerConfig(17, (2, 1, 2), padding="same", use_bias=False, dtype="mixed_bfloat16")
    layer = Serial(config, (2, 4, 2, 3, 2), tiling)
    x = np.ones((2, 4, 2, 3, 2), np.float32)
    y = layer.run(x, np.ones(config.kernel_shape(2), np.float32), None)
    assert y.astype(np.float32).max() == 8
