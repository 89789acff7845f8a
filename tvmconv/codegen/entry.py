"""The generated C sources of a library: its header, its tables, and the blobs it holds."""

from __future__ import annotations

import math
from importlib import resources
from typing import Final

from tvmconv.artifact import ABI_VERSION
from tvmconv.codegen import features
from tvmconv.codegen.cuda import launcher
from tvmconv.codegen.parts import ELEMENT_BYTES, Parts
from tvmconv.systems import TRIPLES

PUBLIC: Final = (
    "run",
    "workspace_size",
    "packed_weights_size",
    "pack_weights",
    "shapes",
    "input_shape",
    "output_shape",
    "abi_version",
    "manifest",
    "error_text",
    "parallel_for",
)
"""What follows the name of the artifact in each of its exported symbols."""

ERRORS: Final = (
    ("OK", "done"),
    ("ERROR_NULL_ARGS", "args is NULL"),
    ("ERROR_SIZE", "args->size is not the size of the structure, or a field unknown here is set"),
    ("ERROR_SHAPE", "args->shape is not the index of an input shape"),
    ("ERROR_THREADS", "args->threads is negative"),
    ("ERROR_BATCH", "args->batch is negative, or is not 0 although the batch is fixed"),
    ("ERROR_OVERFLOW", "args->batch is too large: sizes overflow"),
    ("ERROR_NULL_INPUT", "args->input is NULL"),
    ("ERROR_NULL_OUTPUT", "args->output is NULL"),
    ("ERROR_NULL_WEIGHTS", "args->weights is NULL and the library holds none"),
    ("ERROR_INPUT_ALIGNMENT", "args->input is not aligned to its element"),
    ("ERROR_OUTPUT_ALIGNMENT", "args->output is not aligned to its element"),
    ("ERROR_WEIGHTS_ALIGNMENT", "weights, kernel or bias are not aligned to their element"),
    ("ERROR_NULL_WORKSPACE", "args->workspace is NULL although one is needed"),
    ("ERROR_WORKSPACE_SIZE", "args->workspace_size is too small"),
    ("ERROR_PROCESSOR", "the processor lacks a feature that the code uses"),
    ("ERROR_NULL_KERNEL", "kernel is NULL"),
    ("ERROR_NULL_BIAS", "bias is NULL although the layer has one"),
    ("ERROR_NULL_PACKED", "packed is NULL"),
)
"""Name and English text of each error code, from 0; names and numbers never change."""

# C++17 has no type of 16 bits for them: their bits.
_CPP_TYPES: Final = {
    "float64": "double",
    "float32": "float",
    "float16": "std::uint16_t",
    "bfloat16": "std::uint16_t",
}

_SECTIONS: Final = {
    "linux": '    .section .rodata,"a"',
    "bare": '    .section .rodata,"a"',
    "macos": "    .section __TEXT,__const",
    "wasm": '    .section .rodata.{},"",@',
}

_SOURCES: Final = ("processor.c", "pool.c", "layer.c")


def source(name: str) -> str:
    """Text of one of the C files that ship with this package."""
    return (resources.files("tvmconv.codegen") / "c" / name).read_text(encoding="utf-8")


def header(parts: Parts) -> str:
    """Text of ``<name>.h``."""
    return _filled("header.h", parts)


def wrapper(parts: Parts) -> str:
    """Text of ``<name>.hpp``, for C++."""
    return _filled("header.hpp", parts)


