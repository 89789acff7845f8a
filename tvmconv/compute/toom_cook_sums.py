"""The sums of inputs of the Toom-Cook form: along the depth from memory, then in registers.

The last tile of an axis may need few of them, of inputs that are made up (`last_tiles`). Which tile
it is, is asked once for the sums along an axis of one sum along the axes before; the code of those
that are needed is the same for all tiles but along the depth.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.frame import Region, i64
from tvmconv.compute.points import pick
from tvmconv.compute.schemes import KINDS, Column, signed_sum
from tvmconv.compute.shuffle import lanes
from tvmconv.compute.toom_cook_block import unless
from tvmconv.compute.toom_cook_products import Products
from tvmconv.compute.transforms import LastColumns

__all__ = ["Sums"]

#: An input and its factor.
_Term = tuple[int, float]


@dataclass(frozen=True)
class _Along:
    """The sums along an axis: columns, and those of the last tile where it is short.

    Attributes
    ----------
    begin : tvm.tirx.Expr
        The input from which tile 0 counts.
    numbers : dict
        The inputs that are made up, numbered, with the terms of each.
    """

    begin: Any
    columns: Sequence[Column]
    last: LastColumns | None
    numbers: dict[tuple[int, tuple[_Term, ...]], int] = field(default_factory=dict)

    @property
    def reach(self) -> int:
        """Inputs that a tile reads."""
        return max(offset + KINDS[kind][-1][0] for kind, offset in self.columns) + 1

    def skips(self, column: Column) -> bool:
        """Whether the last tile does not need a sum."""
        return self.last is not None and column not in self.last

    def ordered(self) -> list[tuple[int, Column]]:
        """The columns with their numbers; those that the last tile does not need are the last."""
        return sorted(enumerate(self.columns), key=lambda one: self.skips(one[1]))

    def runs(self) -> list[tuple[bool, list[tuple[int, Column]]]]:
        """The same, those that the last tile needs and those that it does not."""
        groups = itertools.groupby(self.ordered(), key=lambda one: self.skips(one[1]))
        return [(skips, list(some)) for skips, some in groups]

    def made(self, column: Column, d: int) -> int | None:
        """The number of an input that is made up for a sum; None: it is what it is."""
        terms = (self.last or {}).get(column, {}).get(d)
        return None if terms is None else self.numbers[d, terms]

    def last_terms(self, column: Column) -> list[_Term]:
        """The terms of a sum of the last tile, of inputs that are not made up."""
        made, factors = (self.last or {}).get(column, {}), dict[int, float]()
        for step, factor in KINDS[column[0]]:
            d = column[1] + step
            for k, part in made.get(d, ((d, 1.0),)):
                factors[k] = factors.get(k, 0.0) + factor * part
        return list(factors.items())


class Sums(Products):
    """Transforms the input of a block."""

    def _along(self, number: int, classes: Sequence[int], members: Sequence[Any]) -> _Along:
        """The sums of inputs that stand for an axis."""
        axis = self.form.axes[number]
        if axis.shared:
            begin, columns, last = i64(0), axis.columns, axis.last()
        else:
            group = axis.classes[classes[number]]
            begin, columns = pick(group.starts, members[number]), group.scheme.points
            last = axis.last(group)
        if number == 2 and not self.form.narrows:
            last = None
        found = _Along(begin, columns, last)
        for made in (last or {}).values():
            for key in made.items():
                found.numbers.setdefault(key, len(found.numbers))
        return found

    def transform(self, first: tuple[Any, ...], classes: list[int], members: list[Any]) -> None:
        """From the input to its sums."""
        form = self.form
        along = [self._along(number, classes, members) for number in range(3)]
        counts = [self.count(number, first, halo=True) for number in range(3)]
        _, height, width = along
        plane = self.local(height.reach * width.reach, self.vector)
        line = self.local(width.reach, self.vector)
        made, rest = (
            self.local(max(1, len(one.numbers)) * size, self.vector)
            for one, size in ((height, width.reach), (width, 1))
        )
        kinds = list(
            itertools.product(*(sorted({kind for kind, _ in one.columns}) for one in along[1:]))
        )
        scales = self.local(len(kinds))
        shape = tuple(len(one.columns) for one in along)
        columns = math.prod(shape)

        def begin_of(tile: Sequence[Any]) -> list[Any]:
            return [
                t * i64(axis.outputs) + one.begin
                for t, axis, one in zip(tile, form.axes, along, strict=True)
            ]

        def sum_up(tile: Sequence[Any], chunk: Any, factors: Any = None) -> None:
            ends = [self.is_last(number, first, t) for number, t in enumerate(tile)]

            def clear(column: Sequence[Any], axis: int, some: Sequence[int] = (0,)) -> None:
                # Pairs read beyond a sum, and must find numbers there.
                if not form.tiling.paired:
                    return
                for k in some:
                    flat = Region(None, 0, shape).at(*column) + i64(k)
                    with T.serial(i64(0), i64(math.prod(shape[axis + 1 :]))) as more:
                        index = self.sums(flat + more, tile, chunk * i64(self.vector))
                        value = tirx.Broadcast(tirx.const(0, self.dtype), self.vector)
                        T.buffer_store(self.frame.scratch, value, [lanes(index, self.vector)])

            def begin(one: Column) -> None:
                """The sum along the depth, and the factors of what is summed of it."""
                self._planes(along, one, begin_of(tile), ends[0], plane, channel, v)
                for number, (two, three) in enumerate(kinds if factors is not None else ()):
                    value = factors[self.power((one[0], two, three))]
                    T.buffer_store(scales, value, [i64(number)])

            def rest_of(i: Any) -> None:
                """The sums along the height and the width of a sum along the depth."""
                _make_up(height, ends[1], plane, made, width.reach, v)
                for j, two in height.ordered():
                    with unless(ends[1], height.skips(two), partial(clear, (i, j, 0), 1)):
                        for w in range(width.reach):
                            value = _sum_of(height, two, plane, made, width.reach, w, v)
                            T.buffer_store(line, value, [i64(w), v])
                        _make_up(width, ends[2], line, rest, 1, v)
                        for skips, some in width.runs():
                            numbers = [k for k, _ in some]
                            at = partial(clear, (i, j, 0), 2, numbers)
                            with unless(ends[2], skips, at):
                                for k, three in some:
                                    total = _sum_of(width, three, line, rest, 1, 0, v)
                                    if factors is not None:
                                        number = kinds.index((two[0], three[0]))
                                        total = total * scales[i64(number)]
                                    flat = Region(None, 0, shape).at(i, j, k)
                                    index = self.sums(flat, tile, channel)
                                    T.buffer_store(self.frame.scratch, total, [index])

            with T.vectorized(i64(0), i64(self.vector)) as v:
                channel = chunk * i64(self.vector) + v
                if form.tiling.compact and shape[0] > 1:
                    skipped = [i for i, one in enumerate(along[0].columns) if along[0].skips(one)]
                    with T.serial(i64(0), i64(shape[0])) as i:
                        skips = tirx.any(*(i == i64(k) for k in skipped)) if skipped else None
                        end = tirx.all(ends[0], skips) if skipped else None
                        with unless(end, bool(skipped), partial(clear, (i, 0, 0), 0)):
                            for k, one in enumerate(along[0].columns):
                                with T.If(i == i64(k)), T.Then():
                                    begin(one)
                            rest_of(i)
                else:
                    for number, one in along[0].ordered():
                        at = partial(clear, (number, 0, 0), 0)
                        with unless(ends[0], along[0].skips(one), at):
                            begin(one)
                            rest_of(number)
            # All sums go to lines of their own, so the next ones are asked for together.
            for number in range(0 if form.tiling.compact else columns):
                after = self.sums(i64(number), tile, (chunk + i64(1)) * i64(self.vector))
                self.prefetch(self.frame.scratch[after], write=True)

        chunks = i64(form.channels // self.vector)
        if not form.tiling.paired:
            with T.grid(*counts, chunks) as (*tile, chunk):
                sum_up(tile, chunk)
            return
        with T.grid(*counts) as tile:
            factors = self.scale(tile, begin_of(tile), [one.reach for one in along])
            with T.serial(i64(0), chunks) as chunk:
                sum_up(tile, chunk, factors)
            self.excesses(tile, columns)

    def _planes(
        self, along: Sequence[_Along], column: Column, begin: Sequence[Any], end: Any, plane: Any,
        channel: Any, v: Any,
    ) -> None:  # fmt: skip
        """A sum along the depth, for all inputs of a tile's height and width."""
        source = Region(self.frame.scratch, 0, self.form.inputs_shape)
        depth, height, width = along
        kind, offset = column

        def emit(terms: Sequence[_Term]) -> None:
            for h, w in itertools.product(range(height.reach), range(width.reach)):
                place = [begin[1] + i64(h), begin[2] + i64(w), channel]
                some = [(source.load(begin[0] + i64(d), *place), factor) for d, factor in terms]
                T.buffer_store(plane, _sum(some), [i64(h * width.reach + w), v])

        plain = [(offset + step, factor) for step, factor in KINDS[kind]]
        if not (depth.last or {}).get(column):
            emit(plain)
            return
        with T.If(end):
            with T.Then():
                emit(depth.last_terms(column))
            with T.Else():
                emit(plain)


