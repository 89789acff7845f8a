"""What the rules leave to tuning: every decision that is legal for a workload on a target.

A `Variant` fixes the decisions that say which values of the others are legal; the others are
chosen freely within it. Each rule has its tunable side in the file ``cpu/<rule>_space.py``.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvmconv.compute.tiling import Decisions
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["Space", "Variant", "steps", "with_choices"]

#: Decisions that are three numbers, one an axis, and the letters that tell their parts apart.
_AXES = ("depth", "height", "width")


@dataclass(frozen=True)
class Variant:
    """One structure of the kernel, and what is free in it.

    Attributes
    ----------
    base : Decisions
        The decisions that are fixed; the others are replaced.
    choices : tuple of (str, tuple of int)
        Names of free decisions (``block.width`` for a part of one) and their legal values, in
        ascending order.
    fits : callable
        Whether a choice of all values together is legal.
    cycles : callable
        The rule's model of the cost of a sample: only its order counts.
    complete : callable or None
        Sets what follows from the choices, as the threads of a block do from its tiles.
    alike : callable or None
        The tiling of this variant with the same kernel as another of its structure; that one itself
        where there is none. None: all tilings differ.
    """

    base: Decisions
    choices: tuple[tuple[str, tuple[int, ...]], ...]
    fits: Callable[[Any], bool]
    cycles: Callable[[Any], float]
    complete: Callable[[Any], Any] | None = None
    alike: Callable[[Any], Any] | None = None

    @property
    def size(self) -> int:
        """Combinations of values, before `fits`."""
        return math.prod(len(values) for _, values in self.choices)

    def tiling(self, values: tuple[int, ...]) -> Decisions:
        """The tiling with one value for each choice."""
        names = (name for name, _ in self.choices)
        made = with_choices(self.base, dict(zip(names, values, strict=True)))
        return made if self.complete is None else self.complete(made)

    def values(self, tiling: Decisions) -> tuple[int, ...] | None:
        """The inverse of `tiling`; None where the tiling is not one of this variant."""
        found = tuple(_choice(tiling, name) for name, _ in self.choices)
        inside = all(v in values for v, (_, values) in zip(found, self.choices, strict=True))
        return found if inside and self.tiling(found) == tiling else None

    def all(self) -> Iterator[Decisions]:
        """Every legal tiling."""
        for values in itertools.product(*(values for _, values in self.choices)):
            tiling = self.tiling(values)
            if self.fits(tiling):
                yield tiling


@dataclass(frozen=True)
class Space:
    """All variants of a workload on a target. The default rule's tiling comes first in `all`."""

    default: Decisions
    variants: tuple[Variant, ...]

    @classmethod
    def of(cls, work: Workload, target: CpuTarget, algorithm: str = "auto") -> Space:
        """The space of all rules that the algorithm allows.

        Raises
        ------
        ConfigError
            ``algorithm="toom-cook"`` or ``"pairs"`` does not serve the workload.
        """
        from tvmconv import schedules
        from tvmconv.schedules.cpu import (
            column_space,
            dot_space,
            matrix_space,
            pair_space,
            phase_space,
            toom_cook_space,
            voxel_space,
        )

        work = work.joined()
        default = schedules.decide(work, target, algorithm=algorithm)
        found: list[Variant] = []
        if algorithm in ("auto", "direct") and default.form != "definition":
            found += phase_space.variants(work, target)
            found += voxel_space.variants(work, target, default)
            found += column_space.variants(work, target, default)
            found += dot_space.variants(work, target, default)
            found += matrix_space.variants(work, target, default)
        if algorithm in ("auto", "pairs"):
            found += pair_space.variants(work, target, default)
        if algorithm in ("auto", "toom-cook") and default.form != "definition":
            found += toom_cook_space.variants(work, target, default)
        return cls(default, tuple(found))

    def read(self, decisions: dict[str, Any]) -> Decisions:
        """The inverse of ``to_json`` of its tilings; a TypeError for what is none of them.

        Of tilings with the same kernel one is in the space, and which one depends on the default;
        so what an older default left out is answered with the one that is here.
        """
        tiling = type(self.default).from_json(decisions)
        for variant in self.variants:
            if variant.alike is None or variant.base.structure != tiling.structure:
                continue
            same: Decisions = variant.alike(tiling)
            if variant.values(same) is not None:
                return same
        return tiling

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms that there are."""
        return tuple(sorted({self.default.form, *(one.base.form for one in self.variants)}))

    @property
    def size(self) -> int:
        """Combinations of values, before it is known which of them fit."""
        return 1 + sum(variant.size for variant in self.variants)

    def all(self) -> Iterator[Decisions]:
        """Every legal tiling, the default first."""
        yield self.default
        for variant in self.variants:
            yield from (tiling for tiling in variant.all() if tiling != self.default)

    def find(self, tiling: Decisions) -> Variant | None:
        """The variant that a tiling belongs to; None where it is not legal here."""
        for variant in self.variants:
            if variant.base.structure == tiling.structure and variant.values(tiling):
                return variant if variant.fits(tiling) else None
        return None

    def nearest(self, tiling: Decisions) -> Decisions | None:
        """The legal tiling of the same structure that is closest to one of another shape.

        None where the structure is not legal here, or what is closest does not fit.
        """
        alike = [v for v in self.variants if v.base.structure == tiling.structure]
        if not alike:
            return None
        # Where the width is fixed in a variant, it is the first thing to agree on.
        variant = min(alike, key=lambda v: _width_gap(v, tiling))
        found = variant.tiling(
            tuple(
                min(values, key=lambda value: abs(value - _choice(tiling, name)))
                for name, values in variant.choices
            )
        )
        return found if variant.fits(found) else None


def _width_gap(variant: Variant, tiling: Decisions) -> int:
    free = any(name == "width" for name, _ in variant.choices)
    gap: int = getattr(variant.base, "width", 1) - getattr(tiling, "width", 1)
    return 0 if free else abs(gap)


def with_choices(base: Decisions, values: dict[str, int]) -> Decisions:
    """The tiling with other decisions, by the names of choices."""
    changes: dict[str, object] = {}
    for name, value in values.items():
        whole, dot, part = name.partition(".")
        if dot:
            old = list(changes.get(whole, getattr(base, whole)))  # type: ignore[call-overload]
            old[_AXES.index(part)] = value
            changes[whole] = tuple(old)
        else:
            changes[name] = bool(value) if isinstance(getattr(base, name), bool) else value
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def _choice(tiling: Decisions, name: str) -> int:
    whole, dot, part = name.partition(".")
    value = getattr(tiling, whole)
    return int(value[_AXES.index(part)] if dot else value)


def steps(most: int, *more: int) -> tuple[int, ...]:
    """Numbers from 1 to ``most`` worth a try, each about a third above the last."""
    usual = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
    return tuple(sorted({n for n in (*usual, most, *more) if 1 <= n <= most}))
