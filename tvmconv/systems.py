"""The systems that artifacts are built for: by LLVM's triple, what files an artifact has there.

Neither this machine nor LLVM is asked: the run side reads artifacts of any system.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["TRIPLES", "System", "library_name", "system"]


@dataclass(frozen=True)
class System:
    """One operating system on one architecture, or none.

    Attributes
    ----------
    kind : str
        ``linux``, ``macos``, ``wasm`` or ``bare`` (no operating system).
    zig : str
        Zig's name of the target; with the oldest C library that it can link for.
    cpu : str
        LLVM's name of the smallest processor, for code that runs before the processor is known.
    zig_cpu : str
        Zig's name of the same.
    """

    kind: str
    zig: str
    cpu: str
    zig_cpu: str = "baseline"

    @property
    def has_threads(self) -> bool:
        """Whether the library can have a pool of threads, and a C library to ask for them."""
        return self.kind in ("linux", "macos")


#: LLVM's triple -> system. 2.17 is the C library of 2012; RISC-V's first is 2.27, of 2018.
TRIPLES: Final[dict[str, System]] = {
    "x86_64-linux-gnu": System("linux", "x86_64-linux-gnu.2.17", "x86-64"),
    "x86_64-linux-musl": System("linux", "x86_64-linux-musl", "x86-64"),
    "x86_64-none-elf": System("bare", "x86_64-freestanding", "x86-64"),
    "aarch64-linux-gnu": System("linux", "aarch64-linux-gnu.2.17", "generic"),
    "aarch64-linux-musl": System("linux", "aarch64-linux-musl", "generic"),
    "aarch64-none-elf": System("bare", "aarch64-freestanding", "generic"),
    "armv7-linux-gnueabihf": System(
        "linux", "arm-linux-gnueabihf.2.17", "generic", "generic+v7a+vfp3d16"
    ),
    "armv7-linux-musleabihf": System(
        "linux", "arm-linux-musleabihf", "generic", "generic+v7a+vfp3d16"
    ),
    "armv7-none-eabihf": System(
        "bare", "arm-freestanding-eabihf", "generic", "generic+v7a+vfp3d16"
    ),
    "thumbv7em-none-eabihf": System("bare", "thumb-freestanding-eabihf", "cortex-m4", "cortex_m4"),
    "thumbv8.1m.main-none-eabihf": System(
        "bare", "thumb-freestanding-eabihf", "cortex-m55", "cortex_m55"
    ),
    "riscv64-linux-gnu": System("linux", "riscv64-linux-gnu.2.27", "generic-rv64"),
    "riscv64-linux-musl": System("linux", "riscv64-linux-musl", "generic-rv64"),
    "riscv64-none-elf": System("bare", "riscv64-freestanding", "generic-rv64"),
    "arm64-apple-macosx11": System("macos", "aarch64-macos.11.0", "apple-m1", "apple_m1"),
    "wasm32-unknown-unknown": System("wasm", "wasm32-freestanding", "generic", "generic"),
}

_LIBRARY: Final = {"linux": "lib{}.so", "macos": "lib{}.dylib", "wasm": "{}.wasm", "bare": "{}.o"}
_KINDS: Final = (("linux", "linux"), ("apple", "macos"), ("wasm", "wasm"), ("none", "bare"))


def system(triple: str) -> System | None:
    """The system of a triple that artifacts can be built for."""
    return TRIPLES.get(triple)


def library_name(name: str, triple: str) -> str:
    """The file of an artifact that a program loads or, without an operating system, links."""
    words = re.split(r"[-.\d]+", triple)
    kind = next((kind for word, kind in _KINDS if any(w.startswith(word) for w in words)), "linux")
    return _LIBRARY[kind].format(name)
