"""The definition of the layer in NumPy: scatter every input voxel through every tap, in float64.

::

    y[n, o, f] = act(b[f] + sum over i, t with i*s + t*d - lo = o of x[n, i, :] . w[t, f, :])

It has its own arithmetic for sizes and crops, so that an error in `tvmconv.geometry` cannot hide
behind the same error here. It is n-dimensional, slow next to compiled code, and exact about NaN
and infinity: a tap outside the input is skipped, not multiplied by zero.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.errors import InputError

__all__ = ["conv3d_transpose"]


class _Axis(NamedTuple):
    """One spatial axis: input length, kernel, stride, dilation, output length, front crop."""

    length: int
    kernel: int
    stride: int
    dilation: int
    out: int
    front: int

    def reach(self, tap: int) -> tuple[slice, slice]:
        """The inputs whose product with ``tap`` is kept, and the outputs that get it."""
        shift = tap * self.dilation - self.front  # Input i goes to i * stride + shift.
        first = max(0, -(shift // self.stride))
        last = min(self.length - 1, (self.out - 1 - shift) // self.stride)
        if last < first:
            return slice(0, 0), slice(0, 0)
        start = first * self.stride + shift
        stop = last * self.stride + shift + 1
        return slice(first, last + 1), slice(start, stop, self.stride)


def conv3d_transpose(
    config: LayerConfig, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None
) -> np.ndarray:
    """The output of the layer in float64.

    Parameters
    ----------
    config
        The layer.
    x
        Input of any float dtype in the layer's data format; rounded to the compute dtype first.
    kernel
        ``(*kernel_size, filters, in_channels)``; rounded to the compute dtype first.
    bias
        ``(filters,)``, or None for a layer without one.

    Returns
    -------
    numpy.ndarray
        float64, in the layer's data format, not rounded to the output dtype.

    Raises
    ------
    InputError
        The shapes do not belong together, or an output size is negative.
    """
    channel_axis = 1 if config.data_format == "channels_first" else -1
    x, kernel = _round(x, config.compute_dtype), _round(kernel, config.compute_dtype)
    x = np.moveaxis(x, channel_axis, -1)
    if x.ndim != kernel.ndim or x.shape[-1] != kernel.shape[-1]:
        raise InputError(
            f"The input, channels last {x.shape}, does not fit a kernel of shape {kernel.shape}."
        )
    axes = [_axis(config, position, length) for position, length in enumerate(x.shape[1:-1])]
    y = np.zeros((x.shape[0], *(axis.out for axis in axes), kernel.shape[-2]))
    finite = bool(np.isfinite(x).all() and np.isfinite(kernel).all())
    with np.errstate(all="ignore"):
        for tap in itertools.product(*(range(axis.kernel) for axis in axes)):
            reach = [axis.reach(t) for axis, t in zip(axes, tap, strict=True)]
            source = (slice(None), *(inputs for inputs, _ in reach))
            target = (slice(None), *(outputs for _, outputs in reach))
            y[target] += _product(x[source], kernel[tap], finite)
        if bias is not None:
            y += _round(bias, config.compute_dtype)
    return config.activation.evaluate(np.moveaxis(y, -1, channel_axis))


def _axis(config: LayerConfig, position: int, length: int) -> _Axis:
    """Output length and front crop of one axis, from Keras' formulas."""
    kernel, stride = config.kernel_size[position], config.strides[position]
    dilation = config.dilation_rate[position]
    span = (kernel - 1) * dilation + 1
    extra = None if config.output_padding is None else config.output_padding[position]
    if config.padding == "valid":
        front = 0
        out = (length - 1) * stride + (max(span, stride) if extra is None else span + extra)
    elif extra is None:
        front = max(span - stride, 0) // 2
        out = length * stride
    else:
        front = max(span - span % 2 - extra, 0) // 2
        out = (length - 1) * stride + span % 2 + extra
    if out < 0:
        raise InputError(f"Spatial axis {position} of length {length} has output length {out}.")
    return _Axis(length, kernel, stride, dilation, out, front)


def _product(x: np.ndarray, tap: np.ndarray, finite: bool) -> np.ndarray:
    """``x . tap`` over the input channels.

    A BLAS may skip products with zero, which is wrong next to NaN and infinity; those go the slow
    way.
    """
    if not finite:
        return np.asarray(np.einsum("...c,fc->...f", x, tap))
    products = x.reshape(-1, x.shape[-1]) @ tap.T
    return np.asarray(products.reshape(*x.shape[:-1], tap.shape[0]))


def _round(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round to ``dtype`` (nearest, ties to even), then widen to float64."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.asarray(values).astype(numpy_dtype(dtype)).astype(np.float64)
