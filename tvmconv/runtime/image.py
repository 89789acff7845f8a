"""What is held against a shared library before the system maps it, and then its code runs."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import struct
import threading
from pathlib import Path
from typing import BinaryIO, Final

from tvmconv.artifact import Artifact
from tvmconv.errors import ArtifactError
from tvmconv.manifest import Manifest

__all__ = ["OtherMachineError", "check_file", "check_machine", "open_library"]

_HASHED_BYTES: Final = 16 << 20
_LOCK: Final = threading.Lock()
_BUILDS: Final[dict[str, list[tuple[int, int]]]] = {}
"""The files that this process has loaded under each path: device and inode."""

_LOAD: Final = 1
_SHARED: Final = 3
# Elf64_Ehdr and Elf64_Phdr, Elf32_Ehdr and Elf32_Phdr (System V ABI, "Object files").
_HEADERS: Final = {1: ("HHIIIIIHHHHHH", "IIIIIIII"), 2: ("HHIQQQIHHHHHH", "IIQQQQQQ")}
_OFFSET_AND_SIZE: Final = {1: (1, 4), 2: (2, 5)}
_MOST_SEGMENTS: Final = 64


class OtherMachineError(ArtifactError):
    """An artifact may be good, but cannot run here."""


def check_machine(manifest: Manifest) -> None:
    """Refuse an artifact of another architecture or system.

    Raises
    ------
    OtherMachineError
        It is; names both.
    """
    triple = str(manifest.target.get("triple", ""))
    ours = _architecture(platform.machine())
    system = platform.system().lower().replace("darwin", "macos")
    other_libc = "musl" in triple and platform.libc_ver()[0] == "glibc"
    if _architecture(triple.partition("-")[0]) != ours or system not in triple or other_libc:
        raise OtherMachineError(
            f"the artifact {manifest.name!r} is for {triple or 'an unknown machine'}, this is "
            f"{ours} under {platform.system()}; compile it for this machine"
        )


def check_file(found: Artifact, sha256: str | None) -> None:
    """Hold the library against ``sha256`` and, if it is small, against its manifest.

    Hashing 16 MiB takes some ten milliseconds; `tvmconv.verify` hashes every file.

    Raises
    ------
    ArtifactError
        The library cannot be read, is cut, or is another one.
    """
    file = found.library
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            _check_image(stream, size, str(file))
            if sha256 is None and size > _HASHED_BYTES:
                return
            stream.seek(0)
            digest = hashlib.sha256()
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except OSError as exc:
        raise ArtifactError(f"the library {file} cannot be read: {exc.strerror}") from exc
    is_hash = digest.hexdigest()
    if sha256 is not None and is_hash != str(sha256).strip().lower():
        raise ArtifactError(
            f"{file} has the SHA-256 {is_hash}, expected {sha256}; it was not loaded"
        )
    listed = (found.manifest.files or {}).get(file.name)
    if is_hash != listed:
        raise ArtifactError(
            f"{file} is damaged or another build's: its SHA-256 is {is_hash[:12]}, the manifest "
            f"says {str(listed)[:12]}; copy the whole folder again, or compile the layer again"
        )


def open_library(found: Artifact) -> ctypes.CDLL:
    """Map the library, which runs its constructors.

    Raises
    ------
    ArtifactError
        The system refuses it.
    """
    try:
        return ctypes.CDLL(_spelling(found.library), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError as exc:
        raise ArtifactError(
            f"the library of the artifact {found.manifest.name!r} cannot be loaded: {exc}"
        ) from exc


def _spelling(file: Path) -> str:
    """An absolute path of the file under which this process has loaded no other file.

    The loader of glibc takes a path that it knows for the library that it has, also when a new
    build has replaced the file since. Only then it compares inodes; a loaded file keeps its own.
    """
    path, status = file.absolute(), file.stat()
    with _LOCK:
        builds = _BUILDS.setdefault(str(path), [])
        build = (status.st_dev, status.st_ino)
        if build not in builds:
            builds.append(build)
        return f"{path.parent}{'/.' * builds.index(build)}/{path.name}"


def _architecture(machine: str) -> str:
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine.lower())


def _check_image(stream: BinaryIO, size: int, name: str) -> None:
    """Refuse a file that is no shared library, or that ends before its segments do.

    The system would map such a file, and the process would end when it touches what is missing.
    """
    ident = stream.read(16)
    kind, order = (ident[4], ident[5]) if len(ident) == 16 else (0, 0)
    if ident[:4] != b"\x7fELF" or kind not in _HEADERS or order not in (1, 2):
        raise ArtifactError(f"{name} is no shared library; compile the layer again")
    sign = "<" if order == 1 else ">"
    layout, segment = (struct.Struct(sign + text) for text in _HEADERS[kind])
    header = stream.read(layout.size)
    if len(header) < layout.size:
        raise ArtifactError(f"{name} is damaged: it is cut after {size} bytes")
    row = layout.unpack(header)
    at, length, count = row[4], row[8], row[9]
    if row[0] != _SHARED or length != segment.size or not 0 < count <= _MOST_SEGMENTS:
        raise ArtifactError(f"{name} is no shared library; compile the layer again")
    stream.seek(at)
    table = stream.read(length * count)
    ends = [at + length * count]
    if len(table) == length * count:
        offset, stored = _OFFSET_AND_SIZE[kind]
        rows = segment.iter_unpack(table)
        ends += [found[offset] + found[stored] for found in rows if found[0] == _LOAD]
    if max(ends) > size:
        raise ArtifactError(f"{name} is damaged: it is cut after {size} bytes")
