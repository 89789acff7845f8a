"""Processors: their names, what LLVM calls them, and what a schedule has to know of them.

A target is ``native``, the name of a device or of a CPU, with CPU features as ``+f`` or ``-f`` behind it. Each name is checked
against LLVM: a misspelt one is refused with a close match, since LLVM itself would fall back to a baseline without a word.
"""

from __future__ import annotations

import difflib
import hashlib
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmconv.errors import TargetError

__all__ = ["DEVICES", "CpuTarget", "Device", "native", "resolve", "resolve_buildable"]

_TRIPLES = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu", "riscv64": "riscv64-linux-gnu"}
#: Features that change the code of a kernel; only these are switched off where a virtual machine hides them.
_CODE_FEATURE = re.compile(r"avx|sse|fma|f16c|bmi|lzcnt|popcnt|movbe|xop|tbm|gfni|vaes|neon|sve|fullfp16")


@dataclass(frozen=True)
class CpuTarget:
    """One processor, complete for the compiler.

    Attributes
    ----------
    name : str
        As it was asked for.
    cpu, triple : str
        LLVM's names.
    features : tuple of str
        LLVM features beyond the CPU's own, ``+f`` or ``-f``.
    vector_bits, vector_registers : int
        Of the widest vector registers that the code uses.
    l1_bytes, l2_bytes : int
        Data caches of one core.
    cores : int
        That a process may use.
    native : bool
        Whether it is the processor this runs on.
    """

    name: str
    cpu: str
    triple: str
    features: tuple[str, ...]
    vector_bits: int
    vector_registers: int
    l1_bytes: int
    l2_bytes: int
    cores: int
    native: bool

    @property
    def architecture(self) -> str:
        """The first part of the triple."""
        return self.triple.split("-", maxsplit=1)[0]

    def llvm_target_dict(self) -> dict[str, Any]:
        """The target as TVM takes it."""
        target: dict[str, Any] = {
            "kind": "llvm",
            "mcpu": self.cpu,
            "mtriple": self.triple,
            "num-cores": self.cores,
        }
        if self.features:
            target["mattr"] = list(self.features)
        return target

    def fingerprint(self) -> str:
        """A stable name for files: architecture, CPU, vector length, and a hash of extra features."""
        parts = [self.architecture, self.cpu, str(self.vector_bits)]
        if self.features:
            text = ",".join(sorted(self.features))
            parts.append(hashlib.sha256(text.encode()).hexdigest()[:8])
        return "-".join(parts)

    def required_features(self) -> tuple[str, ...]:
        """The LLVM features that a processor must have to run the code."""
        return _features(self.cpu, self.triple, self.features)


@dataclass(frozen=True)
class Device:
    """A known device: LLVM's CPU, the triple, extra features, data caches in KiB, cores."""

    cpu: str
    triple: str = "aarch64-linux-gnu"
    features: tuple[str, ...] = ()
    l1_kib: int = 32
    l2_kib: int = 512
    cores: int = 4


_RISCV = ("+m", "+a", "+f", "+d", "+c")
_X86 = "x86_64-linux-gnu"

