"""Calls of a library on the fake driver: run by test_cuda_launcher.py, in a process of its own."""

from __future__ import annotations

import ctypes
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import launcher_sample
import numpy as np
import pytest
import sample_library as sample
from fake_driver import COUNTS, CUDA, SIZES, Call, Device, Loaded, count
from launcher_sample import CODES, Args


def test_a_call_computes(library: sample.Library) -> None:
    with Device(0) as device:
        call = Call(library, device)
        launches = count("launches")
        assert call.run() == 0
        assert call.right()
        assert count("launches") == launches + 2


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_an_open_batch(library: sample.Library, batch: int) -> None:
    with Device(1) as device:
        call = Call(library, device, batch)
        assert call.run(shape=1, batch=batch) == 0
        assert call.right()


def test_nothing_to_do_needs_no_device(library: sample.Library) -> None:
    args = Args(size=ctypes.sizeof(Args), shape=1, batch=0, device=63)
    calls = CUDA.fake_calls(b"cuInit")
    assert library.run(args) == 0
    assert CUDA.fake_calls(b"cuInit") == calls


def test_later_calls_only_look_and_launch(library: sample.Library) -> None:
    with Device(0) as device:
        call = Call(library, device)
        assert call.run() == 0
        quiet = (
            "cuMemAlloc_v2", "cuMemFree_v2", "cuStreamSynchronize", "cuModuleLoadData",
            "cuStreamCreate", "cuMemcpyHtoDAsync_v2", "cuInit", "cuModuleGetFunction",
        )  # fmt: skip
        before = [CUDA.fake_calls(name.encode()) for name in quiet]
        for _ in range(20):
            assert call.run() == 0
        assert [CUDA.fake_calls(name.encode()) for name in quiet] == before


def test_the_context_of_the_caller_stays(library: sample.Library) -> None:
    with Device(1) as device, Device(0):
        with device:
            call = Call(library, device)
        for _ in range(2):
            assert call.run() == 0
            assert call.right()
            current = ctypes.c_void_p()
            CUDA.cuCtxGetCurrent(ctypes.byref(current))
            assert current.value == CUDA.fake_context(0)
            assert count("stack") == 2


def test_no_context_is_current(library: sample.Library) -> None:
    with Device(0) as device:
        call = Call(library, device)
        with ThreadPoolExecutor(1) as other:  # a thread that never saw CUDA
            assert other.submit(call.run).result() == 0
        assert call.right()


WRONG = [
    ("device", -1, "ERROR_NO_CPU"),
    ("device", -2, "ERROR_DEVICE"),
    ("device", 2, "ERROR_DEVICE"),
    ("device", 64, "ERROR_DEVICE"),
    ("device", 2**31 - 1, "ERROR_DEVICE"),
    ("shape", 2, "ERROR_SHAPE"),
    ("batch", 1, "ERROR_BATCH"),
    ("input", None, "ERROR_NULL_INPUT"),
    ("output", None, "ERROR_NULL_OUTPUT"),
    ("workspace", None, "ERROR_NULL_WORKSPACE"),
    ("workspace_size", 256, "ERROR_WORKSPACE_SIZE"),
    ("size", ctypes.sizeof(sample.Args), "ERROR_SIZE"),
]


@pytest.mark.parametrize(("field", "value", "code"), WRONG)
def test_misuse_is_a_code(
    library: sample.Library, field: str, value: int | None, code: str
) -> None:
    with Device(0) as device:
        call = Call(library, device)
        launches = count("launches")
        assert call.run(**{field: value}) == CODES[code]
        assert count("launches") == launches
        text = library.text(CODES[code])
        assert text not in ("", "unknown error code")


@pytest.mark.parametrize("field", ["input", "output", "weights"])
def test_misaligned(library: sample.Library, field: str) -> None:
    with Device(0) as device:
        call = Call(library, device)
        address = (getattr(call.args, field) or call.args.input) + 4
        assert call.run(**{field: address}) == CODES[f"ERROR_{field.upper()}_ALIGNMENT"]


@pytest.mark.parametrize("field", ["input", "output", "workspace", "weights"])
def test_where_the_memory_is(library: sample.Library, field: str) -> None:
    host = np.zeros(1 << 16, np.uint8)
    aligned = host.ctypes.data + (-host.ctypes.data) % 4096
    with Device(0) as device, Device(1) as other:
        with device:
            call = Call(library, device)
        right = getattr(call.args, field)
        assert call.run(**{field: aligned}) == CODES["ERROR_HOST_POINTER"]
        elsewhere = other.array(np.zeros(8192, np.float32))
        assert call.run(**{field: elsewhere}) == CODES["ERROR_OTHER_DEVICE"]
        for kind, code in ((1, 0), (3, 0), (4, CODES["ERROR_HOST_POINTER"])):
            CUDA.fake_register(ctypes.c_void_p(aligned), ctypes.c_size_t(32768), kind)
            assert call.run(**{field: aligned}) == code
            CUDA.fake_register(ctypes.c_void_p(aligned), ctypes.c_size_t(0), 0)
        assert call.run(**{field: right}) == 0


