"""What the tests inside a process with the fake driver share: its counts, a device, a call."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import launcher_sample
import numpy as np
import pytest
import sample_library as sample
from launcher_sample import Args

from tvmconv.codegen import link

COUNTS = (
    "allocations", "contexts", "modules", "streams", "events", "corrupt", "stack", "launches",
    "captured", "mistakes",
)  # fmt: skip
SIZES = (sample.DEPTH, sample.HEIGHT, sample.ROW, sample.CHANNELS)
CUDA = ctypes.CDLL("libcuda.so.1")
CUDA.fake_count.restype = ctypes.c_int64
CUDA.fake_context.restype = ctypes.c_void_p


def count(what: str) -> int:
    return int(CUDA.fake_count(COUNTS.index(what)))


def fail(function: str, nth: int, result: int) -> None:
    CUDA.fake_fail(function.encode(), nth, result)


@lru_cache(maxsize=4)
def built(baked: bool, cpu: bool) -> bytes:
    """A shared library."""
    with tempfile.TemporaryDirectory() as folder:
        made = launcher_sample.parts(Path(folder), baked=baked, cpu=cpu)
        return link(made, Path(folder) / "out").library.read_bytes()


class Loaded:
    """A library in a file of its own, loaded and unloaded."""

    def __init__(self, folder: Path, *, baked: bool = True, cpu: bool = False) -> None:
        (folder / "libup1.so").write_bytes(built(baked, cpu))
        self.library = sample.Library(folder)

    def unload(self) -> None:
        dlclose = ctypes.CDLL(None).dlclose
        dlclose.argtypes = [ctypes.c_void_p]
        assert dlclose(self.library.handle._handle) == 0


class Device:
    """A device, current in this thread, and what is allocated on it."""

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        self.context = ctypes.c_void_p()
        assert CUDA.cuInit(0) == 0
        assert CUDA.cuDevicePrimaryCtxRetain(ctypes.byref(self.context), 100 + ordinal) == 0
        self.pointers: list[int] = []
        self.entered = 0

    def __enter__(self) -> Device:
        assert CUDA.cuCtxPushCurrent_v2(self.context) == 0
        self.entered += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.entered -= 1
        if self.entered == 0:
            for pointer in self.pointers:
                assert CUDA.cuMemFree_v2(ctypes.c_uint64(pointer)) == 0
        CUDA.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        if self.entered == 0:
            CUDA.cuDevicePrimaryCtxRelease_v2(100 + self.ordinal)

    def array(self, values: np.ndarray) -> int:
        self.pointers.append(launcher_sample.device_array(CUDA, values))
        return self.pointers[-1]

    def stream(self) -> int:
        found = ctypes.c_void_p()
        assert CUDA.cuStreamCreate(ctypes.byref(found), 0) == 0
        return found.value or 0


def fetch(pointer: int, shape: tuple[int, ...]) -> np.ndarray:
    values = np.empty(shape, np.float32)
    ctypes.memmove(values.ctypes.data, pointer, values.nbytes)
    return values


class Call:
    """A call that is right, on one device."""

    def __init__(self, library: sample.Library, device: Device, batch: int = 2) -> None:
        self.library, self.device = library, device
        self.x = np.random.default_rng(1).normal(size=(batch, *SIZES)).astype(np.float32)
        self.y = np.full_like(self.x, np.nan)
        size = library["workspace_size"](0, 0)
        self.args = Args(
            size=ctypes.sizeof(Args),
            input=device.array(self.x),
            output=device.array(self.y),
            workspace=device.array(np.zeros(size, np.uint8)),
            workspace_size=size,
            device=device.ordinal,
        )

    def run(self, **changed: int | None) -> int:
        for field, value in changed.items():
            setattr(self.args, field, value)
        return self.library.run(self.args)

    def right(self) -> bool:
        y = fetch(self.args.output or 0, self.x.shape)
        return np.array_equal(y, sample.expected(self.x))


@pytest.fixture(autouse=True)
def everything_is_given_back() -> Iterator[None]:
    yield
    assert {what: count(what) for what in ("corrupt", "stack", "mistakes")} == {
        "corrupt": 0, "stack": 0, "mistakes": 0,
    }  # fmt: skip


@pytest.fixture
def library(tmp_path: Path) -> Iterator[sample.Library]:
    before = [count(what) for what in COUNTS[:5]]
    loaded = Loaded(tmp_path)
    yield loaded.library
    loaded.unload()
    assert [count(what) for what in COUNTS[:5]] == before
