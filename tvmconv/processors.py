"""What LLVM knows of processors, and Linux of this one's caches."""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from tvmconv.errors import BuildError

__all__ = [
    "cache_bytes",
    "cpus",
    "features_of",
    "is_cpu",
    "llvm",
    "tuning",
    "vectors",
    "without_torch",
]

#: Processors that execute in order, or nearly so, without fused multiply-adds: LLVM loads far ahead
#: for them, into registers that the sums cannot have, and spills with more.
_LOADS_AHEAD = frozenset(
    {"atom", "bonnell", "silvermont", "slm", "goldmont", "goldmont-plus", "tremont"}
)


def llvm() -> Any:
    """TVM, whose LLVM answers all questions."""
    try:
        import tvm
        from tvm.target import codegen  # noqa: F401
    except ImportError as exc:
        raise BuildError(
            f"the compiler is not installed ({exc}): pip install 'tvmconv[compile]'"
        ) from exc
    return tvm


def without_torch() -> None:
    """Keep TVM from importing PyTorch, in a process that is ours alone.

    Where it is installed, TVM's ``tvm_ffi`` imports it before anything else: two seconds, for
    nothing that a command needs.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def is_cpu(cpu: str, triple: str) -> bool:
    """Whether LLVM knows a CPU of this name that TVM and we can build for."""
    codegen = llvm().target.codegen
    # LLVM takes these, and means a baseline by them.
    if cpu in ("", "generic", "native") or not codegen.llvm_is_valid_cpu(cpu, triple):
        return False
    # The processors of 32 bits before x86-64 stand in the same list.
    return not triple.startswith("x86_64") or "64bit" in features_of(cpu, triple, ())


@lru_cache(maxsize=256)
def features_of(cpu: str, triple: str, extra: tuple[str, ...]) -> tuple[str, ...]:
    """LLVM's features of a CPU, with ``+f`` and ``-f`` applied."""
    tvm = llvm()
    machine: dict[str, Any] = {"kind": "llvm", "mcpu": cpu, "mtriple": triple}
    if extra:
        machine["mattr"] = list(extra)
    found = tvm.target.codegen.llvm_get_cpu_features(tvm.target.Target(machine))
    return tuple(sorted(str(feature) for feature in found))


def cpus(triple: str) -> list[str]:
    """LLVM's names of all CPUs of an architecture."""
    tvm = llvm()
    machine = tvm.target.Target({"kind": "llvm", "mtriple": triple})
    return [str(cpu) for cpu in tvm.target.codegen.llvm_get_cpu_archlist(machine)]


def tuning(cpu: str, triple: str) -> tuple[str, ...]:
    """Features that contradict LLVM's taste.

    It calls the fused multiply-adds of Cortex-A7 and others slow, for code that waits for each; a
    register tile has eight sums to wait for, and without them it needs nearly twice the
    instructions, and spills.
    """
    found = features_of(cpu, triple, ())
    slow = triple.startswith("armv7") and {"neon", "vfp4", "slowfpvfmx"} <= set(found)
    return ("-slowfpvfmx",) if slow else ()


def vectors(cpu: str, triple: str, extra: tuple[str, ...]) -> tuple[int, int]:
    """Bits of a vector register, and how many a loop may use without LLVM spilling one.

    TVM's own answer is 512 bits for everything.
    """
    features = set(features_of(cpu, triple, extra))
    architecture = triple.split("-", maxsplit=1)[0]
    if architecture == "x86_64":
        if {"avx512f", "avx512vl"} <= features:
            return 512, 32
        if cpu in _LOADS_AHEAD:
            return 128, 9
        # Not fused, a product has a register of its own before it is added.
        return 256 if "avx" in features else 128, 16 if "fma" in features else 15
    if architecture == "riscv64":
        return (128, 32) if "v" in features else (32, 32)
    if architecture.startswith(("armv7", "thumb")):
        if "mve.fp" in features:
            return 128, 8
        # Of 16; with one more LLVM's scheduler spills sums, fused or not.
        return (128, 14) if "neon" in features else (32, 32)
    if architecture == "wasm32":
        return (128, 16) if "simd128" in features else (32, 16)
    return 128, 32


def cache_bytes(level: int, default: int) -> int:
    """The size of a data cache of the first core, as Linux tells it."""
    for index in range(6):
        folder = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}")
        try:
            if (folder / "level").read_text().strip() != str(level):
                continue
            if (folder / "type").read_text().strip() == "Instruction":
                continue
            match = re.fullmatch(r"(\d+)([KM]?)", (folder / "size").read_text().strip())
        except OSError:
            break
        if match:
            return int(match[1]) << {"": 0, "K": 10, "M": 20}[match[2]]
    return default
