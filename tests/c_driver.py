"""Building and running the C programs of tests/c against any artifact."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tvmconv.artifact import Artifact
from tvmconv.codegen.parts import ELEMENT_BYTES

C_SOURCES = Path(__file__).parent / "c"
CC = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
FLAGS = ["-std=c99", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O1"]
TAIL = ["-lm", "-lpthread", "-ldl"]


def compile_c(
    program: Path, *arguments: str | Path, cc: str | None = None, cwd: Path | None = None
) -> Path:
    """Compile and link one program with the system's C compiler."""
    command = [cc or CC or "cc", *FLAGS, *map(str, arguments), "-o", str(program)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return program


def definitions(artifact: Artifact) -> list[str]:
    """What tests/c/driver.c must know of an artifact."""
    manifest = artifact.manifest
    return [
        f"-DNAME={manifest.name}",
        f'-DHEADER="{manifest.name}.h"',
        f"-DINPUT_ELEMENT={ELEMENT_BYTES[manifest.input_dtype]}",
        f"-DOUTPUT_ELEMENT={ELEMENT_BYTES[manifest.output_dtype]}",
        f"-I{artifact.path}",
    ]


def driver(artifact: Artifact, folder: Path, *more: str | Path, static: bool = False) -> Path:
    """tests/c/driver.c linked with the shared or the static library of an artifact."""
    name = artifact.manifest.name
    library = artifact.path / f"lib{name}.{'a' if static else 'so'}"
    return compile_c(
        folder / f"driver-{name}-{'a' if static else 'so'}",
        *definitions(artifact),
        C_SOURCES / "driver.c",
        *more,
        library,
        f"-Wl,-rpath,{artifact.path}",
        *TAIL,
    )


def run(program: Path, *arguments: str | Path | int, **environment: str) -> str:
    """Run a program; its output. It must succeed in a quarter of an hour and warn of nothing."""
    result = subprocess.run(
        [str(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, f"exit {result.returncode}: {result.stdout}{result.stderr}"
    assert "WARNING" not in result.stderr, result.stderr
    return result.stdout
