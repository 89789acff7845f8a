"""A lean way from a layer to compiled code that runs: no artifact, no C run time, no cache.

A `Kernel` lowers, schedules and emits one workload, links the object with the C compiler and calls
the raw functions through ctypes, with guards around every buffer.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
import mmap
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvmconv import schedules, targets
from tvmconv.codegen import features, lowering, toolchain
from tvmconv.compute import lower
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.schedules.cpu import definition

_GUARD = 256  # bytes
_PATTERN = 0xA7
_LINE = 64  # bytes
_NO_ACCESS = 0  # PROT_NONE
#: Of so many tests one compiles as what ships is compiled; `make nightly` has all of them do so.
_TURN = 4
#: Bits of the widest registers whose code was run without LLVM's effort.
_RUN_PLAIN = 256


@functools.cache
def target(name: str = "native") -> targets.CpuTarget:
    """The processor of that name."""
    return targets.resolve(name)[0]


def runs_here(name: str) -> bool:
    """Whether this processor has all that a library for the target ``name`` would check for."""
    own, other = target(), target(name)
    if own.architecture != other.architecture:
        return False
    needed = set(features.bits(other.required_features(), other.triple))
    return {(bit.word, bit.bit) for bit in needed} <= {
        (bit.word, bit.bit) for bit in features.bits(own.required_features(), own.triple)
    }


class Guarded:
    """An array between guards, on an address that is a multiple of ``align`` and of no more.

    Or on one that is ``begin`` bytes behind the beginning of a line of the cache. The memory behind
    it, but for what that alignment leaves, cannot even be read.
    """

    def __init__(
        self, shape: Sequence[int], dtype: np.dtype[Any], align: int, begin: int | None = None
    ) -> None:
        size = int(np.prod(shape)) * dtype.itemsize
        pages = -(-(size + _GUARD + 2 * align) // mmap.PAGESIZE) * mmap.PAGESIZE
        raw = np.frombuffer(mmap.mmap(-1, pages + mmap.PAGESIZE), np.uint8)
        end = ctypes.c_void_p(raw.ctypes.data + pages)
        if ctypes.CDLL(None).mprotect(end, ctypes.c_size_t(mmap.PAGESIZE), _NO_ACCESS):
            raise MemoryError("the page behind an array could not be taken away")
        self._raw = raw[:pages]
        self._raw[:] = _PATTERN
        last = self._raw.ctypes.data + pages - size
        if begin is None:
            first = (last - align) // (2 * align) * 2 * align + align
        else:
            first = last - (last - begin) % _LINE
        self._first = first - self._raw.ctypes.data
        self._last = self._first + size
        self.array = self._raw[self._first : self._last].view(dtype).reshape(shape)

    @classmethod
    def of(cls, values: np.ndarray) -> Guarded:
        """A copy of ``values`` with no more alignment than its element's."""
        made = cls(values.shape, values.dtype, values.dtype.itemsize)
        made.array[...] = values
        return made

    @classmethod
    def empty(
        cls, shape: Sequence[int], dtype: np.dtype[Any], align: int = 0, begin: int | None = None
    ) -> Guarded:
        """NaN everywhere."""
        made = cls(shape, dtype, align or dtype.itemsize, begin)
        made.array[...] = np.nan
        return made

    @property
    def address(self) -> ctypes.c_void_p:
        """The first element's."""
        return ctypes.c_void_p(self._raw.ctypes.data + self._first)

    def check(self, what: str) -> None:
        """Nothing was written outside."""
        around = (self._raw[: self._first], self._raw[self._last :])
        assert all((part == _PATTERN).all() for part in around), f"written outside of {what}"


