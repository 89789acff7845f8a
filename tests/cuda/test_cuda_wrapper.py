"""The C++17 header of a library with a CUDA part."""

from __future__ import annotations

import subprocess
from pathlib import Path

import launcher_sample
import pytest
from test_wrapper import C_SOURCES, COMPILERS, build

from tvmconv.codegen import link


@pytest.mark.parametrize("compiler", COMPILERS)
def test_without_a_device_it_is_the_wrapper_of_the_processor(tmp_path: Path, compiler: str) -> None:
    made = link(launcher_sample.parts(tmp_path, cpu=True), tmp_path / "out")
    program = build(
        compiler, tmp_path / "wrapper", "-DBAKED", f"-I{made.path}", C_SOURCES / "wrapper.cpp",
        made.path / "libup1.a", "-ldl",
    )  # fmt: skip
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=180)
    assert (done.returncode, done.stdout) == (0, "good\n"), done.stderr


@pytest.mark.parametrize("compiler", COMPILERS)
def test_on_a_device(tmp_path: Path, compiler: str) -> None:
    environment = launcher_sample.driver(tmp_path)
    made = link(launcher_sample.parts(tmp_path, cpu=True), tmp_path / "out")
    program = build(
        compiler, tmp_path / "wrapper", f"-I{made.path}", C_SOURCES / "wrapper_device.cpp",
        made.path / "libup1.a", tmp_path / "libcuda.so.1", "-ldl",
    )  # fmt: skip
    done = subprocess.run(
        [program], capture_output=True, text=True, check=False, timeout=180, env=environment
    )
    assert (done.returncode, done.stdout) == (0, "good\n"), done.stderr
