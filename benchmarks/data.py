"""The same numbers for everybody: inputs from a seed, and outputs at sampled voxels in float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.workloads import Workload
from tvmconv.policies import numpy_dtype

__all__ = ["Data", "aligned"]

Array = np.ndarray[Any, np.dtype[Any]]

_SEED = 20240229
_CHUNK = 1 << 24
_LINE = 64
_SAMPLES = 60
# Error allowed, relative to the sum of the products' magnitudes: a hundred rounding errors of
# float32, and a hundredth of what bfloat16 or TF32 arithmetic would show; a few of narrower types,
# to which results are rounded.
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}


@dataclass(frozen=True)
class Data:
    """Input, kernel and bias of a workload, in Keras' layout."""

    work: Workload

    @cached_property
    def x(self) -> Array:
        """Normal, float32: numbers that the workload's dtype has."""
        return aligned(self._rounded(_normal(self.work.input_shape, 0)))

    @cached_property
    def stored(self) -> Array:
        """The same in that dtype."""
        return self.x if self.work.dtype == "float32" else aligned(self.x.astype(self.dtype))

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's type for the workload's dtype."""
        return numpy_dtype(self.work.dtype)

    def _rounded(self, values: Array) -> Array:
        return values.astype(self.dtype).astype(np.float32)

    @cached_property
    def kernel(self) -> Array:
        """Normal, scaled so that outputs are of the order of 1."""
        taps = float(np.prod([-(-a.kernel // a.stride) for a in self.work.axes]))
        scale = np.float32(1.0 / np.sqrt(taps * self.work.in_channels))
        return self._rounded(_normal(self.work.kernel_shape, 1) * scale)

    @cached_property
    def bias(self) -> Array:
        """Normal, float32."""
        return self._rounded(_normal((self.work.filters,), 2))

    @cached_property
    def voxels(self) -> list[tuple[int, int, int, int]]:
        """Output voxels that are checked: corners of the first and last sample, and others."""
        batch, *sizes, _ = self.work.output_shape
        generator = np.random.default_rng(_SEED)
        picked = [tuple(generator.integers(0, (batch, *sizes)).tolist()) for _ in range(_SAMPLES)]
        for corner in np.ndindex(2, 2, 2, 2):
            ends = zip(corner, (batch, *sizes), strict=True)
            picked.append(tuple(end * (size - 1) for end, size in ends))
        return picked

    @cached_property
    def expected(self) -> tuple[Array, Array]:
        """Outputs at `voxels`, and the magnitude that their error is relative to.

        Both are [voxel, filter] in float64; the second is the sum of the products' magnitudes.
        """
        values, sizes = [], []
        kernel = self.kernel.astype(np.float64)
        bias = self.bias.astype(np.float64)
        for n, *output in self.voxels:
            total, magnitude = bias.copy(), np.abs(bias)
            pairs = [
                [
                    (tap, (o + axis.lo - tap) // axis.stride)
                    for tap in range(axis.kernel)
                    if (o + axis.lo - tap) % axis.stride == 0
                    and 0 <= (o + axis.lo - tap) // axis.stride < axis.size
                ]
                for axis, o in zip(self.work.axes, output, strict=True)
            ]
            for kd, d in pairs[0]:
                for kh, h in pairs[1]:
                    for kw, w in pairs[2]:
                        one = self.x[n, d, h, w].astype(np.float64)
                        total += kernel[kd, kh, kw] @ one
                        magnitude += np.abs(kernel[kd, kh, kw]) @ np.abs(one)
            values.append(np.maximum(total, 0.0) if self.work.activation == "relu" else total)
            sizes.append(magnitude)
        return np.array(values), np.array(sizes)

    def error(self, output: Array) -> float:
        """Largest error at `voxels`, relative to the sum of the products' magnitudes.

        NaN counts as infinite.

        Parameters
        ----------
        output
            The whole output, ``(batch, d, h, w, filters)``; any strides.

        Raises
        ------
        ValueError
            The shape is wrong.
        """
        if output.shape != self.work.output_shape:
            raise ValueError(f"the output has shape {output.shape}, not {self.work.output_shape}")
        values, sizes = self.expected
        got = np.array([output[voxel] for voxel in self.voxels], np.float64)
        return float(np.nan_to_num(np.abs(got - values) / sizes, nan=np.inf).max())


def aligned(array: Array) -> Array:
    """A copy in C order that begins at a line of the cache, as the tensors of frameworks do.

    NumPy's arrays begin anywhere; accesses of 64 bytes that lie across two lines cost twice.
    """
    whole = np.empty(array.nbytes + _LINE, np.uint8)
    begin = -whole.ctypes.data % _LINE
    copy: Array = whole[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _normal(shape: tuple[int, ...], stream: int) -> Array:
    """Normal numbers; a large array repeats the first 16 million, which saves minutes."""
    size = int(np.prod(shape))
    generator = np.random.default_rng([_SEED, stream])
    some = generator.standard_normal(min(size, _CHUNK), dtype=np.float32)
    return np.resize(some, shape)
