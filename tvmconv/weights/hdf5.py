"""A walk through HDF5 files that follows hard links only.

The file is read through a Python file object, so the HDF5 library has no path from which
it could open a second file; links that leave the file are refused before they are opened.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from tvmconv.errors import WeightsError
from tvmconv.weights.archive import open_regular
from tvmconv.weights.refusal import guard, refuse

__all__ = ["SIGNATURE", "File", "h5py_module"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_DEPTH = 64
_MAX_OBJECTS = 200_000
_MAX_ATTRIBUTE = 1 << 26


def h5py_module() -> ModuleType:
    """Import h5py, or say which extra installs it."""
    try:
        import h5py
    except ImportError as error:
        raise WeightsError(
            "reading HDF5 weights needs h5py, which is not installed; "
            'expected the extra: pip install "tvmconv[weights]"'
        ) from error
    return h5py  # type: ignore[no-any-return]


class File:
    """One HDF5 file, open for reading; a context manager.

    Parameters
    ----------
    source
        A path, or the bytes of a member of an archive.
    name
        How messages call it.

    Raises
    ------
    WeightsError
        From every method: the file is damaged, or holds what no weights file needs.
    """

    def __init__(self, source: Path | bytes, name: str) -> None:
        self.name = name
        self._h5py = h5py_module()
        self._handle: BinaryIO = (
            BytesIO(source) if isinstance(source, bytes) else open_regular(source)
        )
        self.size = self._handle.seek(0, os.SEEK_END)
        self._handle.seek(0)
        try:
            if self._handle.read(len(SIGNATURE)) != SIGNATURE:
                raise refuse(name, "not an HDF5 file")
            self._handle.seek(0)
            with self.guard("damaged HDF5 file"):
                self._file = self._h5py.File(self._handle, "r")
        except BaseException:
            self._handle.close()
            raise

    def __enter__(self) -> File:
        return self

    def __exit__(self, *unused: object) -> None:
        try:
            with self.guard("damaged HDF5 file"):
                self._file.close()
        finally:
            self._handle.close()

    def guard(self, what: str) -> Any:  # noqa: ANN401 - contextlib's own type is private
        """Turn errors of the HDF5 library into a refusal."""
        return guard(self.name, what)

    @property
    def root(self) -> Any:  # noqa: ANN401 - h5py has no types
        """The root group (`h5py.h5g.GroupID`)."""
        with self.guard("damaged HDF5 file"):
            return self._h5py.h5g.open(self._file.id, b"/")

    def names(self, group: Any) -> list[str]:  # noqa: ANN401
        """Names of the links in a group."""
        found: list[str] = []
        with self.guard("damaged HDF5 group"):
            if group.get_num_objs() > _MAX_OBJECTS:
                raise refuse(self.name, f"a group of more than {_MAX_OBJECTS} entries")
            # Returning None goes on to the next link.
            group.links.iterate(lambda name: found.append(self._text(name)))
        return found

    def child(self, group: Any, name: str) -> Any:  # noqa: ANN401
        """Open the object behind one hard link; None where there is no such link.

        Returns
        -------
        `h5py.h5g.GroupID`, `h5py.h5d.DatasetID` or `h5py.h5t.TypeID`.
        """
        h5py = self._h5py
        with self.guard(f"damaged HDF5 link {name!r}"):
            key = name.encode("utf-8")
            if not name or name in (".", "..") or "/" in name or b"\0" in key:
                return None
            if not group.links.exists(key):
                return None
            kind = group.links.get_info(key).type
            if kind != h5py.h5l.TYPE_HARD:
                word = {h5py.h5l.TYPE_SOFT: "a soft", h5py.h5l.TYPE_EXTERNAL: "an external"}
                raise refuse(
                    self.name, f"{name!r} is {word.get(kind, 'a foreign kind of')} HDF5 link"
                )
            return h5py.h5o.open(group, key)

    def find(self, path: str) -> Any:  # noqa: ANN401
        """Open the object at ``path`` below the root, link by link; None if it is not there."""
        parts = path.split("/")
        if len(parts) > MAX_DEPTH:
            raise refuse(self.name, f"an HDF5 path of {len(parts)} parts, at most {MAX_DEPTH}")
        found = self.root
        for part in parts:
            if not self.is_group(found):
                return None
            found = self.child(found, part)
        return found

    def is_group(self, found: Any) -> bool:  # noqa: ANN401
        """Whether an opened object is a group."""
        return isinstance(found, self._h5py.h5g.GroupID)

    def is_dataset(self, found: Any) -> bool:  # noqa: ANN401
        """Whether an opened object is a dataset."""
        return isinstance(found, self._h5py.h5d.DatasetID)

    def groups(self) -> Iterator[tuple[str, Any]]:
        """All groups below the root with their paths, depth first.

        Raises
        ------
        WeightsError
            Deeper than 64, more than 200,000 objects, a link that is not hard, or a group reached
            twice (a cycle, or a tree that doubles at each level).
        """
        h5py = self._h5py
        seen: set[int] = set()
        count = 0
        waiting = [("", self.root)]
        while waiting:
            path, group = waiting.pop()
            with self.guard("damaged HDF5 group"):
                address = int(h5py.h5o.get_info(group).addr)
            if address in seen:
                raise refuse(
                    self.name, f"the HDF5 group {path!r} is reached twice (a hard link cycle)"
                )
            seen.add(address)
            yield path, group
            names = self.names(group)
            count += len(names)
            if count > _MAX_OBJECTS:
                raise refuse(self.name, f"more than {_MAX_OBJECTS} HDF5 objects")
            if path.count("/") + 2 > MAX_DEPTH and names:
                raise refuse(self.name, f"HDF5 groups nested deeper than {MAX_DEPTH}")
            for name in reversed(names):
                below = self.child(group, name)
                if self.is_group(below):
                    waiting.append((f"{path}/{name}" if path else name, below))

    def strings(self, found: Any, name: str) -> list[str] | None:  # noqa: ANN401
        """The strings of an attribute of an object; None where it has no such attribute.

        Raises
        ------
        WeightsError
            The attribute is no list of strings, or over 64 MB once read.
        """
        h5py = self._h5py
        what = f"the attribute {name!r}"
        with self.guard(f"damaged HDF5 file, {what}"):
            key = name.encode("utf-8")
            if not h5py.h5a.exists(found, key):
                return None
            attribute = h5py.h5a.open(found, key)
            kind = attribute.get_type()
            if not isinstance(kind, h5py.h5t.TypeStringID):
                # Keras stores an empty list as an empty float array.
                if attribute.get_space().get_simple_extent_npoints() == 0:
                    return []
                raise refuse(self.name, f"{what} holds no strings")
            count = int(attribute.get_space().get_simple_extent_npoints())
            each = self._longest_string(count) if kind.is_variable_str() else kind.get_size()
            if count * each > _MAX_ATTRIBUTE:
                raise refuse(self.name, f"{what} holds more than {_MAX_ATTRIBUTE} bytes")
            if count == 0:
                return []
            value = self._h5py.AttributeManager(_Holder(found))[name]
            items = [value] if isinstance(value, str | bytes) else list(value.reshape(-1))
            return [self._text(item) for item in items]

    def _longest_string(self, count: int) -> int:
        """Bound on the length of one string of variable length, without reading it.

        Such strings lie in heap collections (``GCOL``, version, 3 bytes, size). Many entries may
        point to the same long one: 64 KB of pointers to a 1 MB string would be 4 GB.
        """
        if count * self.size <= _MAX_ATTRIBUTE:
            return self.size
        longest = 0
        if isinstance(self._handle, BytesIO):
            data: Any = self._handle.getbuffer()
            longest = _longest_heap(bytes(data), self.size)
            data.release()
            return longest
        with mmap.mmap(self._handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _longest_heap(data, self.size)

    def _text(self, item: object) -> str:
        if isinstance(item, bytes):
            return item.decode("utf-8")
        if isinstance(item, str):
            return str(item)
        raise refuse(self.name, "an HDF5 attribute holds something else than text")


class _Holder:
    """What `h5py.AttributeManager` asks of an object: its identifier."""

    def __init__(self, found: Any) -> None:  # noqa: ANN401
        self.id = found


def _longest_heap(data: Any, size: int) -> int:  # noqa: ANN401 - bytes or mmap
    longest = 0
    at = data.find(b"GCOL\x01")
    while at >= 0:
        head = data[at + 8 : at + 16]
        if len(head) == 8:  # noqa: PLR2004 - bytes of the size field
            (length,) = struct.unpack("<Q", head)
            if length <= size - at:
                longest = max(longest, length)
        at = data.find(b"GCOL\x01", at + 1)
    return longest
