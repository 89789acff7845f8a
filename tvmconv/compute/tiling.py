"""The decisions that shape the code of a form.

Plain numbers, made by a schedule rule or read from a record.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

if TYPE_CHECKING:
    from tvmconv.geometry import Axis, Phase

__all__ = ["Decisions", "Piece", "Tiling", "algorithm", "cut", "pieces"]

_Made = TypeVar("_Made", bound="Decisions")


@dataclass(frozen=True)
class Decisions:
    """What the decisions for processors and for GPUs have in common.

    Attributes
    ----------
    form : str
        The form that they cut into tiles.
    """

    form: str

    @property
    def structure(self) -> tuple[object, ...]:
        """The decisions that say which values of the others are legal."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """The decisions as JSON numbers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls: type[_Made], decisions: dict[str, Any]) -> _Made:
        """The inverse of `to_json`; a TypeError for unknown or missing names, or other types."""
        lists = {name: tuple(v) for name, v in decisions.items() if isinstance(v, list)}
        made = cls(**{**decisions, **lists})
        types = get_type_hints(cls)
        for name, value in vars(made).items():
            # Whether a bool is one, too: it would count as 0 or 1.
            found = [type(one) for one in value] if isinstance(value, tuple) else type(value)
            wanted = list(get_args(types[name])) or types[name]
            if found != wanted:
                raise TypeError(f"{name} is no {types[name]}: {value!r}")
        return made


def algorithm(form: str) -> str:
    """The algorithm of a form: forms that add up other products than the definition have one."""
    return form if form in ("pairs", "toom-cook") else "direct"


@dataclass(frozen=True)
class Tiling(Decisions):
    """How one form is cut into tiles.

    Attributes
    ----------
    form : str
        ``"phase"`` (register tiles of voxels x channel lanes), ``"voxel"`` (voxels as lanes, for
        few filters), ``"columns"`` (a column for every tap and filter, for few filters too),
        ``"dots"`` (input channels as lanes, for few filters too), ``"matrix"`` (voxels as lanes,
        where kernel = stride), ``"pairs"`` (two channels for one multiplication, where kernel =
        stride), ``"toom-cook"`` (minimal filtering) or ``"definition"`` (one voxel at a time).
    vector : int
        Lanes of one register in the accumulation dtype.
    registers : int
        Registers side by side along the channels of a register tile; columns of a pass in the
        column form where channels are first; matrix, and pairs with channels first: filters of a
        register tile.
    width : int
        Most voxels of one phase in a register tile; registers of voxels in the voxel and the
        matrix form, and in the column form where channels are first.
    rows : int
        Input rows (along the height) that one task tile covers; matrix, pairs: register tiles of
        voxels; Toom-Cook ``across``: rows of tiles whose tiles share registers.
    splits : int
        Task tiles that share one row block (pairs: their voxels), each with its own blocks of
        channels; stationary ones that take stretches may be one for each block, with a shorter last
        one.
    coupled : bool
        Phase and dots, bfloat16: a lane has two input channels as they are stored, which one
        instruction multiplies (`coupling`).
    fold : bool
        Fold the width taps into the channels (kernel = stride along the width).
    pack : bool
        Copy the input rows of a task tile into scratch: widened, channels last, with a border of
        zeros. Columns: widen narrow rows once, instead of in each register tile.
        Dots: copy the rows of planes, always where channels are first; without, each use of an
        input that is narrow widens it.
    channels_outer : bool
        Channel blocks outside the voxel tiles of a row, else inside.
    stationary : bool
        A task tile is one phase of depth and height with all its rows, so its weights are read
        once. The tiles of a call share one copy of the input.
    stretch : int
        Input channels of a tap that all rows of a stationary task tile take before the next ones
        (0: each row takes all); pairs: panels that all voxels of a task take before the next ones;
        columns: narrow channels that a register tile widens at once (0: all);
        voxel form, and Toom-Cook ``across``: of a row that are packed at
        once (0: all); Toom-Cook, channels first, and the spans of the phase form
        (`PhaseForm.span`): output channels that leave scratch together (0: as many as a register
        has lanes).
    planes : int
        Input planes that one task tile of the voxel, the column and the dot form walks through.
    dots : int
        Toom-Cook: so many of the last filters, which would fill a small part of a register, are
        computed with input channels as lanes; all of them: a form of its own (`toom_cook_dots`),
        whose ``planes`` are those of a task, and ``outputs`` of the height alone are free.
    reduced : int
        Columns: over how many axes, from the depth on, the product sums the taps.
    tall : bool
        Columns, channels last: register tiles of fewer voxels than `registers` hold their inputs
        and load the weights of one register of columns after the other.
    outputs, block : tuple of int
        Toom-Cook, per axis: outputs of a phase in a tile, and tiles of a task. Voxel form, channels
        first: the second number of ``block`` is that of the input rows that are packed together.
    shared : int
        Toom-Cook: over how many axes, from the width on, all phases share one transformed input.
    fetch : bool
        Toom-Cook and pairs, channels last: a task's input is asked for during the task before it.
        Phase form, where kernel = stride and rows are not copied: the first register tiles that
        read a row ask for its later inputs (`PhaseForm.asks`).
    across : bool
        Toom-Cook: the lanes are tiles along the width, for few filters, else filters; then
        ``registers`` are the filters and ``width`` the registers of tiles of a register tile.
    paired : bool
        Toom-Cook, float32 sums: two channels of a product cost one multiplication (`pairing`), but
        in those of ``dots``.
    masked : bool
        Toom-Cook, channels last: one code transforms all registers of filters back, and the store
        of the last one, which they do not fill, leaves out some lanes.
    compact : bool
        Toom-Cook: the sums of inputs along the height and the width are code that stands once, in a
        loop over those along the depth, and products that last tiles do not need are left out of
        scratch.
    stream : bool
        Phase form and pairs: register tiles whose stores fill lines store past the caches;
        Toom-Cook, channels first: rows that leave scratch by whole lines do.
    last : int
        The last block of channels has a multiple of this many lanes (0: of a register's), so that
        code for registers of several lengths can share packed weights. Dots: all blocks have so
        many input channels.
    """

    vector: int
    registers: int
    width: int
    rows: int
    splits: int = 1
    fold: bool = False
    pack: bool = True
    channels_outer: bool = True
    stationary: bool = False
    planes: int = 1
    outputs: tuple[int, int, int] = (1, 1, 1)
    block: tuple[int, int, int] = (1, 1, 1)
    shared: int = 2
    last: int = 0
    reduced: int = 0
    stretch: int = 0
    dots: int = 0
    fetch: bool = False
    across: bool = False
    paired: bool = False
    masked: bool = False
    compact: bool = False
    stream: bool = False
    coupled: bool = False
    tall: bool = False

    @property
    def structure(self) -> tuple[object, ...]:
        """See `Decisions`."""
        return (
            self.form, self.vector, self.registers, self.fold, self.stationary, self.outputs,
            self.reduced, self.dots, self.across, self.paired, self.coupled,
        )  # fmt: skip


