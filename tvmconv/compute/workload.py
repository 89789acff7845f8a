"""What is computed: the geometry, the dtypes and the activation of one layer on one input shape."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from tvmconv.activations import Activation
from tvmconv.errors import ConfigError
from tvmconv.geometry import Axis, Plan, plan
from tvmconv.policies import numpy_dtype

if TYPE_CHECKING:
    from tvmconv.config import LayerConfig

__all__ = ["Workload"]

#: Voxels of a row that leave little over for the last of its register tiles.
_LONG_ROW = 64
#: Bytes of the longest row of joined axes.
_MOST_ROW_BYTES = 256 << 10


@dataclass(frozen=True)
class Workload:
    """One layer on one input shape, complete for the compiler.

    Attributes
    ----------
    plan : Plan
        Sizes and crops.
    input_dtype, output_dtype, variable_dtype : str
        Of the arrays that a caller hands over. Sums are in `accumulate_dtype`.
    activation : Activation
        Applied to convolution + bias.
    use_bias : bool
        Whether the layer has a bias.
    coupled : bool
        Whether an input channel is two of the layer's (`couple`).
    """

    plan: Plan
    input_dtype: str
    output_dtype: str
    variable_dtype: str
    activation: Activation
    use_bias: bool
    coupled: bool = False

    @classmethod
    def of(cls, config: LayerConfig, input_shape: Sequence[int | None]) -> Workload:
        """The workload of a layer on an input shape (None or -1: the batch is open).

        Raises
        ------
        ConfigError
            Where the shape is incomplete, an output size is negative, or the activation's axis does
            not exist.
        """
        work = cls(
            plan(config, input_shape),
            config.compute_dtype,
            config.output_dtype,
            config.variable_dtype,
            config.activation,
            config.use_bias,
        )
        for axis in work.activation.axes or ():
            if not -5 <= axis < 5:
                raise ConfigError(
                    f"{work.activation.name}: axis {axis} is out of range for 5 dimensions"
                )
        if work.activation.name == "glu" and work.finishes_whole:
            # It halves its axis: rows that are not finished yet would not fit into the output.
            raise ConfigError(
                "glu can be compiled along the channels or the width. "
                f"Received: axis={work.activation.arguments['axis']}"
            )
        if work.activation.name == "glu" and work.plan.output_shape[work.mixed_axes[0]] % 2:
            shape = work.plan.output_shape
            raise ConfigError(
                f"axis size must be divisible by 2. Received: x.shape={shape} "
                f"with axis={work.activation.arguments['axis']}"
            )
        return work

    @property
    def accumulate_dtype(self) -> str:
        """float64 for float64, else float32."""
        return "float64" if self.input_dtype == "float64" else "float32"

    @cached_property
    def mixed_axes(self) -> tuple[int, ...]:
        """The axes over which the activation mixes values, 0 to 4; none where it is elementwise."""
        return tuple(sorted({axis % 5 for axis in self.activation.axes or ()}))

    @property
    def row_axis(self) -> int | None:
        """The mixed axis if there is one that lies within an output row (channels or width)."""
        inside = {1, 4} if self.plan.channels_first else {3, 4}
        if len(self.mixed_axes) == 1 and self.mixed_axes[0] in inside:
            return self.mixed_axes[0]
        return None

    @property
    def finishes_whole(self) -> bool:
        """Whether the activation needs more than a row at once: it runs after the last tile."""
        return bool(self.mixed_axes) and self.row_axis is None

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of the result, -1 for an open batch: glu halves its axis."""
        shape = list(self.plan.output_shape)
        if self.activation.name == "glu":
            shape[self.mixed_axes[0]] //= 2
        return tuple(shape)

    @property
    def input_bytes(self) -> int:
        """Bytes of a sample's input."""
        return math.prod(self.plan.input_shape[1:]) * numpy_dtype(self.input_dtype).itemsize

    @property
    def empty(self) -> bool:
        """Whether a sample of the output has no element."""
        return math.prod(self.output_shape[1:]) == 0

    def joined(self) -> Workload:
        """The same layer with neighbouring axes of one tap as one, where that changes no byte.

        Where outputs belong to the inputs of the same number along the height and the width (and
        the depth), only the number of all these voxels counts. They are cut into rows that suit
        register tiles and are no burden to the caches.
        """
        depth, height, width = self.plan.axes
        channels = 1 if self.plan.channels_first else 4
        if not height.is_flat or not width.is_flat or self.empty or {*self.mixed_axes} - {channels}:
            return self
        count = height.size * width.size
        if depth.is_flat:
            count *= depth.size
            depth = _flat(1)
        size = 8 if self.accumulate_dtype == "float64" else 4
        most = _MOST_ROW_BYTES // (size * max(1, self.plan.in_channels, self.plan.filters))
        row = _row(count, most, width.size)
        axes = (depth, _flat(count // row), _flat(row))
        return dataclasses.replace(self, plan=dataclasses.replace(self.plan, axes=axes))

    def couple(self) -> Workload:
        """The same layer with two input channels as one of 32 bits, where that changes no byte.

        The input of a bfloat16 layer with channels last and an even number of them; its products
        are those of `coupling`.
        """
        plan = self.plan
        if self.input_dtype != "bfloat16" or plan.channels_first or plan.in_channels % 2:
            return self
        halves = dataclasses.replace(plan, in_channels=plan.in_channels // 2)
        return dataclasses.replace(self, plan=halves, input_dtype="float32", coupled=True)

    def folded(self) -> Workload:
        """The same layer with its width axis folded into the channels, where that changes no byte.

        Where kernel = stride along the width (no voxel gets two taps) and channels are last, the
        output row ``[width][stride][filters]`` is one matrix product with ``stride * filters``
        columns: a layer with kernel and stride 1 along the width and more filters. Its packed
        kernel is the same numbers in the order (tap, filter).
        """
        axis = self.plan.axes[2]
        if (
            self.plan.channels_first
            or axis.kernel != axis.stride
            or axis.stride == 1
            or axis.lo
            or axis.out != axis.size * axis.stride
            or self.mixed_axes
        ):
            return self
        folded = dataclasses.replace(
            self.plan,
            axes=(*self.plan.axes[:2], _flat(axis.size)),
            filters=self.plan.filters * axis.stride,
        )
        return dataclasses.replace(self, plan=folded)


def _flat(size: int) -> Axis:
    """An axis of one tap whose outputs are the inputs."""
    return Axis(size, 1, 1, 1, 0, size)


def _row(count: int, most: int, usual: int) -> int:
    """The length of equal rows that ``count`` voxels are cut into.

    The shortest long one of at most ``most`` voxels, else the longest of these; ``usual`` where it
    is no worse.
    """
    lengths = [n for n in range(1, min(count, most) + 1) if count % n == 0]
    long = next((n for n in lengths if n >= _LONG_ROW), None)
    return long or max([usual, *lengths])
