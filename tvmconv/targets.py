"""Processors: their names, what LLVM calls them, and what a schedule has to know of them.

A target is ``native``, the name of a device or of a CPU, or a triple, alone or with one of them
behind a colon (``aarch64-linux-musl:cortex-a76``), with CPU features as ``+f`` or ``-f`` behind it.
Each name is checked against LLVM: a misspelt one is refused with a close match, since LLVM itself
would fall back to a baseline without a word.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from tvmconv.devices import BASELINES, DEVICES, LAST_KIB, Device
from tvmconv.errors import BuildError, TargetError
from tvmconv.processors import cache_bytes, cpus, features_of, is_cpu, llvm, tuning, vectors
from tvmconv.systems import TRIPLES

__all__ = [
    "DEVICES",
    "CpuTarget",
    "Device",
    "baseline",
    "by_demand",
    "check_dtype",
    "known_cpus",
    "missing_here",
    "native",
    "resolve",
    "resolve_buildable",
    "usable_cores",
]

_TRIPLES = {
    "x86_64": "x86_64-linux-gnu",
    "aarch64": "aarch64-linux-gnu",
    "riscv64": "riscv64-linux-gnu",
}
_ARM = "armv7-linux-gnueabihf"


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
        Of the widest vector registers that the code uses, and how many of them.
    l1_bytes, l2_bytes, last_level_bytes : int
        Data caches: two of one core, and the one before memory.
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
    last_level_bytes: int
    cores: int
    native: bool

    @property
    def architecture(self) -> str:
        """The first part of the triple."""
        return self.triple.split("-", maxsplit=1)[0]

    @property
    def label(self) -> str:
        """What tells it from the other processors of a library: CPU and features."""
        return self.cpu + "".join(self.features)

    def llvm_target_dict(self, *, scalable: bool = True) -> dict[str, Any]:
        """The target as TVM takes it; on request without vectors whose length is unknown."""
        target: dict[str, Any] = {
            "kind": "llvm",
            "mcpu": self.cpu,
            "mtriple": self.triple,
            "num-cores": self.cores,
        }
        if self.triple.endswith("hf"):
            # LLVM reads the interface from a triple of four words; TVM wants it said once more.
            target["mtriple"] = self.triple.replace("-", "-unknown-", 1)
            target["mfloat-abi"] = "hard"
        if self.architecture.startswith(("thumb", "wasm32")):
            target["vector-width"] = self.vector_bits  # else TVM warns that it assumes some
        if self.features:
            target["mattr"] = list(self.features)
        if not scalable and self.architecture == "riscv64" and "v" in self.required_features():
            target["mattr"] = [*self.features, "-v"]
        return target

    def fingerprint(self) -> str:
        """A stable name for files: architecture, CPU, vector bits, a hash of extra features."""
        parts = [self.architecture, self.cpu, str(self.vector_bits)]
        if self.features:
            text = ",".join(sorted(self.features))
            parts.append(hashlib.sha256(text.encode()).hexdigest()[:8])
        return "-".join(parts)

    def required_features(self) -> tuple[str, ...]:
        """The LLVM features that a processor must have to run the code."""
        return features_of(self.cpu, self.triple, self.features)


def resolve(text: str) -> tuple[CpuTarget, ...]:
    """The processors that a target text names.

    Parameters
    ----------
    text : str
        ``ITEM[|ITEM...]``; ITEM is ``native``, the name of a device or CPU, or a triple, with
        ``+feature`` and ``-feature`` behind.

    Raises
    ------
    TargetError
        A name or a feature is unknown (with a close match), or not in this version.
    """
    if not isinstance(text, str):
        raise TargetError(f"expected the name of a target, received {text!r}")
    return tuple(_resolve_one(item.strip()) for item in text.split("|"))


def resolve_buildable(text: str) -> tuple[CpuTarget, ...]:
    """The processors of `resolve`, all of which one library can serve.

    Raises
    ------
    TargetError
        As `resolve`, or they are of several systems, or of one that tells no processors apart.
    """
    found = resolve(text)
    for index, target in enumerate(found):
        if target.triple != found[0].triple:
            raise TargetError(
                f"one library is for one system: {found[0].name!r} is {found[0].triple}, "
                f"{target.name!r} is {target.triple}"
            )
        twin = next((one for one in found[:index] if one.label == target.label), None)
        if twin is not None:
            names = f"{twin.name!r} and {target.name!r}"
            raise TargetError(f"{names} are the same target; give it once")
        kind = TRIPLES[target.triple].kind
        if len(found) > 1 and kind not in ("linux", "macos"):
            raise TargetError(
                f"{target.triple} has no system that a library could ask for the processor: name "
                "one target"
            )
    return found


def by_demand(found: Sequence[CpuTarget]) -> tuple[CpuTarget, ...]:
    """The processors, those that can do most first: a library takes the first that fits."""

    def demand(target: CpuTarget) -> tuple[int, int]:
        needs = target.required_features()
        return sum(_is_checked(name, target.triple) for name in needs), target.vector_bits

    return tuple(sorted(found, key=demand, reverse=True))


def baseline(target: CpuTarget) -> CpuTarget:
    """The smallest processor of the same architecture."""
    return _resolve_one(target.triple)


def check_dtype(target: CpuTarget, dtype: str) -> None:
    """Refuse a dtype that code for a processor cannot hold.

    Raises
    ------
    TargetError
        Names the dtypes that it has.
    """
    if dtype != "float16" or target.architecture != "riscv64":
        return
    if "zfhmin" not in target.required_features():
        raise TargetError(
            f"target {target.name!r} has no float16 (RISC-V's zfhmin); it has float32, bfloat16 "
            "and float64"
        )


def native() -> CpuTarget:
    """The processor this runs on: LLVM's name for it, without what a virtual machine hides."""
    return _resolve_one("native")


