"""Finding and running the C compiler."""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from tvmconv import systems
from tvmconv.errors import BuildError

_LOG = logging.getLogger(__name__)
_ADVICE = (
    "install one (Debian, Ubuntu: 'apt install gcc'; Fedora: 'dnf install gcc'; any system: "
    "'pip install ziglang') or set CC"
)
_TIMEOUT_S = 1800
# Zig keeps what it compiled, and does not see a change in a file that assembly includes. Beside the
# sources it keeps that for one artifact; what it makes of the C library stays elsewhere.
_PRIVATE = {"ZIG_LOCAL_CACHE_DIR": ".zig-cache"}


@dataclass(frozen=True)
class Toolchain:
    """A C compiler that also assembles and links.

    Parameters
    ----------
    command
        The program and the arguments that come first.
    version
        First line of what it says about itself.
    zig_cpu
        Zig's name of the smallest processor to build for.
    """

    command: tuple[str, ...]
    version: str
    zig_cpu: str = "baseline"

    @property
    def is_zig(self) -> bool:
        """Whether this is Zig's compiler, which names processors in its own way."""
        return "zig" in " ".join(self.command).lower()

    def archive(self, library: str, objects: list[str], folder: Path) -> None:
        """Put objects of any format into a static library, without dates and owners.

        Raises
        ------
        BuildError
            When there is no archiver, or it fails.
        """
        program: tuple[str, ...] = ("llvm-ar",)
        if self.is_zig and "cc" in self.command:
            program = (*self.command[: self.command.index("cc")], "ar")
        elif shutil.which(program[0]) is None:
            raise BuildError("no archiver was found: install llvm-ar (Debian: 'apt install llvm')")
        result = _call([*program, "rcsD", library, *objects], folder, _PRIVATE)
        if result.returncode != 0:
            raise BuildError(f"the archiver {shlex.join(program)} failed: {_reason(result)}")

    def run(self, arguments: list[str], folder: Path) -> None:
        """Run the compiler inside `folder`, so that no path of this machine gets into the output.

        Raises
        ------
        BuildError
            When it fails; with the first line that reports an error.
        """
        _LOG.debug("%s %s", shlex.join(self.command), shlex.join(arguments))
        result = _call([*self.command, *arguments], folder, _PRIVATE)
        if result.returncode != 0:
            raise BuildError(f"the C compiler {shlex.join(self.command)} failed: {_reason(result)}")


def find() -> Toolchain:
    """The C compiler: ``$CC``, else the first of cc, gcc, clang, else the `ziglang` wheel.

    Raises
    ------
    BuildError
        When there is none, or ``$CC`` does not run.
    """
    return _find(os.environ.get("CC", ""), os.environ.get("PATH", ""))


def find_for(triple: str, cc: str | None = None) -> Toolchain:
    """A C compiler and linker for a target.

    Parameters
    ----------
    triple
        One of `tvmconv.systems.TRIPLES`.
    cc
        A command that builds for it; without one: for this machine `find`, else ``$CC`` if it
        builds for that architecture and system, the `ziglang` wheel, or ``TRIPLE-gcc``.

    Raises
    ------
    BuildError
        There is none; the text names the package.
    """
    system = systems.TRIPLES.get(triple)
    zig_cpu = system.zig_cpu if system is not None else "baseline"
    if cc is not None:
        if not cc.strip():
            raise BuildError("--cc is empty; expected the command of a C compiler")
        return replace(_find(cc, os.environ.get("PATH", ""), "--cc "), zig_cpu=zig_cpu)
    if system is None or triple == _host():
        return find()
    asked = os.environ.get("CC", "")
    if asked.strip() and _serves(asked, triple):
        return replace(_find(asked, os.environ.get("PATH", "")), zig_cpu=zig_cpu)
    zig = _zig()
    if zig is not None:
        return Toolchain((*zig, "-target", system.zig), _version(zig) or "", zig_cpu)
    gcc = _gcc(triple)
    if gcc is not None:
        return gcc
    raise BuildError(
        f"no linker for {triple} was found: pip install 'tvmconv[cross]' (the ziglang wheel, for "
        "every target), or name a toolchain with --cc"
    )


