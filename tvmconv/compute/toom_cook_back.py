"""How products of the Toom-Cook form are transformed back, and leave through bias and activation.

The transform of a register of filters is all additions of a tile, written out, so it should stand
once. Where filters do not fill their registers, the last one's code is another, which stores fewer
lanes; where ``masked``, one code takes whole registers, of all groups of lanes too, and the store
leaves out the lanes past the last filter.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish
from tvmconv.compute.element import storage
from tvmconv.compute.elementary import Formula
from tvmconv.compute.frame import Region, i64
from tvmconv.compute.points import pick
from tvmconv.compute.schemes import Scheme, signed_sum
from tvmconv.compute.shuffle import lanes as lanes_at
from tvmconv.compute.shuffle import store_lanes
from tvmconv.compute.toom_cook import MANY_SUMS
from tvmconv.compute.toom_cook_block import Phase, unless
from tvmconv.compute.toom_cook_products import Products

__all__ = ["Back"]

#: Tiles between the one that is transformed back and the one whose outputs are brought near.
_AHEAD = 2


@dataclass(frozen=True)
class _Result:
    """A sum, and what becomes of it in lane ``v``."""

    sum: Any
    formula: Formula
    v: Any

    def value(self) -> Any:
        """Emit the intermediate stores and return what is stored."""
        return self.formula.at(self.sum, self.v)


@dataclass(frozen=True)
class _Sums:
    """The registers of a transform, used again by each register of filters."""

    plane: Any
    row: Any
    scale: Any


@dataclass(frozen=True)
class _Register:
    """Some lanes of a tile's products, and the statements that transform them back.

    Attributes
    ----------
    spared : tuple of set of int
        Products along the height and the width that are not in scratch at the axes' ``ends``.
    lane : tvm.tirx.Expr
        The first of them, among the ``lanes`` of a product.
    number : tvm.tirx.Expr
        The same among the lanes of all filters.
    """

    kernel: Back
    schemes: list[Scheme]
    spared: tuple[set[int], set[int]]
    ends: tuple[Any, Any]
    sums: _Sums
    tile: Sequence[Any]
    lanes: int
    lane: Any
    number: Any

    @property
    def _places(self) -> int:
        """Sums of a plane."""
        return len(self.schemes[1].points) * len(self.schemes[2].points)

    @property
    def is_looped(self) -> bool:
        """Whether a plane's sums are made in a loop."""
        return self._places > MANY_SUMS

    def begin(self, v: Any) -> None:
        """What scales the results back, where channels are pairs."""
        if self.kernel.form.tiling.paired:
            value = self.kernel.back(self.tile, self.number + v)
            T.buffer_store(self.sums.scale, value, [i64(0), v])

    def plane_of(self, a: int) -> int:
        """Where the sums for the outputs ``a`` along the depth begin."""
        return a * self._places if self.is_looped else 0

    def along_depth(self, a: int, v: Any) -> None:
        """The sums of a plane, for the outputs ``a`` along the depth."""
        kernel, into = self.kernel, i64(self.plane_of(a))

        def add(at: Any) -> None:
            terms = []
            for d, sign in enumerate(self.schemes[0].result[a]):
                point = i64(d * self._places) + at
                place = kernel.product(self.tile, point, self.lanes, self.lane + v)
                terms.append((kernel.frame.scratch[place], sign))
            T.buffer_store(self.sums.plane, signed_sum(terms), [into + at, v])

        rows, columns = (len(scheme.points) for scheme in self.schemes[1:])
        if not any(self.spared):
            if not self.is_looped:
                for number in range(self._places):
                    add(i64(number))
                return
            with T.serial(i64(0), i64(self._places)) as at:
                add(at)
            return

        def clear(row: Any, some: Sequence[int]) -> None:
            for w in some:
                at = into + row * i64(columns) + i64(w)
                T.buffer_store(self.sums.plane, tirx.const(0, kernel.dtype), [at, v])

        def of_row(row: Any, some: set[int]) -> None:
            known = [row == i64(h) for h in some]
            skips = tirx.all(self.ends[0], tirx.any(*known)) if some else None
            with unless(skips, bool(some), partial(clear, row, range(columns))):
                for spared in (False, True):
                    few = [w for w in range(columns) if (w in self.spared[1]) == spared]
                    with unless(self.ends[1], spared and bool(few), partial(clear, row, few)):
                        for w in few:
                            add(row * i64(columns) + i64(w))

        if self.is_looped:
            with T.serial(i64(0), i64(rows)) as row:
                of_row(row, self.spared[0])
            return
        for h in range(rows):
            of_row(i64(h), self.spared[0] & {h})

    def along_height(self, of: Any, b: int, v: Any) -> None:
        """The sums of a row of the plane ``of``, for the outputs ``b`` along the height."""
        size = len(self.schemes[2].points)
        for w in range(size):
            terms = [
                (self.sums.plane[of + i64(h * size + w), v], sign)
                for h, sign in enumerate(self.schemes[1].result[b])
            ]
            T.buffer_store(self.sums.row, signed_sum(terms), [i64(w), v])

    def value(self, c: int, v: Any) -> Any:
        """The output ``c`` of a row, without its activation."""
        terms = [
            (self.sums.row[i64(w), v], sign) for w, sign in enumerate(self.schemes[2].result[c])
        ]
        value = signed_sum(terms)
        if self.kernel.form.tiling.paired:
            value = value * self.sums.scale[i64(0), v]
        return value + self.kernel.frame.bias[self.number + v]


