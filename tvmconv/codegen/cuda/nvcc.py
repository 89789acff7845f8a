"""NVIDIA's compiler: finding it, and from CUDA C to a fat binary that really holds machine code."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shlex
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tvmconv.codegen import toolchain
from tvmconv.cuda_devices import Architecture
from tvmconv.errors import BuildError

__all__ = ["Built", "Nvcc", "Usage", "contents", "find"]

_LOG = logging.getLogger(__name__)
_OLDEST = 13
_ADVICE = (
    "install CUDA 13's toolkit, or its wheels with pip install 'tvmconv[cuda]' "
    "(nvidia-cuda-nvcc, nvidia-nvvm, nvidia-cuda-crt, nvidia-cuda-runtime), or set NVCC"
)
_MAGIC = 0xBA55ED50
_PTX, _CUBIN = 1, 2


@dataclass(frozen=True)
class Usage:
    """What one kernel takes on one architecture, by ptxas.

    Attributes
    ----------
    kernel, architecture : str
        Symbol, and ``sm_80``.
    registers : int
        32-bit registers of a thread.
    stack, spill_stores, spill_loads : int
        Bytes of local memory; spills are registers that did not fit.
    shared : int
        Bytes of shared memory that the kernel declares.
    """

    kernel: str
    architecture: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


@dataclass(frozen=True)
class Built:
    """A fat binary, and what each of its kernels takes."""

    fatbin: bytes
    usage: tuple[Usage, ...]


@dataclass(frozen=True)
class Nvcc:
    """NVIDIA's compiler.

    Attributes
    ----------
    command : tuple of str
        The program.
    version : str
        ``13.0``.
    """

    command: tuple[str, ...]
    version: str

    def build(self, source: str, targets: Sequence[Architecture]) -> Built:
        """Compile CUDA C for every architecture, and to PTX of the newest for later ones.

        The name and the folder of the source do not get into the bytes; no fast-math option is
        given.

        Raises
        ------
        BuildError
            The compiler refuses the source, or the result lacks the code of an architecture.
        """
        numbers = [one.number for one in targets]
        arguments = ["--fatbin", "-O3", "-std=c++17", "-w", "-Xptxas", "-v"]
        for number in numbers:
            arguments += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        arguments += ["-gencode", f"arch=compute_{numbers[-1]},code=compute_{numbers[-1]}"]
        with tempfile.TemporaryDirectory(prefix="tvmconv-cuda-") as folder:
            Path(folder, "kernel.cu").write_text(source, encoding="utf-8")
            arguments += ["kernel.cu", "-o", "kernel.fatbin"]
            _LOG.debug("%s %s", shlex.join(self.command), shlex.join(arguments))
            result = _call([*self.command, *arguments], Path(folder))
            if result.returncode != 0:
                raise BuildError(f"nvcc failed: {_reason(result)}")
            fatbin = Path(folder, "kernel.fatbin").read_bytes()
        inside = contents(fatbin)
        wanted = [*((_CUBIN, number) for number in numbers), (_PTX, numbers[-1])]
        missing = [number for kind, number in wanted if (kind, number) not in inside]
        if missing:
            raise BuildError(f"nvcc left out the code for sm_{missing[0]}: found {inside}")
        return Built(fatbin, _usage(result.stderr + result.stdout))


def contents(fatbin: bytes) -> list[tuple[int, int]]:
    """What is in a fat binary: (1 for PTX or 2 for a cubin, 80 for compute capability 8.0).

    Raises
    ------
    BuildError
        It is no fat binary.
    """
    found = []
    try:
        magic, _, header, size = struct.unpack_from("<IHHQ", fatbin)
        if magic != _MAGIC or header + size > len(fatbin):
            raise BuildError("nvcc's output is no fat binary")
        at = header
        while at < header + size:
            kind, _, header_size, payload = struct.unpack_from("<HHIQ", fatbin, at)
            (number,) = struct.unpack_from("<I", fatbin, at + 28)
            if payload:
                found.append((kind, number))
            at += header_size + payload
    except struct.error as exc:
        raise BuildError(f"nvcc's output is no fat binary: {exc}") from exc
    return found


def find() -> Nvcc:
    """NVIDIA's compiler: ``$NVCC``, on the path, in CUDA's usual folders, or a wheel's.

    Raises
    ------
    BuildError
        There is none, or it is older than CUDA 13.
    """
    keys = ("NVCC", "CUDA_HOME", "CUDA_PATH", "PATH")
    return _find(*(os.environ.get(key, "") for key in keys))


@lru_cache(maxsize=8)
def _find(asked: str, home: str, other_home: str, _path: str) -> Nvcc:
    if asked.strip():
        try:
            command = tuple(shlex.split(asked))
        except ValueError as exc:
            raise BuildError(f"NVCC={asked!r} is not a command: {exc}") from exc
        version = _version(command)
        if version is None:
            raise BuildError(f"NVCC={asked!r} does not run; unset NVCC, or {_ADVICE}")
        return _checked(command, version)
    places = [Path(one) / "bin" / "nvcc" for one in (home, other_home) if one]
    places += [Path("/usr/local/cuda/bin/nvcc"), *_wheels()]
    candidates = [found for found in (shutil.which("nvcc"),) if found]
    candidates += [str(place) for place in places if place.is_file()]
    for candidate in candidates:
        version = _version((candidate,))
        if version is not None:
            return _checked((candidate,), version)
    raise BuildError(f"NVIDIA's compiler nvcc was not found; {_ADVICE}")


def _wheels() -> list[Path]:
    """Where the wheels of CUDA put it."""
    try:
        spec = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        return []
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return [Path(folder) / "cu13" / "bin" / "nvcc" for folder in folders]


def _checked(command: tuple[str, ...], version: str) -> Nvcc:
    if int(version.split(".", maxsplit=1)[0]) < _OLDEST:
        raise BuildError(
            f"{shlex.join(command)} is CUDA {version}; this version needs CUDA 13: {_ADVICE}"
        )
    return Nvcc(command, version)


def _version(command: tuple[str, ...]) -> str | None:
    try:
        result = _call([*command, "--version"], Path.cwd())
    except BuildError:
        return None
    match = re.search(r"release (\d+\.\d+)", result.stdout)
    return match[1] if match and result.returncode == 0 else None


_USAGE = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def _usage(text: str) -> tuple[Usage, ...]:
    found = []
    for match in _USAGE.finditer(text):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        found.append(
            Usage(
                match["kernel"],
                match["architecture"],
                int(match["registers"]),
                int(match["stack"]),
                int(match["stores"]),
                int(match["loads"]),
                int(shared[1]) if shared else 0,
            )
        )
    return tuple(found)


def _reason(result: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (result.stderr + result.stdout).splitlines() if line.strip()]
    for line in lines:
        if "error" in line or "fatal" in line:
            return line
    return lines[-1] if lines else f"exit code {result.returncode}"


def _call(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return toolchain.call(command, folder, f"nvcc ({command[0]})")