#: Device or CPU name -> what it is. Caches and cores are the makers' figures for the common part.
DEVICES: dict[str, Device] = {
    "raspberry-pi-3": Device("cortex-a53", l2_kib=512),
    "raspberry-pi-4": Device("cortex-a72", l2_kib=1024),
    "raspberry-pi-5": Device("cortex-a76", l1_kib=64, l2_kib=512),
    "cortex-a53": Device("cortex-a53"),
    "cortex-a55": Device("cortex-a55", l2_kib=256),
    "cortex-a72": Device("cortex-a72", l2_kib=1024),
    "cortex-a76": Device("cortex-a76", l1_kib=64),
    "cortex-a78": Device("cortex-a78", l1_kib=64),
    "neoverse-n1": Device("neoverse-n1", l1_kib=64, l2_kib=1024, cores=8),
    "neoverse-v1": Device("neoverse-v1", l1_kib=64, l2_kib=1024, cores=8),
    "graviton2": Device("neoverse-n1", l1_kib=64, l2_kib=1024, cores=8),
    "graviton3": Device("neoverse-v1", l1_kib=64, l2_kib=1024, cores=8),
    "jetson-orin-cpu": Device("cortex-a78ae", l1_kib=64, l2_kib=256, cores=8),
    "apple-m1": Device("apple-m1", "arm64-apple-macosx11", l1_kib=128, l2_kib=3072),
    "x86-64-v2": Device("x86-64-v2", _X86, l2_kib=256),
    "x86-64-v3": Device("x86-64-v3", _X86),
    "x86-64-v4": Device("x86-64-v4", _X86, l2_kib=1024),
    "atom": Device("atom", _X86, l1_kib=24),
    "tremont": Device("tremont", _X86, l2_kib=1536),
    "alderlake-e": Device("gracemont", _X86, l2_kib=2048),
    "riscv64-rva22": Device("generic-rv64", "riscv64-linux-gnu", (*_RISCV, "+zba", "+zbb", "+zbs")),
    "riscv64-rvv": Device("generic-rv64", "riscv64-linux-gnu", (*_RISCV, "+zba", "+zbb", "+zbs", "+v")),
    "armv7-neon": Device("cortex-a7", "armv7-linux-gnueabihf", ("+neon", "+vfp4")),
    "wasm32-simd": Device("generic", "wasm32-unknown-unknown", ("+simd128",), cores=1),
}  # fmt: skip


def resolve(text: str) -> tuple[CpuTarget, ...]:
    """The processors that a target text names.

    Parameters
    ----------
    text : str
        ``ITEM[|ITEM...]``; ITEM is ``native`` or the name of a device or CPU, with ``+feature`` and ``-feature`` behind.

    Raises
    ------
    TargetError
        A name or a feature is unknown (with a close match), or not in this version.
    """
    return tuple(_resolve_one(item.strip()) for item in text.split("|"))


def resolve_buildable(text: str) -> tuple[CpuTarget, ...]:
    """The processors of `resolve`, all of which this machine can link a library for.

    Raises
    ------
    TargetError
        As `resolve`, or the architecture or system is another one than this machine's.
    """
    found = resolve(text)
    host = _host_architecture()
    for target in found:
        if target.architecture != host or "linux" not in target.triple:
            raise TargetError(
                f"target {target.name!r} is {target.triple}: this version links libraries for the "
                f"architecture it runs on only, {_TRIPLES.get(host, host)}"
            )
    return found


def native() -> CpuTarget:
    """The processor this runs on: LLVM's name for it, without what a virtual machine hides."""
    return _resolve_one("native")


def _resolve_one(item: str) -> CpuTarget:
    if not item:
        raise TargetError("the target is empty; expected 'native' or the name of a CPU or device")
    if item.startswith("cuda"):
        raise TargetError(f"target {item!r}: CUDA is not in this version; name a CPU or 'native'")
    name, extra = _split(item)
    if name == "native":
        return _native(item, extra)
    device = DEVICES.get(name)
    if device is None:
        triple = _TRIPLES.get(_host_architecture(), _X86)
        if not _is_cpu(name, triple):
            raise TargetError(_unknown(name, triple))
        device = Device(name, triple)
    features = (*device.features, *extra)
    _check_features(item, device.cpu, device.triple, extra)
    bits, registers = _vectors(device.cpu, device.triple, features)
    return CpuTarget(
        item, device.cpu, device.triple, features, bits, registers,
        device.l1_kib << 10, device.l2_kib << 10, device.cores, native=False,
    )  # fmt: skip


def _native(item: str, extra: tuple[str, ...]) -> CpuTarget:
    import tvm

    host = _host_architecture()
    triple = _TRIPLES.get(host)
    if triple is None or platform.system() != "Linux":
        raise TargetError(
            f"this machine is {host} under {platform.system()}; known are {', '.join(_TRIPLES)} "
            "under Linux"
        )
    cpu = str(tvm.get_global_func("target.llvm_get_system_cpu")())
    if not _is_cpu(cpu, triple):
        raise TargetError(f"LLVM calls this processor {cpu!r} and does not know it; name a CPU")
    own = _features(cpu, triple, ())
    seen = tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    hidden = {str(key) for key, value in seen.items() if not value}
    missing = tuple(f"-{f}" for f in own if f in hidden and _CODE_FEATURE.match(f))
    _check_features(item, cpu, triple, extra)
    features = (*missing, *extra)
    bits, registers = _vectors(cpu, triple, features)
    return CpuTarget(
        item, cpu, triple, features, bits, registers,
        _cache_bytes(1, 32 << 10), _cache_bytes(2, 512 << 10), usable_cores(), native=True,
    )  # fmt: skip


