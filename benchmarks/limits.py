"""What the machine can do: matrix products and memory traffic, measured beside the layers."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.data import Array, Data, aligned
from benchmarks.runners import Prepared

__all__ = ["EDGE", "Copy", "Fill", "NumpySgemm", "TorchSgemm"]

EDGE = 1536  # of the matrices: 3 * 9 MiB, well above where sgemm reaches its best rate
_BYTES = 1 << 27  # of an array that is copied or filled: beyond every cache that two cores have
# Stores that go past the caches, which no function of the C library is sure to use.
_STREAM = r"""
#include <stddef.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
void fill(char *p, size_t n) {
    __m256 v = _mm256_set1_ps(1.0f);
    for (size_t i = 0; i + 32 <= n; i += 32) _mm256_stream_ps((float *)(p + i), v);
    _mm_sfence();
}
#else
void fill(char *p, size_t n) { memset(p, 1, n); }
#endif
"""


def _nothing() -> Array | None:
    return None


class NumpySgemm:
    """The product of two square matrices by the BLAS inside NumPy."""

    version = np.__version__

    def __init__(self, threads: int) -> None:
        del threads  # the environment of the process says how many
        generator = np.random.default_rng(0)
        self._a = aligned(generator.standard_normal((EDGE, EDGE), dtype=np.float32))
        self._b = aligned(generator.standard_normal((EDGE, EDGE), dtype=np.float32))
        self._c = aligned(np.zeros((EDGE, EDGE), np.float32))

    def prepare(self, data: Data, artifact: Path | None) -> Prepared:
        """The same product for every layer."""
        del data, artifact
        return Prepared(lambda: np.matmul(self._a, self._b, out=self._c), _nothing, 2 * EDGE**3)


class TorchSgemm:
    """The same product by PyTorch (MKL)."""

    def __init__(self, threads: int) -> None:
        import torch

        self.version = torch.__version__
        torch.set_num_threads(threads)
        generator = torch.Generator().manual_seed(0)
        self._a = torch.randn(EDGE, EDGE, generator=generator)
        self._b = torch.randn(EDGE, EDGE, generator=generator)
        self._c = torch.zeros(EDGE, EDGE)
        self._mm = torch.mm

    def prepare(self, data: Data, artifact: Path | None) -> Prepared:
        """The same product for every layer."""
        del data, artifact
        return Prepared(lambda: self._mm(self._a, self._b, out=self._c), _nothing, 2 * EDGE**3)


class _Memory:
    """Work on parts of a large array, each in a thread; ctypes releases Python's lock."""

    version = "libc"

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._target = _aligned(_BYTES)

    def _run(self, part: Callable[[int, int], None]) -> None:
        size = _BYTES // self._threads // 64 * 64
        starts = [index * size for index in range(self._threads)]
        if self._threads == 1:
            part(0, size)
        else:
            list(self._pool.map(lambda start: part(start, size), starts))


class Copy(_Memory):
    """The C library's memcpy; bytes read and bytes written both count."""

    def prepare(self, data: Data, artifact: Path | None) -> Prepared:
        """The same copy for every layer."""
        del data, artifact
        source = _aligned(_BYTES)
        memcpy = ctypes.CDLL(None).memcpy
        memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        to, where = self._target.ctypes.data, source.ctypes.data

        def part(start: int, size: int) -> None:
            memcpy(to + start, where + start, size)

        def call() -> None:
            self._run(part)

        def output() -> Array | None:
            assert source.size == self._target.size
            return None

        return Prepared(call, output, 2 * (_BYTES // self._threads // 64 * 64) * self._threads)


class Fill(_Memory):
    """Stores past the caches; memset without a C compiler or without AVX."""

    def prepare(self, data: Data, artifact: Path | None) -> Prepared:
        """The same fill for every layer."""
        del data, artifact
        fill = _stream()
        to = self._target.ctypes.data

        def part(start: int, size: int) -> None:
            fill(to + start, size)

        return Prepared(
            lambda: self._run(part),
            _nothing,
            _BYTES // self._threads // 64 * 64 * self._threads,
        )


def _aligned(size: int) -> Array:
    """Bytes at a multiple of 64, in memory that is already there."""
    whole = np.zeros(size + 64, np.uint8)
    whole.fill(1)
    start = -whole.ctypes.data % 64
    return whole[start : start + size]


def _stream() -> Callable[[int, int], None]:
    """The function that fills."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        memset = ctypes.CDLL(None).memset
        memset.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
        return lambda where, size: memset(where, 1, size)
    with tempfile.TemporaryDirectory(prefix="tvmconv-bench-") as folder:
        source, library = Path(folder) / "stream.c", Path(folder) / "stream.so"
        source.write_text(_STREAM)
        flags = ["-O2", "-march=native", "-shared", "-fPIC"]
        command = [compiler, *flags, "-o", str(library), str(source)]
        subprocess.run(command, check=True, capture_output=True)
        function = ctypes.CDLL(str(library)).fill
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_size_t), None
    fill: Callable[[int, int], None] = function
    return fill