def _resolve_one(item: str) -> CpuTarget:
    if not item:
        raise TargetError("the target is empty; expected 'native' or the name of a CPU or device")
    if item.partition(":")[0] == "cuda":
        raise TargetError(f"target {item!r} names CUDA devices, where a processor is expected")
    device, extra = _split(item)
    if device is None:
        return _native(item, extra)
    features = (*device.features, *tuning(device.cpu, device.triple), *extra)
    bits, registers = vectors(device.cpu, device.triple, features)
    return CpuTarget(
        item, device.cpu, device.triple, features, bits, registers, device.l1_kib << 10,
        device.l2_kib << 10, device.last_kib << 10, device.cores, native=False,
    )  # fmt: skip


def _native(item: str, extra: tuple[str, ...]) -> CpuTarget:
    cpu, triple = _this_processor()
    own = features_of(cpu, triple, ())
    hidden = {name for name, there in _host_features().items() if not there}
    missing = tuple(f"-{name}" for name in own if name in hidden and _is_checked(name, triple))
    features = (*missing, *extra)
    bits, registers = vectors(cpu, triple, features)
    return CpuTarget(
        item, cpu, triple, features, bits, registers, cache_bytes(1, 32 << 10),
        cache_bytes(2, 512 << 10), cache_bytes(3, LAST_KIB << 10), usable_cores(), native=True,
    )  # fmt: skip


def _this_processor() -> tuple[str, str]:
    """LLVM's name of this processor, and its triple."""
    host = _host_architecture()
    triple = _TRIPLES.get(host)
    if triple is None or platform.system() != "Linux":
        raise TargetError(
            f"this machine is {host} under {platform.system()}; known are {', '.join(_TRIPLES)} "
            "under Linux"
        )
    cpu = str(llvm().get_global_func("target.llvm_get_system_cpu")())
    if not is_cpu(cpu, triple):
        raise TargetError(f"LLVM calls this processor {cpu!r} and does not know it; name a CPU")
    return cpu, triple


def _host_features() -> dict[str, bool]:
    """LLVM's features of this architecture, and whether this processor has each."""
    found = llvm().get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    return {str(name): bool(there) for name, there in found.items()}


def _is_checked(feature: str, triple: str) -> bool:
    """Whether a library would refuse a processor for lack of the feature."""
    from tvmconv.codegen.features import bits

    try:
        return bool(bits((feature,), triple))
    except BuildError:  # It could not even look for it.
        return True