def cut(count: int, most: int) -> list[tuple[int, int]]:
    """Cut ``count`` voxels into tiles of at most ``most``.

    Up to two groups ``(tiles, voxels each)``.

    The tiles differ by one voxel at most, so a row that nothing divides has no short last tile.
    """
    if count <= 0:
        return []
    tiles = -(-count // most)
    small, longer = divmod(count, tiles)
    return [group for group in ((longer, small + 1), (tiles - longer, small)) if group[0]]


@dataclass(frozen=True)
class Piece:
    """Neighbouring tiles of one width in a row of a phase.

    Attributes
    ----------
    first, tiles, width : int
        The first voxel, the number of tiles, the voxels of each.
    whole : bool
        Whether each tap has an input for each voxel. Others are pieces of one tile.
    """

    first: int
    tiles: int
    width: int
    whole: bool

    def reached(self, axis: Axis, phase: Phase, tap: int) -> tuple[int, int]:
        """The voxels of such a tile that have an input for a tap: first, and behind the last."""
        if self.whole:
            return 0, self.width
        first, end = (voxel - self.first for voxel in axis.reached(phase, tap))
        start = min(max(first, 0), self.width)
        return start, max(start, min(end, self.width))


def pieces(axis: Axis, phase: Phase, most: int) -> list[Piece]:
    """The tiles of a row of a phase, cut as `cut` does; those at its ends stand alone."""
    spans = [axis.reached(phase, tap) for tap in range(phase.taps)]
    begin = max((start for start, _ in spans), default=0)
    behind = min((end for _, end in spans), default=phase.count)
    found: list[Piece] = []
    first = 0
    for tiles, width in cut(phase.count, most):
        for _ in range(tiles):
            whole = begin <= first and first + width <= behind
            last = found[-1] if found else None
            if last and whole and last.whole and last.width == width:
                found[-1] = dataclasses.replace(last, tiles=last.tiles + 1)
            else:
                found.append(Piece(first, 1, width, whole))
            first += width
    return found