class Back(Products):
    """Transforms the products of a phase back."""

    def finish(self, phase: Phase, number: int, block: Any) -> None:
        """Transform the products of a block of lanes back, add the bias, and store."""
        work, group = self.form.work, self.form.groups[number]
        if group.dots:
            group = replace(group, valid=group.blocks, blocks=1, lanes=group.blocks)
        line = finish.needs_line(work)
        counts = [self.count(axis, phase.first) for axis in range(3)]
        sums, shape = self._sums(phase), phase.shape
        loops = not line and self._in_loops
        ready = self.local(math.prod(shape) if loops else 1, self.vector)
        for start, vectors, lanes in finish.chunks(group.valid, self.vector):
            last = (finish.unfinished if line else finish.result)(work, (lanes,))
            with T.grid(*counts, i64(vectors)) as (*tile, chunk):
                lane = i64(start) + chunk * i64(lanes)
                channel = i64(group.first) + block * i64(group.lanes) + lane
                some = self._register(phase, sums, tile, group.lanes, lane, channel)

                def plane(
                    a: Any,
                    of: Any,
                    v: Any,
                    some: _Register = some,
                    channel: Any = channel,
                    tile: Any = tile,
                    last: Any = last,
                ) -> None:
                    for b in range(shape[1]):
                        some.along_height(of, b, v)
                        for c in range(shape[2]):
                            value = some.value(c, v)
                            if loops:
                                flat = Region(None, 0, shape).at(a, i64(b), i64(c))
                                T.buffer_store(ready, value, [flat, v])
                            else:
                                result = _Result(value, last, v)
                                self._store(phase, tile, (a, b, c), channel + v, result)

                with T.vectorized(i64(0), i64(lanes)) as v:
                    some.begin(v)
                    for a in range(shape[0]):
                        some.along_depth(a, v)
                        if not some.is_looped:
                            plane(i64(a), i64(0), v)
                    if some.is_looped:
                        with T.serial(i64(0), i64(shape[0])) as a:
                            plane(a, a * i64(some.plane_of(1)), v)
                if not line:
                    self._claim_ahead(phase, tile, channel)
                if loops:
                    with T.grid(*map(i64, shape)) as output, T.vectorized(i64(0), i64(lanes)) as v:
                        flat = Region(None, 0, shape).at(*output)
                        result = _Result(ready[flat, v], last, v)
                        self._store(phase, tile, output, channel + v, result)

    def finish_masked(self, phase: Phase, block: Any) -> None:
        """The same by one code for all blocks of lanes: ``block`` counts those of all groups."""
        form, vector = self.form, self.vector
        sums, shape = self._sums(phase), phase.shape
        ready = self.local(math.prod(shape) if self._in_loops else 1, vector)
        done = T.sblock_alloc_buffer(
            (i64(shape[2]), i64(vector)), storage(form.work.output_dtype), scope="local"
        )
        last = finish.result(form.work, (vector,))
        begins, sizes = zip(*form.blocks, strict=True)
        begin = pick([start // vector for start in begins], block)
        counts = [self.count(axis, phase.first) for axis in range(3)]
        registers, rest = divmod(form.work.plan.filters, vector)
        with T.grid(*counts, pick([-(-size // vector) for size in sizes], block)) as (*tile, chunk):
            number = begin + chunk
            channel = number * i64(vector)
            every, few = (tirx.const((1 << count) - 1, "int32") for count in (vector, rest))
            mask = tirx.Select(number == i64(registers), few, every) if rest else every
            lane = chunk * i64(vector)
            some = self._register(phase, sums, tile, form.lanes, lane, channel)

            def leave(output: Sequence[Any], c: Any) -> None:
                outs, inside = self.places(phase, tile, output)
                place = (phase.n, *outs, channel)

                def store() -> None:
                    value = done[c, lanes_at(i64(0), vector)]
                    store_lanes(value, self.frame.y[place], mask)

                if not inside:
                    store()
                    return
                with T.If(tirx.all(*inside)), T.Then():
                    store()

            def plane(a: Any, of: Any) -> None:
                for b in range(shape[1]):
                    with T.vectorized(i64(0), i64(vector)) as v:
                        some.along_height(of, b, v)
                        for c in range(shape[2]):
                            value = some.value(c, v)
                            if self._in_loops:
                                flat = Region(None, 0, shape).at(a, i64(b), i64(c))
                                T.buffer_store(ready, value, [flat, v])
                            else:
                                T.buffer_store(done, last.at(value, v), [i64(c), v])
                    if not self._in_loops:
                        for c in range(shape[2]):
                            leave((a, b, c), i64(c))

            with T.vectorized(i64(0), i64(vector)) as v:
                some.begin(v)
            for a in range(shape[0]):
                with T.vectorized(i64(0), i64(vector)) as v:
                    some.along_depth(a, v)
                if not some.is_looped:
                    plane(i64(a), i64(0))
            if some.is_looped:
                with T.serial(i64(0), i64(shape[0])) as a:
                    plane(a, a * i64(some.plane_of(1)))
            self._claim_ahead(phase, tile, channel)
            if self._in_loops:
                with T.grid(*map(i64, shape)) as output:
                    flat = Region(None, 0, shape).at(*output)
                    with T.vectorized(i64(0), i64(vector)) as v:
                        T.buffer_store(done, last.at(ready[flat, v], v), [i64(0), v])
                    leave(output, i64(0))

    @property
    def _in_loops(self) -> bool:
        """Whether outputs leave in loops: a long formula would be repeated for each of a tile."""
        work = self.form.work
        return finish.is_long(work) or work.output_dtype == "bfloat16"

    def _sums(self, phase: Phase) -> _Sums:
        """What a transform keeps in registers."""
        depth, height, width = phase.schemes
        places = len(height.points) * len(width.points)
        planes = depth.outputs if places > MANY_SUMS else 1
        return _Sums(
            self.local(places * planes, self.vector),
            self.local(len(width.points), self.vector),
            self.local(1, self.vector),
        )

    def _register(self, phase: Phase, sums: _Sums, tile: Sequence[Any], *some: Any) -> _Register:
        spared = self.spared(phase.one, 1)[0], self.spared(phase.one, 2)[0]
        ends = self.is_last(1, phase.first, tile[1]), self.is_last(2, phase.first, tile[2])
        return _Register(self, phase.schemes, spared, ends, sums, tile, *some)

    def _claim_ahead(self, phase: Phase, tile: Sequence[Any], channel: Any) -> None:
        """Bring the places of the outputs of a tile further on into the first-level cache."""
        last = i64(self.form.tiling.block[2] - 1)
        ahead = (*tile[:2], tirx.min(tile[2] + i64(_AHEAD), last))
        for output in itertools.product(*map(range, phase.shape)):
            place = self.nearest(phase, ahead, output)
            where = (phase.n, *place, channel)
            self.prefetch(self.frame.y[where], write=True)

    def _store(
        self,
        phase: Phase,
        tile: Sequence[Any],
        output: Sequence[Any],
        channel: Any,
        result: _Result,
    ) -> None:
        """Store an output of a tile if it exists: to its place, or to the rows in scratch."""
        outs, inside = self.places(phase, tile, output)

        def store() -> None:
            if not finish.needs_line(self.form.work):
                self.frame.output(result.value(), phase.n, outs, channel)
                return
            self.keep(result.value(), phase, tile, output, channel)

        if not inside:
            store()
            return
        with T.If(tirx.all(*inside)), T.Then():
            store()