def _filled(template: str, parts: Parts) -> str:
    """A header that ships, with the fields of one layer."""
    lines = [f" * Input shape {i}: {_sizes(s.input_shape)}, output {_sizes(s.output_shape)}."
             for i, s in enumerate(parts.variants[0].shapes)]  # fmt: skip
    width = max(len(name) for name, _ in ERRORS)
    listed = list(enumerate(ERRORS))
    if parts.cuda is not None:
        listed += enumerate(launcher.ERRORS, launcher.FIRST_ERROR)
    last = listed[-1][0]
    errors = [
        f"    {parts.name}_{name}{' ' * (width - len(name))} = {code}"
        f"{',' if code < last else ' '} /* {text} */"
        for code, (name, text) in listed
    ]
    fields = {
        **launcher.header_fields(parts.cuda),  # which hold other fields
        "NAME": parts.name,
        "ABI": str(ABI_VERSION),
        "SHAPES": "\n".join(lines),
        "INPUT": parts.input_dtype,
        "OUTPUT": parts.output_dtype,
        "VARIABLE": parts.variable_dtype,
        "ALIGNMENT": str(parts.packed_alignment),
        "WEIGHTS": "; NULL: the weights in the library" if parts.baked is not None else "",
        "THREADS": str(parts.threads or "as many as the process may use"),
        "ERRORS": "\n".join(errors),
        **_largest(parts),
        "KERNEL": _sizes(parts.kernel_shape),
        "BIAS": "a bias" if parts.use_bias else "no bias (NULL)",
        "BIAS_CPP": "a bias" if parts.use_bias else "no bias",
        "KERNEL_ELEMENTS": str(math.prod(parts.kernel_shape)),
        "BIAS_ELEMENTS": str(parts.kernel_shape[3] if parts.use_bias else 0),
        "INPUT_TYPE": _CPP_TYPES[parts.input_dtype],
        "OUTPUT_TYPE": _CPP_TYPES[parts.output_dtype],
        "VARIABLE_TYPE": _CPP_TYPES[parts.variable_dtype],
    }
    text = source(template)
    for field, value in fields.items():
        text = text.replace(f"@{field}@", value)
    return text


