"""Everybody as on a processor without AVX-512, which most desktops and edge devices are.

The workers run with a library preloaded that answers CPUID, so that every framework takes the code
it has for such a processor, and sgemm, too; tvmconv is compiled for `x86-64-v3`. The caches and the
clock stay those of the machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["ISAS", "Isa", "isa"]

_SOURCE = Path(__file__).with_name("without_avx512.c")
# glibc asks CPUID before anything can be preloaded.
_LIBC = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX512CD"

ISAS = ("native", "avx2")


class Isa:
    """An instruction set that a run is held to.

    Attributes
    ----------
    target
        What tvmconv compiles for.
    environment
        Variables of the workers.
    """

    def __init__(self, target: str, environment: dict[str, str]) -> None:
        self.target, self.environment = target, environment


@contextmanager
def isa(name: str) -> Iterator[Isa]:
    """An instruction set by its name in `ISAS`, for as long as its library is there.

    Raises
    ------
    ValueError
        The machine cannot pretend to be another: no C compiler, no x86-64 Linux, or a kernel or
        hypervisor that does not trap CPUID.
    """
    if name == "native":
        yield Isa("native", {})
        return
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise ValueError(f"a run as {name} needs a C compiler")
    with tempfile.TemporaryDirectory(prefix="tvmconv-isa-") as folder:
        library = Path(folder) / "without_avx512.so"
        command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            raise ValueError(f"no run as {name} here: {built.stderr.strip().splitlines()[-1]}")
        environment = {"LD_PRELOAD": str(library), "GLIBC_TUNABLES": _LIBC}
        tried = subprocess.run(
            [sys.executable, "-c", "pass"],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if tried.returncode:
            said = tried.stderr.strip().splitlines() or [f"Python ended with {tried.returncode}"]
            raise ValueError(f"no run as {name} here: {said[-1]}")
        yield Isa("x86-64-v3", environment)
