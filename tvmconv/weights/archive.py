"""Members of zip files and of unzipped model folders, read by name into memory only.

Nothing is ever extracted. Members that are not asked for are ignored, whatever
they are called.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from tvmconv.weights.refusal import guard, refuse

__all__ = ["ZipMembers", "open_regular", "read_regular"]

_MAX_DIRECTORY = 4 << 20
_MAX_DEFLATED = 1 << 28
_FREE_SIZE = 1 << 20
_MAX_RATIO = 100
_END = b"PK\x05\x06"
_END64 = b"PK\x06\x06"
_END_SIZE = 22
_ENCRYPTED = 0x1 | 0x40


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; a pipe or a device would block or never end."""
    name = str(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise refuse(name, "expected a regular file")
        return path.open("rb")
    except FileNotFoundError as error:
        raise refuse(name, "no such file") from error
    except (OSError, ValueError) as error:
        raise refuse(name, f"cannot be read ({error})") from error


def read_regular(path: Path, limit: int) -> bytes:
    """Whole content of a regular file of at most ``limit`` bytes."""
    with open_regular(path) as handle, guard(str(path), "cannot be read"):
        size = os.fstat(handle.fileno()).st_size
        if size > limit:
            raise refuse(str(path), f"has {size} bytes, at most {limit} are read")
        return handle.read(limit)


class ZipMembers:
    """Members of one zip file, each checked before a byte of it is unpacked.

    Parameters
    ----------
    path
        The zip file.

    Raises
    ------
    WeightsError
        Not a zip file, truncated, or with a directory over 4 MB.
    """

    def __init__(self, path: Path) -> None:
        self.file = str(path)
        self._handle = open_regular(path)
        try:
            with guard(self.file, "not a whole zip file"):
                self._check_directory()
                self._zip = zipfile.ZipFile(self._handle)
        except BaseException:
            self._handle.close()
            raise

    def __enter__(self) -> ZipMembers:
        return self

    def __exit__(self, *unused: object) -> None:
        self._zip.close()
        self._handle.close()

    def names(self) -> list[str]:
        """Names of all members, as the directory lists them."""
        return [info.filename for info in self._zip.infolist()]

    def read(self, member: str, limit: int | None = None) -> bytes:
        """Content of the only member called ``member``.

        Parameters
        ----------
        member
            Exact name inside the archive.
        limit
            Most bytes to unpack. None: what the archive itself holds, when stored; 256 MB, when
            deflated (Keras stores).

        Raises
        ------
        WeightsError
            Missing, there twice, encrypted, a link, compressed by an unknown method, over the
            limit, larger than 1 MB and 100 times its packed size, or with a wrong checksum.
        """
        infos = [info for info in self._zip.infolist() if info.filename == member]
        where = f"{self.file}: {member}"
        if not infos:
            raise refuse(self.file, f"the archive has no member {member}")
        if len(infos) > 1:
            raise refuse(self.file, f"the archive has {len(infos)} members called {member}")
        info = infos[0]
        if info.flag_bits & _ENCRYPTED:
            raise refuse(where, "the member is encrypted")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise refuse(where, "the member is not a plain file")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refuse(where, f"compression method {info.compress_type} is not read")
        stored = info.compress_type == zipfile.ZIP_STORED
        if stored and info.file_size != info.compress_size:
            raise refuse(where, "a stored member whose two sizes differ")
        if info.file_size > _FREE_SIZE and info.file_size > _MAX_RATIO * info.compress_size:
            raise refuse(
                where,
                f"declares {info.file_size} bytes packed into {info.compress_size}, "
                f"at most {_MAX_RATIO} times as many are read",
            )
        most = limit if limit is not None else (self._size if stored else _MAX_DEFLATED)
        if info.file_size > most or info.compress_size > self._size:
            raise refuse(where, f"declares {info.file_size} bytes, at most {most} are read")
        with guard(where, "damaged member"):
            return self._zip.read(info)

    def _check_directory(self) -> None:
        """Refuse a directory that would fill the memory: zipfile reads it whole at once."""
        self._size = os.fstat(self._handle.fileno()).st_size
        tail_size = min(self._size, _END_SIZE + (1 << 16))
        self._handle.seek(self._size - tail_size)
        tail = self._handle.read(tail_size)
        self._handle.seek(0)
        at = tail.rfind(_END)
        if at < 0 or len(tail) - at < _END_SIZE:
            raise refuse(self.file, "not a zip file, or truncated (no end of directory)")
        (directory,) = struct.unpack_from("<L", tail, at + 12)
        if directory == 0xFFFFFFFF:
            at = tail.rfind(_END64, 0, at)
            if at < 0 or len(tail) - at < 56:
                raise refuse(self.file, "a zip64 file without its directory record")
            (directory,) = struct.unpack_from("<Q", tail, at + 40)
        if directory > min(_MAX_DIRECTORY, self._size):
            raise refuse(self.file, f"the zip directory declares {directory} bytes")
