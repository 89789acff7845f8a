"""How the output channels are cut into blocks of register lanes, and where their weights lie.

Packed weights are ``[block][kd][kh][width tap][in channel][lanes]``: the innermost loop of a
register tile reads one stream forward. The width taps stand phase by phase. A last block with fewer
channels has its own, shorter lanes; lanes past the last channel hold zeros and are never stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import cast, coupling
from tvmconv.compute.element import narrow, storage
from tvmconv.compute.elementary import Formula
from tvmconv.compute.frame import Region, buffer, divide, i64, prim_func
from tvmconv.compute.workload import Workload
from tvmconv.geometry import Axis

__all__ = ["Arranged", "Group", "groups", "pack", "packed_size", "packer", "tap_order"]


class Arranged(Protocol):
    """Where weights lie that are not in lanes, and how they are rounded."""

    @property
    def dtype(self) -> str:
        """What is stored."""

    @property
    def size(self) -> int:
        """Numbers of all weights."""

    @property
    def channels(self) -> int:
        """Input channels, padding (zeros) included."""

    def at(self, tap: Any, channel: Any, column: Any) -> Any:
        """The place of a weight, as an expression."""

    def rounded(self, value: Any) -> Any:
        """An expression of a weight as it is stored."""


@dataclass(frozen=True)
class Group:
    """Blocks of equal lanes.

    Attributes
    ----------
    first, valid : int
        First channel, and channels of one block that exist (``lanes`` of them but in the last
        block).
    blocks, lanes : int
        Number of blocks, and lanes of each: a multiple of the vector length.
    offset, lane_offset : int
        Where its packed weights and its packed bias begin, in elements.
    dots : bool
        The lanes of registers are input channels, not filters: a block is one filter, and all
        blocks are computed together.
    """

    first: int
    valid: int
    blocks: int
    lanes: int
    offset: int
    lane_offset: int
    dots: bool = False


def groups(
    work: Workload, vector: int, registers: int, last: int = 0, dots: int = 0
) -> list[Group]:
    """Cut the channels of a layer.

    Full blocks of ``registers`` vectors, then one block of what is left: whole vectors, or a
    multiple of ``last`` lanes, which may be a part of one. The last ``dots`` channels are a group
    of their own.
    """
    plan = work.plan
    full = vector * registers
    per_lane = plan.in_channels
    for axis in plan.axes:
        per_lane *= axis.kernel
    blocks, rest = divmod(plan.filters - dots, full)
    found = []
    end = blocks * full
    if blocks:
        found.append(Group(0, full, blocks, full, 0, 0))
    if rest:
        step = last or vector
        lanes = -(-rest // step) * step
        found.append(Group(end, rest, 1, lanes, end * per_lane, end))
        end += lanes
    if dots:
        first = plan.filters - dots
        found.append(Group(first, 1, dots, 1, end * per_lane, first, dots=True))
    return found


def packed_size(work: Workload, cut: list[Group]) -> int:
    """Elements of the packed kernel."""
    last = cut[-1]
    taps = 1
    for axis in work.plan.axes:
        taps *= axis.kernel
    return last.offset + last.blocks * last.lanes * taps * work.plan.in_channels


def tap_order(axis: Axis) -> list[int]:
    """The taps along the width, phase by phase."""
    return [
        tap for residue in range(axis.stride) for tap in range(residue, axis.kernel, axis.stride)
    ]


def packer(
    work: Workload,
    folded: Workload,
    cut: list[Group],
    *,
    narrowed: bool = False,
    arranged: Arranged | None = None,
) -> Any:
    """The function that packs Keras' kernel and bias (variable dtype) for the kernel of ``folded``.

    Weights are rounded to the compute dtype first, as Keras casts them, then widened; where
    ``narrowed``, the kernel (not the bias) is left in the compute dtype. Where ``folded`` couples
    channels, two weights are one number (`coupling`). Where ``arranged``, the
    kernel lies and is rounded as that says, and there is one group, of one block.
    """
    source, plan = work.plan, folded.plan
    dtype = work.accumulate_dtype

    def value(element: Any) -> Any:
        return cast.cast(work, element)

    kernel_dtype = storage(work.input_dtype) if narrowed else dtype
    kernel_dtype = arranged.dtype if arranged else kernel_dtype
    size = arranged.size if arranged else packed_size(folded, cut)
    channels = arranged.channels if arranged else plan.in_channels

    def kernel_value(element: Any) -> Any:
        if arranged:
            return arranged.rounded(value(element))
        return narrow(value(element), work.input_dtype) if narrowed else value(element)

    def body() -> None:
        kernel = buffer("kernel", source.kernel_shape, storage(work.variable_dtype))
        bias = buffer("bias", (source.filters,), storage(work.variable_dtype))
        packed = buffer("packed", (size,), kernel_dtype)
        packed_bias = buffer("packed_bias", (cut[-1].lane_offset + cut[-1].lanes,), dtype)
        kd, kh, kw = (axis.kernel for axis in plan.axes)
        rounded = Formula(value, storage(work.variable_dtype), (1,))
        kernels = [
            Formula(kernel_value, storage(work.variable_dtype), (1,))
            for _ in range(2 if folded.coupled else 1)
        ]
        for group in cut:
            region = Region(
                packed, group.offset, (group.blocks, kd, kh, kw, plan.in_channels, group.lanes)
            )
            for position, tap in enumerate(tap_order(plan.axes[2])):
                extents = (group.blocks, kd, kh, channels, group.lanes)
                with T.grid(*map(i64, extents)) as (block, a, b, c, lane):
                    channel = i64(group.first) + block * i64(group.lanes) + lane
                    fold, filters = divide(channel, source.filters)
                    # Lanes past the last channel read some weight that exists, and hold zero.
                    fold = tirx.min(fold, i64(source.axes[2].kernel - 1))
                    width_tap = i64(tap) if plan.axes[2].kernel == source.axes[2].kernel else fold
                    # As do channels past the last.
                    known = tirx.min(c, i64(plan.in_channels - 1))
                    # One channel, or both of a coupled one.
                    found = [
                        formula.at(
                            kernel[a, b, width_tap, filters, known * i64(len(kernels)) + i64(one)],
                            i64(0),
                        )
                        for one, formula in enumerate(kernels)
                    ]
                    element = coupling.joined(*found) if folded.coupled else found[0]
                    inside = tirx.all(channel < i64(plan.filters), c < i64(plan.in_channels))
                    element = tirx.Select(inside, element, tirx.const(0, kernel_dtype))
                    if arranged:
                        number = (a * i64(kh) + b) * i64(kw) + i64(position)
                        T.buffer_store(packed, element, [arranged.at(number, c, lane)])
                    else:
                        region.store(element, block, a, b, i64(position), c, lane)
            with T.serial(i64(0), i64(group.blocks * group.lanes)) as lane:
                channel = i64(group.first) + lane
                element = tirx.const(0, dtype)
                if work.use_bias:
                    filters = tirx.floormod(channel, i64(source.filters))
                    inside = channel < i64(plan.filters)
                    element = tirx.Select(inside, rounded.at(bias[filters], i64(0)), element)
                T.buffer_store(packed_bias, element, [i64(group.lane_offset) + lane])

    return prim_func("pack", body)


def pack(
    work: Workload, folded: Workload, cut: list[Group], kernel: np.ndarray, bias: np.ndarray | None
) -> np.ndarray:
    """What `packer` does, in NumPy.

    For weights that are baked in, whatever processor the artifact is for.

    Returns
    -------
    numpy.ndarray
        One-dimensional, of the accumulation dtype: the packed kernel, then the packed bias.
    """
    taps, start = cast.cast_arrays(work, kernel, bias)
    dtype = taps.dtype
    shape = folded.plan.kernel_shape
    if folded.coupled:
        taps = coupling.joined_arrays(taps)
    taps = taps.reshape(shape)[:, :, tap_order(folded.plan.axes[2])]
    pieces = []
    for group in cut:
        lanes = group.blocks * group.lanes
        padded = np.zeros((*shape[:3], lanes, shape[4]), dtype)
        part = taps[..., group.first : group.first + lanes, :]
        padded[..., : part.shape[3], :] = part
        blocks = padded.reshape(*shape[:3], group.blocks, group.lanes, shape[4])
        pieces.append(blocks.transpose(3, 0, 1, 2, 5, 4).ravel())
    packed_bias = np.zeros(cut[-1].lane_offset + cut[-1].blocks * cut[-1].lanes, dtype)
    if bias is not None:
        repeated = np.tile(start, folded.plan.filters // work.plan.filters)
        packed_bias[: repeated.size] = repeated
    return np.concatenate([*pieces, packed_bias])
