"""The launcher against the fake driver: one process each, started by test_cuda_launcher.py."""

from __future__ import annotations

import ctypes
import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import launcher_sample
import numpy as np
import pytest
import sample_library as sample
from launcher_sample import CODES, Args

from tvmconv.codegen import link

COUNTS = (
    "allocations", "contexts", "modules", "streams", "events", "corrupt", "stack", "launches",
    "captured", "mistakes",
)  # fmt: skip
SIZES = (sample.DEPTH, sample.HEIGHT, sample.ROW, sample.CHANNELS)
CUDA = ctypes.CDLL("libcuda.so.1")
CUDA.fake_count.restype = ctypes.c_int64
CUDA.fake_context.restype = ctypes.c_void_p


def count(what: str) -> int:
    return int(CUDA.fake_count(COUNTS.index(what)))


def fail(function: str, nth: int, result: int) -> None:
    CUDA.fake_fail(function.encode(), nth, result)


@lru_cache(maxsize=4)
def built(baked: bool, cpu: bool) -> bytes:
    """A shared library."""
    with tempfile.TemporaryDirectory() as folder:
        made = launcher_sample.parts(Path(folder), baked=baked, cpu=cpu)
        return link(made, Path(folder) / "out").library.read_bytes()


class Loaded:
    """A library in a file of its own, loaded and unloaded."""

    def __init__(self, folder: Path, *, baked: bool = True, cpu: bool = False) -> None:
        (folder / "libup1.so").write_bytes(built(baked, cpu))
        self.library = sample.Library(folder)

    def unload(self) -> None:
        dlclose = ctypes.CDLL(None).dlclose
        dlclose.argtypes = [ctypes.c_void_p]
        assert dlclose(self.library.handle._handle) == 0


class Device:
    """A device, current in this thread, and what is allocated on it."""

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        self.context = ctypes.c_void_p()
        assert CUDA.cuInit(0) == 0
        assert CUDA.cuDevicePrimaryCtxRetain(ctypes.byref(self.context), 100 + ordinal) == 0
        self.pointers: list[int] = []
        self.entered = 0

    def __enter__(self) -> Device:
        assert CUDA.cuCtxPushCurrent_v2(self.context) == 0
        self.entered += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.entered -= 1
        if self.entered == 0:
            for pointer in self.pointers:
                assert CUDA.cuMemFree_v2(ctypes.c_uint64(pointer)) == 0
        CUDA.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        if self.entered == 0:
            CUDA.cuDevicePrimaryCtxRelease_v2(100 + self.ordinal)

    def array(self, values: np.ndarray) -> int:
        self.pointers.append(launcher_sample.device_array(CUDA, values))
        return self.pointers[-1]

    def stream(self) -> int:
        found = ctypes.c_void_p()
        assert CUDA.cuStreamCreate(ctypes.byref(found), 0) == 0
        return found.value or 0


def fetch(pointer: int, shape: tuple[int, ...]) -> np.ndarray:
    values = np.empty(shape, np.float32)
    ctypes.memmove(values.ctypes.data, pointer, values.nbytes)
    return values


class Call:
    """A call that is right, on one device."""

    def __init__(self, library: sample.Library, device: Device, batch: int = 2) -> None:
        self.library, self.device = library, device
        self.x = np.random.default_rng(1).normal(size=(batch, *SIZES)).astype(np.float32)
        self.y = np.full_like(self.x, np.nan)
        size = library["workspace_size"](0, 0)
        self.args = Args(
            size=ctypes.sizeof(Args),
            input=device.array(self.x),
            output=device.array(self.y),
            workspace=device.array(np.zeros(size, np.uint8)),
            workspace_size=size,
            device=device.ordinal,
        )

    def run(self, **changed: int | None) -> int:
        for field, value in changed.items():
            setattr(self.args, field, value)
        return self.library.run(self.args)

    def right(self) -> bool:
        y = fetch(self.args.output or 0, self.x.shape)
        return np.array_equal(y, sample.expected(self.x))


