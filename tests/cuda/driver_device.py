"""The tests for a real device on the fake driver: run by test_cuda_launcher.py.

They compile for the devices that the driver finds, and must not fail for anything but the device.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cuda_samples import needs_gcc
from driver_golden import emulator  # noqa: F401  # a fixture
from fake_driver import count
from golden_files import Case
from test_cuda_device import SOME, golden, threads_and_streams

pytestmark = needs_gcc


@pytest.mark.parametrize("case", SOME[::12], ids=str)
def test_golden(case: Case, tmp_path: Path) -> None:
    golden(case, tmp_path / "out")
    assert count("mistakes") == 0


def test_threads_and_streams(tmp_path: Path) -> None:
    launches = count("launches")
    threads_and_streams(tmp_path / "out", 3)
    assert count("launches") >= launches + 8 * 3
    assert count("mistakes") == 0
