"""Golden cases, threads and streams on a real CUDA device, where there is one.

What is done is in functions that `driver_device.py` calls on the fake driver, so that the tests
themselves are tried where no device is.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cuda_samples import needs_nvcc
from foreign_arrays import Pack
from golden_files import Case, assert_close, cases

import tvmconv
from tvmconv.runtime import cuda_driver
from tvmconv.runtime.cuda import CudaLayer

_REASON = cuda_driver.unavailable()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(_REASON), reason=_REASON or "a device is here"),
    needs_nvcc,
]
SOME = [case for number, case in enumerate(cases()) if number % 4 == 0]
MEDIUM = next(case for case in cases() if case.id == "medium_001")


def compiled(case: Case, folder: Path) -> CudaLayer:
    layer = tvmconv.Conv3DTranspose.from_config(case.config)
    layer.build(case.x.shape)
    layer.set_weights(case.weights)
    shape = (None, *case.x.shape[1:])
    made = tvmconv.compile(layer, shape, target="cuda:native", name="up1", output=folder).load()
    assert isinstance(made, CudaLayer)
    return made


def golden(case: Case, folder: Path) -> None:
    layer = compiled(case, folder)
    y = layer(case.x.astype(layer.manifest.input_dtype))
    assert isinstance(y, np.ndarray)
    assert_close(y, case)


def threads_and_streams(folder: Path, calls: int) -> None:
    """So many calls of each of eight threads: half on streams of their own, half with NumPy."""
    layer = compiled(MEDIUM, folder)
    x = MEDIUM.x
    expected = np.asarray(layer(x))
    assert_close(expected, MEDIUM)

    def work(number: int) -> bool:
        if number % 2:  # NumPy's arrays go through the default stream of each thread
            return all(np.array_equal(layer(x), expected) for _ in range(calls))
        mine, given = stream(), Pack(x)
        found = [np.asarray(layer(given, stream=mine)) for _ in range(calls)]
        return all(np.array_equal(y, expected) for y in found)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))


def stream() -> int:
    """A stream of the first device."""
    made = ctypes.c_void_p()
    with cuda_driver.device(0).current():
        assert ctypes.CDLL("libcuda.so.1").cuStreamCreate(ctypes.byref(made), 0) == 0
    assert made.value
    return made.value


@pytest.mark.parametrize("case", SOME, ids=str)
def test_golden(case: Case, tmp_path: Path) -> None:
    golden(case, tmp_path / "out")


def test_ten_thousand_calls_from_threads(tmp_path: Path) -> None:
    threads_and_streams(tmp_path / "out", 1250)
