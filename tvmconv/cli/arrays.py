"""Arrays in .npy and .npz files: read with sizes checked and no pickle, written whole or not."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tvmconv.errors import InputError
from tvmconv.replacement import replacement
from tvmconv.weights.archive import ZipMembers, open_regular
from tvmconv.weights.refusal import guard

__all__ = ["check_name", "read", "write"]

_SUFFIXES = (".npy", ".npz")
_LONGEST_HEADER = 10_000


def check_name(path: Path) -> None:
    """Refuse another suffix than .npy and .npz.

    Raises
    ------
    InputError
        It is another one.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"{path}: expected the name of a .npy or .npz file")


def read(path: Path) -> np.ndarray:
    """The array of a .npy file; of a .npz file the array ``x``, or the only one.

    Raises
    ------
    InputError
        The file is missing, damaged, or holds Python objects or no such array.
    """
    check_name(path)
    if path.suffix.lower() == ".npy":
        with open_regular(path) as handle, guard(str(path), "not a whole .npy file"):
            return _array(handle, os.fstat(handle.fileno()).st_size, str(path))
    with ZipMembers(path) as members:
        names = [name.removesuffix(".npy") for name in members.names() if name.endswith(".npy")]
        if len(names) != 1 and "x" not in names:
            known = ", ".join(repr(name) for name in names[:12]) or "none"
            raise InputError(f"{path}: expected one array, or one called 'x'; there are: {known}")
        name = names[0] if len(names) == 1 else "x"
        data = members.read(f"{name}.npy")
    where = f"{path}: {name}"
    with guard(where, "not a whole array"):
        return _array(io.BytesIO(data), len(data), where)


def _array(handle: BinaryIO | io.BytesIO, size: int, where: str) -> np.ndarray:
    formats = np.lib.format
    version = formats.read_magic(handle)
    if version not in ((1, 0), (2, 0)):
        raise InputError(f"{where}: a .npy array of version {version}, expected 1.0 or 2.0")
    header = formats.read_array_header_1_0 if version == (1, 0) else formats.read_array_header_2_0
    shape, fortran, dtype = header(handle, max_header_size=_LONGEST_HEADER)
    # bfloat16, which .npy files have no name for, is saved as two bytes of no type.
    if dtype.kind not in "fiu" and dtype != np.dtype("V2"):
        raise InputError(f"{where}: an array of type {dtype}, expected real numbers")
    held, declared = size - handle.tell(), math.prod(shape) * dtype.itemsize
    if any(side < 0 for side in shape) or held != declared:
        raise InputError(f"{where}: declares shape {shape}, {declared} bytes, and holds {held}")
    flat = np.frombuffer(handle.read(declared), dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def write(path: Path, array: np.ndarray) -> None:
    """Write an array to a file, whole or not at all; in a .npz file it is called ``y``.

    Raises
    ------
    InputError
        The file cannot be written. What was there stays.
    """
    try:
        with replacement(path) as file:
            if path.suffix.lower() == ".npz":
                np.savez(file, y=array)
            else:
                np.save(file, array, allow_pickle=False)
    except OSError as exc:
        raise InputError(f"{path} cannot be written: {exc.strerror or exc}") from exc