def test_a_batch_too_large_for_the_grid(library: sample.Library) -> None:
    with Device(0) as device:
        call = Call(library, device)
        code = call.run(shape=1, batch=(2**31 - 1) // 3 + 1)
        assert code == CODES["ERROR_OVERFLOW"]


def test_streams(library: sample.Library) -> None:
    with Device(0) as device, Device(1) as other:
        with device:
            call = Call(library, device)
            mine = device.stream()
        theirs = other.stream()
        for stream in (0, 1, 2, mine):
            assert call.run(stream=stream) == 0
        assert call.run(stream=theirs) == CODES["ERROR_STREAM"]
        CUDA.cuStreamDestroy_v2(ctypes.c_void_p(mine))
        CUDA.cuStreamDestroy_v2(ctypes.c_void_p(theirs))


def capture(stream: int, mode: int) -> None:
    assert CUDA.cuStreamBeginCapture_v2(ctypes.c_void_p(stream), mode) == 0


def end_capture(stream: int) -> None:
    assert CUDA.cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(ctypes.c_void_p())) == 0


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_capture_after_a_first_call(library: sample.Library, mode: int) -> None:
    with Device(0) as device:
        call = Call(library, device)
        stream = device.stream()
        capture(stream, mode)
        assert call.run(stream=stream) == CODES["ERROR_CAPTURE"]
        end_capture(stream)
        assert call.run() == 0
        captured = count("captured")
        capture(stream, mode)
        assert call.run(stream=stream) == 0
        end_capture(stream)
        assert count("captured") == captured + 2
        CUDA.cuStreamDestroy_v2(ctypes.c_void_p(stream))


def test_loading_does_not_break_what_another_thread_captures(library: sample.Library) -> None:
    with Device(0) as device:
        call = Call(library, device)
        theirs, mine = device.stream(), device.stream()
        capture(theirs, 0)
        assert call.run(stream=mine) == 0  # the fake driver refuses allocations now
        end_capture(theirs)
        assert call.right()
        for stream in (theirs, mine):
            CUDA.cuStreamDestroy_v2(ctypes.c_void_p(stream))


def test_texts(library: sample.Library) -> None:
    with Device(0) as device:
        assert Call(library, device).run() == 0
    assert library.text(1719) == "unspecified launch failure"
    assert "does not name" in library.text(1998)
    assert library.text(31) == library.text(-1) == "unknown error code"
    texts = [library.text(code) for code in CODES.values()]
    assert len(set(texts)) == len(texts)


def test_threads_streams_and_devices_at_once(tmp_path: Path) -> None:
    # All threads make their first call together: each device is loaded once.
    before = [count(what) for what in COUNTS[:5]]
    loaded = Loaded(tmp_path)
    start = threading.Barrier(8)
    modules = CUDA.fake_calls(b"cuModuleLoadData")

    def work(number: int) -> bool:
        with Device(number % 2) as device:
            stream = device.stream()
            call = Call(loaded.library, device)
            start.wait(60)
            good = all(call.run(stream=stream) == 0 and call.right() for _ in range(100))
            CUDA.cuStreamDestroy_v2(ctypes.c_void_p(stream))
        return good

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))
    assert CUDA.fake_calls(b"cuModuleLoadData") == modules + 2
    loaded.unload()
    assert [count(what) for what in COUNTS[:5]] == before


def test_a_forked_child_is_told(library: sample.Library) -> None:
    with Device(0) as device:
        call = Call(library, device)
        assert call.run() == 0
        child = os.fork()
        if child == 0:
            os._exit(call.run())
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == CODES["ERROR_FORK"]
        assert call.run() == 0


def test_weights_given_at_run_time(tmp_path: Path) -> None:
    loaded = Loaded(tmp_path, baked=False)
    library = loaded.library
    kernel, bias = sample.weights()
    blob = np.zeros(library["packed_weights_size"](), np.uint8)
    pointers = [ctypes.c_void_p(one.ctypes.data) for one in (kernel, bias, blob)]
    assert library["pack_weights"](*pointers) == 0
    assert blob.tobytes() == launcher_sample.packed()
    with Device(0) as device:
        call = Call(library, device)
        assert call.run() == CODES["ERROR_NULL_WEIGHTS"]
        assert call.run(weights=device.array(blob)) == 0
        assert call.right()
    loaded.unload()


@pytest.mark.parametrize("baked", [True, False])
def test_a_cpu_version_beside_it(tmp_path: Path, baked: bool) -> None:
    loaded = Loaded(tmp_path, baked=baked, cpu=True)
    library = loaded.library
    blob = np.zeros(library["packed_weights_size"](), np.uint8)
    pointers = [ctypes.c_void_p(one.ctypes.data) for one in (*sample.weights(), blob)]
    assert library["pack_weights"](*pointers) == 0
    assert blob[: sample.PACKED_BYTES].tobytes() == sample.packed()
    host = np.zeros((2, *SIZES), np.float32)
    with Device(0) as device:
        call = Call(library, device)
        assert call.run(weights=None if baked else device.array(blob)) == 0
        assert call.right()
        workspace = np.zeros(library["workspace_size"](0, 0), np.uint8)
        code = call.run(
            device=-1,
            input=call.x.ctypes.data,
            output=host.ctypes.data,
            workspace=workspace.ctypes.data,
            weights=None if baked else blob.ctypes.data,
            stream=1,
        )
        assert code == 0
        np.testing.assert_array_equal(host, sample.expected(call.x))
    loaded.unload()
