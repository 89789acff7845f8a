"""Conv3DTranspose layers of real networks, and the exact work and memory traffic of each.

The geometry is written out here once more, apart from `tvmconv.geometry`: what a table divides by
must not change with the code that the table judges.

Sources: mlcommons/training (unet3d), MIC-DKFZ nnU-Net, neuronets/nobrainer, MONAI (swin_unetr,
unetr), weiyithu/SurroundOcc, JiaRenChang/PSMNet, GC-Net (arXiv 1703.04309), meetps/tf-3dgan,
wilson1yan/VideoGPT, donggong1/memae, mauriceqch/pcc_geo_cnn. Where the source is PyTorch with
padding 1 and output_padding 1, Keras' ``same`` has the same output shape and the same work.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvmconv.policies import numpy_dtype

__all__ = ["QUICK", "WORKLOADS", "Axis", "Workload", "drawn", "named"]

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Axis:
    """One spatial axis.

    Output voxel ``o`` gets input ``i`` through tap ``k`` where ``o + lo = i*stride + k``.

    ``hi`` is what is cut behind; negative where the output goes on behind the last tap.
    """

    size: int
    kernel: int
    stride: int
    lo: int
    out: int

    @property
    def hi(self) -> int:
        """Voxels cut from the end of the full output of ``(size - 1)*stride + kernel``."""
        return (self.size - 1) * self.stride + self.kernel - self.lo - self.out

    @property
    def taps(self) -> int:
        """Pairs of input and tap that reach the output."""
        total = 0
        for tap in range(self.kernel):
            first = max(0, -(-(self.lo - tap) // self.stride))
            last = min(self.size - 1, (self.out - 1 + self.lo - tap) // self.stride)
            total += max(0, last - first + 1)
        return total


@dataclass(frozen=True)
class Workload:
    """One layer on one input shape: channels_last, with bias."""

    name: str
    network: str
    in_channels: int
    filters: int
    kernel: Triple
    strides: Triple
    padding: str
    size: Triple
    batch: int = 1
    activation: str | None = None
    nightly: bool = False
    dtype: str = "float32"

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Workload:
        """A workload from what `dataclasses.asdict` gave, after a way through JSON."""
        known = {field.name for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in fields.items()
            if key in known
        }
        return cls(**values)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Depth, height and width."""
        found = []
        for size, kernel, stride in zip(self.size, self.kernel, self.strides, strict=True):
            if self.padding == "same":
                lo, out = max(kernel - stride, 0) // 2, size * stride
            else:
                lo, out = 0, (size - 1) * stride + max(kernel, stride)
            found.append(Axis(size, kernel, stride, lo, out))
        return tuple(found)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``(batch, d, h, w, channels)``."""
        return (self.batch, *self.size, self.in_channels)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``(batch, d, h, w, filters)``."""
        return (self.batch, *(axis.out for axis in self.axes), self.filters)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Keras' layout: ``(kd, kh, kw, filters, channels)``."""
        return (*self.kernel, self.filters, self.in_channels)

    @property
    def flops(self) -> int:
        """Two for each multiply-add whose output exists."""
        pairs = math.prod(axis.taps for axis in self.axes)
        return 2 * self.batch * self.in_channels * self.filters * pairs

    @property
    def traffic(self) -> int:
        """Bytes that must move at least: input, weights and output, once each."""
        shapes = (self.input_shape, self.kernel_shape, (self.filters,), self.output_shape)
        return numpy_dtype(self.dtype).itemsize * sum(math.prod(shape) for shape in shapes)

    @property
    def summary(self) -> str:
        """The layer in one line."""

        def spelt(sizes: tuple[int, ...]) -> str:
            same = len(set(sizes)) == 1
            return str(sizes[0]) if same else "x".join(str(size) for size in sizes)

        out = tuple(axis.out for axis in self.axes)
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        cubes = [f"{spelt(s)}^3" if len(set(s)) == 1 else spelt(s) for s in (self.size, out)]
        return (
            f"{self.in_channels}->{self.filters} k{spelt(self.kernel)} s{spelt(self.strides)} "
            f"{self.padding}, {cubes[0]} -> {cubes[1]}{batch}"
            + (f", {self.activation}" if self.activation else "")
        )


def _cube(edge: int) -> Triple:
    return (edge, edge, edge)


_K2, _K3, _K4, _K5, _K9 = (_cube(edge) for edge in (2, 3, 4, 5, 9))
_ANISO = (1, 2, 2)

