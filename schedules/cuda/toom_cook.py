"""The Toom-Cook rule: fewer products, where they outweigh what adding up sums costs.

Strategy
  1. Boxes of a few shapes, for each number of outputs that a tile may have along each axis; an axis
     may be left tap by tap, which needs fewer sums at once.
  2. Take the box that a model of the multiprocessor finds cheapest: products, sums, what boxes pad,
     how evenly blocks fill the device, and whether they leave registers enough.
  3. Copies past the registers where all architectures have them.

What it does not serve is what the CPU's rule does not, and glu.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.compute.cuda.toom_cook import CudaToomCook
from tvmconv.compute.transforms import outputs_of
from tvmconv.errors import ConfigError
from tvmconv.schedules.cpu import toom_cook as cpu

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.cuda_devices import Architecture

__all__ = [
    "BOXES",
    "complete",
    "copies",
    "cost",
    "decide",
    "fits",
    "refusal",
    "require",
    "schemes",
    "spills",
    "with_layout",
]

BOXES = (
    (6, 12, 12), (6, 6, 12), (12, 12, 12), (4, 12, 12), (2, 12, 12), (4, 8, 16), (2, 16, 16),
    (4, 16, 16), (2, 8, 16), (12, 6, 6), (6, 6, 6), (12, 4, 4), (4, 4, 12), (4, 4, 4), (6, 6, 18),
)  # fmt: skip
"""Sums of a block along the axes that the rule chooses from."""

#: Products of a thread along either side, and channels of a slice.
_SIDE, _DEPTH = 8, 4
_MOST_THREADS = 512
#: Registers of a thread beside its sums and what it multiplies: where its loads are, say; and more
#: where a block finds out which of several combinations of taps it has.
_MORE_REGISTERS, _COMBINATIONS = 40, 20
#: Warps of a multiprocessor go to so many schedulers, which have equal shares of its registers.
_SCHEDULERS, _ALL_REGISTERS = 4, 65536
#: The first architecture that copies past the registers.
_COPIES = 80
#: Multiprocessors of a device in the middle of the range.
_MULTIPROCESSORS = 132
#: Warps that keep a multiprocessor busy, and instructions of a step beside products and sums.
_BUSY_WARPS, _STEP = 12, 60
#: Instructions of a sum of inputs, and of a product on its way out.
_SUM, _OUT = 5, 5
#: Bytes that come to a multiprocessor in a cycle, as the rule for tensor cores has them.
_BROUGHT = 52
#: What spilling costs: with it a box is taken where no other has whole tiles.
_SPILLING = 2


def refusal(work: Workload, *, exact: bool = False) -> str | None:
    """Why a workload cannot take this form; None if it can."""
    if work.activation.name == "glu":
        return "glu is computed by the definition on CUDA devices"
    return cpu.refusal(work, exact=exact)


def require(work: Workload, targets: Sequence[Architecture], *, exact: bool = False) -> CudaTiling:
    """The cheapest tiling of this form, whatever other forms would cost.

    Raises
    ------
    ConfigError
        The form does not serve the workload.
    """
    reason = refusal(work, exact=exact)
    best = None if reason else _best(work, targets)
    if best is None:
        reason = reason or "no block of it fits the shared memory of every architecture"
        raise ConfigError(f"algorithm='toom-cook' does not serve this layer: {reason}")
    return best


def decide(
    work: Workload, targets: Sequence[Architecture], *, exact: bool = False
) -> CudaTiling | None:
    """None: no GPU has shown yet where the form pays."""
    del work, targets, exact
    return None


def with_layout(
    layout: CudaTiling, work: Workload, targets: Sequence[Architecture]
) -> CudaTiling | None:
    """The cheapest tiling of another shape that shares packed weights with ``layout``."""
    return _best(work, targets, layout.outputs)


def schemes(work: Workload) -> list[tuple[int, int, int]]:
    """Outputs of a tile along the axes, of which one at least is transformed."""
    choices = [sorted({1, *outputs_of(axis)}) for axis in work.plan.axes]
    return [(d, h, w) for d, h, w in itertools.product(*choices) if (d, h, w) != (1, 1, 1)]


def copies(targets: Sequence[Architecture]) -> bool:
    """Whether all architectures copy to shared memory past the registers."""
    return all(one.number >= _COPIES for one in targets)


def complete(work: Workload, tiling: CudaTiling) -> CudaTiling:
    """The tiling with the sums and threads of a block that follow from the rest."""
    rows = CudaToomCook(work, tiling).rows
    threads = rows // tiling.voxels * (tiling.block_channels // tiling.lanes)
    return dataclasses.replace(tiling, threads=threads, block_voxels=rows)


def fits(work: Workload, tiling: CudaTiling, targets: Sequence[Architecture]) -> bool:
    """Whether every architecture has a block's threads, registers and shared memory."""
    form = CudaToomCook(work, tiling)
    return (
        form.whole
        and 32 <= tiling.threads <= _MOST_THREADS
        and all(form.shared_bytes <= one.block_shared_bytes for one in targets)
        and (copies(targets) or not tiling.copied)
    )


