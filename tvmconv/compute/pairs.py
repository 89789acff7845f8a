"""The pair form, where each output has one input voxel (kernel = stride): one matrix product.

Pairs of channels cost one multiplication and two additions (`pairing`), for processors whose adders
stand apart. Some consecutive voxels are copied to scratch, scaled, with what their pairs add too
much; then register tiles of these voxels x one register of filters take one panel of the packed
weights after the other. A panel is a tap of depth and height and a register of filters, which the
taps along the width are folded into.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import cast, finish, streaming
from tvmconv.compute.element import storage
from tvmconv.compute.elementary import Formula
from tvmconv.compute.frame import Frame, buffer, divide, i64, prim_func
from tvmconv.compute.pairing import Pairing, scale, scales
from tvmconv.compute.tiling import Tiling, cut
from tvmconv.compute.workload import Workload

__all__ = ["HEAD", "PairForm", "serves"]

#: Registers of a panel before its weights: what its sums begin at, and what scales them back.
HEAD = 2
#: Elements of a voxel in scratch beyond its channels: powers of two would fall on few sets of the
#: cache.
_SKEW = 16


def serves(work: Workload) -> bool:
    """Whether the form can compute a workload (with its axes joined)."""
    return (
        work.accumulate_dtype == "float32"
        and not work.mixed_axes
        and not work.empty
        and 0 not in work.plan.input_shape[1:]
        and all(axis.is_split for axis in work.plan.axes)
    )


@dataclass(frozen=True)
class PairForm:
    """The pair form of one workload under one tiling.

    `vector` filters and at most `width` voxels in a register tile, `rows` of these voxels in a
    task, which `splits` tasks share, each with panels of its own; `stretch` panels are taken by
    all voxels of a task before the next ones.
    """

    work: Workload
    tiling: Tiling

    @property
    def folded(self) -> Workload:
        """The workload with its width taps as filters."""
        return self.work.folded()

    @property
    def pairing(self) -> Pairing:
        """Which channels are pairs."""
        return Pairing(self.work.plan.in_channels)

    @property
    def panels_shape(self) -> tuple[int, ...]:
        """Packed weights: tap of depth and height, register of filters, slot, filter."""
        plan, vector = self.folded.plan, self.tiling.vector
        taps = plan.axes[0].kernel * plan.axes[1].kernel
        return (taps, -(-plan.filters // vector), HEAD + plan.in_channels, vector)

    @property
    def columns(self) -> int:
        """Filters of all taps along the width."""
        return self.work.plan.axes[2].kernel * self.work.plan.filters

    @property
    def panels(self) -> int:
        """Panels of all weights."""
        return self.panels_shape[0] * self.panels_shape[1]

    @property
    def runs(self) -> list[tuple[int, int]]:
        """The voxels of a sample as register tiles: how many, and the voxels of each."""
        return cut(math.prod(axis.size for axis in self.work.plan.axes), self.tiling.width)

    @property
    def chunks(self) -> int:
        """Tasks of a sample that have voxels of their own."""
        return -(-sum(tiles for tiles, _ in self.runs) // self.tiling.rows)

    @property
    def rows_shape(self) -> tuple[int, int, int]:
        """Scaled inputs in scratch: register tile, voxel, channel."""
        vector = self.tiling.vector
        channels = -(-self.work.plan.in_channels // vector) * vector + _SKEW
        return self.tiling.rows, self.tiling.width, channels

    @property
    def terms_shape(self) -> tuple[int, int, int]:
        """What belongs to a voxel.

        The start of its sums, and what scales them back: register tile, which, voxel.
        """
        return self.tiling.rows, 2, self.tiling.vector

    @property
    def has_line(self) -> bool:
        """Whether sums pass through scratch on their way to the activation: where it is long."""
        return finish.is_long(self.work)

    @property
    def fills_lines(self) -> bool:
        """Whether each register of outputs is a line, where the output begins with one."""
        vector = self.tiling.vector
        whole = self.folded.plan.filters % vector == 0
        return whole and streaming.fills(vector, self.work.output_dtype)

    @property
    def streams(self) -> bool:
        """Whether they leave past the caches."""
        return self.tiling.stream and self.fills_lines

    @property
    def layout(self) -> object:
        """What the packed weights look like."""
        return ("pairs", self.folded.plan.kernel_shape, self.tiling.vector)

    @property
    def bias_size(self) -> int:
        """Elements of the packed bias."""
        return self.panels_shape[1] * self.tiling.vector

    def placed(self, block: Any, lane: Any) -> tuple[Any, Any]:
        """The column of the matrix of weights that a lane of a block holds; whether there is one.

        Columns are the filters of a tap along the width, then those of the next one.
        """
        column = block * i64(self.tiling.vector) + lane
        return column, column < i64(self.columns)

    @property
    def placed_all(self) -> np.ndarray:
        """The same of all blocks and lanes; -1 where there is none."""
        _, blocks, _, vector = self.panels_shape
        column = np.arange(blocks * vector).reshape(blocks, vector)
        return np.where(column < self.columns, column, -1)

    def panel(self, tap: Any, block: Any) -> Any:
        """The number of a panel."""
        return tap * self.panels_shape[1] + block

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """The packed kernel, then the bias, once for each tap along the width."""
        taps, start = cast.cast_arrays(self.work, kernel, bias)
        depth, height, _, _, channels = self.work.plan.kernel_shape
        number, blocks, slots, vector = self.panels_shape
        padded = np.zeros((number, channels, blocks * vector), np.float32)
        # (taps, width tap and filter, channel)
        flat = taps.reshape(depth * height, -1, channels)
        placed = self.placed_all.ravel()
        padded[..., placed >= 0] = flat.transpose(0, 2, 1)[..., placed[placed >= 0]]
        total = np.zeros((number, blocks * vector))
        for c in range(channels):
            total += np.abs(padded[:, c].astype(np.float64))
        with np.errstate(over="ignore", invalid="ignore"):
            factor, inverse = scales((total / channels).astype(np.float32))
            scaled = padded * factor[:, None]
            begin = np.float32(0) - self.pairing.excess(scaled).astype(np.float32)
        rows = [begin[:, None], inverse[:, None], scaled[:, self.pairing.order]]
        panels = np.concatenate(rows, axis=1).reshape(number, slots, blocks, vector)
        order = [self.panel(tap, block) for tap in range(number) for block in range(blocks)]
        packed = np.empty((number * blocks, slots, vector), np.float32)
        packed[order] = panels.transpose(0, 2, 1, 3).reshape(packed.shape)
        repeats = -(-self.columns // self.work.plan.filters)
        packed_bias = np.zeros(self.bias_size, np.float32)
        count = min(self.columns, self.bias_size)
        packed_bias[:count] = np.tile(start, repeats)[:count]
        return np.concatenate([packed.ravel(), packed_bias])

    def packer(self) -> Any:
        """The same as a function of Keras' kernel and bias (variable dtype)."""
        work, plan, pairing = self.work, self.work.plan, self.pairing
        taps, blocks, slots, vector = self.panels_shape
        columns, bias_size = self.columns, self.bias_size

        def body() -> None:
            kernel = buffer("kernel", plan.kernel_shape, storage(work.variable_dtype))
            bias = buffer("bias", (plan.filters,), storage(work.variable_dtype))
            packed = buffer("packed", (math.prod(self.panels_shape),), "float32")
            packed_bias = buffer("packed_bias", (bias_size,), "float32")
            rounded = Formula(lambda one: cast.cast(work, one), storage(work.variable_dtype), (1,))
            total = T.sblock_alloc_buffer((i64(1),), "float64", scope="local")
            both = T.sblock_alloc_buffer((i64(2),), "float32", scope="local")
            row = T.sblock_alloc_buffer((i64(plan.in_channels),), "float32", scope="local")
            with T.grid(i64(taps), i64(blocks), i64(vector)) as (tap, block, lane):
                a, b = divide(tap, plan.axes[1].kernel)
                column, inside = self.placed(block, lane)
                # Lanes of no filter read some weight that exists, and hold zeros.
                known = tirx.min(column, i64(columns - 1))
                width_tap, f = divide(known, plan.filters)
                T.buffer_store(total, tirx.const(0, "float64"), [i64(0)])
                with T.serial(i64(0), i64(plan.in_channels)) as c:
                    element = rounded.at(kernel[a, b, width_tap, f, c], i64(0))
                    element = tirx.Select(inside, element, tirx.const(0, "float32"))
                    T.buffer_store(row, element, [c])
                    size = tirx.abs(row[c].astype("float64"))
                    T.buffer_store(total, total[i64(0)] + size, [i64(0)])
                powers = Formula(scale, "float32", (1,))
                mean = total[i64(0)] / tirx.const(plan.in_channels, "float64")
                factor, inverse = powers.at(mean.astype("float32"), i64(0))
                T.buffer_store(both, factor, [i64(0)])
                T.buffer_store(both, inverse, [i64(1)])
                with T.serial(i64(0), i64(plan.in_channels)) as c:
                    T.buffer_store(row, row[c] * both[i64(0)], [c])
                T.buffer_store(total, tirx.const(0, "float64"), [i64(0)])
                pairing.emit_excess(total, lambda c: row[c])
                panel = self.panel(tap, block) * i64(slots * vector) + lane

                def put(slot: Any, value: Any, panel: Any = panel) -> None:
                    T.buffer_store(packed, value, [panel + slot * i64(vector)])

                put(i64(0), tirx.const(0, "float32") - total[i64(0)].astype("float32"))
                put(i64(1), both[i64(1)])
                steps = pairing.steps
                with T.grid(i64(steps), i64(6)) as (step, stream):
                    put(i64(HEAD) + step * i64(6) + stream, row[stream * i64(steps) + step])
                for c in range(6 * steps, plan.in_channels):
                    put(i64(HEAD + c), row[i64(c)])
            with T.serial(i64(0), i64(bias_size)) as lane:
                element = tirx.const(0, "float32")
                if work.use_bias:
                    inside = lane < i64(columns)
                    stored = bias[tirx.floormod(lane, i64(plan.filters))]
                    element = tirx.Select(inside, rounded.at(stored, i64(0)), element)
                T.buffer_store(packed_bias, element, [lane])

        return prim_func("pack", body)

    def kernel(self) -> tuple[Any, Frame]:
        """The kernel function and its frame."""
        from tvmconv.compute.pair_kernel import PairKernel

        bias = self.bias_size
        line = self.tiling.width * self.tiling.vector if self.has_line else 0
        scratch = math.prod(self.rows_shape) + math.prod(self.terms_shape) + line
        tasks = self.chunks * self.tiling.splits
        panels = math.prod(self.panels_shape)
        frame = Frame(self.work, tasks, panels, bias, scratch, self.streams)
        emit = PairKernel(self, frame)
        return streaming.kernel(
            frame, lambda n, index: emit.task(n, *divide(index, self.tiling.splits))
        ), frame