def find_static(triple: str, cc: str | None = None) -> Toolchain:
    """A toolchain for static programs: ``TRIPLE-gcc`` with its C library, or musl with Zig.

    Zig compiles its C library first, which takes a minute once; so it comes last.

    Raises
    ------
    BuildError
        As `find_for`.
    """
    if cc is not None or triple == _host() or triple not in systems.TRIPLES:
        return find_for(triple, cc)
    return _gcc(triple) or find_for(triple.replace("-gnu", "-musl"))


def _gcc(triple: str) -> Toolchain | None:
    """GNU's compiler for a target, as Debian names it."""
    command = (f"{triple.replace('armv7', 'arm')}-gcc",)
    version = _version(command) if shutil.which(command[0]) else None
    return None if version is None else Toolchain(command, version)


def _host() -> str:
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower())
    return f"{machine or platform.machine().lower()}-{platform.system().lower()}-gnu"


def _serves(command: str, triple: str) -> bool:
    """Whether a compiler builds for the architecture and the C library of a triple."""
    try:
        result = _call([*shlex.split(command), "-dumpmachine"], Path.cwd())
    except (BuildError, ValueError, IndexError):
        return False
    words = set(re.split(r"[-.\d]+", result.stdout.strip()))
    wanted = set(re.split(r"[-.\d]+", triple))
    return result.returncode == 0 and wanted - {"v", "unknown"} <= words


def _zig() -> tuple[str, ...] | None:
    """The command of Zig's C compiler."""
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "cc")
    return ("zig", "cc") if shutil.which("zig") else None


@lru_cache(maxsize=8)
def _find(asked: str, _path: str, option: str = "CC=") -> Toolchain:
    if asked.strip():
        cure = f"leave it out, or {_ADVICE}"
        try:
            command = tuple(shlex.split(asked))
        except ValueError as exc:
            raise BuildError(f"{option}{asked!r} is not a command: {exc}") from exc
        if shutil.which(command[0]) is None:
            raise BuildError(f"the C compiler {option}{asked!r} was not found; {cure}")
        version = _version(command)
        if version is None:
            raise BuildError(f"the C compiler {option}{asked!r} does not run; {cure}")
        return Toolchain(command, version)
    candidates = [(name,) for name in ("cc", "gcc", "clang") if shutil.which(name)]
    for candidate in candidates:
        version = _version(candidate)
        if version is not None:
            return Toolchain(candidate, version)
    zig = _zig()
    if zig is not None:
        version = _version(zig)
        if version is not None:
            return Toolchain(zig, version)
    raise BuildError(f"no C compiler was found (looked for cc, gcc, clang, ziglang); {_ADVICE}")


def _reason(result: subprocess.CompletedProcess[str]) -> str:
    """The line of the compiler's output that says most."""
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    for mark in ("error: ", "undefined ", "cannot ", "No space", "error"):
        for line in lines:
            if mark in line and not line.startswith("collect2") and "linker command" not in line:
                return line
    return lines[-1] if lines else f"exit code {result.returncode}"


def _version(command: tuple[str, ...]) -> str | None:
    try:
        result = _call([*command, "--version"], Path.cwd())
    except BuildError:
        return None
    return result.stdout.partition("\n")[0] if result.returncode == 0 else None


def call(
    command: list[str], folder: Path, what: str, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a compiler's program in a folder; its exit code may be any.

    Raises
    ------
    BuildError
        It did not run; ``what`` names it.
    """
    # What a user's environment says about languages or dates must not change the bytes.
    environment = {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0", **(variables or {})}
    # Nor what a user set for other builds: options, a cache of fast-math code.
    for key in ("NVCC_APPEND_FLAGS", "NVCC_PREPEND_FLAGS"):
        environment.pop(key, None)
    try:
        return subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BuildError(f"{what} did not run: {exc}") from exc


def _call(
    command: list[str], folder: Path, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return call(command, folder, f"the C compiler {shlex.join(command[:2])}", variables)
