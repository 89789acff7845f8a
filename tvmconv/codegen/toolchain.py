"""Finding and running the C compiler."""

from __future__ import annotations

import importlib.util
import logging
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tvmconv.errors import BuildError

_LOG = logging.getLogger(__name__)
_ADVICE = (
    "install one (Debian, Ubuntu: 'apt install gcc'; Fedora: 'dnf install gcc'; any system: "
    "'pip install ziglang') or set CC"
)
_TIMEOUT_S = 600


@dataclass(frozen=True)
class Toolchain:
    """A C compiler that also assembles and links.

    Parameters
    ----------
    command
        The program and the arguments that come first.
    version
        First line of what it says about itself.
    """

    command: tuple[str, ...]
    version: str

    @property
    def is_zig(self) -> bool:
        """Whether this is Zig's compiler, which names processors in its own way."""
        return "zig" in " ".join(self.command).lower()

    def run(self, arguments: list[str], folder: Path) -> None:
        """Run the compiler inside `folder`, so that no path of this machine gets into the output.

        Raises
        ------
        BuildError
            When it fails; with the first line that reports an error.
        """
        _LOG.debug("%s %s", shlex.join(self.command), shlex.join(arguments))
        result = _call([*self.command, *arguments], folder)
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


@lru_cache(maxsize=8)
def _find(asked: str, _path: str) -> Toolchain:
    if asked.strip():
        try:
            command = tuple(shlex.split(asked))
        except ValueError as exc:
            raise BuildError(f"CC={asked!r} is not a command: {exc}") from exc
        if shutil.which(command[0]) is None:
            raise BuildError(f"the C compiler CC={asked!r} was not found; unset CC, or {_ADVICE}")
        version = _version(command)
        if version is None:
            raise BuildError(f"the C compiler CC={asked!r} does not run; unset CC, or {_ADVICE}")
        return Toolchain(command, version)
    candidates = [(name,) for name in ("cc", "gcc", "clang") if shutil.which(name)]
    for candidate in candidates:
        version = _version(candidate)
        if version is not None:
            return Toolchain(candidate, version)
    if importlib.util.find_spec("ziglang") is not None:
        zig = (sys.executable, "-m", "ziglang", "cc")
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


def _call(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # What a user's environment says about languages or dates must not change the bytes.
    environment = {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
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
        raise BuildError(f"the C compiler {shlex.join(command[:2])} did not run: {exc}") from exc
