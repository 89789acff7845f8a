"""The part of the Toom-Cook rule that knows pairs of channels (`compute.pairing`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tvmconv.compute.tiling import Tiling
from tvmconv.compute.transforms import tile_noise
from tvmconv.schedules.cpu.direct import vector_lanes
from tvmconv.schedules.cpu.traits import adders_apart

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["pair_widths", "register_tiles"]

#: The fewest channels, the tiles of a register tile, those of a row that is one (rows of 5 tiles
#: gain nothing, by measurement), most registers whose products stand in scratch together, and the
#: noise of a scheme that they may have.
_CHANNELS, _TILES, _ROWS = 24, range(8, 21), range(6, 8)
_REGISTERS, _NOISE = 4, 1.15


def pair_widths(
    work: Workload, target: CpuTarget, outputs: tuple[int, int, int], tiles: int
) -> list[int]:
    """Tiles of a register tile of pairs of channels.

    None where these are not worth it, or would err too much in a scheme.
    """
    if not adders_apart(target) or work.accumulate_dtype != "float32":
        return []
    if work.plan.in_channels < _CHANNELS:
        return []
    if tile_noise(work.plan.axes, outputs) > _NOISE:
        return []
    if tiles in _ROWS:
        return [tiles]
    return [width for width in _TILES if width <= tiles]


def register_tiles(
    work: Workload,
    target: CpuTarget,
    layout: Tiling | None,
    outputs: tuple[int, int, int],
    tiles: int,
    dots: int,
) -> Iterator[tuple[int, int]]:
    """Register tiles worth a look: registers that follow each other, tiles beside each other."""
    widths = pair_widths(work, target, outputs, tiles)
    if layout and layout.paired:
        # Another shape's weights: narrower register tiles, too.
        widths = widths or [min(tiles, max(_TILES))]
    if not widths:
        return
    most = min(-(-(work.plan.filters - dots) // vector_lanes(work, target)), _REGISTERS)
    width = min(widths, key=lambda width: (-(-tiles // width) * width, -width))
    for registers in [layout.registers] if layout else sorted({most, -(-most // 2)}):
        yield registers, width
