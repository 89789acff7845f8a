"""Every call of the driver fails once: run by test_cuda_launcher.py, in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import launcher_sample
import numpy as np
import pytest
import sample_library as sample
from fake_driver import COUNTS, CUDA, SIZES, Call, Device, Loaded, count, fail
from foreign_arrays import Interface, Pack
from launcher_sample import CODES

import tvmconv.codegen.cuda
from tvmconv.artifact import Artifact
from tvmconv.codegen import link
from tvmconv.errors import TvmconvError
from tvmconv.runtime import cuda_driver
from tvmconv.runtime.library import load

# Every function that the launcher calls for its answer, and whether it is called once more for each
# call of the layer.
TO_FAIL = {
    "cuInit": 0, "cuDeviceGet": 0, "cuDevicePrimaryCtxRetain": 0, "cuCtxPushCurrent_v2": 0,
    "cuCtxPopCurrent_v2": 0, "cuModuleLoadData": 0, "cuModuleGetFunction": 0,
    "cuFuncSetAttribute": 0, "cuStreamIsCapturing": 0, "cuThreadExchangeStreamCaptureMode": 0,
    "cuStreamCreate": 0, "cuMemcpyHtoDAsync_v2": 0, "cuStreamSynchronize": 0, "cuMemAlloc_v2": 0,
    "cuPointerGetAttributes": 1, "cuLaunchKernel": 1, "cuStreamGetCtx": 1,
}  # fmt: skip
#: Those that give back: whatever they answer, there is nothing to be done about it.
GIVE_BACK = ("cuDevicePrimaryCtxRelease_v2", "cuModuleUnload", "cuMemFree_v2", "cuStreamDestroy_v2")


def test_every_function_of_the_launcher_is_here() -> None:
    source = Path(tvmconv.codegen.cuda.__file__).with_name("driver.c").read_text()
    called = set(re.findall(r"^ *F\(\w+, (\w+), ", source, re.M))
    assert called == {*TO_FAIL, *GIVE_BACK, "cuGetErrorString"}


@pytest.mark.parametrize("function", TO_FAIL)
@pytest.mark.parametrize("result", [2, 719])
def test_every_call_can_fail(tmp_path: Path, function: str, result: int) -> None:
    before = [count(what) for what in COUNTS[:5]]
    loaded = Loaded(tmp_path)
    library = loaded.library
    with Device(0) as device:
        call = Call(library, device)
        call.args.stream = device.stream() if function == "cuStreamGetCtx" else None
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
        if call.args.stream:
            CUDA.cuStreamDestroy_v2(ctypes.c_void_p(call.args.stream))
    loaded.unload()
    assert [count(what) for what in COUNTS[:5]] == before


@pytest.mark.parametrize("function", GIVE_BACK)
def test_what_gives_back_may_fail(tmp_path: Path, function: str) -> None:
    before = [count(what) for what in COUNTS[:5]]
    loaded = Loaded(tmp_path)
    with Device(0) as device:
        call = Call(loaded.library, device)
        fail(function, -1, 719)
        assert call.run() == 0
        assert call.right()
        if function != "cuStreamDestroy_v2":
            fail("cuLaunchKernel", 1, 2)
            assert call.run() == CODES["ERROR_DEVICE_MEMORY"]
        loaded.unload()  # its own memory, module and context stay, and the process lives on
        fail(function, 0, 0)
    lost = [now - then for now, then in zip(map(count, COUNTS[:5]), before, strict=True)]
    assert sorted(lost) == [0, 0, 0, 0, 1], lost
    again = Loaded(tmp_path)
    with Device(0) as device:
        call = Call(again.library, device)
        assert call.run() == 0
        assert call.right()
    again.unload()


def test_a_driver_without_words(library: sample.Library) -> None:
    with Device(0) as device:
        assert Call(library, device).run() == 0
    fail("cuGetErrorString", 1, 1)
    assert "does not name" in library.text(1719)
    assert library.text(1719) == "unspecified launch failure"


#: What Python asks the driver for in a call: with NumPy, with arrays of others, on their streams.
OF_PYTHON = (
    "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2", "cuThreadExchangeStreamCaptureMode",
    "cuMemAlloc_v2", "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuStreamSynchronize",
    "cuStreamIsCapturing", "cuStreamWaitEvent", "cuEventCreate", "cuEventRecord",
    "cuPointerGetAttributes", "cuLaunchKernel", "cuStreamGetCtx",
)  # fmt: skip


NEEDED_TO_FREE = ("cuCtxPushCurrent_v2", "cuThreadExchangeStreamCaptureMode")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("artifact")
    return link(launcher_sample.parts(folder), folder / "out")


@pytest.mark.parametrize("function", OF_PYTHON)
@pytest.mark.parametrize("result", [2, 719])
def test_every_call_of_python_can_fail(artifact: Artifact, function: str, result: int) -> None:
    layer = load(artifact.path)
    x = np.random.default_rng(5).normal(size=(2, *SIZES)).astype(np.float32)
    expected = sample.expected(x)
    given, interface, mine, theirs = Pack(x), Interface(x), stream(), stream()
    interface.stream = theirs

    def all_ways() -> None:
        np.testing.assert_array_equal(layer(x), expected)
        np.testing.assert_array_equal(layer(given, stream=mine).numpy(), expected)
        np.testing.assert_array_equal(layer(interface, stream=mine).numpy(), expected)
        several = [layer(given, stream=mine) for _ in range(3)]  # more than was given back
        np.testing.assert_array_equal(several[2].numpy(), expected)

    all_ways()
    gc.collect()
    gc.freeze()  # what is here already is not looked at again after every call
    before = [count(what) for what in COUNTS[:5]]
    nth = 1
    while True:
        calls = CUDA.fake_calls(function.encode())
        fail(function, nth, result)
        try:
            all_ways()
        except TvmconvError as exc:
            assert "\n" not in str(exc)
            del exc
        fail(function, 0, 0)
        if CUDA.fake_calls(function.encode()) < calls + nth:
            break
        gc.collect()
        assert count("stack") == 0
        now = [count(what) for what in COUNTS[:5]]
        if function in NEEDED_TO_FREE:  # it may have failed when memory was given back
            before[0] = max(before[0], min(before[0] + 1, now[0]))
        assert all(one <= most for one, most in zip(now, before, strict=True)), (nth, now, before)
        nth += 1
        assert nth < 100
    assert nth > 1
    gc.unfreeze()
    all_ways()
    for one in (mine, theirs):
        CUDA.cuStreamDestroy_v2(ctypes.c_void_p(one))


def stream() -> int:
    found = ctypes.c_void_p()
    with cuda_driver.device(0).current():
        assert CUDA.cuStreamCreate(ctypes.byref(found), 0) == 0
    return found.value or 0


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
