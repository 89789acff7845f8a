"""The decisions that shape the code of a form: plain numbers, made by a schedule rule or read from a record."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

__all__ = ["Tiling", "cut"]


@dataclass(frozen=True)
class Tiling:
    """How one form is cut into tiles.

    Attributes
    ----------
    form : str
        ``"phase"`` (register tiles of voxels x channel lanes), ``"voxel"`` (voxels as lanes, for few filters) or
        ``"definition"`` (one voxel at a time).
    vector : int
        Lanes of one register in the accumulation dtype.
    registers : int
        Registers side by side along the channels of a register tile.
    width : int
        Most voxels of one phase in a register tile; registers of voxels in the voxel form.
    rows : int
        Input rows (along the height) that one task tile covers.
    splits : int
        Task tiles that share one row block, each with its own blocks of channels.
    fold : bool
        Fold the width taps into the channels (kernel = stride along the width).
    pack : bool
        Copy the input rows of a task tile into scratch: widened, channels last, with a border of zeros.
    channels_outer : bool
        Channel blocks outside the voxel tiles of a row, else inside.
    planes : int
        Input planes that one task tile of the voxel form walks through.
    """

    form: str
    vector: int
    registers: int
    width: int
    rows: int
    splits: int = 1
    fold: bool = False
    pack: bool = True
    channels_outer: bool = True
    planes: int = 1

    def to_json(self) -> dict[str, Any]:
        """The decisions as JSON numbers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, decisions: dict[str, Any]) -> Tiling:
        """The inverse of `to_json`; unknown or missing names are a TypeError."""
        return cls(**decisions)


def cut(count: int, most: int) -> list[tuple[int, int]]:
    """Cut ``count`` voxels into tiles of at most ``most``: up to two groups ``(tiles, voxels each)``.

    The tiles differ by one voxel at most, so a row that nothing divides has no short last tile.
    """
    if count <= 0:
        return []
    tiles = -(-count // most)
    small, longer = divmod(count, tiles)
    return [group for group in ((longer, small + 1), (tiles - longer, small)) if group[0]]
