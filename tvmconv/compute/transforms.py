"""An axis cut into Toom-Cook tiles: how many outputs they may have, and what they read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from tvmconv.compute.last_tiles import remainder, used
from tvmconv.compute.schemes import KINDS, SCHEMES, Column, Scheme
from tvmconv.geometry import Axis

__all__ = [
    "AxisTiles",
    "LastColumns",
    "PhaseClass",
    "axis_tiles",
    "outputs_of",
    "tile_noise",
    "tile_outputs",
]

#: Inputs of an axis that is summed as it is: most of a tile would be padding, which adds nothing to
#: the few products of the plain sum and would have to cancel in the sums of a scheme.
_THIN = 2
#: Products of a short scheme at most. Axes that longer ones take have so many tiles at least.
_SHORT, _FILLED = 4, 2
#: What a tile may err by the model, in errors of the direct form: with few input channels, or with
#: one tap in some axis; else; with three taps in all axes and many filters. Longer sums leave more
#: room for what the transforms add, and few results for chance.
_FEW_NOISE, _NOISE, _MOST_NOISE = 1.0, 1.6, 2.0
_MANY_CHANNELS, _MANY_FILTERS = 32, 16


@lru_cache(maxsize=1024)
def outputs_of(axis: Axis) -> tuple[int, ...]:
    """The outputs a tile should have along an axis; empty where a phase has 0 or over 3 taps.

    One, F(1, r), where nothing is to be saved: phases of one tap, or one or two inputs.
    """
    taps = {phase.taps for phase in axis.phases}
    if axis.dilation > 1 or not taps <= {1, 2, 3}:
        return ()
    if taps == {1} or axis.size <= _THIN:
        return (1,)
    return tuple(m for m in (2, 3) if m + max(taps) - 1 <= _SHORT)


def tile_outputs(axes: Sequence[Axis], channels: int, filters: int) -> list[tuple[int, int, int]]:
    """The outputs that a tile may have along the three axes.

    Those of `outputs_of`, and longer ones, which err more, where `Scheme.noise` leaves room for
    them along axes that they fill.
    """
    taps, most = min(axis.max_taps for axis in axes), _FEW_NOISE
    if taps > 1 and channels >= _MANY_CHANNELS:
        most = _MOST_NOISE if taps > 2 and filters >= _MANY_FILTERS else _NOISE
    depth, height, width = (_outputs_noise(axis) for axis in axes)
    return [
        (a, b, c)
        for (a, x), (b, y), (c, z) in itertools.product(depth, height, width)
        if x * y * z <= most
    ]


def tile_noise(axes: Sequence[Axis], outputs: Sequence[int]) -> float:
    """What a tile errs beside the plain sum (`Scheme.noise`)."""
    return math.prod(_noise(axis, m) for axis, m in zip(axes, outputs, strict=True))


def _noise(axis: Axis, outputs: int) -> float:
    """The same along one axis."""
    if outputs == 1:
        return 1.0
    return max(SCHEMES[outputs, phase.taps].noise for phase in axis.phases) / axis.max_taps


def _outputs_noise(axis: Axis) -> list[tuple[int, float]]:
    """The outputs that a tile may have along an axis, and what it errs beside the plain sum."""
    short = outputs_of(axis)
    if short == (1,):
        return [(1, 1.0)]
    long = range(max(short, default=4) + 1, min(4, axis.size // _FILLED) + 1)
    return [(m, _noise(axis, m)) for m in (*short, *long)]


#: The sums of inputs that a last tile needs, and which of the inputs of each are made up: those, as
#: (input, factor) added up.
LastColumns = dict[Column, dict[int, tuple[tuple[int, float], ...]]]


@dataclass(frozen=True, eq=False)
class PhaseClass:
    """The phases of an axis that have equally many taps. Equal axes and outputs share them.

    Attributes
    ----------
    residues : tuple of int
        First kernel entry of each phase.
    places : tuple of int
        First output of each phase: its outputs are ``place + stride * j``.
    starts : tuple of int
        Input of d_0 for output 0 of each phase, counted from `AxisTiles.lowest`.
    """

    scheme: Scheme
    residues: tuple[int, ...]
    places: tuple[int, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class AxisTiles:
    """One axis, cut into tiles: ``stride * outputs`` outputs in a row.

    Attributes
    ----------
    outputs : int
        Outputs of each phase in a tile.
    block : int
        Tiles of a block along this axis.
    shared : bool
        Whether all phases use one transformed input, else each has its own.
    apart : bool
        Whether no tile reads another's sums.
    """

    axis: Axis
    outputs: int
    block: int
    shared: bool
    apart: bool = False

    @cached_property
    def span(self) -> int:
        """Outputs of a tile, all phases."""
        return self.outputs * self.axis.stride

    @cached_property
    def tiles(self) -> int:
        """Tiles that cover the axis."""
        return -(-self.axis.out // self.span)

    @cached_property
    def blocks(self) -> int:
        """Blocks that cover the axis."""
        return -(-self.tiles // self.block)

    def needed_share(self, group: PhaseClass) -> float:
        """Share of the products of a class that the tiles need."""
        return self._needed_shares[group.places]

    @cached_property
    def _needed_shares(self) -> dict[tuple[int, ...], float]:
        """The same by the places of a class."""
        found = {}
        for group in self.classes:
            counts = [count for phase in self.needing(group) for count in phase]
            found[group.places] = sum(counts) / (len(counts) * self.tiles)
        return found

    def needing(self, group: PhaseClass) -> list[tuple[int, ...]]:
        """Per phase of a class: the tiles that need each product.

        All of them, or all but the last, whose outputs end with the axis.
        """
        points = range(len(group.scheme.points))
        return [
            tuple(self.tiles - (p not in kept) for p in points)
            for kept in (self._kept(group, place) for place in group.places)
        ]

    def spared(self, group: PhaseClass) -> tuple[set[int], set[int]]:
        """The products that the last tile needs for no phase of a class, and for some only.

        None where it is not short.
        """
        if not self.is_short:
            return set(), set()
        found = [{p for p, n in enumerate(some) if n < self.tiles} for some in self.needing(group)]
        first, *others = found
        none = first.intersection(*others)
        return none, first.union(*others) - none

    def _last_outputs(self, place: int) -> int:
        """Outputs of the last tile that exist, of the phase whose first output is at ``place``."""
        rest = self.axis.out - (self.tiles - 1) * self.span - place
        return min(self.outputs, max(0, -(-rest // self.axis.stride)))

    def _kept(self, group: PhaseClass, place: int) -> Sequence[int]:
        """The products of the last tile of a phase."""
        outputs = self._last_outputs(place)
        if self.is_short and (rest := remainder(group.scheme, outputs)):
            return rest.points
        return used(group.scheme, outputs)

    @cached_property
    def is_short(self) -> bool:
        """Whether the last tile takes fewer products than its outputs are sums of (`last_tiles`).

        Only where no tile reads another's sums, and phases that share sums need the same ones.
        """
        phases = [(group, place) for group in self.classes for place in group.places]
        if not any(remainder(group.scheme, self._last_outputs(place)) for group, place in phases):
            return False
        if self.halo:
            return False
        if self.shared:
            return self._last(self.classes) is not None
        return all(self._last([group]) is not None for group in self.classes)

    def last(self, group: PhaseClass | None = None) -> LastColumns | None:
        """The sums of inputs of the last tile where it is short, of all phases or of a class.

        Columns and inputs are counted as in `columns`, those of a class from the first input of its
        phases.
        """
        if not self.is_short:
            return None
        return self._last(self.classes if group is None else [group], apart=group is not None)

    def _last(
        self, classes: Sequence[PhaseClass], *, apart: bool | None = None
    ) -> LastColumns | None:
        """The same, or None where two phases need another sum in one place."""
        apart = not self.shared if apart is None else apart
        found: LastColumns = {}
        for group in classes:
            every = []
            for place, start in zip(group.places, group.starts, strict=True):
                columns = self._last_of(group, place, 0 if apart else start)
                every.append(columns)
                if any(found.setdefault(column, made) != made for column, made in columns.items()):
                    return None
            if apart and any(columns != every[0] for columns in every):
                return None
        return found

    def _last_of(self, group: PhaseClass, place: int, start: int) -> LastColumns:
        """The sums of a phase in the last tile."""
        outputs = self._last_outputs(place)
        rest = remainder(group.scheme, outputs)
        found: LastColumns = {}
        for p in rest.points if rest else used(group.scheme, outputs):
            kind, offset = group.scheme.points[p]
            inputs = [offset + step for step, _ in KINDS[kind]]
            found[kind, start + offset] = {
                start + d: tuple(
                    (start + k, factor)
                    for k, factor in enumerate(rest.made[d - rest.inputs])
                    if factor
                )
                for d in inputs
                if rest and d >= rest.inputs
            }
        return found

    @cached_property
    def lowest(self) -> int:
        """The first input that tile 0 reads (may be negative: the border)."""
        return min(start for *_, start in _phases(self.axis))

    @cached_property
    def classes(self) -> tuple[PhaseClass, ...]:
        """The phases by their number of taps."""
        return _classes(self.axis, self.outputs)

    def needed(self) -> list[Column]:
        """Every sum of inputs that tile 0 of some phase needs."""
        found = {
            (kind, start + offset)
            for group in self.classes
            for start in group.starts
            for kind, offset in group.scheme.points
        }
        return sorted(found, key=lambda column: (column[1], column[0]))

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The sums of inputs that are stored for a tile, where the axis is shared.

        Those that begin behind the tile are the next tile's, which costs one more tile a block
        (`halo`), unless storing them twice is cheaper.
        """
        every = self.needed()
        if self.apart:
            return tuple(every)
        wrapped = sorted({(kind, offset % self.outputs) for kind, offset in every})
        if len(wrapped) * (self.block + self._reach(every)) < len(every) * self.block:
            return tuple(wrapped)
        return tuple(every)

    def _reach(self, columns: Sequence[Column]) -> int:
        return max(offset for _, offset in columns) // self.outputs

    @cached_property
    def halo(self) -> int:
        """Tiles behind a block whose sums the block reads."""
        if not self.shared or len(self.columns) == len(self.needed()):
            return 0
        return self._reach(self.needed())

    def column(self, start: int, point: Column) -> tuple[int, int]:
        """Which stored column a product reads, and how many tiles further on."""
        kind, offset = point[0], point[1] + start
        if (kind, offset) in self.columns and not self.halo:
            return self.columns.index((kind, offset)), 0
        return self.columns.index((kind, offset % self.outputs)), offset // self.outputs

    @cached_property
    def inputs(self) -> int:
        """Inputs that a block reads."""
        if self.shared:
            last = max(offset + KINDS[kind][-1][0] for kind, offset in self.columns)
        else:
            last = max(
                start + offset + KINDS[kind][-1][0]
                for group in self.classes
                for start in group.starts
                for kind, offset in group.scheme.points
            )
        return self.outputs * (self.block + self.halo - 1) + last + 1


