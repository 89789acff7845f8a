"""What the CUDA rules leave to tuning: every decision that is legal on all devices of a binary.

Each form has its variants in a file ``<form>_space.py`` of this folder, named in `SPACES`. Its
function ``variants(work, targets, default)`` answers none for a workload that the form does not
serve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tvmconv.schedules import cuda as rules
from tvmconv.schedules.cuda import (
    definition_space,
    gemm_space,
    mma_space,
    small_space,
    split_space,
    toom_cook_space,
    wmma_space,
)
from tvmconv.schedules.space import Space, Variant

if TYPE_CHECKING:
    from tvmconv.compute.cuda.tiling import CudaTiling
    from tvmconv.compute.workload import Workload
    from tvmconv.cuda_devices import Architecture

__all__ = ["SPACES", "space"]

Found = Callable[["Workload", Sequence["Architecture"], "CudaTiling"], list[Variant]]

SPACES: tuple[Found, ...] = (
    mma_space.variants,
    wmma_space.variants,
    split_space.variants,
    gemm_space.variants,
    small_space.variants,
    definition_space.variants,
)
"""One function a direct form."""


def space(
    work: Workload,
    targets: Sequence[Architecture],
    *,
    algorithm: str = "auto",
    precision: str = "full",
) -> Space:
    """Everything that may be tried for a workload; the default rule's decisions come first.

    Parameters
    ----------
    work, targets
        What is computed, and where.
    algorithm
        ``"direct"`` and ``"toom-cook"`` leave out the other forms. ``"auto"`` leaves out Toom-Cook
        where the rule takes tensor cores, which it does not reach.
    precision
        ``"tf32"``: where the rule rounds to TF32, so do all candidates.

    Raises
    ------
    ConfigError
        ``algorithm="toom-cook"`` does not serve the workload.
    """
    default = rules.decide(work, targets, precision=precision, algorithm=algorithm)
    chosen = [] if algorithm == "toom-cook" else [*SPACES]
    tensor = default.form in ("mma", "wmma")
    if algorithm == "toom-cook" or (algorithm == "auto" and not tensor):
        chosen.append(toom_cook_space.variants)
    if work.input_dtype == "float32" and default.form == "mma":
        chosen = [mma_space.variants]
    found: list[Variant] = []
    for variants in chosen:
        found += variants(work, targets, default)
    return Space(default, tuple(found))
