"""What a program gets by opening a library: little memory, and no thread unasked."""

from __future__ import annotations

import json
from pathlib import Path

import c_driver
import pytest

import tvmconv
from tvmconv.artifact import Artifact


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    layer = tvmconv.Conv3DTranspose(32, 2, 2, name="up1")
    return tvmconv.compile(layer, (1, 8, 8, 8, 64), output=tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("startup")
    return c_driver.compile_c(folder / "startup", c_driver.C_SOURCES / "startup.c", "-ldl")


def test_memory_and_threads(made: Artifact, program: Path) -> None:
    sizes = 4 * 8**3 * 64, 4 * 16**3 * 32
    found = json.loads(c_driver.run(program, made.library, "up1", *sizes))
    assert found["code"] == 0
    # After dlopen, after a call with one thread, after a call with two.
    assert found["threads"] == [1, 1, 2]
    assert found["rss_kib"] * 1024 <= made.library.stat().st_size + 1_000_000
