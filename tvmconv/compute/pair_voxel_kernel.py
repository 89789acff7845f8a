"""The statements of the pair form's kernel for channels first, whose lanes are voxels."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish, streaming
from tvmconv.compute.element import storage
from tvmconv.compute.elementary import Formula
from tvmconv.compute.frame import LINE_BYTES, Region, divide, i64
from tvmconv.compute.pair_kernel import Panels
from tvmconv.compute.pair_voxels import begin_of
from tvmconv.compute.pairing import scale
from tvmconv.compute.pairs import HEAD
from tvmconv.compute.shuffle import interleave, lanes, store_lanes
from tvmconv.policies import numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmconv.compute.pair_voxels import PairVoxelForm

__all__ = ["PairVoxelKernel"]

#: Cycles from asking memory for a line to having it.
_LATENCY = 700


@dataclass(frozen=True)
class _Place:
    """Where the outputs of a register of voxels are, of the first filter and tap.

    Attributes
    ----------
    starts, masks : tvm.tirx.Buffer
        Of each row that it may have a part of: where its outputs would begin if all were of this
        row, and which lanes of its registers of outputs are. None where all are of one row.
    asked : tvm.tirx.Buffer
        The places to ask for; the first one is where they begin.
    """

    starts: Any
    masks: Any
    asked: Any


@dataclass(frozen=True)
class PairVoxelKernel(Panels):
    """Emits the statements of such a kernel."""

    form: PairVoxelForm

    @property
    def _line(self) -> Region:
        start = self.rows.size + self.terms.size
        return Region(self.frame.scratch, start, self.form.line_shape)

    @property
    def _weights(self) -> Region:
        taps, *rest = self.form.panels_shape
        return Region(self.frame.weights, 0, (rest[0], taps, *rest[1:]))

    @property
    def _stride(self) -> int:
        return self.form.work.plan.axes[2].stride

    def task(self, n: Any, chunk: Any, split: Any) -> None:
        """The voxels of a task: copied and scaled, then multiplied by its share of the panels."""
        tiling, ((tiles, _),) = self.form.tiling, self.form.runs
        first = chunk * i64(tiling.rows)
        count = tirx.min(i64(tiling.rows), i64(tiles) - first)
        self._copy(n, first, count)
        with T.serial(i64(0), count) as tile:
            self._scale(tile)
        groups, panels = self.groups(split)
        with groups as group:
            some = panels(group)
            with T.serial(i64(0), count) as tile:
                places = tuple(self._place(first + tile + i64(k)) for k in range(2))
                multiply = partial(self._panels, n, (first, tile), places, some)
                streaming.either(
                    self.frame, partial(multiply, past=True), partial(multiply, past=False)
                )

    def _voxel(self, tile: Any) -> Any:
        """The first voxel of a register tile: the last one's end with the sample."""
        vector, voxels = self.form.tiling.vector, self.form.voxels
        first = tile * i64(vector)
        return first if voxels % vector == 0 else tirx.min(first, i64(voxels - vector))

    def _copy(self, n: Any, first: Any, count: Any) -> None:
        """Copy the voxels of a task, channel by channel: each is another place of memory."""
        vector, steps, zero = self.form.tiling.vector, self.form.pairing.steps, i64(0)

        def copy(slot: Any, channel: Any) -> None:
            with T.serial(zero, count) as tile:
                voxel = self._voxel(first + tile)
                value = self.frame.input_register(n, zero, zero, voxel, channel, vector)
                T.buffer_store(self.frame.scratch, value, [self._slot(tile, slot)])

        if steps:
            with T.grid(i64(steps), i64(6)) as (step, stream):
                copy(step * i64(6) + stream, stream * i64(steps) + step)
        for c in range(6 * steps, self.form.work.plan.in_channels):
            copy(i64(c), i64(c))

    def _fetch(self, n: Any, first: Any, tile: Any, panel: Any) -> None:
        """Ask for a share of the next task's inputs, channel by channel as they will be copied.

        What is behind the last one is only asked for.
        """
        channels, rows = self.form.work.plan.in_channels, self.form.tiling.rows
        share = -(-channels // self.form.panels)
        voxel = (first + i64(rows)) * i64(self.form.tiling.vector)
        for i in range(share):
            number = (tile * i64(self.form.panels) + panel) * i64(share) + i64(i)
            channel, later = divide(number, rows)
            place = voxel + later * i64(self.form.tiling.vector)
            channel = tirx.min(channel, i64(channels - 1))
            address = tirx.address_of(self.frame.input(n, i64(0), i64(0), place, channel))
            T.evaluate(tirx.call_intrin("void", "tirx.prefetch", address, 0, 3, 1))

    def _slot(self, tile: Any, slot: Any) -> Any:
        """Where the inputs of a slot lie in scratch."""
        return lanes(self.rows.at(tile, slot, i64(0)), self.form.tiling.vector)

    def _scale(self, tile: Any) -> None:
        """Scale the voxels of a register tile to a mean magnitude of about 1."""
        vector, steps = self.form.tiling.vector, self.form.pairing.steps
        channels, whole = self.form.work.plan.in_channels, lanes(i64(0), vector)
        total, factors = self._local(1, vector), self._local(1, vector)
        cell = [i64(0), whole]
        zero = tirx.Broadcast(tirx.const(0, "float32"), vector)
        T.buffer_store(total, zero, cell)
        with T.serial(i64(0), i64(channels)) as slot:
            size = tirx.abs(self.frame.scratch[self._slot(tile, slot)])
            T.buffer_store(total, total[tuple(cell)] + size, cell)
        powers = Formula(lambda mean: scale(mean, vector), f"float32x{vector}", (1,))
        mean = tirx.Broadcast(tirx.const(1 / channels, "float32"), vector)
        factor, inverse = powers.at(total[tuple(cell)] * mean, i64(0))
        T.buffer_store(factors, factor, cell)
        self._put(tile, 1, inverse)
        T.buffer_store(total, zero, cell)
        held = self._local(6, vector)

        def some(slot: Any, count: int, signs: tuple[int, ...]) -> None:
            """Scale the channels of some slots; those of each sign are a pair and another one."""
            for k in range(count):
                at = self._slot(tile, slot + i64(k))
                T.buffer_store(held, self.frame.scratch[at] * factors[tuple(cell)], [i64(k), whole])
                T.buffer_store(self.frame.scratch, held[i64(k), whole], [at])
            for number, sign in enumerate(signs):
                product = held[i64(3 * number), whole] * held[i64(3 * number + 1), whole]
                before = total[tuple(cell)]
                T.buffer_store(total, before - product if sign > 0 else before + product, cell)

        if steps:
            with T.serial(i64(0), i64(steps)) as step:
                some(step * i64(6), 6, (1, -1))
        rest = channels - 6 * steps
        if rest:
            some(i64(6 * steps), rest, (1,) if rest >= 3 else ())
        self._put(tile, 0, total[tuple(cell)])

    def _put(self, tile: Any, which: int, value: Any) -> None:
        at = self.terms.at(tile, i64(which), i64(0))
        T.buffer_store(self.frame.scratch, value, [lanes(at, self.form.tiling.vector)])

    def _place(self, tile: Any) -> _Place:
        """Where the outputs of a register tile are."""
        vector, stride, run = self.form.tiling.vector, self._stride, self.form.run
        voxel = self._voxel(tile)
        asked = T.sblock_alloc_buffer((i64(len(self._asked)),), "int64", scope="local")
        for number, element in enumerate(self._asked):
            begin = begin_of(self.form.work, voxel + i64(element // stride))
            T.buffer_store(asked, begin + i64(element % stride), [i64(number)])
        if self.form.is_whole:
            return _Place(None, None, asked)
        count = self.form.pieces
        starts = T.sblock_alloc_buffer((i64(count),), "int64", scope="local")
        masks = T.sblock_alloc_buffer((i64(count * stride),), "int32", scope="local")
        row, x = divide(voxel, run)
        # Of the last register what another one stores.
        least = (tile * i64(vector) - voxel) * i64(stride)
        with T.serial(i64(0), i64(count)) as k:
            first = (k * i64(run) - x) * i64(stride)
            T.buffer_store(starts, begin_of(self.form.work, (row + k) * i64(run)) - first, [k])
            for j in range(stride):

                def lane(element: Any, j: int = j) -> Any:
                    bound = tirx.max(element - i64(vector * j), i64(0))
                    return tirx.min(bound, i64(vector)).astype("int32")

                low = lane(tirx.max(first, least))
                high = tirx.max(lane(first + i64(run * stride)), low)
                one = tirx.const(1, "int32")
                mask = tirx.shift_left(one, high) - tirx.shift_left(one, low)
                T.buffer_store(masks, mask, [k * i64(stride) + i64(j)])
        return _Place(starts, masks, asked)

    @property
    def _asked(self) -> list[int]:
        """Outputs of a filter and a register of voxels that are asked for."""
        line = LINE_BYTES // numpy_dtype(self.form.work.output_dtype).itemsize
        count = self.form.tiling.vector * self._stride
        step = max(1, min(line, self.form.run * self._stride))
        # The last one too: outputs need not begin with a line.
        return sorted({*range(0, count, step), count - 1})

    def _panels(
        self, n: Any, tiles: tuple[Any, Any], places: tuple[_Place, ...], panels: tuple[Any, Any],
        past: bool,
    ) -> None:  # fmt: skip
        """A register tile of a task and some panels: the first of either, which, how many.

        Outputs leave ``past`` the caches or are asked for before.
        """
        (begin_task, tile), (first, count) = tiles, panels
        longer, size = self.form.blocks[0]
        taps = self.form.panels_shape[0]
        with T.serial(i64(0), count) as k:
            block, tap = divide(first + k, taps)
            if self.form.tiling.splits == 1:
                self._fetch(n, begin_task, tile, first + k)

            def some(filters: int, k: Any = k, block: Any = block, tap: Any = tap) -> None:
                after = k + i64(self._ahead(filters))
                later = divide(first + tirx.floormod(after, count), taps)
                begin = self._tap_begin(later[1])
                steps = self.form.pairing.steps
                number = filters * len(self._asked)
                share = -(-number // max(1, steps))

                def ask(step: Any) -> None:
                    for i in range(0 if past else share):
                        which = tirx.min(step * i64(share) + i64(i), i64(number - 1))
                        local, element = divide(which, len(self._asked))
                        place = tirx.if_then_else(
                            after >= count, places[1].asked[element], places[0].asked[element]
                        )
                        channel = self.form.first(later[0]) + local
                        self.frame.claim(n, (i64(0), i64(0), place + begin), channel)

                self._tile(n, tile, places[0], (tap, block), filters, ask, past)

            if len(self.form.blocks) == 1:
                some(size)
                return
            with T.If(block < i64(longer)):
                with T.Then():
                    some(size)
                with T.Else():
                    some(size - 1)

    def _ahead(self, filters: int) -> int:
        """Panels from a register tile to the one whose outputs are asked for."""
        products = self.form.work.plan.in_channels * filters * self._stride
        cycles = max(1, products * 2 // 3)
        return -(-_LATENCY // cycles)

    def _tap_begin(self, tap: Any) -> Any:
        """Where the outputs of a tap of depth and height are beside the first one's."""
        height, across = self.form.work.plan.axes[1:]
        a, b = divide(tap, height.kernel)
        return (a * i64(height.out) + b) * i64(across.out)

    def _tile(
        self, n: Any, tile: Any, place: _Place, panel: tuple[Any, Any], filters: int,
        ask: Callable[[Any], None], past: bool,
    ) -> None:  # fmt: skip
        """A register tile: a register of voxels x some filters and their taps along the width."""
        tap, block = panel
        vector, columns = self.form.tiling.vector, filters * self._stride
        sums = self._local(columns, vector)

        def weight(slot: Any, q: Any) -> Any:
            return self._weights.load(block, tap, slot, q)

        with T.unroll(i64(0), i64(columns)) as q, T.vectorized(i64(0), i64(vector)) as v:
            value = self.terms.load(tile, i64(0), v) + weight(i64(0), q)
            T.buffer_store(sums, value, [q, v])
        self.form.pairing.emit(
            columns,
            vector,
            sums,
            lambda q, slot: weight(i64(HEAD) + slot, q),
            lambda slot, v: self.rows.load(tile, slot, v),
            ask,
            in_order=True,
        )
        first = self.form.first(block)

        def value_of(q: Any, v: Any) -> Any:
            scaled = sums[q, v] * weight(i64(1), q) * self.terms.load(tile, i64(1), v)
            return scaled + self.frame.bias[first + tirx.floordiv(q, i64(self._stride))]

        self._leave(n, place, self._tap_begin(tap), (first, filters), value_of, past)

    def _leave(
        self, n: Any, place: _Place, begin: Any, channels: tuple[Any, int],
        value: Callable[[Any, Any], Any], past: bool,
    ) -> None:  # fmt: skip
        """Store the values of a register tile through the activation.

        ``channels`` are the first of its filters and how many.
        """
        first, filters = channels
        work, vector, stride = self.form.work, self.form.tiling.vector, self._stride
        columns, kept = filters * stride, storage(work.output_dtype)
        done = T.sblock_alloc_buffer((i64(columns), i64(vector)), kept, scope="local")
        if self.form.has_line:
            with T.unroll(i64(0), i64(columns)) as q, T.vectorized(i64(0), i64(vector)) as v:
                self._line.store(value(q, v), q, v)
            last = finish.active(work, (vector,))
            with T.serial(i64(0), i64(columns)) as q, T.vectorized(i64(0), i64(vector)) as v:
                self._line.store(last.at(self._line.load(q, v), v), q, v)
            value, last = self._line.load, finish.rounded(work, (vector,))
        else:
            last = finish.result(work, (vector,))
        with T.unroll(i64(0), i64(columns)) as q, T.vectorized(i64(0), i64(vector)) as v:
            T.buffer_store(done, last.at(value(q, v), v), [q, v])
        whole, kind = lanes(i64(0), vector), f"{kept}x{vector}"
        mixed = [
            interleave(vector, kind, [done[i64(f * stride + t), whole] for t in range(stride)])
            for f in range(filters)
        ]
        zero = i64(0)
        if self.form.is_whole:
            start = place.asked[zero] + begin
            for f, j in itertools.product(range(filters), range(stride)):
                at, channel = start + i64(vector * j), first + i64(f)
                if past:
                    element = self.frame.y[n, channel, zero, zero, at]
                    streaming.put(self.frame, mixed[f][j], vector, element)
                else:
                    self.frame.output(mixed[f][j], n, (zero, zero, lanes(at, vector)), channel)
            return
        with T.serial(zero, i64(self.form.pieces)) as k:
            for j in range(stride):
                mask = place.masks[k * i64(stride) + i64(j)]
                start = place.starts[k] + begin + i64(vector * j)
                with T.If(mask != tirx.const(0, "int32")), T.Then():
                    for f in range(filters):
                        element = self.frame.y[n, first + i64(f), zero, zero, start]
                        store_lanes(mixed[f][j], element, mask)

    def _local(self, count: int, size: int) -> Any:
        return T.sblock_alloc_buffer((i64(count), i64(size)), "float32", scope="local")
