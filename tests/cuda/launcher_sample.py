"""A library for CUDA devices with kernels written by hand in C, and the driver that runs them."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import sample_library as sample

from tvmconv.codegen import toolchain
from tvmconv.codegen.cuda import launcher
from tvmconv.codegen.cuda.launcher import CudaPart
from tvmconv.codegen.cuda.parts import CudaShape, Launch
from tvmconv.codegen.parts import KernelShape, Parts, Variant

SOURCES = Path(__file__).parent
FATBIN = b"\x50\xed\x55\xba" + b"sample" * 20
BIAS_OFFSET = 256
CODES = {name: code for code, (name, _) in enumerate(launcher.ERRORS, launcher.FIRST_ERROR)}
CODES |= sample.CODES


class Args(sample.Args):
    """NAME_args of a library with a CUDA part."""

    _fields_ = [("stream", ctypes.c_void_p), ("device", ctypes.c_int32)]  # noqa: RUF012


def packed() -> bytes:
    """What the packer of the CUDA part writes for `sample.weights()`."""
    kernel, bias = sample.weights()
    return kernel[0, 0, 0].diagonal().tobytes().ljust(BIAS_OFFSET, b"\0") + bias.tobytes()


def shape(batch: int) -> CudaShape:
    """Two launches with every kind of argument."""
    sizes = (batch, sample.DEPTH, sample.HEIGHT, sample.ROW, sample.CHANNELS)
    first = Launch(
        "sample_products", (3, 2, 1), True, (32, 1, 1), 100_000,
        ("input", "weights", "workspace", "batch"),
    )  # fmt: skip
    second = Launch(
        "sample_sums", (4, 1, 1), False, (64, 2, 1), 0,
        ("batch", "output", "bias", "workspace", "input"),
    )  # fmt: skip
    return CudaShape(sizes, sizes, (first, second), 4 * sample.CHANNELS)


def packer(name: str, folder: Path) -> bytes:
    """Object code of the packer."""
    flags = ["-O2", "-fPIC", f"-DCUDA_PACKER={name}_cuda_pack", "-c"]
    toolchain.find().run([*flags, str(SOURCES / "sample_kernel.c"), "-o", "cuda.o"], folder)
    return (folder / "cuda.o").read_bytes()


def parts(
    folder: Path,
    name: str = "up1",
    *,
    baked: bool = True,
    cpu: bool = False,
    batches: tuple[int, ...] = (2, -1),
) -> Parts:
    """Parts of a library for CUDA devices, with a CPU version beside it where `cpu`."""
    made = sample.parts(folder, name, baked=baked, batches=batches)
    shapes = tuple(shape(batch) for batch in batches)
    part = CudaPart(
        FATBIN, shapes, f"{name}_cuda_pack", packer(name, folder), len(packed()), BIAS_OFFSET, 4,
        packed() if baked else None,
    )  # fmt: skip
    manifest = sample.manifest(name, [one.input_shape for one in shapes], baked=baked)
    if not cpu:
        kernels = tuple(KernelShape("", s.input_shape, s.output_shape, 0, 0) for s in shapes)
        made = replace(
            made, variants=(Variant("", (), b"", kernels),), pack_symbol="", packed_bytes=0,
            bias_offset=0, baked=b"" if baked else None, cuda=part,
        )  # fmt: skip
    size = part.offset(made.packed_bytes) + part.packed_bytes
    target = {
        **manifest.target,
        "cuda": {
            "architectures": ["sm_80"],
            "cpu": cpu,
            "workspace_bytes": [4 * sample.CHANNELS] * len(shapes),
        },
    }
    weights = {**manifest.weights, "packed_bytes": size}
    text = replace(manifest, target=target, weights=weights).to_json()
    return replace(made, cuda=part, manifest=text)


def driver(folder: Path, *kernels: Path) -> dict[str, str]:
    """Build the fake driver: the environment of a process that finds it."""
    cc = toolchain.find()
    if not (folder / "libcuda.so.1").exists():
        shared = ["-std=c99", "-D_GNU_SOURCE", "-O1", "-fPIC", "-shared"]
        shared += ["-Wall", "-Wextra", "-Werror"]
        cc.run(
            [*shared, "-fvisibility=hidden", "-Wl,-soname,libcuda.so.1", "-o", "libcuda.so.1",
             str(SOURCES / "fake_libcuda.c"), "-ldl", "-lpthread"],
            folder,
        )  # fmt: skip
        cc.run(
            [*shared, "-DCUDA_PACKER=unused", str(SOURCES / "sample_kernel.c"), "-o", "kernels.so"],
            folder,
        )
    found = ":".join(map(str, kernels or (folder / "kernels.so",)))
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "FAKE_KERNELS": found}


def in_process(program: Path, *arguments: str | Path, environment: dict[str, str]) -> str:
    """Run a Python program of this folder in a process of its own; what it printed."""
    paths = [str(SOURCES), str(SOURCES.parent), environment.get("PYTHONPATH", "")]
    result = subprocess.run(
        [sys.executable, "-W", "error", str(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    assert result.returncode == 0, f"exit {result.returncode}:\n{result.stdout}{result.stderr}"
    return result.stdout


def device_array(driver: ctypes.CDLL, values: np.ndarray) -> int:
    """A copy of an array in the memory of the current device."""
    pointer = ctypes.c_uint64()
    assert driver.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(values.nbytes)) == 0
    source = np.ascontiguousarray(values)
    ctypes.memmove(pointer.value or 0, source.ctypes.data, source.nbytes)
    return pointer.value or 0
