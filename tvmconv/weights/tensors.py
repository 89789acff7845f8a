"""Single arrays: ``.npz`` without pickle and ``.safetensors``, headers read literally.

Both files hold the arrays ``kernel`` and, for a layer with bias, ``bias``.
"""

from __future__ import annotations

import io
import math
import re
import struct
from pathlib import Path

import numpy as np

from tvmconv.weights.archive import ZipMembers, open_regular
from tvmconv.weights.json_text import parse_object
from tvmconv.weights.refusal import guard, refuse
from tvmconv.weights.tensor import MAX_ELEMENTS, Tensor

__all__ = ["npz", "safetensors"]

_NPY_MAGIC = b"\x93NUMPY"
_MAX_NPY_HEADER = 4096
_MAX_ST_HEADER = 1 << 20
_MAX_RANK = 8
_NAMES = ("kernel", "bias")
_NPY_TYPES = {"f2": "float16", "f4": "float32", "f8": "float64", "V2": "opaque16"}
_ST_TYPES = {
    "F16": ("float16", "<f2"),
    "F32": ("float32", "<f4"),
    "F64": ("float64", "<f8"),
    "BF16": ("bfloat16", "V2"),
}
_ITEM = (
    r"\s*'(?:(?P<k{0}a>descr)'\s*:\s*'(?P<descr{0}>[<>|=]?[A-Za-z]\d{{0,4}})'"
    r"|(?P<k{0}b>fortran_order)'\s*:\s*(?P<order{0}>True|False)"
    r"|(?P<k{0}c>shape)'\s*:\s*\((?P<shape{0}>[0-9, ]*)\))\s*"
)
_HEADER = re.compile(r"\{" + ",".join(_ITEM.format(i) for i in range(3)) + r",?\s*\}\s*", re.ASCII)


def npz(path: Path) -> dict[str, Tensor]:
    """The arrays of an ``.npz`` file by name.

    Raises
    ------
    WeightsError
        Members other than ``kernel.npy`` and ``bias.npy``, object arrays (pickles), a header that
        is no plain literal, or data that are not exactly what the header declares.
    """
    found: dict[str, Tensor] = {}
    with ZipMembers(path) as members:
        for member in members.names():
            name = member.removesuffix(".npy")
            if name not in _NAMES or name == member:
                raise refuse(
                    str(path), f"holds {member!r}, expected the arrays kernel and bias only"
                )
            found[name] = _npy(members.read(member), name, f"{path}: {member}")
    return _complete(found, path)


def _npy(data: bytes, name: str, where: str) -> Tensor:
    with guard(where, "damaged array"):
        if data[:6] != _NPY_MAGIC or len(data) < 12:
            raise refuse(where, "not a .npy array")
        if data[6] == 1:
            start, (length,) = 10, struct.unpack_from("<H", data, 8)
        elif data[6] in (2, 3):
            start, (length,) = 12, struct.unpack_from("<L", data, 8)
        else:
            raise refuse(where, f"a .npy array of version {data[6]}")
        if length > _MAX_NPY_HEADER or start + length > len(data):
            raise refuse(where, f"a .npy header of {length} bytes")
        match = _HEADER.fullmatch(data[start : start + length].decode("utf-8"))
        fields = match.groupdict() if match else {}
        keys = {value for key, value in fields.items() if key.startswith("k") and value}
        if keys != {"descr", "fortran_order", "shape"}:
            raise refuse(where, "the .npy header is not a plain dict of descr, order and shape")
        descr, order, sides = (
            next(
                value for key, value in fields.items() if key.startswith(word) and value is not None
            )
            for word in ("descr", "order", "shape")
        )
        kind = _NPY_TYPES.get(descr.lstrip("<>|="))
        if kind is None:
            raise refuse(where, f"an array of type {descr}, expected floats of 2, 4 or 8 bytes")
        shape = _npy_shape(sides, where)
        dtype = np.dtype("V2") if kind == "opaque16" else np.dtype(descr)
        expected = math.prod(shape) * dtype.itemsize
        if expected != len(data) - start - length:
            raise refuse(
                where,
                f"declares shape {shape}, {expected} bytes, and holds {len(data) - start - length}",
            )
        flat = np.frombuffer(data, dtype, offset=start + length)
        values = flat.reshape(shape, order="F" if order == "True" else "C")
    return Tensor(path=name, shape=shape, dtype=kind, read=lambda: values)


