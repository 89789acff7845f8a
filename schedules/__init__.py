"""Schedules: which tiling a workload gets on a target, and how its loops become fast code.

Each file of a target's folder is one rule. A rule answers None ("not mine") or a tiling; the first
answer is taken, and the last rule always fits. The same file applies the schedule primitives to the
algorithm that the tiling was lowered to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvmconv.errors import ConfigError, ScheduleError

if TYPE_CHECKING:
    from tvmconv.compute import Lowered
    from tvmconv.compute.tiling import Tiling
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["Scheduled", "apply", "decide", "decide_all"]


@dataclass(frozen=True)
class Scheduled:
    """A scheduled kernel and where its decisions came from.

    Attributes
    ----------
    origin : str
        ``default`` or ``record:<id>``.
    transfer : bool
        Whether the record was made on another input shape of the layer.
    cores : int or None
        That the record was measured with.
    """

    lowered: Lowered
    kernel: Any
    origin: str
    transfer: bool = False
    cores: int | None = None


def decide(
    work: Workload,
    target: CpuTarget,
    *,
    exact: bool = False,
    algorithm: str = "direct",
    columns: bool = True,
) -> Tiling:
    """The default tiling of a workload on a target.

    Parameters
    ----------
    work : Workload
        What is computed.
    target : CpuTarget
        Registers, caches and cores that the cost model asks for.
    exact : bool
        Only forms that put NaN and infinities of the *kernel* exactly where the definition does.
    algorithm : str
        ``"direct"``, ``"pairs"``, ``"toom-cook"``, or ``"auto"``: the one that the cost
        model finds faster.
    columns : bool
        Whether the column, the dot, the pair and the matrix form and coupled channels may be
        taken: their weights are for one processor.

    Raises
    ------
    ConfigError
        Toom-Cook or pairs are asked for, and do not serve the workload.
    """
    from tvmconv.schedules.cpu.stream import streamed

    work = work.joined()
    tiling = _decide(work, target, exact=exact, algorithm=algorithm, columns=columns)
    return streamed(work, target, tiling)


def _decide(
    work: Workload, target: CpuTarget, *, exact: bool, algorithm: str, columns: bool
) -> Tiling:
    """The same before it is asked how outputs leave."""
    from tvmconv.schedules.cpu import (
        column,
        coupled,
        definition,
        dot,
        matrix,
        pair,
        phase,
        toom_cook,
        voxel,
    )
    from tvmconv.schedules.cpu.phase_halves import halved

    if algorithm == "toom-cook":
        return toom_cook.require(work, target, exact=exact)
    if algorithm == "pairs":
        return pair.require(work, target, exact=exact)
    if algorithm == "auto":
        tiling = toom_cook.decide(work, target, exact=exact, couple=columns)
        if tiling is None and columns:
            tiling = pair.decide(work, target, exact=exact)
        if tiling is not None:
            return tiling
    rules = (coupled, dot, column, matrix, voxel, phase, definition)
    for rule in rules[0 if columns else 4 :]:
        tiling = rule.decide(work, target, exact=exact)
        if tiling is not None:
            return halved(work, target, tiling) if columns else tiling
    raise ScheduleError(f"no schedule rule took {work}")


def decide_all(
    works: Sequence[Workload],
    target: CpuTarget,
    *,
    exact: bool = False,
    algorithm: str = "direct",
    columns: bool = True,
) -> list[Tiling]:
    """Default tilings of several shapes of one layer, which share one layout of packed weights.

    Raises
    ------
    ConfigError
        Toom-Cook or pairs are asked for, and do not serve one of them.
    """
    from tvmconv.schedules import shapes
    from tvmconv.schedules.cpu import definition, phase

    works = [work.joined() for work in works]
    tilings = [
        decide(work, target, exact=exact, algorithm=algorithm, columns=columns) for work in works
    ]
    if len(works) == 1:
        return tilings
    forms = {tiling.form for tiling in tilings}
    if "toom-cook" in forms:
        always = forms == {"toom-cook"}
        shared = shapes.shared_toom_cook(works, target, exact=exact, always=always)
        if shared or algorithm != "toom-cook":
            return shared or decide_all(works, target, exact=exact, columns=columns)
        raise ConfigError(
            "algorithm='toom-cook' does not serve these input shapes with one set of weights"
        )
    if forms == {"pairs"}:
        return tilings
    if "pairs" in forms:
        return decide_all(works, target, exact=exact, columns=columns)
    alike = len(forms) == 1 and len({tiling.coupled for tiling in tilings}) == 1
    if not alike or forms == {"columns"}:
        tilings = shapes.cheapest_direct(works, target, exact=exact, columns=columns)
        tilings = tilings or [definition.decide(work, target, exact=exact) for work in works]
    first = tilings[0]
    if first.form in ("columns", "dots", "matrix"):
        return tilings
    if first.form == "voxel":
        # Fewer sums a pass or fewer voxels than the best, but one layout.
        registers = min(tiling.registers for tiling in tilings)
        vector = min(tiling.vector for tiling in tilings)
        return [dataclasses.replace(t, registers=registers, vector=vector) for t in tilings]
    others = zip(tilings[1:], works[1:], strict=True)
    return [first, *(phase.with_lanes(tiling, first, work, target) for tiling, work in others)]


def apply(
    lowered: Lowered, origin: str = "default", transfer: bool = False, cores: int | None = None
) -> Scheduled:
    """Apply the schedule primitives to a lowered kernel."""
    from tvmconv.schedules.cpu import registers

    module = registers.apply(lowered.kernel, lowered.tiling)
    return Scheduled(lowered, next(iter(module.functions.values())), origin, transfer, cores)
