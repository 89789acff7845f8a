"""Register tiles that read the input where it lies, and ask for the inputs of later ones.

Where each output has one tap, a tile reads some voxels once, in as many streams, and no prefetcher
brings their next ones in time. Blocks of channels after the first, and output rows of other phases,
find them in the caches: only the first tiles that read an input row ask (`Tiling.fetch`). Where
kernel = stride = 1 an output row has an input row of its own, and each block asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.frame import Row, i64
from tvmconv.compute.lanes import Group, tap_order
from tvmconv.compute.phase_kernel import Emitter
from tvmconv.geometry import Phase

__all__ = ["Flow"]


@dataclass(frozen=True)
class Flow(Emitter):
    """Emits the statements of such a kernel."""

    def _sum_up(
        self, row: Row, phase: Phase, group: Group, name: str, block: Any, q: Any, width: int,
        sums: Any,
    ) -> None:  # fmt: skip
        del name
        axis = self.form.folded.plan.axes[2]
        tap = i64(tap_order(axis).index(phase.residue))
        rest = (row, group, block, q, width, sums, tap)
        if self.form.flows:
            self._products(*rest, asks=True)
            return
        if group != self.form.groups[0] or phase.residue != axis.phases[0].residue:
            self._products(*rest, asks=False)
            return
        share = self.form.groups[0].blocks // self.form.tiling.splits
        depth, height, _ = self._entry(row, tap)
        first = (block - row.split * i64(share), depth, height)
        with T.If(tirx.all(*(one == i64(0) for one in first))):
            with T.Then():
                self._products(*rest, asks=True)
            with T.Else():
                self._products(*rest, asks=False)

    def _products(
        self, row: Row, group: Group, block: Any, q: Any, width: int, sums: Any, tap: Any, *,
        asks: bool,
    ) -> None:  # fmt: skip
        """The sums of a register tile whose voxels have one tap."""
        zero = i64(0)
        place = (row.depth.input_index(zero), row.height.input_index(zero))
        later = q + i64(self._distance(group))

        def ask(c: Any) -> None:
            if asks:
                self._ahead(row.n, place, later, c, width)

        self._start_at_bias(group, block, width, sums)
        channels = (zero, self.form.folded.plan.in_channels)
        entry = self._entry(row, tap)
        self._multiply(row, group, block, q, width, sums, entry, zero, channels, ask)