def spills(form: CudaToomCook) -> bool:
    """Whether a thread would have fewer registers than its loop needs."""
    blocks = max(1, form.tiling.resident)
    return blocks * -(-form.tiling.threads // 32) > _warps(form)


def _registers(form: CudaToomCook) -> int:
    """What a thread needs in its loop."""
    voxels, lanes = form.tiling.voxels, form.tiling.lanes
    more = _COMBINATIONS if len(form.boxes) > 1 else 0
    return voxels * lanes + voxels + lanes + _MORE_REGISTERS + more


def _warps(form: CudaToomCook) -> int:
    """Most warps that the registers of a multiprocessor hold."""
    return _ALL_REGISTERS // (32 * _SCHEDULERS * _registers(form)) * _SCHEDULERS


def _best(
    work: Workload,
    targets: Sequence[Architecture],
    outputs: tuple[int, int, int] | None = None,
) -> CudaTiling | None:
    found = [one for one in _candidates(work, targets, outputs) if fits(work, one, targets)]
    return min(found, key=lambda one: cost(work, one), default=None)


def _candidates(
    work: Workload, targets: Sequence[Architecture], outputs: tuple[int, int, int] | None
) -> Iterator[CudaTiling]:
    copied = int(copies(targets))
    widths = [n for n in (16, 32) if n == 16 or work.plan.filters > 16]
    for one in [outputs] if outputs else schemes(work):
        for columns, width in itertools.product(BOXES, widths[-1:]):
            tiling = CudaTiling(
                "toom-cook", 1, _SIDE, _SIDE, 1, width, _DEPTH, 2, 1,
                outputs=one, columns=columns, copied=copied,
            )  # fmt: skip
            if CudaToomCook(work, tiling).whole:
                yield complete(work, tiling)


def cost(work: Workload, tiling: CudaTiling) -> float:
    """Instructions of a warp scheduler for one sample, by the model."""
    form = CudaToomCook(work, tiling)
    plan, warps = work.plan, -(-tiling.threads // 32)
    slices = -(-plan.in_channels // tiling.depth)
    products = tiling.voxels * tiling.lanes + (tiling.voxels + tiling.lanes) / 2
    step = warps * (tiling.depth * products + _STEP) + _SUM * form.rows * tiling.depth / 32
    brought = form.inputs + form.weight_points * tiling.block_channels
    step = max(step, _SCHEDULERS * 4 * brought * tiling.depth / _BROUGHT)
    out = _OUT * form.rows * tiling.block_channels / 32
    passes = math.prod(
        sum(axis.passes[phase.group] * phase.count for phase in axis.phases) for axis in form.axes
    )
    blocks = math.prod(axis.slots for axis in form.axes)
    columns = -(-plan.filters // tiling.block_channels) * max(1, plan.batch)
    work_of_all = columns * (passes * slices * step + blocks * out)
    # Blocks that run at once on a multiprocessor share its schedulers.
    together = max(1, min(_warps(form) // warps, 4))
    busy = min(1.0, warps * together / _BUSY_WARPS)
    waves = columns * blocks / _MULTIPROCESSORS / together
    cycles = work_of_all / busy * math.ceil(waves) / waves
    return _SPILLING * cycles if spills(form) else cycles
