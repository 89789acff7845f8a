"""The rules for GPUs, tried in order: which form, and how it is cut into blocks and threads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvmconv.errors import ConfigError, ScheduleError

if TYPE_CHECKING:
    from tvmconv.compute.cuda.tiling import CudaTiling
    from tvmconv.compute.workload import Workload
    from tvmconv.cuda_devices import Architecture

__all__ = ["decide", "decide_all"]


def decide(
    work: Workload,
    targets: Sequence[Architecture],
    *,
    exact: bool = False,
    precision: str = "full",
    algorithm: str = "direct",
) -> CudaTiling:
    """The default tiling of a workload, for one binary that serves several architectures.

    Parameters
    ----------
    work : Workload
        What is computed.
    targets : sequence of Architecture
        All of which must be able to run it.
    exact : bool
        Only forms that put NaN and infinities of the *kernel* where the definition does.
    precision : str
        ``"tf32"``: float32 may be multiplied on tensor cores.
    algorithm : str
        ``"direct"``, ``"toom-cook"``, or ``"auto"``: Toom-Cook where a GPU has shown that it pays.

    Raises
    ------
    ConfigError
        Toom-Cook is asked for, and does not serve the workload.
    """
    from tvmconv.schedules.cuda import definition, gemm, mma, small, split, toom_cook, wmma

    if algorithm == "pairs":
        raise ConfigError("algorithm='pairs' is for processors, not for CUDA devices")
    if algorithm == "toom-cook":
        return toom_cook.require(work, targets, exact=exact)
    if precision == "tf32" or work.input_dtype != "float32":
        tiling = mma.decide(work, targets, exact=exact)
        if tiling is not None:
            return tiling
    if algorithm == "auto":
        tiling = toom_cook.decide(work, targets, exact=exact)
        if tiling is not None:
            return tiling
    for rule in (wmma, split, gemm, small, definition):
        tiling = rule.decide(work, targets, exact=exact)
        if tiling is not None:
            return tiling
    raise ScheduleError(f"no schedule rule took {work}")


def decide_all(
    works: Sequence[Workload],
    targets: Sequence[Architecture],
    *,
    exact: bool = False,
    precision: str = "full",
    algorithm: str = "direct",
) -> list[CudaTiling]:
    """Default tilings of several shapes of one layer, which share one layout of packed weights.

    Raises
    ------
    ConfigError
        Toom-Cook is asked for, and does not serve one of them.
    """
    from tvmconv.schedules.cuda import toom_cook

    def each(algorithm: str) -> list[CudaTiling]:
        return [
            decide(work, targets, exact=exact, precision=precision, algorithm=algorithm)
            for work in works
        ]

    tilings = each(algorithm)
    forms = {tiling.form for tiling in tilings}
    if forms == {"toom-cook"}:
        alike = [toom_cook.with_layout(tilings[0], work, targets) for work in works[1:]]
        fitting = [tiling for tiling in alike if tiling is not None]
        if len(fitting) == len(alike):
            return [tilings[0], *fitting]
        if algorithm == "toom-cook":
            raise ConfigError(
                "algorithm='toom-cook' does not serve these input shapes with one set of weights"
            )
    if "toom-cook" in forms:
        tilings = each("direct")
    if _one_layout(works, tilings):
        return tilings
    return _alike(works, targets, tilings, exact=exact)


def _alike(
    works: Sequence[Workload],
    targets: Sequence[Architecture],
    tilings: Sequence[CudaTiling],
    *,
    exact: bool,
) -> list[CudaTiling]:
    """One layout for all: the form of the largest shape, if it serves the others however badly."""
    from tvmconv.schedules.cuda import definition, gemm, mma, small, split, wmma

    pairs = zip(works, tilings, strict=True)
    largest = max(pairs, key=lambda pair: math.prod(pair[0].plan.output_shape[1:]))[1].form
    rules = (("mma", mma), ("wmma", wmma), ("gemm", gemm))
    found = [
        [rule.decide(work, targets, exact=exact, always=True) for work in works]
        for form, rule in rules
        if form == largest
    ]
    plain = (split, gemm, small, definition)
    each = [[rule.decide(work, targets, exact=exact) for rule in plain] for work in works]
    found.append([next(tiling for tiling in row if tiling) for row in each])
    for row in found:
        whole = [tiling for tiling in row if tiling is not None]
        if len(whole) == len(works) and _one_layout(works, whole):
            return whole
    return [definition.decide(work, targets, exact=exact) for work in works]


def _one_layout(works: Sequence[Workload], tilings: Sequence[CudaTiling]) -> bool:
    from tvmconv.compute.cuda import lower

    return len({lower(w, t).layout for w, t in zip(works, tilings, strict=True)}) == 1
