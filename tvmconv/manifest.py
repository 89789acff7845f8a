"""The manifest of an artifact: what it was made from and for, and how it was checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from tvmconv.errors import ArtifactError

FORMAT: Final = "tvmconv-artifact"
ABI_VERSION: Final = 1
"""Version of the C interface and of the manifest; another one is refused."""

RUNNING: Final = "running"
"""Entry of ``target`` in what a library with several versions says of itself: which one runs."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")
_CUDA = re.compile(r"sm_[0-9]{2,3}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_LARGEST_TEXT = 4 << 20
_DTYPES = ("float64", "float32", "float16", "bfloat16")

Shape = tuple[int | None, ...]


def symbol_name(
    path: str, taken: Mapping[str, object] | set[str] | frozenset[str] = frozenset()
) -> str:
    """The name of an artifact for the path of a layer: a C identifier.

    Every character outside ``[A-Za-z0-9_]`` becomes ``_``; a leading digit or an empty name gets
    ``layer_`` in front; a name in `taken` gets ``_2``, ``_3`` and so on behind.
    """
    name = re.sub(r"[^A-Za-z0-9_]", "_", path)
    if not name or name[0].isdigit():
        name = f"layer_{name}"
    unique, number = name, 2
    while unique in taken:
        unique, number = f"{name}_{number}", number + 1
    return unique


@dataclass(frozen=True)
class Manifest:
    """Contents of ``<name>.json``; the library holds the same text without `files`.

    Parameters
    ----------
    name
        Name of the artifact, the prefix of its symbols.
    layer
        The serialised configuration of the layer, Keras' 19 keys.
    input_shapes, output_shapes
        Five sizes each; None in front is an open batch.
    input_dtype, output_dtype, variable_dtype
        Of the data, of the result, and of kernel and bias.
    target
        ``triple``, ``cpu``, ``features`` and ``fingerprint`` of the processor.
    schedule
        ``origin`` of the first input shape (``default`` or ``record:<id>``), ``form``, and for
        each input shape ``origins``, ``transfer`` (a record of another shape), ``cores`` (that the
        record was measured with) and ``decisions``.
    algorithm
        ``direct``, ``pairs`` or ``toom-cook``.
    nonfinite
        ``exact``: NaN and Inf of the input and of baked weights go where the definition sends them;
        ``tile``: they may spread in a tile.
    weights
        ``mode`` (``baked`` or ``external``), ``packed_bytes``, ``sha256`` (None if external), and
        ``nonfinite``, the same for a kernel given at run time, where there is also ``row-ends``:
        exact but for the voxels at the ends of a row.
    workspace_bytes
        Workspace of one thread, for each shape.
    flops
        Floating-point operations of one sample, for each shape.
    code_sha256
        SHA-256 of the kernels' object code before it was linked.
    check
        What the check against the reference gave: ``where``, ``tolerance``, ``max_error``.
    threads
        What 0 threads means; 0 for as many as the process may use.
    tvmconv, tvm, llvm
        Versions that made it.
    files
        SHA-256 of each other file of the folder; empty in the copy inside the library.
    """

    name: str
    layer: Mapping[str, Any]
    input_shapes: tuple[Shape, ...]
    output_shapes: tuple[Shape, ...]
    input_dtype: str
    output_dtype: str
    variable_dtype: str
    target: Mapping[str, Any]
    schedule: Mapping[str, Any]
    algorithm: str
    nonfinite: str
    weights: Mapping[str, Any]
    workspace_bytes: tuple[int, ...]
    flops: tuple[int, ...]
    code_sha256: str
    check: Mapping[str, Any]
    threads: int
    tvmconv: str
    tvm: str
    llvm: str
    files: Mapping[str, str] | None = None

    @property
    def several(self) -> bool:
        """Whether the library holds code for several processors, one of which it chooses."""
        return "variants" in self.target

    def to_json(self) -> str:
        """The text of the manifest; the same manifest gives the same text."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.files is None:
            del values["files"]
        return dump({"format": FORMAT, "abi_version": ABI_VERSION, **values})

    def shared(self) -> Manifest:
        """What the file beside a library and the library's own manifest have in common.

        The file alone has the hashes of the others, the library alone the version that runs.
        """
        target = {key: value for key, value in self.target.items() if key != RUNNING}
        return replace(self, files=None, target=target)

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "the manifest") -> Manifest:
        """Read a manifest; nothing in it is trusted.

        Raises
        ------
        ArtifactError
            When it is damaged, of another kind or version, or lacks a field; names `where`.
        """
        values = parse(text, where)
        names = {field.name for field in fields(cls)}
        missing = sorted(names - {"files"} - set(values))
        unknown = sorted(set(values) - names - {"format", "abi_version"})
        if missing or unknown:
            what = f"lacks {missing[0]!r}" if missing else f"has an unknown entry {unknown[0]!r}"
            raise ArtifactError(
                f"{where} {what}: it is damaged, or another version of tvmconv wrote it "
                f"({values.get('tvmconv', 'unknown')!r}); compile the layer again"
            )
        for field, check in _CHECKS.items():
            if field in values and not check(values[field]):
                raise ArtifactError(f"{where} is damaged: {field!r} has an impossible value")
        counts = {
            len(values[f]) for f in ("input_shapes", "output_shapes", "workspace_bytes", "flops")
        }
        if len(counts) != 1:
            raise ArtifactError(f"{where} is damaged: the numbers of shapes differ")
        for field in ("input_shapes", "output_shapes"):
            values[field] = tuple(tuple(shape) for shape in values[field])
        for field in ("workspace_bytes", "flops"):
            values[field] = tuple(values[field])
        return cls(**{field: value for field, value in values.items() if field in names})


def dump(values: Mapping[str, Any]) -> str:
    """JSON text of a manifest, the same for the same values."""
    return json.dumps(values, indent=1, allow_nan=False) + "\n"


def parse(text: str | bytes, where: str) -> dict[str, Any]:
    """The entries of a manifest, after a check of its kind and version only."""
    if len(text) > _LARGEST_TEXT:
        raise ArtifactError(f"{where} is {len(text)} bytes large, expected at most {_LARGEST_TEXT}")
    try:
        values = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as exc:
        raise ArtifactError(f"{where} is damaged: it is not JSON ({exc})") from exc
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ArtifactError(f"{where} is not the manifest of a tvmconv artifact")
    version = values.get("abi_version")
    if version != ABI_VERSION or isinstance(version, bool):
        raise ArtifactError(
            f"{where} has interface version {version!r}, this is version {ABI_VERSION}; compile "
            f"the layer again, or install the tvmconv that made it ({values.get('tvmconv')!r})"
        )
    return values


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _is_shape(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 5
        and (value[0] is None or _is_count(value[0]))
        and all(_is_count(size) for size in value[1:])
    )


def _is_shapes(value: object) -> bool:
    return isinstance(value, list) and 0 < len(value) < 1 << 16 and all(map(_is_shape, value))


def _is_counts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _is_dtype(value: object) -> bool:
    return value in _DTYPES


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.match(value) is not None


def _is_weights(value: object) -> bool:
    if not isinstance(value, dict) or not _is_count(value.get("packed_bytes")):
        return False
    if value.get("nonfinite", "exact") not in ("exact", "row-ends", "tile"):
        return False
    baked = value.get("mode") == "baked" and _is_digest(value.get("sha256"))
    return baked or (value.get("mode") == "external" and value.get("sha256") is None)


def _is_files(value: object) -> bool:
    return isinstance(value, dict) and all(
        _FILE.match(name) and _is_digest(digest) for name, digest in value.items()
    )


def _is_target(value: object) -> bool:
    if not isinstance(value, dict) or "cuda" not in value:
        return isinstance(value, dict)
    cuda = value["cuda"]
    return (
        isinstance(cuda, dict)
        and isinstance(cuda.get("architectures"), list)
        and bool(cuda["architectures"])
        and all(isinstance(one, str) and _CUDA.match(one) for one in cuda["architectures"])
        and isinstance(cuda.get("cpu"), bool)
        and _is_counts(cuda.get("workspace_bytes"))
    )


_CHECKS: Final = {
    "name": lambda value: isinstance(value, str) and _NAME.match(value) is not None,
    "layer": _is_dict,
    "input_shapes": _is_shapes,
    "output_shapes": _is_shapes,
    "input_dtype": _is_dtype,
    "output_dtype": _is_dtype,
    "variable_dtype": _is_dtype,
    "target": _is_target,
    "schedule": _is_dict,
    "algorithm": _is_text,
    "nonfinite": lambda value: value in ("exact", "tile"),
    "weights": _is_weights,
    "workspace_bytes": _is_counts,
    "flops": _is_counts,
    "code_sha256": _is_digest,
    "check": _is_dict,
    "threads": _is_count,
    "tvmconv": _is_text,
    "tvm": _is_text,
    "llvm": _is_text,
    "files": _is_files,
}
