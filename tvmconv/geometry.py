"""Integers only: output size, crops, phases and tap ranges of a transposed convolution.

Along one axis with input size ``I``, kernel ``K``, stride ``s``, dilation ``d`` and low crop
``lo``, output ``o`` receives input ``i`` through tap ``k`` exactly where ``o + lo = i*s + k*d``.
With ``d = 1`` the outputs of one residue ``r = (o + lo) % s`` (a *phase*) use the taps
``k = r, r + s, r + 2*s, ...`` and the inputs ``q, q - 1, q - 2, ...`` with ``q = (o + lo) // s``:
a dense stride-1 correlation. ``s > 1`` and ``d > 1`` never occur together, so for ``d > 1`` there
is one phase whose taps step the input by ``d``.

Source: keras/src/backend/common/backend_utils.py (the arithmetic of crops and sizes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvmconv.errors import ConfigError

if TYPE_CHECKING:
    from tvmconv.config import LayerConfig

__all__ = ["Axis", "Phase", "Plan", "output_length", "output_shape", "plan"]

# Sizes are held in 64-bit integers in the kernels; bytes of a tensor must fit a signed 64-bit size.
_MAX_ELEMENTS = 2**47
#: Of one axis: TVM writes sizes into the code as 32-bit numbers.
_MAX_LENGTH = 2**30


@dataclass(frozen=True)
class Phase:
    """One output residue along one axis.

    Attributes
    ----------
    residue : int
        ``(o + lo) % stride`` of its outputs; also its first tap.
    taps : int
        Number of taps, ``ceil((kernel - residue) / stride)``; 0 where kernel < stride.
    first, count : int
        Its outputs are ``o = (first + j)*stride + residue - lo`` for ``j`` in ``range(count)``,
        and ``q = first + j`` is the input position of its first tap.
    """

    residue: int
    taps: int
    first: int
    count: int


@dataclass(frozen=True)
class Axis:
    """One spatial axis: sizes in voxels."""

    size: int
    kernel: int
    stride: int
    dilation: int
    lo: int
    out: int

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of this axis, by residue."""
        found = []
        for residue in range(self.stride):
            taps = max(0, -(-(self.kernel - residue) // self.stride))
            first = max(0, -(-(self.lo - residue) // self.stride))
            last = (self.out - 1 + self.lo - residue) // self.stride
            found.append(Phase(residue, taps, first, max(0, last - first + 1)))
        return tuple(found)

    def reached(self, phase: Phase, tap: int) -> tuple[int, int]:
        """The outputs of a phase whose input exists for a tap.

        The number of the first of them, and of the one behind the last.
        """
        shift = tap * self.dilation - phase.first
        first = min(phase.count, max(0, shift))
        return first, max(first, min(phase.count, self.size + shift))

    @property
    def is_flat(self) -> bool:
        """Whether each output belongs to the input of the same number, and to no other."""
        return self.kernel == self.stride == 1 and self.lo == 0 and self.out == self.size

    @property
    def is_split(self) -> bool:
        """Whether each input has ``stride`` outputs of its own, which have no other input."""
        return self.kernel == self.stride and self.lo == 0 and self.out == self.size * self.stride

    @property
    def max_taps(self) -> int:
        """Taps of the phase that has most of them."""
        return -(-self.kernel // self.stride)

    @property
    def useful_taps(self) -> int:
        """Pairs (output, tap) along this axis whose input exists: the products that are needed."""
        total = 0
        for tap in range(self.kernel):
            start = self.lo - tap * self.dilation
            first = max(0, -(-start // self.stride))
            last = min(self.size - 1, (start + self.out - 1) // self.stride)
            total += max(0, last - first + 1)
        return total


@dataclass(frozen=True)
class Plan:
    """The geometry of one layer on one input shape.

    ``batch`` is -1 where it is left open. ``input_shape`` and ``output_shape`` are in the layer's
    data format; ``output_shape`` is that of the convolution, before an activation such as glu
    changes it.
    """

    batch: int
    axes: tuple[Axis, Axis, Axis]
    in_channels: int
    filters: int
    channels_first: bool

    def _shape(self, spatial: tuple[int, ...], channels: int) -> tuple[int, ...]:
        if self.channels_first:
            return (self.batch, channels, *spatial)
        return (self.batch, *spatial, channels)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Five sizes, -1 for an open batch."""
        return self._shape(tuple(a.size for a in self.axes), self.in_channels)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Five sizes, -1 for an open batch."""
        return self._shape(tuple(a.out for a in self.axes), self.filters)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Keras' kernel layout: ``(kd, kh, kw, filters, in_channels)``."""
        return (*(a.kernel for a in self.axes), self.filters, self.in_channels)

    @property
    def flops(self) -> int:
        """Useful floating-point operations of one sample.

        Two for each multiply-add whose input exists.
        """
        return (
            2 * self.in_channels * self.filters * math.prod(axis.useful_taps for axis in self.axes)
        )


def output_length(
    size: int, kernel: int, stride: int, dilation: int, padding: str, output_padding: int | None
) -> tuple[int, int]:
    """Output size and low crop along one axis.

    Parameters
    ----------
    size, kernel, stride, dilation : int
        Voxels and taps along the axis.
    padding : str
        ``"valid"`` or ``"same"``.
    output_padding : int or None
        Keras' ``output_padding`` entry of this axis.

    Returns
    -------
    tuple of int
        ``(out, lo)``. ``lo`` voxels are cut from the front of the full scatter; where ``lo + out``
        passes its end, no tap reaches the rest, which holds activation(bias). ``out`` may be
        negative for size 0.
    """
    extent = (kernel - 1) * dilation + 1
    if padding == "valid":
        if output_padding is None:
            return (size - 1) * stride + max(extent, stride), 0
        return (size - 1) * stride + extent + output_padding, 0
    if output_padding is None:
        return size * stride, max(extent - stride, 0) // 2
    odd = extent % 2
    return (size - 1) * stride + odd + output_padding, max(extent - odd - output_padding, 0) // 2


def _paddings(config: LayerConfig) -> tuple[int | None, ...]:
    return (None, None, None) if config.output_padding is None else tuple(config.output_padding)


def output_shape(config: LayerConfig, input_shape: Sequence[int | None]) -> list[int | None]:
    """Keras' ``compute_output_shape``.

    The static answer, ``None`` kept, signs and channels unchecked.

    Source: keras/src/layers/convolutional/base_conv_transpose.py. It knows nothing of the
    activation.
    """
    shape = list(input_shape)
    first = config.data_format == "channels_first"
    spatial = shape[2:] if first else shape[1:-1]
    result: list[int | None] = []
    for size, kernel, stride, dilation, extra in zip(
        spatial,
        config.kernel_size,
        config.strides,
        config.dilation_rate,
        _paddings(config),
        strict=False,
    ):
        result.append(
            None
            if size is None
            else output_length(size, kernel, stride, dilation, config.padding, extra)[0]
        )
    if first:
        return [shape[0], config.filters, *result]
    return [shape[0], *result, config.filters]


def plan(config: LayerConfig, input_shape: Sequence[int | None]) -> Plan:
    """The geometry of a layer on an input shape.

    Parameters
    ----------
    config : LayerConfig
        The layer.
    input_shape : sequence of 5 int or None
        In the layer's data format. ``None`` or -1 leaves the batch open; every other size must be
        known.

    Raises
    ------
    ConfigError
        Where the shape is no complete 5-D shape, an output size is negative, or a tensor is too
        large to address.
    """
    shape = tuple(input_shape)
    if len(shape) != 5:
        raise ConfigError(f"The input shape must have 5 sizes. Received: input_shape={shape}")
    batch = -1 if shape[0] is None else int(shape[0])
    sizes = shape[1:]
    if batch < -1 or any(size is None or size < 0 for size in sizes):
        raise ConfigError(
            "The spatial and channel sizes of an input shape must be known and not negative. "
            f"Received: input_shape={shape}"
        )
    known = [int(size) for size in sizes if size is not None]
    first = config.data_format == "channels_first"
    channels, *spatial = known if first else (known[-1], *known[:-1])
    axes = []
    for size, kernel, stride, dilation, extra in zip(
        spatial,
        config.kernel_size,
        config.strides,
        config.dilation_rate,
        _paddings(config),
        strict=True,
    ):
        out, lo = output_length(size, kernel, stride, dilation, config.padding, extra)
        if out < 0:
            raise ConfigError(
                f"The output would have a negative size. Received: input_shape={shape}, "
                f"kernel_size={config.kernel_size}, strides={config.strides}"
            )
        axes.append(Axis(size, kernel, stride, dilation, lo, out))
    result = Plan(batch, (axes[0], axes[1], axes[2]), channels, config.filters, first)
    for what, dims in (
        ("input", result.input_shape),
        ("output", result.output_shape),
        ("kernel", result.kernel_shape),
    ):
        if math.prod(map(abs, dims)) > _MAX_ELEMENTS or max(dims[1:]) > _MAX_LENGTH:
            raise ConfigError(f"The {what} of shape {dims} has too many elements to address.")
    return result
