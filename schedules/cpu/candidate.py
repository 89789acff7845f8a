"""What the rules of Toom-Cook choose from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvmconv.compute.tiling import Tiling

__all__ = ["Candidate"]


@dataclass(frozen=True)
class Candidate:
    """A tiling, its cycles and the bytes of a task's scratch."""

    cycles: float
    tiling: Tiling
    scratch: int