def missing_here(target: CpuTarget) -> tuple[str, ...]:
    """What of a target this machine lacks: its system, or features that a library looks for."""
    here = native()
    if target.triple != here.triple:
        return (target.triple,)
    host = set(here.required_features())
    lacking = (name for name in target.required_features() if name not in host)
    return tuple(name for name in lacking if _is_checked(name, target.triple))


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _split(item: str) -> tuple[Device | None, tuple[str, ...]]:
    """Device (None: this one) and features of ``x86-64-v2+avx2-fma``.

    Names hold dashes too: the longest beginning that is a name and leaves features only is taken.
    """
    system, colon, name = item.partition(":")
    if not colon:
        system, name = "", item
    elif system not in TRIPLES:
        close = difflib.get_close_matches(system, TRIPLES, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise TargetError(f"target {item!r}: no system {system!r} is known{hint}")
    base, plus, rest = name.partition("+")
    words = base.rstrip().split("-")
    fault: TargetError | None = None
    for count in range(len(words), 0, -1):
        name = "-".join(words[:count])
        device = _device_of(name, system) if system else _device(name)
        if device is None and (system or name != "native"):
            continue
        cpu, triple = _this_processor() if device is None else (device.cpu, device.triple)
        try:
            tail = "".join(f"-{word}" for word in words[count:])
            return device, _parse_features(item, tail + plus + rest, cpu, triple)
        except TargetError as exc:
            fault = fault or (exc if name == "native" or name in DEVICES or plus else None)
    raise fault or TargetError(_unknown(base.rstrip(), system))


def _device_of(name: str, triple: str) -> Device | None:
    """A device or CPU of a triple's architecture."""
    device = DEVICES.get(name)
    if device is not None and device.triple.partition("-")[0] == triple.partition("-")[0]:
        return replace(device, triple=triple)
    return Device(name, triple) if is_cpu(name, triple) else None


def _device(name: str) -> Device | None:
    """What is called so: a device, a triple, or a CPU of LLVM's, of this architecture first."""
    if name in DEVICES:
        return DEVICES[name]
    if name in BASELINES:
        return BASELINES[name]
    host = _host_architecture()
    for architecture in sorted(_TRIPLES, key=lambda other: other != host):
        if is_cpu(name, _TRIPLES[architecture]):
            return Device(name, _TRIPLES[architecture])
    if is_cpu(name, _ARM) and {"aclass", "neon"} <= set(features_of(name, _ARM, ())):
        return Device(name, _ARM)
    return None


def _parse_features(item: str, text: str, cpu: str, triple: str) -> tuple[str, ...]:
    """``+avx2-fma`` -> ``("+avx2", "-fma")``.

    LLVM itself would print a line and go on without a feature that it does not know.
    """
    known = _feature_names(triple) | set(features_of(cpu, triple, ()))
    found = []
    while text:
        body = text[1:].lstrip()
        ends = [match.start() for match in re.finditer(r"[+-]|$", body)]
        name = next((body[:end] for end in reversed(ends) if body[:end].rstrip() in known), None)
        if name is None:
            name = re.split(r"[+-]", body, maxsplit=1)[0].rstrip()
            close = difflib.get_close_matches(name, sorted(known), 1)
            hint = f"; did you mean {text[0]}{close[0]}?" if close else ""
            raise TargetError(f"target {item!r}: LLVM knows no CPU feature {name!r}{hint}")
        found.append(text[0] + name.rstrip())
        text = body[len(name) :]
    return tuple(found)


def _host_architecture() -> str:
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


@lru_cache(maxsize=8)
def _feature_names(triple: str) -> frozenset[str]:
    """Every feature that some CPU of an architecture has."""
    names = {name for cpu in cpus(triple) for name in features_of(cpu, triple, ())}
    if triple == _TRIPLES.get(_host_architecture()):
        names |= set(_host_features())
    return frozenset(names)


def known_cpus() -> list[str]:
    """LLVM's names of the CPUs of this architecture.

    Raises
    ------
    BuildError
        The compiler is not installed.
    """
    triple = _TRIPLES.get(_host_architecture(), "x86_64-linux-gnu")
    return [cpu for cpu in cpus(triple) if is_cpu(cpu, triple)]


def _unknown(name: str, triple: str = "") -> str:
    if triple:
        known = [cpu for cpu in cpus(triple) if is_cpu(cpu, triple)]
        close = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f", did you mean {close[0]!r}?" if close else ""
        return f"LLVM knows no CPU {name!r} for {triple}{hint}"
    if name == "generic":
        return "target 'generic' would be LLVM's baseline; name a CPU, for example x86-64-v2"
    known = ["native", *DEVICES, *BASELINES, *known_cpus()]
    known += [cpu for triple in (*_TRIPLES.values(), _ARM) for cpu in cpus(triple)]
    found = difflib.get_close_matches(name, dict.fromkeys(known), 5, 0.5)
    close = [one for one in found if one == "native" or _device(one)]
    hint = f", did you mean {close[0]!r}?" if close else ""
    return f"unknown target {name!r}{hint} (`tvmconv targets` lists the names)"
