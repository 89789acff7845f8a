"""One HDF5 dataset: judged by what it declares, then read within that bound.

Chunks are unpacked here and not by the HDF5 library, which lets a deflated chunk grow
as long as its stream goes on.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np

from tvmconv.weights.hdf5 import File, h5py_module
from tvmconv.weights.refusal import refuse
from tvmconv.weights.tensor import Tensor

__all__ = ["outline", "tensor"]

_FREE_SIZE = 1 << 20
_MAX_RATIO = 1000
_FLOATS = {2: "float16", 4: "float32", 8: "float64"}
_DEFLATE, _SHUFFLE, _FLETCHER = 1, 2, 3
_MAX_RANK = 8


def tensor(file: File, found: Any, path: str) -> Tensor:
    """Judge the dataset ``found`` of ``file`` without reading its data.

    Returns
    -------
    Its shape and dtype; `Tensor.read` must be called while ``file`` is open.

    Raises
    ------
    WeightsError
        Not a dataset; virtual or stored outside the file; null or scalar; not a float of 2, 4 or
        8 bytes (or bfloat16 as 2 opaque bytes); an unknown filter; or it declares more than 1 MB
        and 1000 times what is stored.
    """
    h5py = h5py_module()
    where = f"{file.name}: {path}"
    if not file.is_dataset(found):
        raise refuse(where, "expected an HDF5 dataset, found a group or a type")
    with file.guard(f"damaged HDF5 dataset {path}"):
        plan = found.get_create_plist()
        layout = plan.get_layout()
        if layout == h5py.h5d.VIRTUAL:
            raise refuse(where, "a virtual dataset, whose data lie in other files")
        if layout not in (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED):
            raise refuse(where, "an unknown HDF5 layout")
        if plan.get_external_count() > 0:
            raise refuse(where, "data stored in an external file")
        space = found.get_space()
        if space.get_simple_extent_type() != h5py.h5s.SIMPLE:
            raise refuse(where, "a scalar or empty dataset, expected an array")
        shape = tuple(int(n) for n in space.get_simple_extent_dims())
        if len(shape) > _MAX_RANK:
            raise refuse(where, f"an array of {len(shape)} dimensions")
        dtype, descr = _dtype(file, found, where)
        size = math.prod(shape) * descr.itemsize
        stored = int(found.get_storage_size())
        if stored > file.size:
            raise refuse(where, f"stores {stored} bytes in a file of {file.size}")
        if size > _FREE_SIZE and size > _MAX_RATIO * stored:
            raise refuse(
                where,
                f"declares {size} bytes and stores {stored}, "
                f"at most {_MAX_RATIO} times as many are read",
            )
        filters = [plan.get_filter(i) for i in range(plan.get_nfilters())]
        codes = [int(entry[0]) for entry in filters]
        if any(code not in (_DEFLATE, _SHUFFLE, _FLETCHER) for code in codes):
            raise refuse(where, f"an HDF5 filter that is not read (numbers {codes})")
        if layout == h5py.h5d.CHUNKED:
            chunk = tuple(int(n) for n in plan.get_chunk())
            chunk_size = math.prod(chunk) * descr.itemsize
            if chunk_size > max(_FREE_SIZE, 8 * size):
                raise refuse(where, f"chunks of {chunk_size} bytes in an array of {size}")

    def read() -> np.ndarray:
        with file.guard(f"damaged HDF5 dataset {path}"):
            if layout == h5py.h5d.CHUNKED:
                return _read_chunks(found, shape, descr, chunk, codes, where)
            values = np.zeros(shape, descr)
            if size and stored:
                found.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
            return values

    return Tensor(path=path, shape=shape, dtype=dtype, read=read)


def outline(file: File, found: Any, path: str) -> tuple[int, ...] | None:
    """Declared shape of a dataset that may belong to any layer; None for a scalar or empty one.

    The layout comes first: asking a virtual dataset for its shape may open its sources.
    """
    h5py = h5py_module()
    with file.guard(f"damaged HDF5 dataset {path}"):
        if found.get_create_plist().get_layout() == h5py.h5d.VIRTUAL:
            raise refuse(f"{file.name}: {path}", "a virtual dataset, whose data lie in other files")
        space = found.get_space()
        if space.get_simple_extent_type() != h5py.h5s.SIMPLE:
            return None
        return tuple(int(n) for n in space.get_simple_extent_dims())


def _dtype(file: File, found: Any, where: str) -> tuple[str, np.dtype]:
    """Name of the float type (``"opaque16"`` for 2 unnamed bytes) and how it is stored."""
    h5py = h5py_module()
    h5t = h5py.h5t
    kind = found.get_type()
    if isinstance(kind, h5t.TypeOpaqueID) and kind.get_size() == 2:
        name = "opaque16"
        if file.strings(found, "dtype") == ["bfloat16"]:
            name = "bfloat16"
        return name, np.dtype("V2")
    for stored, text in (
        (h5t.IEEE_F16LE, "<f2"),
        (h5t.IEEE_F32LE, "<f4"),
        (h5t.IEEE_F64LE, "<f8"),
        (h5t.IEEE_F16BE, ">f2"),
        (h5t.IEEE_F32BE, ">f4"),
        (h5t.IEEE_F64BE, ">f8"),
    ):
        if kind.equal(stored):
            descr = np.dtype(text)
            return _FLOATS[descr.itemsize], descr
    raise refuse(where, "expected floats of 2, 4 or 8 bytes, found another type")


def _read_chunks(
    found: Any,
    shape: tuple[int, ...],
    descr: np.dtype,
    chunk: tuple[int, ...],
    codes: list[int],
    where: str,
) -> np.ndarray:
    """Put the chunks together; a chunk that is not there holds zeros."""
    values = np.zeros(shape, descr)
    size = math.prod(chunk) * descr.itemsize
    most = math.prod(-(-n // c) for n, c in zip(shape, chunk, strict=True))
    count = found.get_num_chunks()
    if count > most:
        raise refuse(where, f"has {count} chunks, {most} cover the array")
    for index in range(count):
        info = found.get_chunk_info(index)
        start = tuple(int(n) for n in info.chunk_offset)
        if any(a % c or a >= n for a, c, n in zip(start, chunk, shape, strict=True)):
            raise refuse(where, f"a chunk at {start}, outside the array")
        if info.size > 2 * size + 4096:
            raise refuse(where, f"a chunk stored in {info.size} bytes that holds {size}")
        mask, data = found.read_direct_chunk(start)
        for place in reversed(range(len(codes))):
            if not mask >> place & 1:
                data = _undo(codes[place], data, size, descr.itemsize, where)
        if len(data) != size:
            raise refuse(where, f"a chunk of {len(data)} bytes, expected {size}")
        block = np.frombuffer(data, descr).reshape(chunk)
        inside = tuple(slice(0, min(c, n - a)) for a, c, n in zip(start, chunk, shape, strict=True))
        target = tuple(slice(a, a + s.stop) for a, s in zip(start, inside, strict=True))
        values[target] = block[inside]
    return values


def _undo(code: int, data: bytes, size: int, itemsize: int, where: str) -> bytes:
    """Undo one filter; never makes more than ``size`` bytes and a checksum."""
    if code == _DEFLATE:
        stream = zlib.decompressobj()
        plain = stream.decompress(data, size + 4)
        if not stream.eof:
            raise refuse(where, f"a deflated chunk that is damaged or longer than its {size} bytes")
        return plain
    if code == _SHUFFLE:
        if len(data) % itemsize:
            raise refuse(where, "a shuffled chunk of odd length")
        return np.frombuffer(data, np.uint8).reshape(itemsize, -1).T.tobytes()
    if len(data) < 4:
        raise refuse(where, "a chunk without its checksum")
    body, stored = data[:-4], int.from_bytes(data[-4:], "little")
    if _fletcher32(body) != tuple(half % 65535 for half in (stored >> 16, stored & 0xFFFF)):
        raise refuse(where, "a chunk with a wrong checksum")
    return body


def _fletcher32(data: bytes) -> tuple[int, int]:
    """Both sums of HDF5's Fletcher checksum, modulo 65535, over big-endian 16-bit words."""
    words = np.frombuffer(data + b"\0" * (len(data) % 2), ">u2").astype(np.uint64)
    first = second = 0
    block = 1 << 16
    for at in range(0, len(words), block):
        part = words[at : at + block]
        count = len(part)
        weighted = int((part * np.arange(count, 0, -1, dtype=np.uint64)).sum())
        second = (second + first * count + weighted) % 65535
        first = (first + int(part.sum())) % 65535
    return second, first
