"""Kernels on tensor cores by mma.sync: golden cases, random layers, and what must be noticed.

TF32 is compared with the reference of rounded inputs and weights, so that nothing else is forgiven.
"""

from __future__ import annotations

import ctypes
import random
from typing import Any

import numpy as np
import pytest
from cuda_samples import Emulated, Serial, emulate, load, needs_gcc
from golden_files import Case, cases
from kernels import target
from random_layers import check
from test_properties import Example, draw

from tvmconv.codegen import lowering
from tvmconv.codegen.cuda.parts import CudaCode, CudaShape, Launch
from tvmconv.compute.cuda import lower
from tvmconv.compute.cuda.mma import CudaMma
from tvmconv.compute.cuda.pipeline import Pipeline
from tvmconv.compute.cuda.threads import Threads
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.compute.element import round_tf32
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.cuda_devices import architectures
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules import cuda
from tvmconv.schedules.cuda import gemm, mma

DTYPES = ("float16", "bfloat16", "float32")
SERIAL, EMULATED, NIGHTLY = range(16), range(100, 108), range(1000, 1300)
TARGETS = architectures(("sm_80", "sm_90"))


def served(work: Workload) -> bool:
    return work.input_dtype in DTYPES and gemm.serves(work, exact=False)


def any_tiling(rng: random.Random, work: Workload) -> CudaTiling:
    """A legal tiling: of the rule's, or of any other sizes."""
    depth = lower(work, CudaTiling("mma", 32, 32, 16, 16, 32)).operands.depth  # type: ignore[attr-defined]
    while True:
        warp = rng.choice((16, 16, 32)), rng.choice((32, 32, 64))
        down, across = rng.choice((1, 2, 4)), rng.choice((1, 2))
        parts = rng.choice((1, 1, 2, 4))
        rows = parts * rng.choice((1, 1, 2))
        threads, stages = 32 * down * across * parts, rng.choice((2, 3, 4))
        tiling = CudaTiling(
            "mma", threads, warp[1], warp[0], warp[0] * down, warp[1] * across, rows * depth, stages
        )
        chunks = tiling.block_voxels * 4
        whole = chunks % threads == 0 or chunks < threads
        if whole and threads <= 256 and CudaMma(work, tiling).shared_bytes < 160 << 10:
            return tiling


