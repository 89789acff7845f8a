"""GPU kernels against the golden cases: as serial loops, and as CUDA C on emulated threads."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_samples import Emulated, Serial, needs_gcc
from golden_files import Case, assert_close, cases


def run(kind: type[Serial] | type[Emulated], case: Case, order: int = 0) -> np.ndarray:
    layer = kind(case.config, case.x.shape)
    kernel, *bias = case.weights
    return layer.run(case.x, kernel, bias[0] if bias else None, order)


@pytest.mark.parametrize("case", cases(), ids=str)
def test_serial(case: Case) -> None:
    assert_close(run(Serial, case), case)


SOME = {case.id for number, case in enumerate(cases()) if number % 5 == 0}


@needs_gcc
@pytest.mark.parametrize(
    "case",
    [
        case if case.id in SOME else pytest.param(case, marks=pytest.mark.nightly)
        for case in cases()
    ],
    ids=str,
)
def test_emulated(case: Case) -> None:
    assert_close(run(Emulated, case, 7), case)