def _largest(parts: Parts) -> dict[str, str]:
    """The sizes that fit all input shapes and processors; none is 0, for C has no such array."""
    shapes = [shape for variant in parts.variants for shape in variant.shapes]
    workspace = [-(-s.scratch_bytes // 64) * 64 + 64 if s.scratch_bytes else 1 for s in shapes]
    if parts.cuda is not None:  # one size serves every device
        used = [shape.workspace_bytes for shape in parts.cuda.shapes if shape.workspace_bytes]
        workspace += [size + launcher.WEIGHTS_ALIGNMENT for size in used]

    def elements(sizes: list[tuple[int, ...]]) -> str:
        return str(max(1, *(max(1, shape[0]) * _voxels(shape) for shape in sizes)))

    return {
        "INPUT_ELEMENTS": elements([shape.input_shape for shape in shapes]),
        "OUTPUT_ELEMENTS": elements([shape.output_shape for shape in shapes]),
        "WORKSPACE_SIZE": str(max(workspace)),
    }


def entry(parts: Parts) -> str:
    """The C source of the public functions: the tables of one layer, then the fixed part."""
    name = parts.name
    kernels = sorted({shape.symbol for v in parts.variants for shape in v.shapes} - {""})
    finishes = sorted({s.finish_symbol for v in parts.variants for s in v.shapes} - {""})
    element = ELEMENT_BYTES
    first = parts.variants[0].shapes
    rows, ranges = _feature_rows(parts)
    hosted = TRIPLES[parts.triple].has_threads if parts.triple in TRIPLES else True
    tables = [
        _table(f"kernels_{i}", "struct kernel", [
            f"{{{s.symbol or 'NULL'}, {s.tiles_per_sample}, {s.scratch_bytes}, "
            f"{s.finish_symbol or 'NULL'}}}" for s in v.shapes])
        for i, v in enumerate(parts.variants)
    ]  # fmt: skip
    sample_bytes = [
        max(_voxels(s.input_shape) * element[parts.input_dtype],
            _voxels(s.output_shape) * element[parts.output_dtype])
        for s in first
    ]  # fmt: skip
    baked = parts.baked is not None
    manifests = [f"{name}_blob_{blob}" for blob in parts.manifests]
    lines = [
        *(["#include <errno.h>"] if hosted else ["#define NO_THREADS", "#define NO_SYSTEM"]),
        f'#include "{name}.h"',
        "",
        f"#define LAYER(x) {name}_##x",
        f"#define ABI_VERSION {ABI_VERSION}",
        f"#define SHAPES {len(first)}",
        f"#define VARIANTS {len(parts.variants)}",
        f"#define INPUT_ELEMENT {element[parts.input_dtype]}",
        f"#define OUTPUT_ELEMENT {element[parts.output_dtype]}",
        f"#define VARIABLE_ELEMENT {element[parts.variable_dtype]}",
        f"#define PACKED_ELEMENT {parts.packed_alignment}",
        f"#define PACKED_BYTES ((size_t){parts.all_packed_bytes})",
        f"#define BIAS_OFFSET ((size_t){parts.bias_offset})",
        f"#define USE_BIAS {int(parts.use_bias)}",
        f"#define DEFAULT_THREADS {parts.threads}",
        *([f"#define PACK {parts.pack_symbol}"] if parts.pack_symbol else []),
        f"#define MANIFEST {manifests[0]}",
        f"#define BAKED_WEIGHTS {f'{name}_blob_weights' if baked else 'NULL'}",
        "",
        *(f"extern const char {manifest}[];" for manifest in manifests),
        *([f"extern const char {name}_blob_weights[];"] if baked else []),
        *(["void PACK(const void *, const void *, void *, void *);"] if parts.pack_symbol else []),
        "typedef void compute(const void *, const void *, const void *, void *, void *, int64_t, "
        "int64_t, int64_t);",
        "typedef void finish(void *, int64_t);",
        *(f"compute {symbol};" for symbol in kernels),
        *(f"finish {symbol};" for symbol in finishes),
        "struct kernel { compute *compute; int64_t tiles; size_t scratch; finish *finish; };",
        "struct variant { const struct kernel *kernels; int32_t first_feature, last_feature; "
        "const char *name, *done, *manifest; };",
        "struct feature { uint8_t word, bit, state; const char *text; };",
        "",
        _table("error_texts", "char *const", [f'"{text}"' for _, text in ERRORS]),
        _table("sizes_in", "int64_t", [_braced(s.input_shape) for s in first], "[5]"),
        _table("sizes_out", "int64_t", [_braced(s.output_shape) for s in first], "[5]"),
        _table("sample_bytes", "int64_t", [str(n) for n in sample_bytes]),
        _table("features", "struct feature", rows or ['{0, 0, 0, ""}']),
        *tables,
        _table("variants", "struct variant", [
            f'{{kernels_{i}, {begin}, {end}, "{v.cpu}", "done, with the code for {v.cpu}", '
            f"{manifests[min(i + 1, len(manifests) - 1)]}}}"
            for i, (v, (begin, end)) in enumerate(zip(parts.variants, ranges, strict=True))]),
    ]  # fmt: skip
    fixed = [source(name) for name in _SOURCES]
    if parts.cuda is not None:
        lines += launcher.tables(name, parts.cuda, parts.packed_bytes, baked=baked)
        fixed[-1:-1] = launcher.sources()
    return "\n".join([*lines, "", *fixed])


def blobs(parts: Parts, files: dict[str, str]) -> str:
    """The assembler source that puts whole files into the read-only section.

    Parameters
    ----------
    parts
        The artifact.
    files
        Name of the blob (``weights``, those of `Parts.manifests`) to the file that holds it.
    """
    kind = TRIPLES[parts.triple].kind if parts.triple in TRIPLES else "linux"
    under = "_" if kind == "macos" else ""
    lines = []
    for blob, file in files.items():
        symbol = f"{under}{parts.name}_blob_{blob}"
        lines += [
            _SECTIONS[kind].format(blob),
            f"    .globl {symbol}",
            f"    {'.private_extern' if kind == 'macos' else '.hidden'} {symbol}",
            *([f"    .type {symbol},@object"] if kind == "wasm" else []),
            f"    .p2align {0 if blob in parts.manifests else 6}",
            f"{symbol}:",
            f'    .incbin "{file}"',
            "    .byte 0",
            *([f"    .size {symbol}, .-{symbol}"] if kind == "wasm" else []),
        ]
    if kind in ("linux", "bare"):
        mark = "%" if parts.triple.startswith(("arm", "thumb")) else "@"
        lines.append(f'    .section .note.GNU-stack,"",{mark}progbits')
    return "\n".join([*lines, ""])


def _feature_rows(parts: Parts) -> tuple[list[str], list[tuple[int, int]]]:
    rows: list[str] = []
    ranges = []
    for variant in parts.variants:
        begin = len(rows)
        for bit in features.bits(variant.features, parts.triple):
            text = f"the processor lacks {bit.feature}, which this library was compiled for"
            rows.append(f'{{{bit.word}, {bit.bit}, {bit.state}, "{text} ({variant.cpu})"}}')
        ranges.append((begin, len(rows)))
    return rows, ranges


def _table(name: str, kind: str, rows: list[str], dimension: str = "") -> str:
    body = "".join(f"    {row},\n" for row in rows)
    return f"static const {kind} {name}[]{dimension} = {{\n{body}}};"


def _braced(shape: tuple[int, ...]) -> str:
    return "{" + ", ".join(str(n) for n in shape) + "}"


def _sizes(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join("any" if n < 0 else str(n) for n in shape) + ")"


def _voxels(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape[1:]:
        count *= size
    return count
