"""GPU kernels against the golden cases: as serial loops, and as CUDA C on emulated threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_samples import Emulated, Serial, needs_gcc
from golden_files import Case, assert_close, cases
from turns import few


def run(kind: type[Serial] | type[Emulated], case: Case, order: int = 0) -> np.ndarray:
    layer = kind(case.config, case.x.shape)
    kernel, *bias = case.weights
    return layer.run(case.x, kernel, bias[0] if bias else None, order)


def some(step: int) -> list[Any]:
    """All cases; but for one in ``step`` they are nightly ones."""
    return few(cases(), range(0, len(cases()), step))


@pytest.mark.parametrize("case", some(2), ids=str)
def test_serial(case: Case) -> None:
    assert_close(run(Serial, case), case)


@needs_gcc
@pytest.mark.parametrize("case", some(5), ids=str)
def test_emulated(case: Case) -> None:
    assert_close(run(Emulated, case, 7), case)
