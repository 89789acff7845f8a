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
        tiles = _Tiles.of(self, first, along)
        chunks = i64(form.channels // self.vector)
        if not form.tiling.paired:
            with T.grid(*counts, chunks) as (*tile, chunk):
                tiles.sum_up(tile, chunk)
            return
        with T.grid(*counts) as tile:
            factors = self.scale(tile, tiles.begin_of(tile), [one.reach for one in along])
            with T.serial(i64(0), chunks) as chunk:
                tiles.sum_up(tile, chunk, factors)
            self.excesses(tile, math.prod(tiles.shape))


@dataclass(frozen=True)
class _Register:
    """A register of channels of a tile's sums.

    Attributes
    ----------
    chunk, v : tvm.tirx.Expr
        Its number among those of all channels, and its lane.
    ends : list of tvm.tirx.Expr
        Whether the tile is the last one along each axis.
    factors : tvm.tirx.Buffer or None
        Pairs: what sums are multiplied with, by their powers of two.
    """

    tile: Sequence[Any]
    chunk: Any
    v: Any
    ends: list[Any]
    factors: Any


@dataclass(frozen=True)
class _Tiles:
    """The sums of inputs of a block's tiles, and the registers in which they are made.

    Attributes
    ----------
    first : tuple of tvm.tirx.Expr
        The block's first tile.
    along : list of _Along
        The sums along each axis; those of a tile are numbered in this order.
    plane, line : tvm.tirx.Buffer
        The inputs of a tile summed along the depth, ``[height][width]``, and the height, too.
    made, rest : tvm.tirx.Buffer
        The inputs that are made up along the height and along the width.
    scales : tvm.tirx.Buffer
        Pairs: the factors of what is summed of one sum along the depth, by its kinds along the
        height and the width.
    """

    kernel: Sums
    first: tuple[Any, ...]
    along: list[_Along]
    plane: Any
    line: Any
    made: Any
    rest: Any
    scales: Any

    @classmethod
    def of(cls, kernel: Sums, first: tuple[Any, ...], along: list[_Along]) -> _Tiles:
        """With registers of their own."""
        _, height, width = along
        plane = kernel.local(height.reach * width.reach, kernel.vector)
        line = kernel.local(width.reach, kernel.vector)
        made, rest = (
            kernel.local(max(1, len(one.numbers)) * size, kernel.vector)
            for one, size in ((height, width.reach), (width, 1))
        )
        kinds = [{kind for kind, _ in one.columns} for one in (height, width)]
        scales = kernel.local(math.prod(map(len, kinds)))
        return cls(kernel, first, along, plane, line, made, rest, scales)

    @property
    def _kinds(self) -> list[tuple[str, str]]:
        """The kinds of sums along the height and the width."""
        height, width = (sorted({kind for kind, _ in one.columns}) for one in self.along[1:])
        return list(itertools.product(height, width))

    @property
    def shape(self) -> tuple[int, ...]:
        """Sums along each axis."""
        return tuple(len(one.columns) for one in self.along)

    def begin_of(self, tile: Sequence[Any]) -> list[Any]:
        """The first input that a tile reads."""
        return [
            t * i64(axis.outputs) + one.begin
            for t, axis, one in zip(tile, self.kernel.form.axes, self.along, strict=True)
        ]

    def sum_up(self, tile: Sequence[Any], chunk: Any, factors: Any = None) -> None:
        """The sums of a tile, for one register of channels: number ``chunk``."""
        kernel, depth = self.kernel, self.along[0]
        compact = kernel.form.tiling.compact
        with T.vectorized(i64(0), i64(kernel.vector)) as v:
            ends = [kernel.is_last(number, self.first, t) for number, t in enumerate(tile)]
            at = _Register(tile, chunk, v, ends, factors)
            if compact and self.shape[0] > 1:
                skipped = [i for i, one in enumerate(depth.columns) if depth.skips(one)]
                with T.serial(i64(0), i64(self.shape[0])) as i:
                    skips = tirx.any(*(i == i64(k) for k in skipped)) if skipped else None
                    end = tirx.all(ends[0], skips) if skipped else None
                    with unless(end, bool(skipped), partial(self._clear, at, (i, 0, 0), 0)):
                        for k, one in enumerate(depth.columns):
                            with T.If(i == i64(k)), T.Then():
                                self._begin(at, one)
                        self._rest_of(at, i)
            else:
                for number, one in depth.ordered():
                    clear = partial(self._clear, at, (number, 0, 0), 0)
                    with unless(ends[0], depth.skips(one), clear):
                        self._begin(at, one)
                        self._rest_of(at, number)
        # All sums go to lines of their own, so the next ones are asked for together.
        for number in range(0 if compact else math.prod(self.shape)):
            after = kernel.sums(i64(number), tile, (chunk + i64(1)) * i64(kernel.vector))
            kernel.prefetch(kernel.frame.scratch[after], write=True)

    def _begin(self, at: _Register, column: Column) -> None:
        """A sum along the depth, and the factors of what is summed of it."""
        kernel, depth = self.kernel, self.along[0]
        kind, offset = column
        plain = [(offset + step, factor) for step, factor in KINDS[kind]]
        if not (depth.last or {}).get(column):
            self._add_planes(at, plain)
        else:
            with T.If(at.ends[0]):
                with T.Then():
                    self._add_planes(at, depth.last_terms(column))
                with T.Else():
                    self._add_planes(at, plain)
        if at.factors is not None:
            for number, kinds in enumerate(self._kinds):
                value = at.factors[kernel.power((kind, *kinds))]
                T.buffer_store(self.scales, value, [i64(number)])

    def _add_planes(self, at: _Register, terms: Sequence[_Term]) -> None:
        """Add up inputs along the depth, for all of a tile's height and width."""
        kernel, (_, height, width) = self.kernel, self.along
        source = Region(kernel.frame.scratch, 0, kernel.form.inputs_shape)
        begin, channel = self.begin_of(at.tile), at.chunk * i64(kernel.vector) + at.v
        for h, w in itertools.product(range(height.reach), range(width.reach)):
            place = [begin[1] + i64(h), begin[2] + i64(w), channel]
            some = [(source.load(begin[0] + i64(d), *place), factor) for d, factor in terms]
            T.buffer_store(self.plane, _sum(some), [i64(h * width.reach + w), at.v])

    def _rest_of(self, at: _Register, i: Any) -> None:
        """The sums along the height and the width of sum ``i`` along the depth."""
        kernel, (_, height, width), v = self.kernel, self.along, at.v
        _make_up(height, at.ends[1], self.plane, self.made, width.reach, v)
        for j, two in height.ordered():
            clear = partial(self._clear, at, (i, j, 0), 1)
            with unless(at.ends[1], height.skips(two), clear):
                for w in range(width.reach):
                    value = _sum_of(height, two, self.plane, self.made, width.reach, w, v)
                    T.buffer_store(self.line, value, [i64(w), v])
                _make_up(width, at.ends[2], self.line, self.rest, 1, v)
                for skips, some in width.runs():
                    clear = partial(self._clear, at, (i, j, 0), 2, [k for k, _ in some])
                    with unless(at.ends[2], skips, clear):
                        for k, three in some:
                            total = _sum_of(width, three, self.line, self.rest, 1, 0, v)
                            if at.factors is not None:
                                number = self._kinds.index((two[0], three[0]))
                                total = total * self.scales[i64(number)]
                            flat = Region(None, 0, self.shape).at(i, j, k)
                            channel = at.chunk * i64(kernel.vector) + v
                            index = kernel.sums(flat, at.tile, channel)
                            T.buffer_store(kernel.frame.scratch, total, [index])

    def _clear(
        self, at: _Register, column: Sequence[Any], axis: int, some: Sequence[int] = (0,)
    ) -> None:
        """Zeros for the sums that a last tile does not need.

        Those from ``column`` on: ``some`` along the ``axis``, all along the axes behind it.
        """
        # Pairs read beyond a sum, and must find numbers there.
        kernel = self.kernel
        if not kernel.form.tiling.paired:
            return
        for k in some:
            flat = Region(None, 0, self.shape).at(*column) + i64(k)
            with T.serial(i64(0), i64(math.prod(self.shape[axis + 1 :]))) as more:
                index = kernel.sums(flat + more, at.tile, at.chunk * i64(kernel.vector))
                value = tirx.Broadcast(tirx.const(0, kernel.dtype), kernel.vector)
                T.buffer_store(kernel.frame.scratch, value, [lanes(index, kernel.vector)])


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