class Kernel:
    """The compiled code of one layer on one input shape.

    Parameters
    ----------
    config, input_shape
        The layer, and five sizes (-1: the batch is open).
    tiling
        None for the default of the rules; or a tiling of the caller's.
    form
        ``"definition"`` for the default tiling of that form.
    machine
        What the code is for.
    ships
        Whether LLVM tries as hard as for what ships (`effort`). False where another's results are
        compared with it: less hard. None where it is values that count: by turns (`_as_it_ships`),
        and elsewhere not at all, in a third of the time.
    """

    def __init__(
        self,
        config: LayerConfig,
        input_shape: Sequence[int | None],
        *,
        tiling: Tiling | None = None,
        form: str | None = None,
        machine: str = "native",
        ships: bool | None = None,
    ) -> None:
        self.config = config
        self.work = Workload.of(config, input_shape)
        on = target(machine)
        if tiling is None:
            rule = definition if form == "definition" else schedules
            tiling = rule.decide(self.work, on)
        self.tiling = tiling
        self.lowered = lower(self.work, tiling)
        functions = {"k": schedules.apply(self.lowered).kernel, "p": self.lowered.packer}
        if self.lowered.finish is not None:
            functions["f"] = self.lowered.finish
        # Of registers of 512 bits, code that LLVM leaves as it is has not been run anywhere yet.
        if ships is None and on.vector_bits <= _RUN_PLAIN and not _as_it_ships():
            level = 0
        else:
            level = lowering.effort([tiling.form], ships=ships is not False)
        self.code = lowering.emit(functions, on, level)
        with tempfile.TemporaryDirectory(prefix="kernel-") as folder:
            Path(folder, "k.o").write_bytes(self.code.object_code())
            toolchain.find().run(["-shared", "-o", "k.so", "k.o", "-lm"], Path(folder))
            self._library = ctypes.CDLL(str(Path(folder, "k.so")))

    def packed(self, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """Kernel and bias through the compiled packer: what `Lowered.pack` does in NumPy."""
        dtype = np.dtype(self.work.accumulate_dtype)
        variable = numpy_dtype(self.work.variable_dtype)
        taps = Guarded.of(kernel.astype(variable))
        start = None if bias is None else Guarded.of(bias.astype(variable))
        blob = Guarded.empty((self.lowered.packed_size,), dtype)
        blob_bias = Guarded.empty((self.lowered.bias_size,), dtype)
        self._library.p(
            taps.address,
            ctypes.c_void_p(0) if start is None else start.address,
            blob.address,
            blob_bias.address,
        )
        blob.check("packed weights")
        blob_bias.check("packed bias")
        return np.concatenate([blob.array, blob_bias.array])

    def run(
        self,
        x: np.ndarray,
        packed: np.ndarray,
        ranges: Sequence[tuple[int, int]] | None = None,
        begin: int | None = None,
    ) -> np.ndarray:
        """One call: the tiles in ``ranges``, one range after the other (None: all in one).

        The output begins so many bytes behind a line of the cache (None: with no line).
        """
        x = x.astype(numpy_dtype(self.work.input_dtype))
        batch = x.shape[0]
        dtype = np.dtype(self.work.accumulate_dtype)
        shape = (batch, *self.work.output_shape[1:])
        y = Guarded.empty(shape, numpy_dtype(self.work.output_dtype), begin=begin)
        scratch = Guarded.empty((self.lowered.scratch_size,), dtype, align=64)
        given = Guarded.of(x)
        size = self.lowered.packed_size
        weights, bias = Guarded.of(packed[:size]), Guarded.of(packed[size:])
        arrays = (given, weights, bias, y, scratch)
        pointers = [one.address for one in arrays]
        for first, end in [(0, self.tiles(batch))] if ranges is None else ranges:
            self._library.k(*pointers, *map(ctypes.c_int64, (batch, first, end)))
        if self.lowered.finish is not None:
            self._library.f(y.address, ctypes.c_int64(batch))
        for name, one in zip(
            ("input", "weights", "bias", "output", "scratch"), arrays, strict=True
        ):
            one.check(name)
        for name, one, was in (
            ("input", given, x), ("weights", weights, packed[:size]), ("bias", bias, packed[size:])
        ):  # fmt: skip
            assert one.array.tobytes() == was.tobytes(), f"the {name} was written to"
        return y.array

    def tiles(self, batch: int) -> int:
        """Task tiles of a call."""
        return 0 if self.work.empty else self.lowered.tiles_per_sample * batch

    def __call__(
        self,
        x: np.ndarray,
        kernel: np.ndarray,
        bias: np.ndarray | None,
        rng: np.random.Generator | None = None,
        begin: int | None = None,
    ) -> np.ndarray:
        """The layer's output. With ``rng`` also: any cut and order of the tiles, the same bits."""
        packed = self.lowered.pack(kernel, bias)
        compiled = self.packed(kernel, bias)
        assert same_values(packed, compiled), "the packers of NumPy and of the library differ"
        y = self.run(x, packed, begin=begin)
        if rng is not None:
            order = list(cuts(self.tiles(x.shape[0]), rng))
            again = self.run(x, packed, order, begin)
            assert again.tobytes() == y.tobytes(), f"the tiles {order} give other bits"
        return y


def _as_it_ships() -> bool:
    """Whether it is the running test's turn: by its name, so that it is in every run or in none."""
    if os.environ.get("HYPOTHESIS_PROFILE") == "nightly":
        return True
    name = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    return zlib.crc32(name.encode()) % _TURN == 0


def whole_numbers(
    config: LayerConfig, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Input, kernel and bias, small: exact in every dtype, so that a wrong product cannot hide."""
    x = rng.integers(-2, 3, shape).astype(np.float64)
    kernel = rng.integers(-2, 3, config.kernel_shape(shape[config.channel_axis])).astype(np.float64)
    bias = rng.integers(-2, 3, config.filters).astype(np.float64) if config.use_bias else None
    return x, kernel, bias


def same_values(a: np.ndarray, b: np.ndarray) -> bool:
    """Bit for bit, but a NaN is a NaN."""
    unsigned = {4: np.uint32, 8: np.uint64}[a.itemsize]
    return a.shape == b.shape and bool(
        ((a.view(unsigned) == b.view(unsigned)) | (np.isnan(a) & np.isnan(b))).all()
    )


def cuts(tiles: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Ranges that cover all tiles, of random lengths and in random order."""
    inner = rng.permutation(np.arange(1, max(1, tiles)))[:5]
    ranges = list(itertools.pairwise([0, *sorted(int(at) for at in inner), tiles]))
    for index in rng.permutation(len(ranges)):
        yield ranges[index]


def variants(tiling: Tiling, **changes: Any) -> Tiling:
    """The tiling with other decisions."""
    return dataclasses.replace(tiling, **changes)
