"""NVIDIA GPU architectures: their names, what CUDA builds for, and what a multiprocessor has.

Source of the numbers: NVIDIA's CUDA C++ Programming Guide, compute capabilities.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tvmconv.errors import TargetError

__all__ = ["ARCHITECTURES", "DEFAULT", "Architecture", "architectures"]

_WARP = 32
_KIB = 1024
#: Parts of a multiprocessor with registers and a scheduler of their own, registers that a warp is
#: given at once, and most of a thread.
_PARTITIONS, _UNIT, _MOST_REGISTERS = 4, 256, 255
#: The first architecture on which the system takes shared memory of every block.
_FIRST_SYSTEM = 80


@dataclass(frozen=True)
class Architecture:
    """One multiprocessor architecture.

    Attributes
    ----------
    name : str
        ``sm_80``.
    devices : str
        Some that have it.
    threads, blocks : int
        Most that are resident on a multiprocessor.
    shared_bytes, block_shared_bytes : int
        Shared memory of a multiprocessor, and most that one block can have.
    multiprocessors : int
        Of a device in the middle of those that have it.
    float_lanes : int
        float32 products of a multiprocessor in a cycle.
    registers : int
        32-bit registers of a multiprocessor.
    """

    name: str
    devices: str
    threads: int
    blocks: int
    shared_bytes: int
    block_shared_bytes: int
    multiprocessors: int = 80
    float_lanes: int = 128
    registers: int = 65536

    @property
    def number(self) -> int:
        """80 of ``sm_80``."""
        return int(self.name[3:])

    def occupancy(self, threads: int, registers: int, shared_bytes: int) -> float:
        """The share of the resident threads that a kernel can reach, by its three resources.

        Counted as NVIDIA's cuda_occupancy.h does.

        Parameters
        ----------
        threads : int
            Of a block.
        registers : int
            Of a thread.
        shared_bytes : int
            Of a block; the system takes 1 KiB more from sm_80 on.
        """
        warps = -(-threads // _WARP)
        by_threads = self.threads // _WARP // warps
        by_registers = self._register_warps(registers) // warps
        if registers > _MOST_REGISTERS or self._register_warps(registers) < _rounded(
            warps, _PARTITIONS
        ):
            by_registers = 0
        newer = self.number >= _FIRST_SYSTEM
        taken = _rounded(shared_bytes + (_KIB if newer else 0), 128 if newer else 256)
        by_shared = self.shared_bytes // taken if taken else self.blocks
        if shared_bytes > self.block_shared_bytes:
            by_shared = 0
        resident = min(self.blocks, by_threads, by_registers, by_shared)
        return resident * warps * _WARP / self.threads

    def _register_warps(self, registers: int) -> int:
        """Warps that the registers hold: each partition of a multiprocessor has a quarter of them.

        A warp lies in one partition, and is given registers in units.
        """
        return self.registers // _PARTITIONS // _rounded(registers * _WARP, _UNIT) * _PARTITIONS

    def most_registers(self, threads: int, blocks: int) -> int:
        """The registers of a thread with which a multiprocessor holds ``blocks`` blocks."""
        warps = -(-(-(-threads // _WARP) * blocks) // _PARTITIONS)
        share = self.registers // _PARTITIONS // warps // _UNIT * _UNIT
        return min(_MOST_REGISTERS, share // _WARP)


def _rounded(number: int, unit: int) -> int:
    return -(-number // unit) * unit


ARCHITECTURES: Final = {
    one.name: one
    for one in (
        Architecture("sm_75", "T4, RTX 20", 1024, 16, 64 * _KIB, 64 * _KIB, 46, 64),
        Architecture("sm_80", "A100, A30", 2048, 32, 164 * _KIB, 163 * _KIB, 108, 64),
        Architecture("sm_86", "RTX 30, A10, A40", 1536, 16, 100 * _KIB, 99 * _KIB, 72),
        Architecture("sm_87", "Jetson Orin", 1536, 16, 164 * _KIB, 163 * _KIB, 16),
        Architecture("sm_89", "RTX 40, L4, L40", 1536, 24, 100 * _KIB, 99 * _KIB, 80),
        Architecture("sm_90", "H100, H200", 2048, 32, 228 * _KIB, 227 * _KIB, 132),
        Architecture("sm_100", "B200", 2048, 32, 228 * _KIB, 227 * _KIB, 148),
        Architecture("sm_103", "B300", 2048, 32, 228 * _KIB, 227 * _KIB, 148),
        Architecture("sm_110", "Jetson Thor", 1536, 24, 228 * _KIB, 227 * _KIB, 20),
        Architecture("sm_120", "RTX 50", 1536, 24, 100 * _KIB, 99 * _KIB, 84),
        Architecture("sm_121", "DGX Spark", 1536, 24, 100 * _KIB, 99 * _KIB, 48),
    )
}
"""Architectures that CUDA 13 builds for, by name, ascending."""

DEFAULT: Final = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120")
"""What a library is built for where no architecture is named."""

_GONE: Final = {
    "sm_50": "Maxwell", "sm_52": "Maxwell", "sm_53": "Jetson Nano, TX1", "sm_60": "P100",
    "sm_61": "GTX 10", "sm_62": "Jetson TX2", "sm_70": "V100", "sm_72": "Jetson Xavier",
}  # fmt: skip


def architectures(names: Sequence[str]) -> tuple[Architecture, ...]:
    """The architectures of these names, each once, ascending.

    Raises
    ------
    TargetError
        A name is unknown (with a close match), or CUDA 13 no longer builds for it.
    """
    found = {}
    for name in names or DEFAULT:
        if name in _GONE:
            raise TargetError(
                f"CUDA 13 no longer builds for {name} ({_GONE[name]}); this version needs CUDA 13. "
                "Use a CPU target there (for example cortex-a57), or a device from sm_75 on"
            )
        if name not in ARCHITECTURES:
            close = difflib.get_close_matches(name, list(ARCHITECTURES), 1, 0.6)
            hint = f"; did you mean {close[0]}?" if close and re.match(r"sm_?\d", name) else ""
            raise TargetError(
                f"unknown CUDA architecture {name!r}{hint}; known are {', '.join(ARCHITECTURES)}"
            )
        found[name] = ARCHITECTURES[name]
    return tuple(sorted(found.values(), key=lambda one: one.number))
