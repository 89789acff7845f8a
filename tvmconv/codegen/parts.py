"""What a generated library is linked from: object code, shapes, weights, manifest."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tvmconv.manifest import RUNNING, dump

if TYPE_CHECKING:
    from tvmconv.codegen.cuda.launcher import CudaPart

ELEMENT_BYTES: Final[dict[str, int]] = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Size, and therefore alignment, of one element of each dtype."""

_C_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass(frozen=True)
class KernelShape:
    """One input shape and the kernel that computes it.

    The kernel has the C type
    ``void (const void *input, const void *weights, const void *bias, void *output,
    void *scratch, int64_t batch, int64_t begin, int64_t end)``
    and computes the tiles ``[begin, end)`` of a call, serially and without allocating. Tiles are
    independent: any order and any split of them gives the same bits.

    Parameters
    ----------
    symbol
        Global symbol of the kernel in ``Variant.object_code``; empty in a library that only runs on
        CUDA devices.
    input_shape, output_shape
        Five sizes each, in the layout of the layer; -1 in front stands for an open batch.
    tiles_per_sample
        Tiles of one sample; a call has ``tiles_per_sample * batch`` of them.
    scratch_bytes
        Scratch memory of one task, 64-byte aligned; 0 when the kernel uses none.
    finish_symbol
        A function ``void (void *output, int64_t batch)`` that runs once after the last tile; empty
        when there is none. Only activations that mix values over more than an output row have one.
    """

    symbol: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    tiles_per_sample: int
    scratch_bytes: int
    finish_symbol: str = ""

    def __post_init__(self) -> None:
        assert not self.symbol or _C_NAME.match(self.symbol), self.symbol
        assert len(self.input_shape) == 5 and len(self.output_shape) == 5
        assert min(self.input_shape[1:]) >= 0 and min(self.output_shape[1:]) >= 0
        assert self.input_shape[0] == self.output_shape[0] >= -1
        assert self.tiles_per_sample >= 0 and self.scratch_bytes >= 0


@dataclass(frozen=True)
class Variant:
    """The kernels of all shapes, compiled for one processor.

    Parameters
    ----------
    cpu
        Name of the processor, for messages and for who asks for this variant.
    features
        LLVM names of the features that the code may use; checked at run time before the code runs.
    object_code
        Bytes of the relocatable object.
    shapes
        One kernel for each input shape, in the same order in every variant.
    """

    cpu: str
    features: tuple[str, ...]
    object_code: bytes
    shapes: tuple[KernelShape, ...]


@dataclass(frozen=True)
class Parts:
    """Everything that `tvmconv.codegen.link` needs for one artifact.

    Parameters
    ----------
    name
        Name of the artifact: the prefix of every public symbol.
    variants
        The most demanding first; the run time takes the first one that the processor can run.
    pack_symbol
        Global symbol of the packer, in `pack_code` or the last (least demanding) variant, of type
        ``void (const void *kernel, const void *bias, void *packed, void *packed_bias)``. Its bias
        is NULL, and must not be read, where the layer has none. Empty where no CPU version is.
    packed_bytes
        Size of the packed weights, the bias included.
    bias_offset
        Where the packed bias starts, in bytes from the start of the packed weights.
    kernel_shape
        Shape of the kernel in Keras' layout: (kd, kh, kw, filters, channels).
    baked
        The packed weights to put into the library; None when they are given at run time. Empty for
        the entry of a library with weights without the weights: calls must give them.
    triple
        LLVM's target triple.
    threads
        What ``threads = 0`` means at run time; 0 for as many as the process may use.
    manifest
        The JSON text that ``NAME_manifest`` returns; of several variants, see `manifests`.
    packed_element
        Alignment that packed weights need, in bytes: the size of their element. 0 when not known,
        which asks for that of the variables or of float32, whichever is larger.
    cuda
        What runs on CUDA devices; None for a library that runs on the CPU only. Its packed weights
        follow those of the CPU version, `packed_bytes` of them, in one piece.
    pack_code
        Bytes of an object with the packer, which runs on every processor of the architecture.
    """

    name: str
    variants: tuple[Variant, ...]
    pack_symbol: str
    packed_bytes: int
    bias_offset: int
    input_dtype: str
    output_dtype: str
    variable_dtype: str
    kernel_shape: tuple[int, ...]
    use_bias: bool
    baked: bytes | None
    triple: str
    threads: int
    manifest: str
    packed_element: int = 0
    cuda: CudaPart | None = None
    pack_code: bytes | None = None

    def __post_init__(self) -> None:
        assert _C_NAME.match(self.name), self.name
        assert _C_NAME.match(self.pack_symbol or self.name), self.pack_symbol
        assert self.variants and self.variants[0].shapes
        first = self.variants[0].shapes
        for variant in self.variants[1:]:
            assert [s.input_shape for s in variant.shapes] == [s.input_shape for s in first]
        assert 0 <= self.bias_offset <= self.packed_bytes
        assert not self.baked or len(self.baked) == self.packed_bytes
        for dtype in (self.input_dtype, self.output_dtype, self.variable_dtype):
            assert dtype in ELEMENT_BYTES, dtype
        assert self.threads >= 0
        assert self.packed_element in (0, *ELEMENT_BYTES.values())
        if self.cuda is not None:
            shapes = [(s.input_shape, s.output_shape) for s in first]
            assert [(s.input_shape, s.output_shape) for s in self.cuda.shapes] == shapes
            assert (self.baked is None) == (self.cuda.baked is None)
        assert self.cuda is not None or (self.pack_symbol and all(s.symbol for s in first))

    @property
    def manifests(self) -> dict[str, str]:
        """The texts that ``NAME_manifest`` chooses from, by the names of their blobs.

        The first is `manifest`. With several variants one for each follows, in their order, whose
        ``target.running`` is the variant; the first is for a processor that can run none of them.
        """
        found = {"manifest": self.manifest}
        if len(self.variants) > 1:
            values = json.loads(self.manifest)
            for i, variant in enumerate(self.variants):
                target = {**values["target"], RUNNING: variant.cpu}
                found[f"manifest_{i}"] = dump({**values, "target": target})
        return found

    @property
    def packed_alignment(self) -> int:
        """Alignment of packed weights in bytes."""
        known = max(ELEMENT_BYTES["float32"], ELEMENT_BYTES[self.variable_dtype])
        own = self.packed_element or known
        return own if self.cuda is None else max(own, self.cuda.packed_element)

    @property
    def all_packed_bytes(self) -> int:
        """Size of the packed weights of every version in the library."""
        if self.cuda is None:
            return self.packed_bytes
        return self.cuda.offset(self.packed_bytes) + self.cuda.packed_bytes

    @property
    def all_baked(self) -> bytes | None:
        """The packed weights of every version; None when they are given at run time."""
        if self.cuda is None or self.baked is None or self.cuda.baked is None:
            return self.baked
        return self.baked.ljust(self.cuda.offset(self.packed_bytes), b"\0") + self.cuda.baked