def usable_cores() -> int:
    """Cores that this process may use."""
    import os

    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _split(item: str) -> tuple[str, tuple[str, ...]]:
    """``x86-64-v2+avx2-fma`` -> the name and the features; a minus begins a feature only behind a plus or a known name."""
    known = sorted([*DEVICES, "native"], key=len, reverse=True)
    for name in known:
        if item == name or (item.startswith(name) and re.match(r"[+-]", item[len(name) :])):
            rest = item[len(name) :]
            if _is_longer_cpu(item, name):
                continue
            return name, tuple(re.findall(r"[+-][^+\-][^+]*?(?=[+-]|$)", rest))
    name, plus, rest = item.partition("+")
    return name, tuple(re.findall(r"[+-][^+-]+", plus + rest))


def _is_longer_cpu(item: str, name: str) -> bool:
    """Whether ``item`` up to its first plus is itself a CPU (``cortex-a78`` is the start of ``cortex-a78-x``)."""
    whole = item.partition("+")[0]
    return whole != name and _is_cpu(whole, _TRIPLES.get(_host_architecture(), _X86))


def _host_architecture() -> str:
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def _is_cpu(cpu: str, triple: str) -> bool:
    from tvm.target import codegen

    # LLVM takes these, and means a baseline by them.
    return cpu not in ("", "generic", "native") and bool(codegen.llvm_is_valid_cpu(cpu, triple))


def _features(cpu: str, triple: str, extra: tuple[str, ...]) -> tuple[str, ...]:
    import tvm
    from tvm.target import codegen

    machine = {"kind": "llvm", "mcpu": cpu, "mtriple": triple}
    if extra:
        machine["mattr"] = list(extra)
    return tuple(sorted(str(f) for f in codegen.llvm_get_cpu_features(tvm.target.Target(machine))))


def _check_features(item: str, cpu: str, triple: str, extra: tuple[str, ...]) -> None:
    names = {*_all_features(triple), *_features(cpu, triple, ())}
    for feature in extra:
        # LLVM itself would print a line of its own and go on without the feature.
        if feature[1:] not in names:
            close = difflib.get_close_matches(feature[1:], sorted(names), 1)
            hint = f"; did you mean {feature[0]}{close[0]}?" if close else ""
            raise TargetError(f"target {item!r}: LLVM knows no CPU feature {feature[1:]!r}{hint}")


def _all_features(triple: str) -> list[str]:
    import tvm

    if _host_architecture() != triple.split("-", maxsplit=1)[0]:
        cpus = {device.cpu for device in DEVICES.values() if device.triple == triple}
        return sorted({name for cpu in cpus for name in _features(cpu, triple, ())})
    return [str(key) for key in tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()]


def _unknown(name: str, triple: str) -> str:
    import tvm
    from tvm.target import codegen

    machine = tvm.target.Target({"kind": "llvm", "mtriple": triple})
    cpus = [str(cpu) for cpu in codegen.llvm_get_cpu_archlist(machine)]
    close = difflib.get_close_matches(name, ["native", *DEVICES, *cpus], 1, 0.5)
    hint = f", did you mean {close[0]!r}?" if close else ""
    return f"unknown target {name!r}{hint} (`tvmconv targets` lists the names)"


def _vectors(cpu: str, triple: str, extra: tuple[str, ...]) -> tuple[int, int]:
    """Bits of a vector register and their number. TVM's own answer is 512 for everything."""
    features = set(_features(cpu, triple, extra))
    architecture = triple.split("-", maxsplit=1)[0]
    if architecture == "x86_64":
        # Early AVX-512 parts slow down; LLVM marks those that prefer shorter vectors.
        if {"avx512f", "avx512vl"} <= features:
            return 512, 32
        return (256, 16) if "avx" in features else (128, 16)
    if architecture == "riscv64":
        return (128, 32) if "v" in features else (64, 32)
    if architecture.startswith("armv7"):
        return 128, 16
    return (128, 16) if architecture == "wasm32" else (128, 32)


def _cache_bytes(level: int, default: int) -> int:
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