@pytest.fixture(autouse=True)
def everything_is_given_back() -> Iterator[None]:
    yield
    for function in ("cuMemAlloc_v2", "cuLaunchKernel", *TO_FAIL):
        fail(function, 0, 0)
    assert {what: count(what) for what in ("corrupt", "stack", "mistakes")} == {
        "corrupt": 0, "stack": 0, "mistakes": 0,
    }  # fmt: skip


@pytest.fixture
def library(tmp_path: Path) -> Iterator[sample.Library]:
    before = [count(what) for what in COUNTS[:5]]
    loaded = Loaded(tmp_path)
    yield loaded.library
    loaded.unload()
    assert [count(what) for what in COUNTS[:5]] == before


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


# Every function that the launcher calls, what it fails with, and the code that is to come.
TO_FAIL = {
    "cuInit": 0, "cuDeviceGet": 0, "cuDevicePrimaryCtxRetain": 0, "cuCtxPushCurrent_v2": 0,
    "cuCtxPopCurrent_v2": 0, "cuModuleLoadData": 0, "cuModuleGetFunction": 0,
    "cuFuncSetAttribute": 0, "cuStreamIsCapturing": 0, "cuThreadExchangeStreamCaptureMode": 0,
    "cuStreamCreate": 0, "cuMemcpyHtoDAsync_v2": 0, "cuStreamSynchronize": 0, "cuMemAlloc_v2": 0,
    "cuPointerGetAttributes": 1, "cuLaunchKernel": 1,
}  # fmt: skip


@pytest.mark.parametrize("function", TO_FAIL)
@pytest.mark.parametrize("result", [2, 719])
def test_every_call_can_fail(tmp_path: Path, function: str, result: int) -> None:
    before = [count(what) for what in COUNTS[:5]]
    loaded = Loaded(tmp_path)
    library = loaded.library
    with Device(0) as device:
        call = Call(library, device)
        kept = [count(what) for what in COUNTS[:5]]
        nth = 1
        while True:  # the first, second, ... call of the function, until it is called no more
            calls = CUDA.fake_calls(function.encode())
            fail(function, nth, result)
            code = call.run()
            fail(function, 0, 0)
            if CUDA.fake_calls(function.encode()) < calls + nth:
                assert code == 0
                break
            if nth == 2 and function == "cuThreadExchangeStreamCaptureMode":
                assert code == 0  # when it is set back nothing is lost
            else:
                assert code == (CODES["ERROR_DEVICE_MEMORY"] if result == 2 else 1000 + result)
            assert count("stack") == 1
            if not TO_FAIL[function] and [count(what) for what in COUNTS[:5]] != kept:
                # Loaded all the same: only the last call of its kind, made for the launch, failed.
                assert function in {
                    "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2", "cuThreadExchangeStreamCaptureMode"
                }  # fmt: skip
                assert count("modules") == kept[2] + 1
                kept = [count(what) for what in COUNTS[:5]]
            nth += 1
            assert nth < 20
        assert nth > 1
        assert call.run() == 0
        assert call.right()
    loaded.unload()
    assert [count(what) for what in COUNTS[:5]] == before


@pytest.mark.parametrize(
    ("function", "result", "code"),
    [
        ("cuInit", 100, "ERROR_NO_DEVICE"),
        ("cuInit", 34, "ERROR_NO_DRIVER"),
        ("cuModuleLoadData", 209, "ERROR_ARCHITECTURE"),
        ("cuModuleLoadData", 222, "ERROR_OLD_DRIVER"),
        ("cuModuleLoadData", 218, "ERROR_OLD_DRIVER"),
        ("cuMemAlloc_v2", 2, "ERROR_DEVICE_MEMORY"),
        ("cuStreamGetCtx", 400, "ERROR_STREAM"),
        ("cuPointerGetAttributes", 1, "ERROR_HOST_POINTER"),
    ],
)
def test_what_a_result_means(
    library: sample.Library, function: str, result: int, code: str
) -> None:
    with Device(0) as device:
        call = Call(library, device)
        if function == "cuStreamGetCtx":
            call.args.stream = device.stream()
        fail(function, 1, result)
        assert call.run() == CODES[code]
        assert call.run() == 0
        if call.args.stream:
            CUDA.cuStreamDestroy_v2(ctypes.c_void_p(call.args.stream))


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
