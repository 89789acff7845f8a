"""Symbols of the libraries, and programs and build systems that link them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import c_driver
import numpy as np
import pytest
import sample_library as sample
from sample_library import Call

from tvmconv.artifact import Artifact
from tvmconv.codegen import link, toolchain
from tvmconv.codegen.entry import PUBLIC
from tvmconv.codegen.link import write_sources


def _nm(*arguments: str | Path) -> list[str]:
    result = subprocess.run(
        ["nm", *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return [line for line in result.stdout.splitlines() if line and not line.endswith(":")]


needs_binutils = pytest.mark.skipif(
    not (shutil.which("nm") and shutil.which("readelf")), reason="needs nm and readelf (binutils)"
)
WEAK_OF_C = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}


def check_symbols(artifact: Artifact) -> None:
    """What holds for the libraries of every artifact."""
    name = artifact.manifest.name
    public = {f"{name}_{function}" for function in PUBLIC}
    shared, static = (artifact.path / f"lib{name}.{suffix}" for suffix in ("so", "a"))
    for arguments in (("-D", "--defined-only", shared), ("-g", "--defined-only", static)):
        assert {line.split()[-1] for line in _nm(*arguments)} == public
    symbols = {line.split()[-1].partition("@")[0] for line in _nm(static) + _nm("-D", shared)}
    assert not [symbol for symbol in symbols if "tvm" in symbol.lower()]
    undefined = {line.split()[-1].partition("@")[0] for line in _nm("-u", static)}
    assert not [symbol for symbol in undefined if re.match(r"_Unwind|_ZN|__.*[dst]f\d?$", symbol)]
    text = subprocess.run(
        ["readelf", "-dlW", str(shared)], capture_output=True, text=True, check=True
    ).stdout
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", text))
    assert all(re.match(r"(libc|libm|libpthread|ld-linux.*)\.so", library) for library in needed)
    sections = subprocess.run(
        ["readelf", "-SW", str(static)], capture_output=True, text=True, check=True
    )
    assert not sections.stderr
    assert not re.search(r"tvm|\.debug|\.comment", sections.stdout.replace(str(static), ""))
    assert "TEXTREL" not in text
    assert "RPATH" not in text
    assert "RUNPATH" not in text
    assert "BIND_NOW" in text
    assert "GNU_RELRO" in text
    assert re.search(r"GNU_STACK.* RW ", text)


@needs_binutils
@pytest.mark.parametrize("kind", ["baked", "external"])
def test_symbols(kind: str, request: pytest.FixtureRequest) -> None:
    check_symbols(request.getfixturevalue(kind))


def test_the_c_library_is_all_it_needs(baked: Artifact) -> None:
    if shutil.which("ldd") is None:
        pytest.skip("needs ldd")
    text = subprocess.run(["ldd", baked.library], capture_output=True, text=True, check=True).stdout
    names = {Path(line.split()[0]).name.split(".so")[0] for line in text.splitlines()}
    assert names <= {"linux-vdso", "libc", "libm", "libpthread", "ld-linux-x86-64"} | {
        name for name in names if name.startswith(("ld-linux", "ld-musl"))
    }


@pytest.mark.parametrize("static", [False, True], ids=["so", "a"])
@pytest.mark.parametrize("mode", ["guard", "state", "nest"])
def test_driver(baked: Artifact, tmp_path: Path, mode: str, static: bool) -> None:
    program = c_driver.driver(baked, tmp_path, static=static)
    assert "good" in c_driver.run(program, mode, 1, 4)


def test_errno_is_kept_where_libm_sets_it(tmp_path: Path) -> None:
    artifact = link(sample.parts(tmp_path, flags=("-DEXPF",)), tmp_path / "out")
    assert "good" in c_driver.run(c_driver.driver(artifact, tmp_path), "state", 1, 4)


def test_weights_and_scratch_are_aligned_for_vectors(tmp_path: Path) -> None:
    artifact = link(sample.parts(tmp_path, flags=("-DALIGNED=64",)), tmp_path / "out")
    call = Call(sample.Library(artifact.path))
    assert call.run(threads=3) == 0
    assert call.right()


def test_external_weights_between_guard_pages(external: Artifact, tmp_path: Path) -> None:
    (tmp_path / "packed").write_bytes(sample.packed())
    program = c_driver.driver(external, tmp_path)
    assert "good" in c_driver.run(program, "guard", 1, 4, tmp_path / "packed")


@pytest.mark.parametrize("suffix", ["so", "a"])
def test_two_artifacts_in_one_program_share_a_pool(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / "out"
    for name in ("first", "second"):
        link(sample.parts(tmp_path, name), out)
    program = c_driver.compile_c(
        tmp_path / "two",
        f"-I{out}",
        c_driver.C_SOURCES / "two.c",
        *(out / f"lib{name}.{suffix}" for name in ("first", "second")),
        f"-Wl,-rpath,{out}",
        *c_driver.TAIL,
    )
    assert "good" in c_driver.run(program)


def test_the_header_is_c99_and_cplusplus(baked: Artifact, tmp_path: Path) -> None:
    text = '#include "up1.h"\n#include "up1.h"\nint main(void) { return up1_shapes() != 2; }\n'
    for suffix, compiler, standard in (("c", "cc", "c99"), ("cpp", "c++", "c++11")):
        if shutil.which(compiler) is None:
            continue
        (tmp_path / f"main.{suffix}").write_text(text)
        command = [compiler, f"-std={standard}", "-pedantic-errors", "-Wall", "-Wextra", "-Werror",
                   f"-I{baked.path}", str(tmp_path / f"main.{suffix}"), str(baked.library),
                   f"-Wl,-rpath,{baked.path}", "-o", str(tmp_path / "main")]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert subprocess.run([tmp_path / "main"], check=False).returncode == 0


@pytest.mark.skipif(shutil.which("musl-gcc") is None, reason="musl-gcc is not installed")
def test_static_library_in_a_static_musl_program(baked: Artifact, tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text(
        '#include "up1.h"\n#include <stdio.h>\n'
        "static float x[3360], y[3360]; static char workspace[4096];\n"
        "int main(void) { up1_args a = {.size = sizeof a};\n"
        "a.input = x; a.output = y; a.threads = 4;\n"
        "a.workspace = workspace; a.workspace_size = sizeof workspace;\n"
        'return up1_run(&a) == 0 && y[0] != 0 ? puts("good") < 0 : 1; }\n'
    )
    program = c_driver.compile_c(
        tmp_path / "main",
        "-static",
        f"-I{baked.path}",
        tmp_path / "main.c",
        baked.path / "libup1.a",
        "-lm",
        cc="musl-gcc",
    )
    assert "good" in c_driver.run(program)


def test_without_threads_and_a_system_nothing_of_either_is_needed(tmp_path: Path) -> None:
    parts = sample.parts(tmp_path)
    write_sources(parts, tmp_path)
    flags = ["-std=c99", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O1"]
    flags += ["-DNO_THREADS", "-DNO_SYSTEM"]
    toolchain.find().run([*flags, "-c", "entry.c", "-o", "serial.o"], tmp_path)
    if shutil.which("nm"):
        undefined = {line.split()[-1] for line in _nm("-u", tmp_path / "serial.o")}
        assert undefined == {
            "up1_kernel_0_0", "up1_pack", "up1_blob_manifest",
            "up1_blob_weights",
        } | (undefined & {"memset", "getenv", "strcmp", "strncmp"})  # fmt: skip


@pytest.mark.parametrize("tool", ["pkg-config", "cmake"])
def test_build_systems_find_it(baked: Artifact, tmp_path: Path, tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    moved = Path(shutil.copytree(baked.path, tmp_path / "somewhere" / "else"))
    main = '#include "up1.h"\nint main(void) { return up1_shapes() != 2; }\n'
    (tmp_path / "main.c").write_text(main)
    if tool == "pkg-config":
        programs = []
        for more, option in (("--libs", f"-Wl,-rpath,{moved}"), ("--static", "-static")):
            flags = subprocess.run(
                ["pkg-config", "--cflags", "--libs", more, str(moved / "up1.pc")],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
            program = tmp_path / f"main{more}"
            programs.append(c_driver.compile_c(program, tmp_path / "main.c", *flags, option))
    else:
        (tmp_path / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.13)\nproject(p C)\n"
            f'set(up1_DIR "{moved}")\nfind_package(up1 0.1 REQUIRED CONFIG)\n'
            "add_executable(a main.c)\ntarget_link_libraries(a up1::up1)\n"
            "add_executable(b main.c)\ntarget_link_libraries(b up1::static)\n"
        )
        for command in (["cmake", "-S", ".", "-B", "b"], ["cmake", "--build", "b"]):
            result = subprocess.run(
                command, cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert result.returncode == 0, result.stdout + result.stderr
        programs = [tmp_path / "b" / "a", tmp_path / "b" / "b"]
    for program in programs:
        assert subprocess.run([program], check=False).returncode == 0


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_example_links_both_ways(baked: Artifact, tmp_path: Path, checkout: Path) -> None:
    for name in ("main.c", "Makefile"):
        shutil.copy(checkout / "examples" / "c" / name, tmp_path)
    command = ["make", "-s", "LAYER=up1", f"DIR={baked.path}", "CFLAGS=-O1 -Wall -Wextra -Werror"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    x = np.arange(3360, dtype=np.float32).reshape(2, 5, 7, 6, 8)
    (tmp_path / "x").write_bytes(x.tobytes())
    for program in ("main-shared", "main-static"):
        text = c_driver.run(tmp_path / program, tmp_path / "x", tmp_path / "y")
        assert "output 2 x 5 x 7 x 6 x 8" in text
        y = np.frombuffer((tmp_path / "y").read_bytes(), np.float32).reshape(x.shape)
        np.testing.assert_array_equal(y, sample.expected(x))


@needs_binutils
@pytest.mark.parametrize("name", ["a", "x" * 13, "x" * 14, "x" * 60, "input", "output", "pool"])
def test_names_of_any_length_and_kind(tmp_path: Path, name: str) -> None:
    artifact = link(sample.parts(tmp_path, name), tmp_path / "out")
    check_symbols(artifact)
    assert "good" in c_driver.run(c_driver.driver(artifact, tmp_path, static=True), "nest", 1, 3)