def rounded(work: Workload, arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    """What the products are of."""
    x, kernel, bias = arrays
    if work.input_dtype == "float32":
        x, kernel = round_tf32(x), round_tf32(kernel.astype(np.float32)).astype(kernel.dtype)
    return x, kernel, bias


def drawn(seed: int) -> tuple[Example, CudaTiling]:
    rng = random.Random(seed)
    while True:
        example = draw(rng)
        if served(example.work):
            return example, any_tiling(rng, example.work)


@pytest.mark.parametrize("seed", SERIAL)
def test_serial(seed: int) -> None:
    check(Serial, *drawn(seed), (0,), rounded)


@needs_gcc
@pytest.mark.parametrize("seed", EMULATED)
def test_emulated(seed: int) -> None:
    check(Emulated, *drawn(seed), (0, 1, seed), rounded)


@pytest.mark.nightly
@needs_gcc
@pytest.mark.parametrize("seed", NIGHTLY)
def test_emulated_nightly(seed: int) -> None:
    check(Emulated, *drawn(seed), (0, 1, seed), rounded)


def golden() -> list[Any]:
    """Cases that the form serves; one in twelve, the rest at night."""
    found = [
        case
        for case in cases()
        if served(Workload.of(case.config, case.x.shape))
        and all(np.isfinite(one.astype(np.float32)).all() for one in (case.x, *case.weights))
    ]
    return [
        case if number % 12 == 0 else pytest.param(case, marks=pytest.mark.nightly)
        for number, case in enumerate(found)
    ]


@pytest.mark.parametrize("case", golden(), ids=str)
def test_golden(case: Case) -> None:
    work = Workload.of(case.config, case.x.shape)
    tiling = any_tiling(random.Random(case.id), work)
    kernel, *bias = case.weights
    arrays = (case.x, kernel, bias[0] if bias else None)
    y = Serial(case.config, case.x.shape, tiling).run(*arrays)
    with np.errstate(over="ignore"):  # in float32 some results of float64 are infinite
        expected = conv3d_transpose(case.config, *rounded(work, arrays)).astype(y.dtype)
    tolerance = {"float16": 8e-3, "bfloat16": 6e-2, "float32": 1e-4}[work.input_dtype]
    found, expected = y.astype(np.float64), expected.astype(np.float64)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def layer_and_data(dtype: str = "float16") -> tuple[Emulated, tuple[Any, ...], np.ndarray]:
    config = LayerConfig(32, 3, padding="same", dtype=dtype)
    shape = (1, 4, 4, 4, 64)
    depth = 16 if dtype == "float32" else 32
    layer = Emulated(config, shape, CudaTiling("mma", 64, 32, 16, 32, 32, depth, 3))
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    kernel = (rng.standard_normal(config.kernel_shape(64)) / 40).astype(np.float32)
    return layer, (x, kernel, np.zeros(32, np.float32)), conv3d_transpose(config, x, kernel, None)


def wrong(layer: Emulated, arrays: tuple[Any, ...], expected: np.ndarray) -> bool:
    results = [layer.run(*arrays, order).astype(np.float64) for order in (0, 1, 2)]
    return not all(np.allclose(one, expected, atol=2e-2) for one in results)


@needs_gcc
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_wait_and_no_barrier_are_noticed(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not wrong(*layer_and_data(dtype))
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "wait", lambda _self: None)
        assert wrong(*layer_and_data(dtype))
    with monkeypatch.context() as patch:
        patch.setattr(Threads, "barrier", lambda _self: None)
        assert wrong(*layer_and_data(dtype))


@needs_gcc
def test_a_warp_that_is_not_whole_is_noticed() -> None:
    launch = Launch("k", (1, 1, 1), False, (32, 1, 1), 0, ("batch",))
    text = """extern "C" __global__ void k(int64_t batch);
    extern "C" __global__ void k(int64_t batch) {
      float sums[4] = {0}; unsigned left[8] = {0}, right[4] = {0};
      if (threadIdx.x < batch) tensor_multiply_float16<1, 1>(sums, left, right);
    }"""
    shape = CudaShape((1,) * 5, (1,) * 5, (launch,))
    code = CudaCode(text, b"", (), (shape,), 0, 0, 4, None, ({},), None)  # type: ignore[arg-type]
    library = load(code)
    emulate(library, "k", launch.grid, launch.block, [ctypes.c_int64(32)])
    with pytest.raises(AssertionError, match="some threads do not reach"):
        emulate(library, "k", launch.grid, launch.block, [ctypes.c_int64(31)])


@pytest.mark.parametrize("dtype", [*DTYPES, "mixed_bfloat16"])
@pytest.mark.parametrize("strides", [2, 1])
def test_the_library_packs_as_numpy_does(dtype: str, strides: int) -> None:
    config = LayerConfig(37, (2, 3, 2), strides=strides, dtype=dtype)
    work = Workload.of(config, (1, 3, 3, 3, 21))
    form = lower(work, CudaTiling("mma", 32, 32, 16, 16, 32, 32, 3))
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal(config.kernel_shape(21)).astype(config.variable_dtype)
    bias = rng.standard_normal(37).astype(config.variable_dtype)
    expected = form.pack(kernel, bias)
    total, offset, _ = form.packed_sizes
    assert len(expected) == total
    code = lowering.emit({"p": form.packer()}, target())
    found = np.zeros(total, np.uint8)
    packed(code, kernel, bias, found, offset)
    assert found.tobytes() == expected


def packed(code: Any, kernel: Any, bias: Any, found: np.ndarray, offset: int) -> None:
    import tempfile
    from pathlib import Path

    from tvmconv.codegen import toolchain

    with tempfile.TemporaryDirectory(prefix="cuda-pack-") as folder:
        Path(folder, "p.o").write_bytes(code.object_code())
        toolchain.find().run(["-shared", "-o", "p.so", "p.o", "-lm"], Path(folder))
        library = ctypes.CDLL(str(Path(folder, "p.so")))
    address = found.ctypes.data
    library.p(
        *(ctypes.c_void_p(a) for a in (kernel.ctypes.data, bias.ctypes.data)),
        ctypes.c_void_p(address), ctypes.c_void_p(address + offset),
    )  # fmt: skip


def test_rounding_to_tf32() -> None:
    ulp = 2.0**-10
    values = np.array([1, 1 + ulp / 2, 1 + ulp / 2.1, -1 - 1.5 * ulp, 0, np.inf, -np.inf])
    expected = [1, 1 + ulp, 1, -1 - 2 * ulp, 0, np.inf, -np.inf]
    assert round_tf32(values.astype(np.float32)).tolist() == expected
    nan = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)
    assert np.isnan(round_tf32(nan)).all()
    assert (round_tf32(np.float32([1.2345])).view(np.uint32) & 0x1FFF == 0).all()


@pytest.mark.parametrize("channels", [8, 16, 20, 64, 320])
@pytest.mark.parametrize("filters", [8, 16, 33, 128])
def test_the_rule(channels: int, filters: int) -> None:
    config = LayerConfig(filters, 3, strides=2, padding="same", dtype="float16")
    work = Workload.of(config, (1, 8, 8, 8, channels))
    found = mma.decide(work, TARGETS)
    assert (found is None) == (channels < 16 or filters < 16)
    assert mma.decide(work, architectures(("sm_75", "sm_80"))) is None
    assert mma.decide(work, TARGETS, exact=True) is None
    if found is not None:
        form = CudaMma(work, found)
        assert mma.fits(form, TARGETS)
        assert form.kernels()[0].grid[1] * found.block_channels >= work.folded().plan.filters


@pytest.mark.parametrize("older", [False, True], ids=["mma", "wmma"])
def test_a_tiny_shape_does_not_take_the_tensor_cores_from_a_large_one(older: bool) -> None:
    config = LayerConfig(64, 4, strides=2, padding="same", dtype="float16")
    targets = architectures(("sm_75",)) if older else TARGETS
    works = [Workload.of(config, (1, *size, 128)) for size in ((1, 1, 1), (16, 17, 18))]
    alone = [cuda.decide(work, targets).form for work in works]
    assert alone == ["split", "wmma" if older else "mma"]
    tilings = cuda.decide_all(works, targets)
    assert {tiling.form for tiling in tilings} == {alone[1]}
    # Where the large one's weights are not finite, both do without.
    exact = cuda.decide_all(works, targets, exact=True)
    assert {tiling.form for tiling in exact} == {"definition"}


def test_a_tiny_shape_does_not_take_the_matrix_product_from_a_large_one() -> None:
    config = LayerConfig(3, 4, strides=4, padding="same")
    works = [Workload.of(config, (1, *size, 16)) for size in ((1, 1, 1), (16, 17, 18))]
    assert [cuda.decide(work, TARGETS).form for work in works] == ["definition", "gemm"]
    tilings = cuda.decide_all(works, TARGETS)
    assert {tiling.form for tiling in tilings} == {"gemm"}
    assert len({lower(w, t).layout for w, t in zip(works, tilings, strict=True)}) == 1
