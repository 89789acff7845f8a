"""A block of tiles of the Toom-Cook form: where its numbers lie in scratch and in the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.frame import Frame, Region, divide, i64
from tvmconv.compute.points import Combination, pick

if TYPE_CHECKING:
    from tvmconv.compute.schemes import Scheme
    from tvmconv.compute.toom_cook import ToomCookForm

__all__ = ["Block", "Phase", "cells", "held", "unless"]


@dataclass(frozen=True)
class Phase:
    """The tiles of a block whose outputs have one phase: sample, first tile, combination."""

    n: Any
    first: tuple[Any, ...]
    one: Combination
    members: list[Any]

    @property
    def schemes(self) -> list[Scheme]:
        """Along each axis."""
        return [axis.scheme for axis in self.one.classes]

    @property
    def shape(self) -> tuple[int, ...]:
        """Outputs of a tile."""
        return tuple(scheme.outputs for scheme in self.schemes)


@dataclass(frozen=True)
class Block:
    """What the parts of a kernel share."""

    form: ToomCookForm
    frame: Frame

    @property
    def dtype(self) -> str:
        """Of sums and scratch."""
        return self.form.work.accumulate_dtype

    @property
    def vector(self) -> int:
        """Lanes of a register."""
        return self.form.tiling.vector

    def local(self, *shape: int) -> Any:
        """An array that becomes registers."""
        return T.sblock_alloc_buffer(tuple(map(i64, shape)), self.dtype, scope="local")

    def first(self, index: Any) -> tuple[Any, Any, Any]:
        """The first tile of block ``index`` of a sample, along each axis."""
        depth, height, width = self.form.axes
        if self.form.moves_rows:
            rest, h = divide(index, height.blocks)
            d, w = divide(rest, width.blocks)
        else:
            rest, w = divide(index, width.blocks)
            d, h = divide(rest, height.blocks)
        return d * i64(depth.block), h * i64(height.block), w * i64(width.block)

    def count(self, number: int, first: Any, halo: bool = False) -> Any:
        """Tiles of the block along an axis that exist."""
        axis = self.form.axes[number]
        more = axis.halo if halo else 0
        if axis.tiles % axis.block == 0:
            return i64(axis.block + more)
        return tirx.min(i64(axis.block), i64(axis.tiles) - first[number]) + i64(more)

    def is_last(self, number: int, first: Any, tile: Any) -> Any:
        """Whether a tile of the block is the last one along an axis."""
        return first[number] + tile == i64(self.form.axes[number].tiles - 1)

    def spared(self, one: Combination, number: int) -> tuple[set[int], set[int]]:
        """See `AxisTiles.spared`; none along an axis where all products are made."""
        form = self.form
        if not form.tiling.compact or number == 0 or (number == 2 and not form.narrows):
            return set(), set()
        return form.axes[number].spared(one.classes[number])

    def sums(self, column: Any, tile: Sequence[Any], channel: Any) -> Any:
        """Where the sum of inputs ``column`` of a tile lies."""
        form = self.form
        of_tile, of_column = form.sums_strides
        number = Region(None, 0, form.tiles_shape).at(*tile)
        start = i64(form.offsets[0]) + number * i64(of_tile)
        return start + column * i64(of_column) + channel

    def product(self, tile: Sequence[Any], point: Any, lanes: int, lane: Any) -> Any:
        """Where the product ``point`` of a tile lies: all groups' alike where ``masked``."""
        form = self.form
        lanes = form.lanes if form.masked else lanes
        number = Region(None, 0, form.tiling.block).at(*tile)
        stride = i64(form.product_stride(lanes))
        return i64(form.offsets[1]) + number * stride + point * i64(lanes) + lane

    def places(
        self, phase: Phase, tile: Sequence[Any], output: Sequence[Any]
    ) -> tuple[tuple[Any, Any, Any], list[Any]]:
        """The voxel of an output of a tile, and the conditions under which it exists."""
        found, inside = [], []
        for axis, group, member, begin, t, j in zip(
            self.form.axes, phase.one.classes, phase.members, phase.first, tile, output, strict=True
        ):
            stride = axis.axis.stride
            place = (
                (begin + t) * i64(axis.span)
                + (i64(j) if isinstance(j, int) else j) * i64(stride)
                + pick(group.places, member)
            )
            found.append(place)
            if axis.axis.out % axis.span:
                inside.append(place < i64(axis.axis.out))
        return (found[0], found[1], found[2]), inside

    def nearest(self, phase: Phase, tile: Sequence[Any], output: Sequence[Any]) -> list[Any]:
        """The voxel of an output of a tile, or the last one where it does not exist."""
        found, _ = self.places(phase, tile, output)
        return [
            place
            if axis.axis.out % (axis.span * axis.block) == 0
            else tirx.min(place, i64(axis.axis.out - 1))
            for place, axis in zip(found, self.form.axes, strict=True)
        ]

    def prefetch(self, element: Any, *, write: bool = False, near: bool = True) -> None:
        """Bring the line of an element into the first-level cache (``near``) or the second."""
        address = tirx.address_of(element)
        locality = 3 if near else 2
        T.evaluate(tirx.call_intrin("void", "tirx.prefetch", address, int(write), locality, 1))


@contextmanager
def unless(condition: Any, skips: bool, otherwise: Callable[[], None]) -> Iterator[None]:
    """Emit what is left out under a condition, where ``skips``, and what stands for it then."""
    if not skips:
        yield
        return
    with T.If(tirx.Not(condition)):
        with T.Then():
            yield
        with T.Else():
            otherwise()
            T.evaluate(i64(0))


def held(values: list[Any]) -> list[Any]:
    """The values, held in variables: expressions stay short."""
    kept = cells(values)
    return [kept[i64(index)] for index in range(len(values))]


def cells(values: list[Any]) -> Any:
    """The values side by side."""
    found = T.sblock_alloc_buffer((i64(len(values)),), "int64", scope="local")
    for index, value in enumerate(values):
        T.buffer_store(found, value, [i64(index)])
    return found