@lru_cache(maxsize=4096)
def axis_tiles(axis: Axis, outputs: int, block: int, shared: bool, apart: bool) -> AxisTiles:
    """`AxisTiles`, of which the tilings that a rule compares have the same ones again and again."""
    return AxisTiles(axis, outputs, block, shared, apart)


def _phases(axis: Axis) -> list[tuple[int, int, int, int]]:
    """(taps, residue, place, input of d_0 for output 0) by place."""
    found = []
    for place in range(axis.stride):
        q, residue = divmod(place + axis.lo, axis.stride)
        taps = -(-(axis.kernel - residue) // axis.stride)
        found.append((taps, residue, place, q - taps + 1))
    return found


@lru_cache(maxsize=1024)
def _classes(axis: Axis, outputs: int) -> tuple[PhaseClass, ...]:
    """The phases of an axis by their number of taps."""
    phases, found = _phases(axis), []
    lowest = min(start for *_, start in phases)
    for taps in sorted({phase[0] for phase in phases}, reverse=True):
        some = [phase for phase in phases if phase[0] == taps]
        found.append(
            PhaseClass(
                SCHEMES[outputs, taps],
                tuple(phase[1] for phase in some),
                tuple(phase[2] for phase in some),
                tuple(phase[3] - lowest for phase in some),
            )
        )
    return tuple(found)
