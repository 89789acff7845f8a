"""The unit of the models of the core: the time in which it begins two products."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = [
    "adders_apart",
    "brings_late",
    "compacts",
    "couples",
    "in_halves",
    "most_copied",
    "of_widest",
    "pace",
    "products_a_cycle",
    "stores_lanes",
    "together",
    "waiting",
]

#: Processors whose registers are wider than the units that multiply them.
_UNIT_BITS = {"znver4": 256}


#: Processors with units for sums beside those for products, and the bits of a register that has
#: one instruction for a sum with an input of memory in all lanes.
_ADDERS_APART = {"znver4": 512}

#: Processors whose stores under a mask have been measured, and the bits of a register.
_STORES_LANES = {"znver4": 512}

#: Channels whose lines are written together where registers are half a line: the halves of each
#: follow sooner than those of as many channels as lanes. 32 to 128 filters with kernel = stride = 2
#: took 0.95 to 1.00 of the time, one layer of 537 MB of outputs 1.02.
_TOGETHER = {"znver3": 4}

#: Second-level caches that such a copy may fill, of channels first, other than one: 768 to 128
#: filters with kernel = stride = 2 on 6^3 took 0.64 to 0.71 of the time.
_COPIED_FIRST = {"znver3": 1.5}

#: Processors whose products of bfloat16 numbers have been measured, two a lane in the time of one.
_COUPLES = frozenset({"znver4"})

#: Processors of 256 bits whose second-level cache is small beside the scratch of Toom-Cook, and
#: whose cores wait for the cache that they share; by measurement.
_BRINGS_LATE = frozenset({"znver3"})


def brings_late(target: CpuTarget) -> bool:
    """Whether lines from the cache that cores share come later than the products need them."""
    return target.cpu in _BRINGS_LATE


def compacts(target: CpuTarget) -> bool:
    """Whether Toom-Cook's sums of inputs are loops, not written out (`Tiling.compact`).

    On Zen 3 channels last took 0.96 to 1.02 of the time with up to a tenth less code; channels
    first 0.91 to 0.96 with stride 1, 1.00 to 1.03 with stride 2 or 3.
    """
    return adders_apart(target) or target.cpu in _BRINGS_LATE


def couples(target: CpuTarget) -> bool:
    """Whether two products of bfloat16 numbers a lane take the time of one of float32.

    Zen 5 and Intel's processors from Cooper Lake on have the instruction, too; it has not been
    measured on them.
    """
    return target.cpu in _COUPLES and "avx512bf16" in target.required_features()


def adders_apart(target: CpuTarget) -> bool:
    """Whether a core adds as many registers a cycle as it multiplies, beside these.

    Zen 5 has such units, too; whether it loads enough for them has not been measured. With 256 bits
    each broadcast is a load of its own, and a core of Zen has too few of them (measured on Zen 4).
    """
    return _ADDERS_APART.get(target.cpu) == target.vector_bits


def stores_lanes(target: CpuTarget) -> bool:
    """Whether some lanes of a register are stored in the time of all of them."""
    return _STORES_LANES.get(target.cpu) == target.vector_bits


def together(target: CpuTarget) -> int:
    """Channels, where these are first, that leave scratch together; 0: a register of them."""
    return _TOGETHER.get(target.cpu, 0)


def most_copied(work: Workload, target: CpuTarget) -> float:
    """Bytes of an input that is copied once for tasks that each keep some of the weights."""
    first = work.plan.channels_first
    return target.l2_bytes * (_COPIED_FIRST.get(target.cpu, 1.0) if first else 1.0)


def products_a_cycle(target: CpuTarget, bits: int) -> int:
    """Fused multiply-adds of registers of so many bits that a core begins in a cycle.

    Two, or one where its units are narrower than the registers.
    """
    return 1 if bits > _UNIT_BITS.get(target.cpu, bits) else 2


def in_halves(target: CpuTarget) -> bool:
    """Whether the widest registers are multiplied in two halves, one product a cycle."""
    return products_a_cycle(target, target.vector_bits) == 1


def pace(target: CpuTarget, lanes: int, size: int) -> float:
    """What a cycle is in that unit, for registers of ``lanes`` elements of ``size`` bytes.

    1, or 1/2 where registers are wider than the units that multiply: loads, shuffles and waits then
    stand behind the products.
    """
    return products_a_cycle(target, 8 * lanes * size) / 2


def of_widest(target: CpuTarget, lanes: int, size: int) -> float:
    """What that unit is in the one of the core's widest registers, in which forms are compared."""
    widest = max(lanes, target.vector_bits // (8 * size))
    return pace(target, widest, size) / pace(target, lanes, size)


def waiting(unit: float) -> float:
    """What a cycle of waiting for a cache or memory is in that unit, by measurement.

    Of those behind products that take twice as long, half are hidden once more.
    """
    return unit * unit