def _npy_shape(text: str, where: str) -> tuple[int, ...]:
    sides = [part.strip() for part in text.split(",")]
    if sides and not sides[-1]:
        sides.pop()
    if len(sides) > _MAX_RANK or not all(re.fullmatch(r"\d{1,18}", side) for side in sides):
        raise refuse(where, f"the .npy shape ({text}) is not read")
    return tuple(int(side) for side in sides)


def safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file by name; the data stay in the file until read.

    Raises
    ------
    WeightsError
        A header over 1 MB or outside the file; a tensor that is not ``kernel`` or ``bias``; or
        offsets that do not tile the data without overlap, hole and tail.
    """
    file = str(path)
    with open_regular(path) as handle, guard(file, "damaged safetensors file"):
        size = handle.seek(0, io.SEEK_END)
        handle.seek(0)
        head = handle.read(8)
        if len(head) != 8:
            raise refuse(file, "shorter than a safetensors header")
        (length,) = struct.unpack("<Q", head)
        if length > _MAX_ST_HEADER or length > size - 8:
            raise refuse(file, f"declares a header of {length} bytes")
        header = parse_object(handle.read(length), file)
    header.pop("__metadata__", None)
    found: dict[str, Tensor] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        if name not in _NAMES:
            raise refuse(file, f"holds {name!r}, expected the tensors kernel and bias only")
        tensor, span = _safetensor(path, name, entry, 8 + length)
        found[name] = tensor
        spans.append(span)
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:
            raise refuse(file, f"the tensors leave a hole or overlap at byte {begin} of the data")
        end = stop
    if end != size - 8 - length:
        raise refuse(file, f"the tensors cover {end} of {size - 8 - length} bytes of data")
    return _complete(found, path)


def _safetensor(path: Path, name: str, entry: object, base: int) -> tuple[Tensor, tuple[int, int]]:
    file = str(path)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refuse(file, f"{name}: expected dtype, shape and data_offsets")
    kind = entry["dtype"]
    if not isinstance(kind, str) or kind not in _ST_TYPES:
        raise refuse(file, f"{name}: dtype {kind!r}, expected one of {', '.join(_ST_TYPES)}")
    dtype, descr = _ST_TYPES[kind]
    shape, offsets = entry["shape"], entry["data_offsets"]
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or len(numbers) > _MAX_RANK:
            raise refuse(file, f"{name}: shape and data_offsets must be short lists")
        if any(type(n) is not int or not 0 <= n < 1 << 62 for n in numbers):
            raise refuse(file, f"{name}: expected integers from 0 on, found {numbers!r}")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse(file, f"{name}: data_offsets {offsets} do not begin before they end")
    count = math.prod(shape)
    if count > MAX_ELEMENTS or count * np.dtype(descr).itemsize != offsets[1] - offsets[0]:
        raise refuse(file, f"{name}: shape {shape} does not fill the bytes {offsets}")

    def read() -> np.ndarray:
        with open_regular(path) as handle, guard(file, f"{name} cannot be read"):
            handle.seek(base + offsets[0])
            data = handle.read(offsets[1] - offsets[0])
            return np.frombuffer(data, descr).reshape(shape)

    tensor = Tensor(path=name, shape=tuple(shape), dtype=dtype, read=read)
    return tensor, (offsets[0], offsets[1])


def _complete(found: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    if "kernel" not in found:
        raise refuse(str(path), f"holds {sorted(found)}, expected the array kernel")
    return found
