"""The part of a library that runs on CUDA devices: its tables, its C sources, its error codes.

The C files beside this one are the same for every layer; they read the tables written here. See
docs/cuda.md for what they promise.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Final

from tvmconv.codegen.cuda.parts import ARGUMENTS, CudaShape

__all__ = [
    "ERRORS",
    "FIRST_ERROR",
    "WEIGHTS_ALIGNMENT",
    "CudaPart",
    "candidate",
    "header_fields",
    "in_header",
    "sources",
]

WEIGHTS_ALIGNMENT: Final = 256
"""Bytes; of packed weights on a device, and of the CUDA part behind the CPU part."""

ALIGNMENT: Final = 16
"""Bytes; of input and output on a device: kernels load and store up to four floats at once."""

FIRST_ERROR: Final = 32
"""The first code of `ERRORS`; the smaller ones belong to every artifact."""

ERRORS: Final = (
    ("ERROR_NO_CPU", "args->device is -1, and the library holds no CPU version"),
    ("ERROR_NO_DRIVER", "there is no NVIDIA driver: libcuda.so.1 cannot be opened"),
    ("ERROR_OLD_DRIVER", "the NVIDIA driver is too old for this library; install a newer one"),
    ("ERROR_NO_DEVICE", "the NVIDIA driver finds no CUDA device"),
    ("ERROR_DEVICE", "args->device is not the index of a CUDA device"),
    ("ERROR_ARCHITECTURE", "the library holds no code for the architecture of this CUDA device"),
    ("ERROR_DEVICE_MEMORY", "the CUDA device has not enough free memory"),
    ("ERROR_HOST_POINTER", "input, output, weights or workspace is not memory of a CUDA device"),
    ("ERROR_OTHER_DEVICE", "input, output, weights or workspace is memory of another CUDA device"),
    ("ERROR_STREAM", "args->stream belongs to another CUDA device or context"),
    ("ERROR_CAPTURE", "the first call on a CUDA device cannot be captured; make one call before"),
    ("ERROR_FORK", "this process was forked after CUDA was used, which CUDA does not survive"),
)
"""Name and English text of each error code, from `FIRST_ERROR`; both never change."""

_HEADER_FIELDS: Final = (
    "CUDA_ABOUT", "CUDA_ARGS", "CUDA_LIBRARIES", "CUDA_CPP_START", "CUDA_CPP_METHOD",
    "CUDA_CPP_CALL",
)  # fmt: skip
_SOURCES: Final = ("driver.c", "device.c", "run.c")


@dataclass(frozen=True)
class CudaPart:
    """What the CUDA part of one library is made from.

    Parameters
    ----------
    fatbin
        Cubins and PTX.
    shapes
        One for each input shape of the artifact, in the same order.
    pack_symbol
        Global symbol of the packer in `object_code`, of the C type that `Parts.pack_symbol` has.
    object_code
        A relocatable object for the host, for the smallest processor of the architecture.
    packed_bytes
        Size of the packed weights of this part, the bias included.
    bias_offset
        Where the packed bias starts in them, in bytes.
    packed_element
        Alignment that the packer needs, in bytes.
    baked
        The packed weights of this part; None when they are given at run time.
    """

    fatbin: bytes
    shapes: tuple[CudaShape, ...]
    pack_symbol: str
    object_code: bytes
    packed_bytes: int
    bias_offset: int
    packed_element: int
    baked: bytes | None

    def __post_init__(self) -> None:
        assert self.fatbin and self.shapes
        assert 0 <= self.bias_offset <= self.packed_bytes
        assert self.baked is None or len(self.baked) == self.packed_bytes

    def offset(self, cpu_bytes: int) -> int:
        """Where this part's weights start behind `cpu_bytes` of the CPU version's."""
        return -(-cpu_bytes // WEIGHTS_ALIGNMENT) * WEIGHTS_ALIGNMENT


def tables(name: str, part: CudaPart, cpu_bytes: int, *, baked: bool) -> list[str]:
    """Lines of C: what `sources` read."""
    offset = part.offset(cpu_bytes)
    launches = [launch for shape in part.shapes for launch in shape.launches]
    shared: dict[str, int] = {}
    for one in launches:
        shared[one.symbol] = max(shared.get(one.symbol, 0), one.shared_bytes)
    functions = sorted(shared)
    lines = [
        f"#define CUDA_FATBIN {name}_blob_cuda",
        f"#define CUDA_FUNCTIONS {len(functions)}",
        f"#define CUDA_HANDLES {max(1, len(functions))}",
        f"#define CUDA_MOST_ARGUMENTS {max([1, *(len(one.arguments) for one in launches)])}",
        f"#define CUDA_ALIGNMENT {ALIGNMENT}",
        f"#define CUDA_WEIGHTS_ALIGNMENT {WEIGHTS_ALIGNMENT}",
        f"#define CUDA_WORKSPACE_ALIGNMENT {WEIGHTS_ALIGNMENT}",
        f"#define CUDA_PACK {part.pack_symbol}",
        f"#define CUDA_PACKED_BYTES ((size_t){part.packed_bytes})",
        f"#define CUDA_OFFSET ((size_t){offset})",
        f"#define CUDA_BIAS_OFFSET ((size_t){part.bias_offset})",
        f"#define CUDA_BAKED_WEIGHTS {f'({name}_blob_weights + CUDA_OFFSET)' if baked else 'NULL'}",
        f"#define CUDA_ERRORS {FIRST_ERROR}",
        f"extern const char {name}_blob_cuda[];",
        "void CUDA_PACK(const void *, const void *, void *, void *);",
        "struct cuda_function { const char *name; uint32_t shared_bytes; };",
        "struct cuda_launch { int32_t function, per_sample; uint32_t grid[3], block[3], "
        "shared_bytes; int32_t count; uint8_t arguments[CUDA_MOST_ARGUMENTS]; };",
        "struct cuda_shape { const struct cuda_launch *launches; int32_t count; "
        "size_t workspace_bytes; };",
        "static const char *const cuda_error_texts[] = {",
        *(f'    "{text}",' for _, text in ERRORS),
        "};",
        "static const struct cuda_function cuda_functions[] = {",
        *(f'    {{"{symbol}", {shared[symbol]}}},' for symbol in functions),
        *([] if functions else ['    {"", 0},']),
        "};",
    ]  # fmt: skip
    for index, shape in enumerate(part.shapes):
        if shape.launches:
            lines.append(f"static const struct cuda_launch cuda_launches_{index}[] = {{")
            for one in shape.launches:
                arguments = ", ".join(str(ARGUMENTS.index(what)) for what in one.arguments)
                lines.append(
                    f"    {{{functions.index(one.symbol)}, {int(one.per_sample)}, "
                    f"{_braced(one.grid)}, {_braced(one.block)}, {one.shared_bytes}, "
                    f"{len(one.arguments)}, {{{arguments or 0}}}}},"
                )
            lines.append("};")
    lines.append("static const struct cuda_shape cuda_shapes[] = {")
    for index, shape in enumerate(part.shapes):
        table = f"cuda_launches_{index}" if shape.launches else "NULL"
        lines.append(f"    {{{table}, {len(shape.launches)}, {shape.workspace_bytes}}},")
    return [*lines, "};"]


def sources() -> list[str]:
    """The C text of the launcher, behind the tables and before ``c/layer.c``."""
    return [_source(name) for name in _SOURCES]


def candidate() -> str:
    """The C text that times a layer on a device that is reached from elsewhere."""
    return _source("candidate.c")


def in_header(name: str, header: bytes) -> bool:
    """Whether the header of an artifact is one of a layer for CUDA devices."""
    return f"{name}_ERROR_NO_DRIVER".encode() in header


def _source(name: str) -> str:
    return (resources.files("tvmconv.codegen.cuda") / name).read_text(encoding="utf-8")


def header_fields(part: CudaPart | None) -> dict[str, str]:
    """What ``c/header.h`` says about devices; nothing where there is no CUDA part."""
    if part is None:
        return dict.fromkeys(_HEADER_FIELDS, "")
    about = _source("about.in").replace("@ALIGNMENT@", str(ALIGNMENT))
    return {
        "CUDA_ABOUT": about.replace("@WEIGHTS_ALIGNMENT@", str(WEIGHTS_ALIGNMENT)).rstrip("\n"),
        "CUDA_ARGS": _source("args.in").rstrip("\n"),
        "CUDA_LIBRARIES": ", libdl",
        "CUDA_CPP_START": "\n        args_.device = -1;",
        "CUDA_CPP_METHOD": _source("method.in"),
        "CUDA_CPP_CALL": f"\n{' ' * 8}if (args.device >= 0)\n{' ' * 12}return @NAME@_run(&args);",
    }


def _braced(values: tuple[int, ...]) -> str:
    return "{" + ", ".join(map(str, values)) + "}"
