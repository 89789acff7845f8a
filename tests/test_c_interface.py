"""The C interface of a generated library: every function, every misuse."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import c_driver
import numpy as np
import pytest
import sample_library as sample
from sample_library import CODES, GUARD, Call

from tvmconv.artifact import Artifact
from tvmconv.codegen import link
from tvmconv.codegen.entry import ERRORS

MISUSE: dict[str, tuple[str, Callable[[Call], dict[str, int | None]]]] = {
    "size-zero": ("ERROR_SIZE", lambda _: {"size": 0}),
    "size-smaller": ("ERROR_SIZE", lambda c: {"size": c.args.size - 1}),
    "size-absurd": ("ERROR_SIZE", lambda _: {"size": 1 << 40}),
    "shape-negative": ("ERROR_SHAPE", lambda _: {"shape": -1}),
    "shape-beyond": ("ERROR_SHAPE", lambda _: {"shape": 2}),
    "threads-negative": ("ERROR_THREADS", lambda _: {"threads": -1}),
    "batch-of-fixed": ("ERROR_BATCH", lambda _: {"batch": 2}),
    "batch-of-fixed-negative": ("ERROR_BATCH", lambda _: {"batch": -1}),
    "batch-of-open-negative": ("ERROR_BATCH", lambda _: {"shape": 1, "batch": -1}),
    "batch-overflows": ("ERROR_OVERFLOW", lambda _: {"shape": 1, "batch": 1 << 60}),
    "batch-largest": ("ERROR_OVERFLOW", lambda _: {"shape": 1, "batch": (1 << 63) - 1}),
    "input-null": ("ERROR_NULL_INPUT", lambda _: {"input": None}),
    "output-null": ("ERROR_NULL_OUTPUT", lambda _: {"output": None}),
    "input-misaligned": ("ERROR_INPUT_ALIGNMENT", lambda c: {"input": c.args.input + 2}),
    "output-misaligned": ("ERROR_OUTPUT_ALIGNMENT", lambda c: {"output": c.args.output + 1}),
    "weights-misaligned": ("ERROR_WEIGHTS_ALIGNMENT", lambda c: {"weights": c.args.input + 3}),
    "workspace-null": ("ERROR_NULL_WORKSPACE", lambda _: {"workspace": None}),
    "workspace-small": (
        "ERROR_WORKSPACE_SIZE",
        lambda c: {"workspace_size": c.library["workspace_size"](0, 1) - 1},
    ),
    "workspace-of-fewer-threads": (
        "ERROR_WORKSPACE_SIZE",
        lambda c: {"threads": 4, "workspace_size": c.library["workspace_size"](0, 1)},
    ),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_returns_its_code_and_writes_nothing(baked: Artifact, case: str) -> None:
    name, change = MISUSE[case]
    call = Call(sample.Library(baked.path))
    assert call.run(**change(call)) == CODES[name]
    assert call.untouched()


def test_null_args(baked: Artifact) -> None:
    assert sample.Library(baked.path)["run"](None) == CODES["ERROR_NULL_ARGS"]


def test_weights_must_be_given_where_none_are_inside(external: Artifact) -> None:
    call = Call(sample.Library(external.path))
    assert call.run() == CODES["ERROR_NULL_WEIGHTS"]
    assert call.untouched()


def test_every_error_of_run_is_in_the_table() -> None:
    run = {f"ERROR_{name}" for name in ("NULL_ARGS", "NULL_WEIGHTS", "PROCESSOR")}
    pack = {f"ERROR_NULL_{name}" for name in ("KERNEL", "BIAS", "PACKED")}
    assert {name for name, _ in MISUSE.values()} | run | pack | {"OK"} == set(CODES)


def test_a_later_callers_fields_must_be_zero(baked: Artifact) -> None:
    class Later(ctypes.Structure):
        _fields_ = (("args", sample.Args), ("more", ctypes.c_int64))

    call = Call(sample.Library(baked.path))
    later = Later(args=call.args)
    later.args.size = ctypes.sizeof(Later)
    later.more = 1
    assert call.library["run"](ctypes.byref(later)) == CODES["ERROR_SIZE"]
    assert call.untouched()
    later.more = 0
    assert call.library["run"](ctypes.byref(later)) == 0
    assert call.right()


@pytest.mark.parametrize("threads", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("shift", [0, 1])
def test_results_for_any_threads_and_alignment(baked: Artifact, threads: int, shift: int) -> None:
    call = Call(sample.Library(baked.path))
    size = call.library["workspace_size"](0, threads)
    memory = np.zeros(size + 4096, np.uint8)
    assert call.run(threads=threads, workspace=memory.ctypes.data + shift, workspace_size=size) == 0
    assert call.right()
    assert not memory[size + shift :].any()


def test_ten_thousand_threads_are_clamped(baked: Artifact) -> None:
    call = Call(sample.Library(baked.path))
    size = call.library["workspace_size"](0, 10_000)
    assert size <= 70 * (sample.SCRATCH + 64)  # 70 tiles
    workspace = np.zeros(size, np.uint8)
    changed = {"threads": 10_000, "workspace": workspace.ctypes.data, "workspace_size": size}
    assert call.run(**changed) == 0
    assert call.right()


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_open_batch(baked: Artifact, batch: int) -> None:
    call = Call(sample.Library(baked.path), batch)
    assert call.run(shape=1, batch=batch, threads=1) == 0
    assert call.right()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_more_tiles_than_a_share_can_number(baked: Artifact, threads: int) -> None:
    # 175,000 tiles: the shares of up to three tasks count them by twos and more.
    call = Call(sample.Library(baked.path), 5000)
    size = call.library["workspace_size"](1, threads)
    memory = np.zeros(size, np.uint8)
    changed = {"workspace": memory.ctypes.data, "workspace_size": size}
    assert call.run(shape=1, batch=5000, threads=threads, **changed) == 0
    assert call.right()


def test_an_empty_batch_needs_no_buffers(baked: Artifact) -> None:
    call = Call(sample.Library(baked.path), 0)
    assert call.run(shape=1, batch=0, input=None, output=None, workspace=None) == 0


def test_the_workspace_does_not_grow_with_an_open_batch(baked: Artifact) -> None:
    library = sample.Library(baked.path)
    assert library["workspace_size"](1, 3) == 3 * sample.SCRATCH + 64
    assert library["workspace_size"](0, 3) == library["workspace_size"](1, 3)
    assert [library["workspace_size"](*bad) for bad in ((-1, 1), (2, 1), (0, -1))] == [0, 0, 0]


@pytest.mark.parametrize("kind", ["baked", "external"])
def test_packed_weights(kind: str, request: pytest.FixtureRequest) -> None:
    artifact: Artifact = request.getfixturevalue(kind)
    call = Call(sample.Library(artifact.path))
    kernel, bias = sample.weights()
    size = call.library["packed_weights_size"]()
    assert size == sample.PACKED_BYTES
    packed = np.full(size + GUARD, 0x5A, np.uint8)
    pack = call.library["pack_weights"]
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (kernel, bias, packed)]
    assert pack(*pointers) == 0
    assert packed[:size].tobytes() == sample.packed()
    assert (packed[size:] == 0x5A).all()
    assert call.run(weights=packed.ctypes.data) == 0
    assert call.right()


def test_misuse_of_pack_weights(baked: Artifact) -> None:
    pack = sample.Library(baked.path)["pack_weights"]
    kernel, bias = sample.weights()
    packed = np.full(sample.PACKED_BYTES, 0x5A, np.uint8)
    good = [kernel.ctypes.data, bias.ctypes.data, packed.ctypes.data]
    for i, name in enumerate(("ERROR_NULL_KERNEL", "ERROR_NULL_BIAS", "ERROR_NULL_PACKED")):
        for wrong, code in ((None, name), (good[i] + 2, "ERROR_WEIGHTS_ALIGNMENT")):
            pointers = [*good]
            pointers[i] = wrong
            assert pack(*(ctypes.c_void_p(p) for p in pointers)) == CODES[code]
    assert (packed == 0x5A).all()


def test_the_rest_of_the_interface(baked: Artifact) -> None:
    library = sample.Library(baked.path)
    sizes = [sample.DEPTH, sample.HEIGHT, sample.ROW, sample.CHANNELS]
    assert library["shapes"]() == 2
    for function in ("input_shape", "output_shape"):
        assert library[function](0)[:5] == [2, *sizes]
        assert library[function](1)[:5] == [-1, *sizes]
        assert not library[function](2)
        assert not library[function](-1)
    assert library["abi_version"]() == 1
    assert library["manifest"]().decode() == replace(baked.manifest, files=None).to_json()
    texts = [library.text(code) for code in range(len(ERRORS))]
    assert len(set(texts)) == len(ERRORS)
    assert library.text(-1) == library.text(len(ERRORS)) == "unknown error code"


def test_the_finish_runs_once_after_all_tiles(tmp_path: Path) -> None:
    parts = sample.parts(tmp_path, flags=("-DFINISH=up1_finish_0_0",))
    shapes = tuple(
        replace(shape, finish_symbol="up1_finish_0_0") for shape in parts.variants[0].shapes
    )
    parts = replace(parts, variants=(replace(parts.variants[0], shapes=shapes),))
    artifact = link(parts, tmp_path / "out")
    call = Call(sample.Library(artifact.path))
    for threads in (1, 4):
        assert call.run(threads=threads) == 0
        y = sample.expected(call.x)
        y[...] -= y.flat[-1].copy()
        y.flat[-1] = 0
        np.testing.assert_array_equal(call.y, y)
    program = c_driver.driver(artifact, tmp_path)
    for mode in ("guard", "state"):
        assert "good" in c_driver.run(program, mode, 1, 4)


@pytest.mark.parametrize(("element", "code"), [(2, "OK"), (8, "ERROR_WEIGHTS_ALIGNMENT")])
def test_packed_weights_have_an_alignment_of_their_own(
    tmp_path: Path, element: int, code: str
) -> None:
    parts = replace(sample.parts(tmp_path, baked=False), packed_element=element)
    call = Call(sample.Library(link(parts, tmp_path / "out").path))
    memory = np.zeros(sample.PACKED_BYTES + 16, np.uint8)
    start = memory.ctypes.data % 8
    memory[4 - start :][: sample.PACKED_BYTES] = np.frombuffer(sample.packed(), np.uint8)
    assert call.run(weights=memory.ctypes.data + 4 - start) == CODES[code]
    assert call.untouched() is (code != "OK")
