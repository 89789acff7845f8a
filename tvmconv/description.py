"""The manifest of a layer that was compiled: what it was made from and for, and how checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from tvmconv.generation import Generated
    from tvmconv.runtime.layer import Conv3DTranspose

__all__ = ["describe"]


def describe(
    name: str,
    layer: Conv3DTranspose,
    variants: Sequence[Generated],
    packed: np.ndarray,
    check: Mapping[str, Any],
    *,
    baked: bool,
    threads: int,
) -> str:
    """The text of the manifest, without the hashes of files."""
    import tvm
    from tvm.target import codegen

    from tvmconv import __version__
    from tvmconv.compute import NONFINITE
    from tvmconv.manifest import Manifest

    works, first = variants[0].works, variants[0].works[0]
    lowered = [one.lowered for one in variants[0].scheduled]
    algorithm = variants[0].algorithm
    digest = hashlib.sha256(b"".join(one.object_code for one in variants)).hexdigest()
    manifest = Manifest(
        name=name,
        layer=layer.get_config(),
        input_shapes=tuple(_open(work.plan.input_shape) for work in works),
        output_shapes=tuple(_open(work.output_shape) for work in works),
        input_dtype=first.input_dtype,
        output_dtype=first.output_dtype,
        variable_dtype=first.variable_dtype,
        target=_target(variants),
        schedule={
            "origin": variants[0].scheduled[0].origin,
            "origins": [one.origin for one in variants[0].scheduled],
            "transfer": [one.transfer for one in variants[0].scheduled],
            "cores": [one.cores for one in variants[0].scheduled],
            "form": lowered[0].tiling.form,
            "decisions": [one.tiling.to_json() for one in lowered],
        },
        algorithm=algorithm,
        nonfinite="exact" if algorithm == "direct" else "tile",
        weights={
            "mode": "baked" if baked else "external",
            "packed_bytes": packed.nbytes,
            "sha256": hashlib.sha256(packed.tobytes()).hexdigest() if baked else None,
            "nonfinite": max((one.weights_nonfinite for one in lowered), key=NONFINITE.index),
        },
        workspace_bytes=_workspaces(variants, packed.itemsize),
        flops=tuple(work.plan.flops for work in works),
        code_sha256=digest,
        check=check,
        threads=threads,
        tvmconv=__version__,
        tvm=tvm.__version__,
        llvm=str(codegen.llvm_version_major()),
    )
    return manifest.to_json()


def _target(variants: Sequence[Generated]) -> dict[str, Any]:
    """The processor; of several, the first and, as ``variants``, all of them."""
    rows: list[dict[str, Any]] = [
        {
            "cpu": one.machine.cpu,
            "features": list(one.machine.features),
            "fingerprint": one.machine.fingerprint(),
        }
        for one in variants
    ]
    target = {"triple": variants[0].machine.triple, **rows[0]}
    if len(variants) == 1:
        return target
    target["fingerprint"] = "|".join(str(row["fingerprint"]) for row in rows)
    for row, one in zip(rows, variants, strict=True):
        row["name"] = one.machine.label
        row["decisions"] = [scheduled.lowered.tiling.to_json() for scheduled in one.scheduled]
    return {**target, "variants": rows}


def _workspaces(variants: Sequence[Generated], size: int) -> tuple[int, ...]:
    """Bytes of one thread for each shape, of the processor that needs most."""
    rows = zip(*(one.scheduled for one in variants), strict=True)
    most = [max(one.lowered.scratch_size for one in row) * size for row in rows]
    return tuple(-(-one // 64) * 64 + 64 if one else 0 for one in most)


def _open(shape: tuple[int, ...]) -> tuple[int | None, ...]:
    return (None if shape[0] == -1 else shape[0], *shape[1:])
