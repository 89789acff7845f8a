"""Tilings of one layer for several processors, which share packed weights.

The weights are the largest part of an artifact, and packed ones must not depend on the processor
that meets them. So all versions of the code get one form, one block of channel lanes (16 lanes are
one register of AVX-512 or four of SSE), and one layout of the last block. Few filters take dots
where the first processor finds those cheaper than voxels; columns are of one processor alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvmconv.errors import ConfigError
from tvmconv.schedules import decide_all

if TYPE_CHECKING:
    from tvmconv.compute.tiling import Tiling
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["decide_several"]

#: Voxels that a register tile of every processor should have: fewer read a weight for one product.
_LEAST_WIDTH = 2


def decide_several(
    works: Sequence[Workload],
    targets: Sequence[CpuTarget],
    *,
    exact: bool = False,
    algorithm: str = "direct",
) -> list[list[Tiling]]:
    """For each target, the tilings of all shapes; `decide_all` where there is one target.

    Where the forms differ, all take the first target's, if it is not the definition and serves all.

    Raises
    ------
    ConfigError
        Toom-Cook or pairs are asked for, and do not serve one of the shapes or targets.
    """
    from tvmconv.schedules.cpu import definition

    works = [work.joined() for work in works]
    found = [decide_all(works, one, exact=exact, algorithm=algorithm) for one in targets]
    if len(targets) == 1:
        return found
    if all(tiling.form == "pairs" for tilings in found for tiling in tilings):
        return found
    if any(tiling.form == "pairs" for tilings in found for tiling in tilings):
        return decide_several(works, targets, exact=exact)
    if any(
        tiling.form in ("columns", "dots", "matrix") or tiling.coupled
        for tilings in found
        for tiling in tilings
    ):
        first = {tiling.form for tiling in found[0]}
        found = [
            decide_all(works, one, exact=exact, algorithm=algorithm, columns=False)
            for one in targets
        ]
        dots = _dots(works, targets) if first <= {"columns", "dots"} else None
        if dots is not None and _cycles(works, targets[0], dots) < _cycles(
            works, targets[0], found
        ):
            return dots
    forms = [tilings[0].form for tilings in found]
    if "toom-cook" in forms:
        alike = _toom_cook(works, targets, exact=exact) if forms[0] == "toom-cook" else None
        if alike is not None:
            return alike
        if algorithm == "toom-cook":
            raise ConfigError(
                "algorithm='toom-cook' does not serve these targets with one set of weights"
            )
        return decide_several(works, targets, exact=exact)
    if forms[0] == "voxel":
        rows = _form("voxel", works, targets, exact=exact)
        if rows is not None:
            registers = min(one.registers for tilings in rows for one in tilings)
            return [[dataclasses.replace(t, registers=registers) for t in row] for row in rows]
    if len(set(forms)) > 1:
        found = _form("phase", works, targets, exact=exact) or [
            [definition.decide(work, one, exact=exact) for work in works] for one in targets
        ]
    return _with_one_block(works, targets, found)


def _dots(works: Sequence[Workload], targets: Sequence[CpuTarget]) -> list[list[Tiling]] | None:
    """The dot form for all, with blocks as long as the longest register; None where one has none.

    None, too, with channels first.
    """
    from tvmconv.schedules.cpu import dot

    if works[0].plan.channels_first:
        return None
    rows = [
        [dot.decide(work, target, always=True, couple=False) for work in works]
        for target in targets
    ]
    found = [[tiling for tiling in row if tiling is not None] for row in rows]
    if any(len(row) < len(works) for row in found):
        return None
    last = max(tiling.vector for row in found for tiling in row)
    return [[dataclasses.replace(tiling, last=last) for tiling in row] for row in found]


def _cycles(
    works: Sequence[Workload], target: CpuTarget, rows: Sequence[Sequence[Tiling]]
) -> float:
    """What a sample of each shape costs on the first target."""
    from tvmconv.schedules.cpu import direct

    return sum(direct.compared(work, target, one) for work, one in zip(works, rows[0], strict=True))


def _form(
    form: str, works: Sequence[Workload], targets: Sequence[CpuTarget], *, exact: bool
) -> list[list[Tiling]] | None:
    """The voxel or the phase form for all; None where it does not serve one of them."""
    from tvmconv.schedules.cpu import phase, voxel

    rows = []
    for target in targets:
        tilings = [
            voxel.decide(work, target, exact=exact, always=True)
            if form == "voxel"
            else phase.decide(work, target, exact=exact)
            for work in works
        ]
        rows.append([tiling for tiling in tilings if tiling is not None])
    return rows if all(len(row) == len(works) for row in rows) else None


def _toom_cook(
    works: Sequence[Workload], targets: Sequence[CpuTarget], *, exact: bool
) -> list[list[Tiling]] | None:
    """One scheme for all, the first target's for the first shape; None where one cannot take it."""
    from tvmconv.schedules.cpu import toom_cook

    if any(toom_cook.refusal(work, exact=exact) for work in works):
        return None
    firsts = [toom_cook.require(works[0], one, exact=exact, alone=False) for one in targets]
    rows = []
    # Where tiles or all input channels are the lanes, weights lie alike for all.
    alike = firsts[0].across or firsts[0].dots == works[0].plan.filters
    layouts = [firsts[0] for _ in targets] if alike else _blocks(targets, firsts)
    for target, layout in zip(targets, layouts, strict=True):
        scheme = dataclasses.replace(
            layout, outputs=firsts[0].outputs, dots=firsts[0].dots, paired=False
        )
        tilings = [toom_cook.with_layout(scheme, work, target) for work in works]
        fitting = [tiling for tiling in tilings if tiling is not None]
        if len(fitting) < len(works):
            return None
        rows.append(fitting)
    return rows


def _with_one_block(
    works: Sequence[Workload], targets: Sequence[CpuTarget], found: list[list[Tiling]]
) -> list[list[Tiling]]:
    """The tilings with blocks of equal lanes."""
    from tvmconv.schedules.cpu import phase

    firsts = [tilings[0] for tilings in found]
    return [
        [
            phase.with_lanes(tiling, layout, work, target)
            for tiling, work in zip(tilings, works, strict=True)
        ]
        for layout, tilings, target in zip(_blocks(targets, firsts), found, targets, strict=True)
    ]


def _blocks(targets: Sequence[CpuTarget], firsts: list[Tiling]) -> list[Tiling]:
    """Vector and registers for each target, so that a block has the same lanes for all.

    The first target's block if all have registers for it, else the largest below.
    """
    last = max(one.vector for one in firsts)
    most = firsts[0].vector * firsts[0].registers

    def fits(lanes: int) -> bool:
        sizes = [lanes // one.vector for one in firsts]
        return all(
            (target.vector_registers - size - 1) // size >= _LEAST_WIDTH
            for target, size in zip(targets, sizes, strict=True)
        )

    sizes = range(max(1, most // last) * last, last, -last)
    lanes = next((size for size in sizes if fits(size)), last)
    return [dataclasses.replace(one, registers=lanes // one.vector, last=last) for one in firsts]
