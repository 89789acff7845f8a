"""Editing ELF objects: which symbols are seen from outside, and archives that hold one object.

The linker merges objects with ``-r``; what remains is to make everything local that is not part of
the public interface. GNU objcopy cannot do that for another architecture, and some compilers come
without any objcopy; the format is simple enough to do it here. Source: System V ABI, chapter 4.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from tvmconv.errors import BuildError

_NULL, _SYMTAB, _RELA, _NOBITS, _REL, _GROUP = 0, 2, 4, 8, 9, 17
_SYMTAB_INDEX, _ADDRESS_SIGNIFICANCE = 18, 0x6FFF4C03
_LOCAL, _GLOBAL = 0, 1
_SECTION, _FILE = 3, 4
_IN_GROUP: Final = 0x200
_NAME_BYTES: Final = 16  # of an archive member; longer names go into a table
_ABOUT: Final = re.compile(r"(\.rela?)?\.(debug_|comment\b)")


@dataclass(frozen=True)
class Symbol:
    """One row of a symbol table."""

    name: str
    binding: int
    kind: int
    section: int
    fields: tuple[int, int, int]
    other: int

    @property
    def defined(self) -> bool:
        """Whether the object itself holds what the symbol names."""
        return self.section != 0


class _Format:
    """The layouts that depend on the word size and the byte order."""

    def __init__(self, image: bytes) -> None:
        if image[:4] != b"\x7fELF" or len(image) < 52:
            raise BuildError("the compiler did not write an ELF object; expected a Linux toolchain")
        self.wide = image[4] == 2
        order = "<" if image[5] == 1 else ">"
        self.header = struct.Struct(order + ("HHIQQQIHHHHHH" if self.wide else "HHIIIIIHHHHHH"))
        self.section = struct.Struct(order + ("IIQQQQIIQQ" if self.wide else "IIIIIIIIII"))
        self.symbol = struct.Struct(order + ("IBBHQQ" if self.wide else "IIIBBH"))
        self.word = struct.Struct(order + ("Q" if self.wide else "I"))
        self.half = struct.Struct(order + "I")

    def unpack_symbol(self, image: bytes, at: int) -> tuple[int, int, int, int, int, int]:
        """name, info, other, section, value, size."""
        row = self.symbol.unpack_from(image, at)
        if self.wide:
            return row
        name, value, size, info, other, section = row
        return name, info, other, section, value, size

    def pack_symbol(self, row: tuple[int, int, int, int, int, int]) -> bytes:
        if self.wide:
            return self.symbol.pack(*row)
        name, info, other, section, value, size = row
        return self.symbol.pack(name, value, size, info, other, section)

    def relocated(self, info: int) -> tuple[int, int]:
        """Symbol and the rest of the info word of a relocation."""
        shift = 32 if self.wide else 8
        return info >> shift, info & ((1 << shift) - 1)

    def relocation(self, symbol: int, rest: int) -> int:
        return symbol << (32 if self.wide else 8) | rest


@dataclass
class _Section:
    row: list[int]
    data: bytes

    @property
    def kind(self) -> int:
        return self.row[1]


class _Object:
    """A relocatable object, taken apart."""

    def __init__(self, image: bytes) -> None:
        self.format = form = _Format(image)
        self.ident = image[:16]
        self.header = list(form.header.unpack_from(image, 16))
        offset, count, self.names_index = self.header[5], self.header[11], self.header[12]
        if count == 0 or offset + count * form.section.size > len(image):
            raise BuildError("the compiler wrote a damaged ELF object (section table)")
        self.sections: list[_Section] = []
        for i in range(count):
            row = list(form.section.unpack_from(image, offset + i * form.section.size))
            data = b"" if row[1] in (_NULL, _NOBITS) else image[row[4] : row[4] + row[5]]
            self.sections.append(_Section(row, data))
        tables = [i for i, s in enumerate(self.sections) if s.kind == _SYMTAB]
        if len(tables) != 1:
            raise BuildError(f"expected one symbol table in an object, found {len(tables)}")
        self.table_index = tables[0]

    @property
    def table(self) -> _Section:
        return self.sections[self.table_index]

    def symbols(self) -> list[Symbol]:
        strings = self.sections[self.table.row[6]].data
        found = []
        for at in range(0, len(self.table.data), self.format.symbol.size):
            name, info, other, section, value, size = self.format.unpack_symbol(self.table.data, at)
            text = strings[name : strings.index(b"\0", name)].decode()
            found.append(Symbol(text, info >> 4, info & 15, section, (value, size, info), other))
        return found

    def name(self, section: _Section) -> str:
        names: bytes = self.sections[self.names_index].data
        start = int(section.row[0])
        return names[start : names.index(b"\0", start)].decode()

    def image(self) -> bytes:
        """The object put together again, section after section."""
        form = self.format
        # Joined at the end: a section of weights is large, and each copy of it takes its time.
        out, size = [b""], len(self.ident) + form.header.size
        rows = []
        for section in self.sections:
            row = list(section.row)
            if section.kind != _NULL:
                pad = -size % max(1, row[8])
                row[4] = size + pad
                if section.kind != _NOBITS:
                    row[5] = len(section.data)
                    out += [b"\0" * pad, section.data]
                    size += pad + row[5]
                else:
                    out.append(b"\0" * pad)
                    size += pad
            rows.append(row)
        self.header[5] = size + -size % 8
        out.append(b"\0" * (-size % 8))
        out += [form.section.pack(*row) for row in rows]
        out[0] = self.ident + form.header.pack(*self.header)
        return b"".join(out)


def symbols(image: bytes) -> list[Symbol]:
    """The symbols of a relocatable object, the empty first row included."""
    return _Object(image).symbols()


def file_kind(image: bytes) -> tuple[int, ...]:
    """Word size (1: 32, 2: 64 bits), byte order and processor of an ELF file, for comparisons.

    Of any other format the first four bytes.
    """
    if image[:4] != b"\x7fELF":
        return tuple(image[:4])
    form = _Format(image)
    return image[4], image[5], form.header.unpack_from(image, 16)[1]


def localize(image: bytes, keep: Collection[str], prefix: str) -> bytes:
    """Make every defined symbol local but those in `keep`, and drop the names that nothing needs.

    Local symbols that a relocation still needs get the name ``<prefix>_<number>``. Groups are
    dissolved: their signature would clash with the same group of another library. What compilers
    say about themselves and the sources is left out.

    Parameters
    ----------
    image
        A relocatable object.
    keep
        Names of the symbols that stay global.
    prefix
        Start of the names of local symbols.
    """
    obj = _Object(image)
    for section in obj.sections:
        section.row[2] &= ~_IN_GROUP
        if section.kind in (_GROUP, _ADDRESS_SIGNIFICANCE) or _ABOUT.match(obj.name(section)):
            section.row = [0] * len(section.row)
            section.data = b""
        elif section.kind == _SYMTAB_INDEX:
            raise BuildError("an object has more sections than this version can edit")
    names = obj.sections[obj.names_index]  # TVM's conversions come in ".text.tvm.fp16.conv"
    names.data = names.data.replace(b".tvm.", b".cpu.")
    needed = _needed(obj)
    old = obj.symbols()
    local, outside = [], []
    for index, symbol in enumerate(old[1:], 1):
        if symbol.defined and symbol.name not in keep:
            if index in needed:
                local.append(index)
        elif symbol.name in keep or index in needed:
            outside.append(index)
    order = [0, *local, *outside]
    _rewrite(obj, old, order, len(local) + 1, prefix)
    _renumber(obj, {index: place for place, index in enumerate(order)})
    return obj.image()


def _relocations(obj: _Object, section: _Section) -> list[tuple[int, int]]:
    """Where the info word of each relocation lies in the section, and its value."""
    word = obj.format.word
    step = word.size * (3 if section.kind == _RELA else 2)
    return [
        (at + word.size, word.unpack_from(section.data, at + word.size)[0])
        for at in range(0, len(section.data), step)
    ]


def _needed(obj: _Object) -> set[int]:
    return {
        obj.format.relocated(info)[0]
        for section in obj.sections
        if section.kind in (_REL, _RELA)
        for _, info in _relocations(obj, section)
    }


def _rewrite(obj: _Object, old: list[Symbol], order: list[int], locals_: int, prefix: str) -> None:
    strings = bytearray(b"\0")
    rows = bytearray()
    for place, index in enumerate(order):
        symbol = old[index]
        name = symbol.name
        if place < locals_ and name:
            name = "" if symbol.kind == _SECTION else f"{prefix}_{place}"
        value, size, info = symbol.fields
        at = len(strings) if name else 0
        if name:
            strings += name.encode() + b"\0"
        if place < locals_:
            info = _LOCAL << 4 | info & 15
            other = 0
        else:
            other = symbol.other
        rows += obj.format.pack_symbol((at, info, other, symbol.section, value, size))
    obj.table.data = bytes(rows)
    obj.table.row[7] = locals_
    strings_index = obj.table.row[6]
    if strings_index == obj.names_index:  # LLVM puts both kinds of names into one table
        names = obj.sections[strings_index].data
        sections = bytearray()
        for section in obj.sections:
            start = section.row[0]
            section.row[0] = len(strings) + len(sections)
            sections += names[start : names.index(b"\0", start)] + b"\0"
        strings += sections
    obj.sections[strings_index].data = bytes(strings)


def _renumber(obj: _Object, places: dict[int, int]) -> None:
    form = obj.format
    for section in obj.sections:
        if section.kind not in (_REL, _RELA):
            continue
        data = bytearray(section.data)
        for at, info in _relocations(obj, section):
            symbol, rest = form.relocated(info)
            form.word.pack_into(data, at, form.relocation(places[symbol], rest))
        section.data = bytes(data)


def archive(member: str, image: bytes) -> bytes:
    """A static library with one object, an index of its global symbols, and no date or owner."""
    names = [s.name for s in symbols(image) if s.binding != _LOCAL and s.defined and s.name]
    table = b"".join(name.encode() + b"\0" for name in names)
    size = 4 + 4 * len(names) + len(table)
    short = len(member) < _NAME_BYTES
    long_names = b"" if short else f"{member}/\n".encode()
    first = 8 + _padded(60 + size) + (0 if short else _padded(60 + len(long_names)))
    index = struct.pack(">I", len(names)) + struct.pack(">I", first) * len(names) + table
    middle = b"" if short else b"".join(_member("//", long_names))
    name = f"{member}/" if short else "/0"
    start = b"!<arch>\n" + b"".join(_member("/", index)) + middle
    return b"".join((start, *_member(name, image)))


def _padded(size: int) -> int:
    return size + size % 2


def _member(name: str, data: bytes) -> tuple[bytes, bytes, bytes]:
    """The header of a member, the member, and what makes its size even."""
    special = name in ("/", "//")
    head = f"{name:<16}{'0':<12}{'0':<6}{'0':<6}{'0' if special else '644':<8}{len(data):<10}`\n"
    return head.encode(), data, b"\n" * (len(data) % 2)
