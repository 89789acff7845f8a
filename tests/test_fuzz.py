"""Random arguments for the C interface, under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import c_driver
import pytest
from test_sanitizers import OPTIONS, instrumented

SANITIZER = "address,undefined"


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return instrumented(SANITIZER, tmp_path_factory.mktemp("fuzz"), "fuzz.c")


@pytest.mark.parametrize("seed", [1, 2])
def test_random_calls(fuzz: Path, seed: int) -> None:
    assert "good: 10000 calls" in c_driver.run(fuzz, 10_000, seed, **OPTIONS[SANITIZER])


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(3, 13))
def test_a_million_random_calls(fuzz: Path, seed: int) -> None:
    assert "good: 100000 calls" in c_driver.run(fuzz, 100_000, seed, **OPTIONS[SANITIZER])


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("clang") is None, reason="libFuzzer needs clang")
def test_libfuzzer_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "target.c").write_text(
        "int LLVMFuzzerTestOneInput(const char *p, unsigned long n) { return p && n ? 0 : 0; }\n"
    )
    probe = ["clang", "-fsanitize=fuzzer", tmp_path / "target.c", "-o", tmp_path / "target"]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip("clang is there without libFuzzer (Debian: libclang-rt-dev)")
    program = instrumented(
        f"fuzzer,{SANITIZER}",
        tmp_path,
        "fuzz.c",
        "clang",
        "-DLIBFUZZER",
        "-Wno-unused-command-line-argument",
    )
    done = subprocess.run(
        [program, "-max_len=64", "-seed=1", "-runs=200000", "-max_total_time=120"],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
