"""A walk through HDF5 files that follows hard links only.

The file is read through a Python file object, so the HDF5 library has no path from which
it could open a second file; links that leave the file are refused before they are opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from tvmconv.errors import WeightsError
from tvmconv.weights.archive import open_regular
from tvmconv.weights.attributes import SIGNATURE, START, Reader, check_start
from tvmconv.weights.refusal import guard, refuse

__all__ = ["SIGNATURE", "File", "h5py_module"]

MAX_DEPTH = 64
_MAX_OBJECTS = 200_000


def h5py_module() -> ModuleType:
    """Import h5py, or say which extra installs it."""
    try:
        import h5py
    except ImportError as error:
        raise WeightsError(
            "reading HDF5 weights needs h5py, which is not installed; "
            'expected the extra: pip install "tvmconv[weights]"'
        ) from error
    return h5py


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
        self._attributes = Reader(self._handle, self.size, name)
        try:
            check_start(self._handle.read(START), name)
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

    def guard(self, what: str) -> Any:
        """Turn errors of the HDF5 library into a refusal."""
        return guard(self.name, what)

    @property
    def root(self) -> Any:
        """The root group (`h5py.h5g.GroupID`)."""
        with self.guard("damaged HDF5 file"):
            return self._h5py.h5g.open(self._file.id, b"/")

    def names(self, group: Any) -> list[str]:
        """Names of the links in a group."""
        found: list[bytes] = []
        with self.guard("damaged HDF5 group"):
            if group.get_num_objs() > _MAX_OBJECTS:
                raise refuse(self.name, f"a group of more than {_MAX_OBJECTS} entries")
            # The callback must not raise; returning None, it goes on to the next link.
            group.links.iterate(found.append)
            return [name.decode("utf-8") for name in found]

    def child(self, group: Any, name: str) -> Any:
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

    def find(self, path: str) -> Any:
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

    def is_group(self, found: Any) -> bool:
        """Whether an opened object is a group."""
        return isinstance(found, self._h5py.h5g.GroupID)

    def is_dataset(self, found: Any) -> bool:
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

    def strings(self, found: Any, name: str) -> list[str] | None:
        """The strings of an attribute of an object; None where it has no such attribute.

        Raises
        ------
        WeightsError
            The attribute is no list of strings, or over 64 MB once read.
        """
        with self.guard(f"damaged HDF5 file, the attribute {name!r}"):
            address = int(self._h5py.h5o.get_info(found).addr)
            return self._attributes.strings(address, name)
