"""The CUDA part of a library without a GPU: against a driver that runs the kernels on the CPU."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import launcher_sample
import pytest
import sample_library as sample
from c_driver import compile_c
from launcher_sample import CODES, SOURCES, Args

from tvmconv.codegen import link

CHILDREN = sorted(path.name for path in SOURCES.glob("driver_*.py"))
NO_DRIVER = shutil.which("nvidia-smi") is None


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return launcher_sample.driver(tmp_path_factory.mktemp("driver"))


@pytest.mark.parametrize("name", CHILDREN)
def test_with_the_fake_driver(environment: dict[str, str], name: str, checkout: Path) -> None:
    # A process of its own: a driver that was opened once stays.
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider",
         "-p", "fake_driver", str(SOURCES / name)],
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
        env={**environment, "PYTHONPATH": os.pathsep.join([str(SOURCES), str(SOURCES.parent)])},
        cwd=checkout,
    )  # fmt: skip
    assert result.returncode == 0, f"{result.stdout[-8000:]}{result.stderr[-2000:]}"


@pytest.mark.skipif(not NO_DRIVER, reason="this machine has an NVIDIA driver")
@pytest.mark.parametrize("cpu", [False, True])
def test_without_a_driver_the_library_loads_and_says_so(tmp_path: Path, cpu: bool) -> None:
    library = sample.Library(link(launcher_sample.parts(tmp_path, cpu=cpu), tmp_path / "out").path)
    assert library["abi_version"]() == 1
    assert library["shapes"]() == 2
    assert '"cuda"' in library["manifest"]().decode()
    call = sample.Call(library)
    args = Args(size=ctypes.sizeof(Args), device=0)
    for name, _ in sample.Args._fields_[1:]:
        setattr(args, name, getattr(call.args, name))
    buffer = (ctypes.c_char * 4096)()
    args.input = args.output = ctypes.addressof(buffer) & ~15
    for _ in range(3):
        assert library.run(args) == CODES["ERROR_NO_DRIVER"]
    assert "libcuda.so.1" in library.text(CODES["ERROR_NO_DRIVER"])
    args.device, args.input, args.output = -1, call.args.input, call.args.output
    assert library.run(args) == (0 if cpu else CODES["ERROR_NO_CPU"])
    assert call.right() == cpu


def test_a_driver_that_lacks_a_function_is_too_old(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    link(launcher_sample.parts(tmp_path), tmp_path / "out")
    text = (SOURCES / "fake_libcuda.c").read_text().replace("cuStreamIsCapturing", "cuNotYet")
    (tmp_path / "old.c").write_text(text)
    compile_c(
        tmp_path / "libcuda.so.1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1",
        f"-I{SOURCES}", tmp_path / "old.c", "-ldl", "-lpthread",
    )  # fmt: skip
    program = tmp_path / "call.py"
    program.write_text(
        "import ctypes, sys, sample_library, pathlib\n"
        "from launcher_sample import Args\n"
        "library = sample_library.Library(pathlib.Path(sys.argv[1]))\n"
        "args = Args(size=ctypes.sizeof(Args), input=4096, output=4096, workspace=4096,\n"
        "            workspace_size=4096)\n"
        "print(library.run(args), library.text(library.run(args)))\n"
    )
    found = {**environment, "LD_LIBRARY_PATH": str(tmp_path)}
    said = launcher_sample.in_process(program, tmp_path / "out", environment=found)
    assert said.startswith(str(CODES["ERROR_OLD_DRIVER"])) and "too old" in said


def test_a_program_that_ends_with_arrays_alive_says_nothing(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    artifact = link(launcher_sample.parts(tmp_path), tmp_path / "up1")
    program = tmp_path / "ends.py"
    program.write_text(
        "import sys\n"
        "import numpy as np, sample_library as sample, tvmconv\n"
        "from foreign_arrays import Pack\n"
        "layer = tvmconv.load(sys.argv[1])\n"
        "sizes = (sample.DEPTH, sample.HEIGHT, sample.ROW, sample.CHANNELS)\n"
        "x = np.ones((2, *sizes), np.float32)\n"
        "y, z = layer(Pack(x)), layer(x)\n"
        "sys.kept = y, tvmconv.runtime.cuda_driver  # cleared before what sys holds\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program), str(artifact.path)],
        capture_output=True, text=True, check=False, timeout=600,
        env={**environment, "PYTHONPATH": os.pathsep.join([str(SOURCES), str(SOURCES.parent)])},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_symbols_and_needs(tmp_path: Path) -> None:
    if not (shutil.which("nm") and shutil.which("readelf")):
        pytest.skip("needs nm and readelf (binutils)")
    artifact = link(launcher_sample.parts(tmp_path, cpu=True), tmp_path / "out")
    static = artifact.path / "libup1.a"
    names = subprocess.run(
        ["nm", "-g", "--defined-only", str(static)], capture_output=True, text=True, check=True
    ).stdout
    symbols = {line.split()[-1] for line in names.splitlines() if " " in line}
    assert symbols and all(symbol.startswith("up1_") for symbol in symbols)
    dynamic = subprocess.run(
        ["readelf", "-d", str(artifact.library)], capture_output=True, text=True, check=True
    ).stdout
    needed = {line.split("[")[1].split(".")[0] for line in dynamic.splitlines() if "NEEDED" in line}
    assert needed <= {"libc", "libm", "libpthread", "libdl"}


def test_the_same_parts_give_the_same_bytes(tmp_path: Path) -> None:
    made = launcher_sample.parts(tmp_path, cpu=True)
    first, second = link(made, tmp_path / "a"), link(made, tmp_path / "b")
    for file in sorted(first.path.iterdir()):
        assert file.read_bytes() == (second.path / file.name).read_bytes(), file.name


def test_the_example(tmp_path: Path, environment: dict[str, str], checkout: Path) -> None:
    artifact = link(launcher_sample.parts(tmp_path), tmp_path / "up1")
    program = compile_c(
        tmp_path / "main", f"-I{artifact.path}", checkout / "examples" / "cuda" / "main.c",
        artifact.library, f"-Wl,-rpath,{artifact.path}", "-ldl",
    )  # fmt: skip
    done = subprocess.run(
        [str(program)], capture_output=True, text=True, check=False, timeout=120, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "sum of the output" in done.stdout
    if NO_DRIVER:
        done = subprocess.run(
            [str(program)], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 1
        assert done.stderr == "libcuda.so.1: there is no NVIDIA driver on this machine\n"


@pytest.mark.parametrize("cpu", [False, True])
def test_the_header_is_c99_and_has_the_device(tmp_path: Path, cpu: bool) -> None:
    artifact = link(launcher_sample.parts(tmp_path, cpu=cpu), tmp_path / "out")
    program = tmp_path / "main.c"
    program.write_text(
        '#include "up1.h"\n'
        "int main(void) {\n"
        "    up1_args args = {.size = sizeof args};\n"
        "    args.device = 70;\n"
        "    args.input = args.output = (void *)4096;\n"
        "    args.workspace = (void *)4096, args.workspace_size = 4096;\n"
        "    return up1_run(&args) == up1_ERROR_DEVICE && sizeof args == SIZE ? 0 : 1;\n"
        "}\n"
    )
    for library in ("libup1.so", "libup1.a"):
        binary = compile_c(
            tmp_path / f"main-{library}", "-pedantic", f"-DSIZE={ctypes.sizeof(Args)}",
            f"-I{artifact.path}", program, artifact.path / library,
            f"-Wl,-rpath,{artifact.path}", "-lm", "-lpthread", "-ldl",
        )  # fmt: skip
        assert subprocess.run([str(binary)], check=False, timeout=120).returncode == 0
