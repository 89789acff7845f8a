"""Golden cases, threads and streams on a real CUDA device, where there is one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_samples import needs_nvcc
from golden_files import Case, assert_close, cases

import tvmconv
from tvmconv.runtime import cuda_driver

_REASON = cuda_driver.unavailable()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(_REASON), reason=_REASON or "a device is here"),
    needs_nvcc,
]
SOME = [case for number, case in enumerate(cases()) if number % 4 == 0]


def compiled(case: Case, folder: Path) -> Any:
    layer = tvmconv.Conv3DTranspose.from_config(case.config)
    layer.build(case.x.shape)
    layer.set_weights(case.weights)
    shape = (None, *case.x.shape[1:])
    return tvmconv.compile(layer, shape, target="cuda:native", name="up1", output=folder).load()


@pytest.mark.parametrize("case", SOME, ids=str)
def test_golden(case: Case, tmp_path: Path) -> None:
    layer = compiled(case, tmp_path / "out")
    assert_close(layer(case.x.astype(layer.manifest.input_dtype)), case)


def test_ten_thousand_calls_from_threads(tmp_path: Path) -> None:
    case = next(case for case in cases() if case.id == "medium_001")
    layer = compiled(case, tmp_path / "out")
    expected = layer(case.x)
    assert_close(expected, case)

    def work(_number: int) -> bool:
        # NumPy's arrays go through the default stream of each thread.
        return all(np.array_equal(layer(case.x), expected) for _ in range(1250))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))
