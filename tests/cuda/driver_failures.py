"""Every call of the driver fails once: run by test_cuda_launcher.py, in a process of its own."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import sample_library as sample
from fake_driver import COUNTS, CUDA, Call, Device, Loaded, count, fail
from launcher_sample import CODES

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
