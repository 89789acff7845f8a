"""The Toom-Cook form for CUDA devices: numbers, errors, where NaN goes, machine code, the rule."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import json
import math
import random
import re
from typing import Any

import numpy as np
import pytest
from cook_layers import FLOOR
from cuda_samples import DEFINITION, TARGETS, Emulated, Serial, needs_gcc, needs_nvcc
from golden_files import Case, assert_close, cases
from kernels import target
from random_layers import output
from test_toom_cook import any_layer, data, error, layer
from turns import few

from tvmconv.codegen import lowering
from tvmconv.codegen.cuda import build, disassembly, nvcc
from tvmconv.compute.cuda import lower, weights_nonfinite
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.compute.cuda.toom_cook import CudaToomCook
from tvmconv.compute.transforms import outputs_of
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.cuda_devices import architectures
from tvmconv.errors import BuildError, ConfigError
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules import cuda as rules
from tvmconv.schedules.cuda import toom_cook

NEWER = architectures(("sm_80", "sm_90"))
SERIAL, EMULATED, NIGHTLY = range(10), range(100, 104), range(1000, 1200)


def tiling_of(
    work: Workload,
    outputs: tuple[int, int, int],
    columns: tuple[int, int, int],
    width: int = 16,
    depth: int = 4,
    side: tuple[int, int] = (8, 8),
    copied: int = 1,
) -> CudaTiling:
    voxels, lanes = side
    cut = CudaTiling(
        "toom-cook", 1, lanes, voxels, 1, width, depth, 2, outputs=outputs, columns=columns,
        copied=copied,
    )  # fmt: skip
    return toom_cook.complete(work, cut)


def any_tiling(rng: random.Random, work: Workload) -> CudaTiling:
    """Any legal tiling of the form, its blocks not large."""
    while True:
        outputs = tuple(rng.choice(sorted({1, *outputs_of(axis)})) for axis in work.plan.axes)
        columns = tuple(rng.choice((1, 2, 4, 6, 8, 12)) for _ in range(3))
        if outputs == (1, 1, 1) or not 32 <= math.prod(columns) <= 400:
            continue
        made = CudaTiling(
            "toom-cook", 1, rng.choice((4, 8)), rng.choice((4, 8)), 1, rng.choice((16, 32)),
            rng.choice((4, 8)), 2, outputs=(outputs[0], outputs[1], outputs[2]),
            columns=(columns[0], columns[1], columns[2]), copied=rng.randint(0, 1),
        )  # fmt: skip
        if not CudaToomCook(work, made).whole:
            continue
        made = toom_cook.complete(work, made)
        if toom_cook.fits(work, made, NEWER):
            return made


def any_cuda_layer(seed: int) -> tuple[LayerConfig, tuple[int, ...], CudaTiling]:
    rng = random.Random(seed)
    config, shape, _ = any_layer(rng)
    work = Workload.of(config, shape)
    default = toom_cook.require(work, NEWER)
    return config, shape, default if rng.random() < 0.2 else any_tiling(rng, work)


def run(kind: type[Serial] | type[Emulated], seed: int, orders: tuple[int, ...]) -> None:
    config, shape, tiling = any_cuda_layer(seed)
    rng = np.random.default_rng(seed)
    x, kernel, bias = data(config, shape, rng)
    given = (-1, *shape[1:]) if seed % 3 == 0 else shape
    y = output(kind, config, given, tiling, (x, kernel, bias), orders)
    expected = conv3d_transpose(config, x, kernel, bias)
    # Softmax reads sums from the output: their error counts, not the result's.
    plain = dataclasses.replace(config, activation=LayerConfig(1, 1).activation)
    scale = float(np.max(np.abs(conv3d_transpose(plain, x, kernel, bias)), initial=1.0))
    assert error(y, expected) <= 2e-6 * scale, (config, shape, tiling)


@pytest.mark.parametrize("seed", SERIAL)
def test_serial(seed: int) -> None:
    run(Serial, seed, (0,))


@needs_gcc
@pytest.mark.parametrize("seed", EMULATED)
def test_emulated(seed: int) -> None:
    run(Emulated, seed, (0, 1, seed))


@pytest.mark.nightly
@needs_gcc
@pytest.mark.parametrize("seed", NIGHTLY)
def test_nightly(seed: int) -> None:
    run(Serial, seed, (0,))
    run(Emulated, seed, (0, 1, seed))


def served(case: Case) -> bool:
    """Whether the form computes a case, fewer channels than the rule wants included."""
    reason = toom_cook.refusal(Workload.of(case.config, case.x.shape))
    return reason is None or "input channels" in reason


SERVED = [case for case in cases() if served(case)]


def golden(kind: type[Serial] | type[Emulated], case: Case) -> None:
    work = Workload.of(case.config, case.x.shape)
    d, h, w = (max(outputs_of(axis)) for axis in work.plan.axes)
    form = CudaTiling("toom-cook", 1, 8, outputs=(d, h, w))
    tiling = toom_cook.with_layout(form, work, NEWER)
    assert tiling is not None
    kernel, *bias = case.weights
    built = kind(case.config, case.x.shape, tiling)
    assert_close(built.run(case.x, kernel, bias[0] if bias else None, 7), case)


@pytest.mark.parametrize(
    "case",
    [
        case if number % 9 == 0 else pytest.param(case, marks=pytest.mark.nightly)
        for number, case in enumerate(SERVED)
    ],
    ids=str,
)
def test_golden(case: Case) -> None:
    golden(Serial, case)


@needs_gcc
@pytest.mark.nightly
@pytest.mark.parametrize("case", SERVED, ids=str)
def test_golden_emulated(case: Case) -> None:
    golden(Emulated, case)


@pytest.mark.parametrize(
    ("kernel", "strides", "outputs", "columns"),
    [
        (4, 2, (2, 2, 2), (6, 6, 12)),
        (3, 2, (2, 3, 1), (6, 12, 4)),
        (5, 2, (1, 2, 2), (2, 12, 12)),
        (3, 1, (2, 1, 2), (12, 4, 12)),
        (3, 2, (2, 2, 2), (6, 12, 12)),
    ],
)
def test_whole_numbers_are_exact(
    kernel: int, strides: int, outputs: tuple[int, int, int], columns: tuple[int, int, int]
) -> None:
    config, shape = layer(18, kernel, strides, activation="relu"), (2, 3, 4, 5, 9)
    tiling = tiling_of(Workload.of(config, shape), outputs, columns, copied=0)
    x, weights, bias = data(config, shape, np.random.default_rng(1), integers=True)
    y = Serial(config, shape, tiling).run(x, weights, bias)
    assert error(y, conv3d_transpose(config, x, weights, bias)) == 0


def test_the_error_is_at_most_twice_the_plain_sums() -> None:
    config, shape = layer(24, 4, 2), (1, 4, 5, 6, 40)
    x, weights, bias = data(config, shape, np.random.default_rng(2))
    expected = conv3d_transpose(config, x, weights, bias)
    scale = float(np.max(np.abs(expected)))
    tiling = toom_cook.require(Workload.of(config, shape), NEWER)
    ours = error(Serial(config, shape, tiling).run(x, weights, bias), expected) / scale
    # Other forms add up in parts, which errs less than either.
    direct = error(Serial(config, shape, DEFINITION).run(x, weights, bias), expected) / scale
    assert ours <= max(2 * direct, FLOOR)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "float16"])
def test_the_packers_of_numpy_and_of_the_library_agree(dtype: str) -> None:
    config = layer(18, (3, 4, 2), (2, 2, 1), dtype=dtype)
    form = lower(
        (work := Workload.of(config, (1, 3, 4, 5, 9))), tiling_of(work, (2, 1, 2), (6, 4, 12))
    )
    _, kernel, bias = data(config, (1, 3, 4, 5, 9), np.random.default_rng(3))
    expected = form.pack(kernel, bias)
    total, offset, _ = form.packed_sizes
    assert len(expected) == total
    code = lowering.emit({"p": form.packer()}, target())
    found = np.zeros(total, np.uint8)
    call(code, kernel, bias, found[:offset], found[offset:])
    assert found.tobytes() == expected


def call(code: Any, *arrays: Any) -> None:
    import tempfile
    from pathlib import Path

    from tvmconv.codegen import toolchain

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "p.o").write_bytes(code.object_code())
        toolchain.find().run(["-shared", "-o", "p.so", "p.o", "-lm"], Path(folder))
        library = ctypes.CDLL(str(Path(folder, "p.so")))
    library.p(*(ctypes.c_void_p(one.ctypes.data) for one in arrays))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_stays_inside_the_tiles_that_read_it(value: float) -> None:
    config, shape = layer(16, 4, 2), (1, 5, 6, 7, 16)
    rng = np.random.default_rng(5)
    work = Workload.of(config, shape)
    for outputs in ((2, 2, 2), (1, 3, 3)):
        columns = (6, 6, 6) if outputs[0] == 2 else (2, 4, 8)
        built = Serial(config, shape, tiling_of(work, outputs, columns))
        assert weights_nonfinite(built.form) == "tile"
        direct = Serial(config, shape)
        for at in ((0, 0, 0, 0, 3), (0, 2, 3, 4, 15), (0, 4, 5, 6, 0)):
            x, weights, bias = data(config, shape, rng)
            x[at] = value
            weights = np.abs(weights) + np.float32(0.1)
            found, exact = (
                ~np.isfinite(one.run(x, weights, bias)).all(-1)[0] for one in (built, direct)
            )
            if outputs == (2, 2, 2):
                assert (found == exact).all()
            spans = [2 * m for m in outputs]
            cells = set(map(tuple, np.argwhere(exact) // spans))
            assert set(map(tuple, np.argwhere(found) // spans)) == cells


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (layer(16, 2, 2), "one tap"),
        (layer(16, 7, 2), "one to three taps"),
        (layer(16, 3, 1, dilation_rate=(1, 2, 1)), "dilation"),
        (layer(16, 4, 2, dtype="float64"), "float32"),
        (layer(16, 4, 2, activation="glu"), "glu"),
    ],
    ids=["one tap", "many taps", "dilation", "float64", "glu"],
)
def test_refusals(config: LayerConfig, words: str) -> None:
    work = Workload.of(config, (1, 4, 4, 4, 16))
    with pytest.raises(ConfigError, match=words):
        rules.decide(work, TARGETS, algorithm="toom-cook")
    assert rules.decide(work, TARGETS, algorithm="auto").form != "toom-cook"


def test_the_rule() -> None:
    work = Workload.of(layer(64, 4, 2), (1, 16, 16, 16, 128))
    assert rules.decide(work, TARGETS).form == "gemm"
    old, new = (rules.decide(work, some, algorithm="toom-cook") for some in (TARGETS, NEWER))
    assert (old.copied, new.copied) == (0, 1)
    assert CudaToomCook(work, old).shared_bytes <= 64 << 10
    with pytest.raises(ConfigError, match="not finite"):
        rules.decide(work, TARGETS, algorithm="toom-cook", exact=True)
    assert CudaTiling.from_json(json.loads(json.dumps(new.to_json()))) == new


def test_several_shapes_share_one_layout_or_are_refused() -> None:
    config = layer(32, 3, 2)
    works = [Workload.of(config, shape) for shape in ((1, 12, 16, 32, 64), (None, 5, 6, 7, 64))]
    tilings = rules.decide_all(works, NEWER, algorithm="toom-cook")
    assert len({lower(w, t).layout for w, t in zip(works, tilings, strict=True)}) == 1
    empty = Workload.of(config, (1, 0, 16, 32, 64))
    with pytest.raises(ConfigError):
        rules.decide_all([works[0], empty], NEWER, algorithm="toom-cook")
    auto = rules.decide_all([works[0], empty], NEWER, algorithm="auto")
    assert len({lower(w, t).layout for w, t in zip([works[0], empty], auto, strict=True)}) == 1


def test_boxes_cover_every_output_once() -> None:
    for kernel, strides, outputs in itertools.product((3, 4, 5), (1, 2), (1, 2, 3)):
        config = layer(8, kernel, strides)
        work = Workload.of(config, (1, 7, 9, 10, 8))
        if toom_cook.refusal(work) or any(
            outputs not in {1, *outputs_of(axis)} for axis in work.plan.axes
        ):
            continue
        form = CudaToomCook(work, tiling_of(work, (outputs,) * 3, (12, 12, 12)))
        for axes in form.axes:
            axis, found = axes.tiles.axis, []
            for phase in axes.phases:
                span = outputs * axes.in_box(phase.group)
                found += [phase.place + axis.stride * j for j in range(phase.count * span)]
            assert sorted(o for o in found if o < axis.out) == list(range(axis.out))
            assert [p.first for p in axes.phases] == list(
                itertools.accumulate([0, *(p.count for p in axes.phases)])
            )[:-1]


def _missing() -> str:
    try:
        disassembly.find()
    except BuildError as exc:
        return str(exc)
    return ""


@needs_nvcc
@pytest.mark.slow
@pytest.mark.skipif(bool(_missing()), reason=_missing() or "the disassembler is here")
@pytest.mark.parametrize(
    ("names", "kernel", "size"),
    few(
        [
            (names, kernel, size)
            for names in (("sm_75", "sm_80", "sm_90"), ("sm_80", "sm_86", "sm_120"))
            for kernel, size in ((4, 16), (3, 12))
        ],
        (0, 3),
    ),
)
def test_no_spills_and_whole_vectors(names: tuple[str, ...], kernel: int, size: int) -> None:
    targets = architectures(names)
    work = Workload.of(layer(64, kernel, 2), (1, size, 16, 16, 64))
    tiling = rules.decide(work, targets, algorithm="toom-cook")
    code = build.source_of("layer", [work], [tiling])
    built = nvcc.find().build(code.source, targets)
    assert code.shapes[0].launches[0].shared_bytes == CudaToomCook(work, tiling).shared_bytes
    for usage in built.usage:
        assert usage.registers * -(-tiling.threads // 128) * 128 <= 65536, usage
    for loop in disassembly.hottest_loops(built.fatbin):
        assert loop.spills == 0, loop
        assert loop.count("FFMA") == tiling.depth * tiling.voxels * tiling.lanes
        wide = [n for name, n in loop.instructions.items() if re.match(r"LDS\b.*128", name)]
        assert sum(wide) >= tiling.depth * 4, loop