WORKLOADS = (
    Workload("keras_doc", "Keras' reference page", 128, 32, _K2, _K2, "valid", (10, 8, 12),
             batch=4, activation="relu"),
    Workload("unet_up1", "3D U-Net, nnU-Net", 320, 320, _K2, _K2, "valid", _cube(4)),
    Workload("unet_up3", "3D U-Net, nnU-Net", 256, 128, _K2, _K2, "valid", _cube(16)),
    Workload("unet_up4", "3D U-Net, nnU-Net", 128, 64, _K2, _K2, "valid", _cube(32)),
    Workload("unet_up5", "3D U-Net, nnU-Net", 64, 32, _K2, _K2, "valid", _cube(64)),
    Workload("nobrainer_up3", "nobrainer 3D U-Net", 64, 64, _K2, _K2, "same", _cube(64)),
    Workload("swin_dec1", "SwinUNETR decoder", 48, 48, _K2, _K2, "valid", _cube(48)),
    Workload("unetr_dec5", "UNETR", 768, 128, _K2, _K2, "valid", _cube(6)),
    Workload("occ_deblock5", "SurroundOcc", 64, 64, _K2, _K2, "valid", (100, 100, 8)),
    Workload("psm_conv5", "PSMNet hourglass", 64, 64, _K3, _K2, "same", (12, 16, 32)),
    Workload("psm_conv6", "PSMNet hourglass", 64, 32, _K3, _K2, "same", (24, 32, 64)),
    Workload("gcnet_36", "GC-Net", 64, 32, _K3, _K2, "same", (48, 64, 128), nightly=True),
    Workload("gcnet_37", "GC-Net", 32, 1, _K3, _K2, "same", (96, 128, 256)),
    Workload("gan_g1", "3D-GAN", 200, 512, _K4, _cube(1), "valid", _cube(1)),
    Workload("gan_g2", "3D-GAN", 512, 256, _K4, _K2, "same", _cube(4)),
    Workload("gan_g4", "3D-GAN", 128, 64, _K4, _K2, "same", _cube(16)),
    Workload("gan_g5", "3D-GAN", 64, 1, _K4, _K2, "same", _cube(32)),
    Workload("videogpt_0", "VideoGPT", 240, 240, _K4, _K2, "same", (4, 32, 32), nightly=True),
    Workload("videogpt_1", "VideoGPT", 240, 3, _K4, _K2, "same", (8, 64, 64)),
    Workload("memae_dec3", "MemAE", 96, 1, _K3, _ANISO, "same", (16, 128, 128)),
    Workload("nnunet_aniso", "nnU-Net", 128, 64, _ANISO, _ANISO, "valid", (16, 32, 32)),
    Workload("pcc_l1", "pcc_geo_cnn synthesis", 32, 32, _K5, _K2, "same", _cube(16),
             activation="relu"),
    Workload("pcc_l2", "pcc_geo_cnn synthesis", 32, 1, _K9, _K2, "same", _cube(32)),
    Workload("ae_s1", "stride-1 decoder block", 32, 32, _K3, _cube(1), "same", (16, 32, 32)),
    Workload("odd", "nothing divides", 37, 29, (3, 2, 5), (2, 1, 3), "same", (7, 13, 11),
             activation="relu"),
)  # fmt: skip

QUICK = ("unet_up3", "unet_up4", "psm_conv5", "gan_g4", "gan_g5", "keras_doc", "ae_s1", "odd")
"""Layers of a quick run: one of each kind, none of them large."""


def named(names: list[str] | None, *, quick: bool = False, nightly: bool = False) -> list[Workload]:
    """The workloads asked for, in the table's order.

    Parameters
    ----------
    names
        Their names; None for all of them.
    quick
        With no names: those of `QUICK`.
    nightly
        With no names: the largest ones, too.

    Raises
    ------
    ValueError
        A name is unknown.
    """
    known = {work.name: work for work in WORKLOADS}
    if names is None:
        picked = QUICK if quick else [w.name for w in WORKLOADS if nightly or not w.nightly]
    else:
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"no layer {unknown[0]!r}; the layers are {', '.join(known)}")
        picked = names
    return [work for work in WORKLOADS if work.name in picked]


def drawn(count: int, seed: int) -> list[Workload]:
    """Layers drawn at random: what is fast on the list must be fast beside it.

    Kernels 1 to 5, strides 1 to 3, 3 to 300 channels, inputs of 3 to 60 voxels an axis; at most 6
    GFLOP and 256 MiB each.
    """
    generator = random.Random(seed)
    found: list[Workload] = []
    while len(found) < count:
        cubic = generator.random() < 0.7
        kernel, strides, size = (
            _triple(generator, low, high, cubic) for low, high in ((1, 5), (1, 3), (3, 60))
        )
        channels, filters = (round(math.exp(generator.uniform(1.1, 5.7))) for _ in range(2))
        padding = generator.choice(("same", "valid"))
        name = f"random_{seed}_{len(found)}"
        work = Workload(name, "drawn", channels, filters, kernel, strides, padding, size)
        if 10**7 < work.flops < 6 * 10**9 and work.traffic < 1 << 28:
            found.append(work)
    return found


def _triple(generator: random.Random, low: int, high: int, cubic: bool) -> Triple:
    first, second, third = (generator.randint(low, high) for _ in range(3))
    return _cube(first) if cubic else (first, second, third)
