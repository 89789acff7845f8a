"""The unit of the models of the core: the time in which it begins two products."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmconv.schedules.cpu.traits import traits

if TYPE_CHECKING:
    from tvmconv.targets import CpuTarget

__all__ = ["in_halves", "of_widest", "pace", "products_a_cycle", "waiting"]


def products_a_cycle(target: CpuTarget, bits: int) -> int:
    """Fused multiply-adds of registers of so many bits that a core begins in a cycle.

    Two, or one where its units are narrower than the registers.
    """
    return 1 if bits > (traits(target).unit_bits or bits) else 2


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