def _sum(terms: Sequence[tuple[Any, float]]) -> Any:
    """The sum of some terms, those with positive factors first."""
    some = sorted((term for term in terms if term[1]), key=lambda term: term[1] < 0)
    if not some:
        return tirx.const(0, "float32")
    if some[0][1] > 0:
        return signed_sum(some)
    return tirx.const(0, "float32") - signed_sum([(value, -factor) for value, factor in some])


def _make_up(along: _Along, end: Any, source: Any, made: Any, stride: int, v: Any) -> None:
    """The inputs that are made up along an axis, ``stride`` registers each.

    In all tiles but the last those of ``source``.
    """
    if not along.numbers:
        return
    for (d, _), number in along.numbers.items():
        for w in range(stride):
            T.buffer_store(made, source[i64(d * stride + w), v], [i64(number * stride + w), v])
    with T.If(end), T.Then():
        for (_, terms), number in along.numbers.items():
            for w in range(stride):
                some = [(source[i64(k * stride + w), v], factor) for k, factor in terms]
                T.buffer_store(made, _sum(some), [i64(number * stride + w), v])


def _sum_of(
    along: _Along, column: Column, source: Any, made: Any, stride: int, place: int, v: Any
) -> Any:
    """A sum along an axis whose inputs are registers, ``stride`` apart."""
    kind, offset = column
    terms = []
    for step, factor in KINDS[kind]:
        number = along.made(column, offset + step)
        if number is None:
            terms.append((source[i64((offset + step) * stride + place), v], factor))
        else:
            terms.append((made[i64(number * stride + place), v], factor))
    return signed_sum(terms)
