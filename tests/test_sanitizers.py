"""The C run time under the sanitizers of the compiler, and under valgrind."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import c_driver
import pytest
import sample_library as sample

from tvmconv.artifact import Artifact
from tvmconv.codegen import link
from tvmconv.codegen.link import write_sources

MODES = ["guard", "state", "storm", "fork", "nest"]
OPTIONS = {
    "address,undefined": {
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    },
    "thread": {"TSAN_OPTIONS": "die_after_fork=0:halt_on_error=1:second_deadlock_stack=1"},
}


def instrumented(
    sanitizer: str, folder: Path, program: str = "driver.c", cc: str | None = None, *more: str
) -> Path:
    """The run time, the sample kernel and a program of tests/c in one under a sanitizer."""
    flag = f"-fsanitize={sanitizer}"
    (folder / "empty.c").write_text("int main(void) { return 0; }\n")
    probe = [
        cc or c_driver.CC or "cc",
        flag.replace("fuzzer,", ""),
        str(folder / "empty.c"),
        "-o",
        str(folder / "empty"),
    ]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"the C compiler has no run time for {flag}")
    if subprocess.run([folder / "empty"], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"programs built with {flag} do not start on this system")
    parts = sample.parts(folder)
    entry, blobs, *_ = write_sources(parts, folder)
    artifact = link(parts, folder / "out")
    return c_driver.compile_c(
        folder / program.removesuffix(".c"),
        flag,
        "-fno-sanitize-recover=all",
        "-g",
        f"-I{folder}",
        *c_driver.definitions(artifact),
        *more,
        c_driver.C_SOURCES / program,
        c_driver.C_SOURCES / "kernel.c",
        folder / entry,
        folder / blobs,
        "-Wl,-z,noexecstack",
        *c_driver.TAIL,
        cc=cc,
        cwd=folder,
    )


@pytest.fixture(scope="module", params=sorted(OPTIONS))
def program(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("sanitizer")
    return instrumented(request.param, folder), OPTIONS[request.param]


@pytest.mark.parametrize("mode", MODES)
def test_sanitizer(program: tuple[Path, dict[str, str]], mode: str) -> None:
    driver, options = program
    assert "good" in c_driver.run(driver, mode, 2, 4, **options)


@pytest.mark.nightly
@pytest.mark.parametrize("mode", ["storm", "fork"])
def test_sanitizer_for_a_minute(program: tuple[Path, dict[str, str]], mode: str) -> None:
    driver, options = program
    assert "good" in c_driver.run(driver, mode, 60, 6, **options)


def check_with_valgrind(artifact: Artifact, folder: Path, *arguments: str | Path | int) -> None:
    """No invalid access and no use of uninitialised memory, kernels included."""
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    program = c_driver.driver(artifact, folder)
    checks = ["--error-exitcode=9", "--leak-check=no", "--fair-sched=yes", "-q"]
    c_driver.run(Path("valgrind"), *checks, program, *arguments)


def test_valgrind(tmp_path: Path) -> None:
    artifact = link(sample.parts(tmp_path), tmp_path / "out")
    check_with_valgrind(artifact, tmp_path, "nest", 1, 3)
