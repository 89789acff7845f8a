"""What the register tiles of a row cost by the phase rule's model of the core."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmconv.schedules.cpu.phase import tile_cost

if TYPE_CHECKING:
    from tvmconv.compute.phase import PhaseForm

__all__ = ["row_cycles"]


def row_cycles(form: PhaseForm) -> float:
    """Cycles of a row for one input channel and one tap of depth and height."""
    axis = form.folded.plan.axes[2]
    total = 0.0
    for group in form.groups:
        registers = group.lanes // form.tiling.vector
        for one in axis.phases:
            for piece in form.pieces(one, group):
                widths = [piece.width] * one.taps
                if form.skips_border:
                    spans = (piece.reached(axis, one, tap) for tap in range(one.taps))
                    widths = [end - first for first, end in spans if first < end]
                tile = sum(tile_cost(width, registers) for width in widths)
                total += tile * piece.tiles * group.blocks
    return total
