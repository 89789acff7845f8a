"""Text attributes of HDF5 objects, parsed from the bytes of their object headers.

The HDF5 library trusts the sizes it finds in the heap of variable-length strings: one wrong byte
makes it allocate 4 GB, or walk a free object of size 0 for ever. Every size here is held against
the file's own before it is used. The format is that of the HDF5 File Format Specification,
sections III.E (global heap), IV.A.1 (object headers) and IV.A.2.m (attribute messages).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from tvmconv.weights.refusal import refuse

__all__ = ["SIGNATURE", "START", "Reader", "check_start"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
START = 48
_WORD = 8
# Superblock version -> where it tells the bytes of an offset (and of a length), and its base.
_SUPERBLOCK = {0: (13, 24), 1: (13, 28), 2: (9, 12), 3: (9, 12)}
_ATTRIBUTE, _CONTINUATION, _ATTRIBUTE_INFO = 0x0C, 0x10, 0x15
_MAX_MESSAGES = 4096
_MAX_BLOCKS = 256
_MAX_TEXT = 1 << 26
_HEAD = 16
_FIXED_TEXT, _VARIABLE = 3, 9
_UNDEFINED = (1 << 64) - 1


def check_start(start: bytes, file: str) -> None:
    """Check the first 48 bytes of a file: HDF5 with offsets and lengths of 8 bytes, at its start.

    Raises
    ------
    WeightsError
        Anything else; other sizes are legal HDF5, but no writer of weights uses them.
    """
    if start[: len(SIGNATURE)] != SIGNATURE or len(start) < START:
        raise refuse(file, "not an HDF5 file")
    known = _SUPERBLOCK.get(start[8])
    if known is None or start[known[0]] != _WORD or start[known[0] + 1] != _WORD:
        raise refuse(file, "an HDF5 file of an unknown version")
    if any(start[known[1] : known[1] + _WORD]):
        raise refuse(file, "an HDF5 file that does not begin at its first byte")


class Reader:
    """Reads text attributes of one open HDF5 file.

    Parameters
    ----------
    handle
        The file, open for reading; its position is changed.
    size
        Bytes in the file.
    name
        For messages.
    """

    def __init__(self, handle: BinaryIO, size: int, name: str) -> None:
        self._handle = handle
        self._size = size
        self._name = name
        # Heap collection -> object index -> where the object lies.
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}

    def strings(self, header: int, wanted: str) -> list[str] | None:
        """The strings of the attribute ``wanted`` of the object whose header is at ``header``.

        Returns
        -------
        A list, also for a single string; None where the object has no such attribute.

        Raises
        ------
        WeightsError
            The attribute is no text, is not UTF-8, or anything on the way to it is damaged.
        """
        key = wanted.encode("utf-8")
        for kind, body in self._messages(header):
            if kind == _ATTRIBUTE_INFO and body[1:2]:
                at = 2 + 2 * (body[1] & 1)
                if body[at : at + _WORD] not in (b"", b"\xff" * _WORD):
                    raise refuse(self._name, "HDF5 attributes in dense storage are not read")
            if kind == _ATTRIBUTE:
                found = self._attribute(body, key)
                if found is not None:
                    return found
        return None

    def _bytes(self, at: int, count: int) -> bytes:
        if at < 0 or count < 0 or at + count > self._size:
            raise refuse(self._name, "damaged HDF5 file: it points beyond its end")
        self._handle.seek(at)
        data = self._handle.read(count)
        if len(data) != count:
            raise refuse(self._name, "damaged HDF5 file: it ends too early")
        return data

    def _messages(self, header: int) -> Iterator[tuple[int, bytes]]:
        """Type and body of every message of an object header, shared ones left out."""
        start = self._bytes(header, _HEAD)
        if start[:4] == b"OHDR":
            flags = start[5]
            at = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
            width = 1 << (flags & 3)
            size = int.from_bytes(self._bytes(header + at, width), "little")
            blocks = [(header + at + width, size)]
            head = struct.Struct("<BHB2x" if flags & 0x04 else "<BHB")
            extra = (4, 4)  # OCHK before, a checksum behind
        else:
            (size,) = struct.unpack_from("<L", start, 8)
            blocks = [(header + _HEAD, size)]
            head = struct.Struct("<HHB3x")
            extra = (0, 0)
        count = done = 0
        while done < len(blocks):
            at, size = blocks[done]
            done += 1
            block = self._bytes(at, size)
            place = 0
            while place + head.size <= len(block):
                kind, length, flags = head.unpack_from(block, place)
                place += head.size
                body = block[place : place + length]
                place += length
                count += 1
                if len(body) != length or count > _MAX_MESSAGES or len(blocks) > _MAX_BLOCKS:
                    raise refuse(self._name, "damaged HDF5 object header")
                if kind == _CONTINUATION and length >= 2 * _WORD:
                    offset, more = struct.unpack_from("<QQ", body)
                    if more < sum(extra):
                        raise refuse(self._name, "damaged HDF5 object header")
                    blocks.append((offset + extra[0], more - sum(extra)))
                elif not flags & 0x02:
                    yield kind, body

    def _attribute(self, body: bytes, key: bytes) -> list[str] | None:
        """The strings of an attribute message if its name is ``key``."""
        if len(body) < _WORD or body[0] not in (1, 2, 3):
            raise refuse(self._name, "damaged HDF5 attribute")
        version, shared = body[0], body[1] if body[0] > 1 else 0
        sizes = struct.unpack_from("<HHH", body, 2)
        place = 9 if version == 3 else 8
        parts: list[bytes] = []
        for size in sizes:
            parts.append(body[place : place + size])
            place += size if version > 1 else (size + 7) // 8 * 8
        name, datatype, space = parts
        if name.rstrip(b"\0") != key:
            return None
        if shared or len(datatype) < _WORD:
            raise refuse(self._name, f"the HDF5 attribute {key!r} has a type that is not read")
        count = self._count(space)
        if count == 0:
            return []  # Keras stores an empty list as an empty array of floats
        kind = datatype[0] & 0x0F
        (width,) = struct.unpack_from("<L", datatype, 4)
        variable = kind == _VARIABLE and datatype[1] & 0x0F == 1 and width == _HEAD
        if not variable and kind != _FIXED_TEXT:
            raise refuse(self._name, f"the HDF5 attribute {key!r} holds no text")
        data = body[place : place + count * width]
        if len(data) != count * width or not width:
            raise refuse(self._name, f"damaged HDF5 attribute {key!r}")
        pieces = [data[at : at + width] for at in range(0, len(data), width)]
        if variable:
            pieces = self._variable(pieces)
        try:
            return [piece.split(b"\0")[0].decode("utf-8") for piece in pieces]
        except UnicodeDecodeError as error:
            raise refuse(self._name, f"the HDF5 attribute {key!r} is not UTF-8") from error

    def _count(self, space: bytes) -> int:
        """Number of elements of a dataspace message, at most 2^16: the data lie in the header."""
        if len(space) < 4 or space[0] not in (1, 2):
            raise refuse(self._name, "damaged HDF5 dataspace")
        version, rank = space[0], space[1]
        if version == 2 and space[3] == 2:
            return 0
        start = 8 if version == 1 else 4
        dims = space[start : start + rank * _WORD]
        if len(dims) != rank * _WORD:
            raise refuse(self._name, "damaged HDF5 dataspace")
        count = 1
        for side in struct.unpack(f"<{rank}Q", dims):
            count = min(count * side, 1 << 62)
        if count > 1 << 16:
            raise refuse(self._name, "an HDF5 attribute of more than 65536 elements")
        return count

    def _variable(self, pointers: list[bytes]) -> list[bytes]:
        found: list[bytes] = []
        total = 0
        for pointer in pointers:
            length, address, index = struct.unpack("<LQL", pointer)
            if length == 0 or address in (0, _UNDEFINED):
                found.append(b"")
                continue
            place, size = self._heap(address).get(index, (0, -1))
            total += length
            if length > size or total > _MAX_TEXT:
                raise refuse(self._name, f"damaged HDF5 text of {length} bytes")
            found.append(self._bytes(place, length))
        return found

    def _heap(self, address: int) -> dict[int, tuple[int, int]]:
        """Where the objects of a heap collection lie, by index."""
        if address in self._heaps:
            return self._heaps[address]
        head = self._bytes(address, _HEAD)
        (length,) = struct.unpack_from("<Q", head, _WORD)
        if head[:5] != b"GCOL\x01" or length < _HEAD or address + length > self._size:
            raise refuse(self._name, "damaged HDF5 heap")
        found: dict[int, tuple[int, int]] = {}
        at, end = address + _HEAD, address + length
        while at + _HEAD <= end:
            index, _, _, size = struct.unpack("<HHLQ", self._bytes(at, _HEAD))
            # The size of free space (index 0) counts its head, that of an object does not.
            step = size if index == 0 else _HEAD + (size + 7) // 8 * 8
            if step < _HEAD or step > end - at:
                raise refuse(self._name, "damaged HDF5 heap")
            if index:
                found[index] = (at + _HEAD, size)
            at += step
        self._heaps[address] = found
        return found
