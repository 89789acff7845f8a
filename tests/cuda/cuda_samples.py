"""A lean way from a layer to its GPU kernels, run without a GPU.

`Serial` compiles the kernels with all block and thread loops made serial for this processor;
`Emulated` compiles the very CUDA C that nvcc gets against the emulator's headers.
"""

from __future__ import annotations

import ctypes
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_kernels import emulated_library
from kernels import Guarded, target

from tvmconv.codegen import lowering, toolchain
from tvmconv.codegen.cuda import build, nvcc
from tvmconv.codegen.cuda.parts import CudaCode
from tvmconv.compute.cuda import lower
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.cuda_devices import architectures
from tvmconv.errors import BuildError
from tvmconv.schedules import cuda as rules

TARGETS = architectures(("sm_75", "sm_80", "sm_86", "sm_89", "sm_90"))
DEFINITION = CudaTiling("definition", 64, 4)


def _missing_nvcc() -> str:
    try:
        nvcc.find()
    except BuildError as exc:
        return str(exc)
    return ""


needs_nvcc = pytest.mark.skipif(bool(_missing_nvcc()), reason=_missing_nvcc() or "nvcc is here")
needs_gcc = pytest.mark.skipif(
    shutil.which("g++") is None, reason="the emulator of GPU threads is C++: needs g++"
)


class Layer:
    """One layer on one input shape, its tiling and its buffers."""

    def __init__(
        self,
        config: LayerConfig,
        input_shape: Sequence[int | None],
        tiling: CudaTiling | None = None,
    ) -> None:
        self.work = Workload.of(config, input_shape)
        self.tiling = tiling or rules.decide(self.work, TARGETS)
        self.form = lower(self.work, self.tiling)

    def run(
        self, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None, order: int = 0
    ) -> np.ndarray:
        """The output of one call; ``order`` is the order of the threads, where there is one."""
        work = self.work
        packed = np.frombuffer(self.form.pack(kernel, bias), np.uint8)
        total, offset, _ = self.form.packed_sizes
        assert packed.size == total
        x = np.ascontiguousarray(x.astype(numpy_dtype(work.input_dtype)))
        batch = x.shape[0]
        y = Guarded.empty((batch, *work.output_shape[1:]), numpy_dtype(work.output_dtype), 256)
        given = aligned(x)
        weights, start = aligned(packed[:offset]), aligned(packed[offset:])
        arrays = {"input": given, "weights": weights, "bias": start, "output": y}
        bytes_of = max((k.workspace_bytes for k in self.form.kernels()), default=0)
        # NaN, as floats: what is read before it was written shows.
        arrays["workspace"] = aligned(np.full(bytes_of, 0xFF, np.uint8))
        for number, kernel_of in enumerate(self.form.kernels()):
            values = [
                ctypes.c_int64(batch) if name == "batch" else arrays[name].address
                for name in kernel_of.arguments
            ]
            if batch:
                self.launch(number, values, batch, order)
        for name, one in arrays.items():
            one.check(name)
        assert given.array.tobytes() == x.tobytes(), "the input was written to"
        return y.array

    def launch(self, number: int, values: list[Any], batch: int, order: int) -> None:
        """Run kernel ``number``: serial, emulated or on a device, as a subclass says."""
        raise NotImplementedError


def aligned(values: np.ndarray) -> Guarded:
    """A guarded copy, aligned as device memory is."""
    made = Guarded(values.shape, values.dtype, 256)
    made.array[...] = values
    return made


class Serial(Layer):
    """All loops over blocks and threads serial, compiled by LLVM."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        functions = {f"k{i}": k.emit(f"k{i}", True) for i, k in enumerate(self.form.kernels())}
        if not functions:
            return
        code = lowering.emit(functions, target(), 0)  # it ships nowhere
        with tempfile.TemporaryDirectory(prefix="cuda-serial-") as folder:
            Path(folder, "k.o").write_bytes(code.object_code())
            toolchain.find().run(["-shared", "-o", "k.so", "k.o", "-lm"], Path(folder))
            self._library = ctypes.CDLL(str(Path(folder, "k.so")))

    def launch(self, number: int, values: list[Any], batch: int, order: int) -> None:
        del batch, order
        self._library[f"k{number}"](*values)


class Emulated(Layer):
    """The CUDA C itself, on emulated threads."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.code = build.source_of("layer", [self.work], [self.tiling])
        self._library = load(self.code)

    def launch(self, number: int, values: list[Any], batch: int, order: int) -> None:
        launch = self.code.shapes[0].launches[number]
        x, y, z = launch.grid
        grid = (x * batch if launch.per_sample else x, y, z)
        shared = launch.shared_bytes
        emulate(self._library, launch.symbol, grid, launch.block, values, order, shared)


_EMULATION = {
    1: "too many threads",
    2: "a barrier that some threads do not reach",
    4: "shared memory that was not asked for",
    3: "what a warp does together, and some threads do not reach",
}


def emulate(
    library: ctypes.CDLL,
    symbol: str,
    grid: Sequence[int],
    block: Sequence[int],
    values: list[Any],
    order: int = 0,
    shared: int = 0,
) -> None:
    """Run one kernel; ``order`` 0 is ascending threads, 1 descending, others shuffled by a seed."""
    pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
    dims = (ctypes.c_uint * 7)(*grid, *block, shared)
    code = library[f"emulate_{symbol}"](pointers, dims, ctypes.c_uint(order))
    assert code == 0, _EMULATION[code]


def load(code: CudaCode) -> ctypes.CDLL:
    """The emulated kernels as a library."""
    with tempfile.TemporaryDirectory(prefix="cuda-emulated-") as folder:
        launches = [one for shape in code.shapes for one in shape.launches]
        most = max((one.shared_bytes for one in launches), default=0)
        symbols = [one.symbol for one in launches]
        path = emulated_library(code.source, symbols, Path(folder), most)
        return ctypes.CDLL(str(path))
