"""Names of devices that people own, and what LLVM has to know of each."""

from __future__ import annotations

from dataclasses import dataclass

from tvmconv.systems import TRIPLES

__all__ = ["BASELINES", "DEVICES", "LAST_KIB", "Device"]


#: What the last-level cache of a processor is taken to hold that does not say: as much as that of
#: most servers and desktops, or more. Only outputs that are larger leave past it.
LAST_KIB = 32 << 10


@dataclass(frozen=True)
class Device:
    """A known device: LLVM's CPU, the triple, extra features, data caches in KiB, cores.

    ``last_kib`` is the cache before memory.
    """

    cpu: str
    triple: str = "aarch64-linux-gnu"
    features: tuple[str, ...] = ()
    l1_kib: int = 32
    l2_kib: int = 512
    last_kib: int = LAST_KIB
    cores: int = 4


_RISCV = ("+m", "+a", "+f", "+d", "+c")
_RVA22 = (*_RISCV, "+zba", "+zbb", "+zbs", "+zfhmin")
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
    "riscv64-rva22": Device("generic-rv64", "riscv64-linux-gnu", _RVA22),
    "riscv64-rvv": Device("generic-rv64", "riscv64-linux-gnu", (*_RVA22, "+v")),
    "armv7-neon": Device("cortex-a7", "armv7-linux-gnueabihf", ("+neon", "+vfp4")),
    "cortex-m7": Device("cortex-m7", "thumbv7em-none-eabihf", l1_kib=16, l2_kib=128, cores=1),
    "cortex-m55": Device(
        "cortex-m55", "thumbv8.1m.main-none-eabihf", l1_kib=32, l2_kib=256, cores=1
    ),
    "wasm32-simd": Device("generic", "wasm32-unknown-unknown", ("+simd128",), cores=1),
}  # fmt: skip

_FEATURES = {"riscv64": _RISCV}

#: A triple alone names the smallest processor of its architecture.
BASELINES: dict[str, Device] = {
    triple: Device(system.cpu, triple, _FEATURES.get(triple.partition("-")[0], ()), l2_kib=256)
    for triple, system in TRIPLES.items()
}
