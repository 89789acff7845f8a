"""A small library with a kernel written by hand in C: the run time without a compiler."""

from __future__ import annotations

import ctypes
import hashlib
import platform
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from tvmconv.artifact import Manifest
from tvmconv.codegen import toolchain
from tvmconv.codegen.entry import ERRORS
from tvmconv.codegen.parts import KernelShape, Parts, Variant

C_SOURCES = Path(__file__).parent / "c"
CHANNELS, ROW, DEPTH, HEIGHT = 8, 6, 5, 7
SCRATCH = 4 * CHANNELS * ROW
GUARD = 64  # bytes before and behind an output
PACKED_BYTES = 2 * 4 * CHANNELS
CODES = {name: code for code, (name, _) in enumerate(ERRORS)}
TRIPLE = f"{platform.machine()}-linux-gnu"


class Args(ctypes.Structure):
    """NAME_args."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("input", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("workspace_size", ctypes.c_size_t),
        ("threads", ctypes.c_int32),
        ("shape", ctypes.c_int32),
        ("batch", ctypes.c_int64),
        ("parallel_for", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    ]


@lru_cache(maxsize=8)
def kernel_object(name: str, folder: Path, *flags: str) -> bytes:
    """Object code of the kernel of ``tests/c/kernel.c`` under the names of one artifact."""
    names = [f"-DKERNEL={name}_kernel_0_0", f"-DPACKER={name}_pack"]
    source = str(C_SOURCES / "kernel.c")
    out = f"{name}{'-'.join(flags)}.o".replace("/", "_")
    cc = toolchain.find()
    cc.run(["-O2", "-fPIC", *names, *flags, "-c", source, "-o", out], folder)
    return (folder / out).read_bytes()


def weights() -> tuple[np.ndarray, np.ndarray]:
    """Kernel (a diagonal) and bias."""
    random = np.random.default_rng(3)
    kernel = np.zeros((1, 1, 1, CHANNELS, CHANNELS), np.float32)
    np.einsum("abcii->abci", kernel)[...] = random.normal(size=CHANNELS)
    return kernel, random.normal(size=CHANNELS).astype(np.float32)


def packed() -> bytes:
    """What the packer writes for `weights()`."""
    kernel, bias = weights()
    diagonal = kernel[0, 0, 0].diagonal()
    return diagonal[::-1].tobytes() + bias[::-1].tobytes()


def manifest(name: str, shapes: list[tuple[int, ...]], *, baked: bool) -> Manifest:
    """The manifest of a sample library."""
    opened = tuple(tuple(None if n < 0 else n for n in shape) for shape in shapes)
    digest = hashlib.sha256(packed()).hexdigest()
    return Manifest(
        name=name,
        layer={"filters": CHANNELS, "kernel_size": [1, 1, 1]},
        input_shapes=opened,
        output_shapes=opened,
        input_dtype="float32",
        output_dtype="float32",
        variable_dtype="float32",
        target={"triple": TRIPLE, "cpu": "", "features": [], "fingerprint": "sample"},
        schedule={"origin": "default", "form": "sample", "decisions": {}},
        algorithm="direct",
        nonfinite="exact",
        weights={
            "mode": "baked" if baked else "external",
            "packed_bytes": PACKED_BYTES,
            "sha256": digest if baked else None,
        },
        workspace_bytes=(SCRATCH + 64,) * len(shapes),
        flops=(2 * CHANNELS * ROW * DEPTH * HEIGHT,) * len(shapes),
        code_sha256="0" * 64,
        check={"where": "host", "tolerance": 1e-6, "max_error": 0.0},
        threads=0,
        tvmconv="0.1",
        tvm="0.27.0",
        llvm="22.1",
    )


def parts(
    folder: Path,
    name: str = "up1",
    *,
    baked: bool = True,
    batches: tuple[int, ...] = (2, -1),
    features: tuple[str, ...] = (),
    flags: tuple[str, ...] = (),
    triple: str = TRIPLE,
) -> Parts:
    """Parts of a sample library with one shape for each batch (-1: open)."""
    shapes = [(batch, DEPTH, HEIGHT, ROW, CHANNELS) for batch in batches]
    kernels = tuple(
        KernelShape(f"{name}_kernel_0_0", shape, shape, DEPTH * HEIGHT, SCRATCH) for shape in shapes
    )
    return Parts(
        name=name,
        variants=(Variant("sample", features, kernel_object(name, folder, *flags), kernels),),
        pack_symbol=f"{name}_pack",
        packed_bytes=PACKED_BYTES,
        bias_offset=PACKED_BYTES // 2,
        input_dtype="float32",
        output_dtype="float32",
        variable_dtype="float32",
        kernel_shape=(1, 1, 1, CHANNELS, CHANNELS),
        use_bias=True,
        baked=packed() if baked else None,
        triple=triple,
        threads=0,
        manifest=manifest(name, shapes, baked=baked).to_json(),
    )


def with_threads(made: Parts, threads: int) -> Parts:
    """The same parts with another meaning of 0 threads."""
    return replace(made, threads=threads)


def expected(x: np.ndarray) -> np.ndarray:
    """What the sample library computes."""
    kernel, bias = weights()
    return x * kernel[0, 0, 0].diagonal() + bias


class Library:
    """The functions of a library, by their names without the prefix."""

    def __init__(self, folder: Path, name: str = "up1") -> None:
        self.handle = ctypes.CDLL(str(folder / f"lib{name}.so"))
        self.name = name
        for text in ("manifest", "error_text"):
            self[text].restype = ctypes.c_char_p
        for sizes in ("input_shape", "output_shape"):
            self[sizes].restype = ctypes.POINTER(ctypes.c_int64)
        for size in ("workspace_size", "packed_weights_size"):
            self[size].restype = ctypes.c_size_t

    def __getitem__(self, function: str) -> ctypes._NamedFuncPointer:
        return getattr(self.handle, f"{self.name}_{function}")

    def run(self, args: Args) -> int:
        """Call NAME_run."""
        return int(self["run"](ctypes.byref(args)))

    def text(self, code: int) -> str:
        """NAME_error_text."""
        return self["error_text"](code).decode()


class Call:
    """Arguments of a call that is right, with bytes around the output that must stay."""

    def __init__(self, library: Library, batch: int = 2) -> None:
        self.library = library
        random = np.random.default_rng(1)
        shape = (batch, DEPTH, HEIGHT, ROW, CHANNELS)
        self.x = random.normal(size=shape).astype(np.float32)
        self.memory = np.full(self.x.nbytes + 2 * GUARD, 0x5A, np.uint8)
        self.y = self.memory[GUARD:-GUARD].view(np.float32).reshape(shape)
        self.workspace = np.full(library["workspace_size"](0, 64), 0x5A, np.uint8)
        self.args = Args(
            size=ctypes.sizeof(Args),
            input=self.x.ctypes.data,
            output=self.y.ctypes.data,
            workspace=self.workspace.ctypes.data,
            workspace_size=self.workspace.nbytes,
            threads=1,
        )

    def run(self, **changed: int | None) -> int:
        for field, value in changed.items():
            setattr(self.args, field, value)
        return self.library.run(self.args)

    def untouched(self) -> bool:
        return bool((self.memory == 0x5A).all() and (self.workspace == 0x5A).all())

    def right(self) -> bool:
        inside = np.array_equal(self.y, expected(self.x))
        around = (self.memory[:GUARD] == 0x5A).all() and (self.memory[-GUARD:] == 0x5A).all()
        return inside and bool(around)
