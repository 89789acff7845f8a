"""Linking where objects are not ELF: macOS' Mach-O and WebAssembly.

There the objects stay apart. What is not part of the interface is hidden in each of them instead of
made local; every name starts with the artifact's, so two artifacts do not meet.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from tvmconv.codegen.toolchain import Toolchain
from tvmconv.errors import BuildError

# <mach-o/loader.h>, <mach-o/nlist.h>
_MAGIC: Final = 0xFEEDFACF
_SYMTAB: Final = 2
_HEADER: Final = struct.Struct("<IiiIIIII")
_COMMAND: Final = struct.Struct("<II")
_TABLE: Final = struct.Struct("<IIIIII")
_ROW: Final = struct.Struct("<IBBHQ")
_EXTERNAL, _PRIVATE, _TYPE, _UNDEFINED = 0x01, 0x10, 0x0E, 0


def link(
    kind: str, name: str, public: Sequence[str], objects: list[str], cc: Toolchain, work: Path
) -> tuple[bytes, bytes]:
    """The library that is loaded, and the static one.

    Parameters
    ----------
    kind
        ``macos`` or ``wasm``.
    name, public
        The artifact, and what follows its name in each symbol of the interface.
    objects
        Files in `work`.

    Raises
    ------
    BuildError
        The linker or the archiver fails.
    """
    symbols = [f"{name}_{one}" for one in public]
    target = [f"-mcpu={cc.zig_cpu}"] if cc.is_zig else []
    if kind == "macos":
        keep = {f"_{symbol}" for symbol in symbols}
        for file in objects:
            image = (work / file).read_bytes()
            (work / file).write_bytes(hide(image, keep))
        library = f"lib{name}.dylib"
        cc.run(
            ["-shared", *target, "-Wl,-x", f"-Wl,-install_name,@rpath/{library}", "-o", library,
             *objects],
            work,
        )  # fmt: skip
    else:
        library = f"{name}.wasm"
        exports = [f"-Wl,--export={symbol}" for symbol in symbols]
        cc.run(
            [*target, "-Wl,--no-entry", "-Wl,--strip-all", *exports,
             "-Wl,--export=__heap_base", "-o", library, *objects],
            work,
        )  # fmt: skip
    cc.archive(f"lib{name}.a", objects, work)
    return (work / library).read_bytes(), (work / f"lib{name}.a").read_bytes()


def hide(image: bytes, keep: Collection[str]) -> bytes:
    """A Mach-O object in which only the symbols in `keep` are seen outside of a linked file.

    Raises
    ------
    BuildError
        It is no 64-bit Mach-O object.
    """
    data = bytearray(image)
    for at, symbol, kind in _symbols(image):
        if kind & _EXTERNAL and kind & _TYPE != _UNDEFINED and symbol not in keep:
            data[at + 4] = kind | _PRIVATE
    return bytes(data)


def _symbols(image: bytes) -> list[tuple[int, str, int]]:
    """Place, name and type of each row of the symbol table."""
    if len(image) < _HEADER.size or _HEADER.unpack_from(image)[0] != _MAGIC:
        raise BuildError("the compiler did not write a Mach-O object; expected one for macOS")
    found = []
    at = _HEADER.size
    for _ in range(_HEADER.unpack_from(image)[4]):
        command, size = _COMMAND.unpack_from(image, at)
        if command == _SYMTAB:
            _, _, table, count, strings, _ = _TABLE.unpack_from(image, at)
            for row in range(table, table + count * _ROW.size, _ROW.size):
                place, kind, *_ = _ROW.unpack_from(image, row)
                begin = strings + place
                text = image[begin : image.index(b"\0", begin)].decode()
                found.append((row, text, kind))
        at += size
    return found
