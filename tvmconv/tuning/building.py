"""Building one candidate: an artifact with its kernel, and its packed weights beside it.

The weights are packed by NumPy and handed to the library as they are, so that the packer, which no
measurement needs, is not compiled for every candidate.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmconv.compute.tiling import Tiling, algorithm
from tvmconv.config import LayerConfig, numpy_dtype

if TYPE_CHECKING:
    from tvmconv.codegen.parts import Parts
    from tvmconv.compute import Lowered
    from tvmconv.compute.workload import Workload

__all__ = [
    "NAME",
    "PACKED",
    "build",
    "described",
    "no_packer",
    "opened",
    "parts_of",
    "shared_file",
    "weights",
]

#: The artifact's name, and the file of the packed weights in its folder.
NAME, PACKED = "candidate", "packed.npy"


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Build ``tiling`` of ``config`` on ``shape`` for ``target`` into ``folder``.

    What the builder process does. Packed weights of one layout lie once in ``shared``.
    """
    from tvmconv import compute, schedules
    from tvmconv.codegen import lowering
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

    config = LayerConfig.from_keras(request["config"])
    work = Workload.of(config, request["shape"])
    fields = {**request["target"], "features": tuple(request["target"]["features"])}
    machine = CpuTarget(**fields)
    lowered = compute.lower(work, Tiling.from_json(request["tiling"]))
    functions = {
        f"{NAME}_kernel": schedules.apply(lowered).kernel,
        f"{NAME}_pack": no_packer(work),
    }
    if lowered.finish is not None:
        functions[f"{NAME}_finish"] = lowered.finish
    level = lowering.effort([lowered.tiling.form])
    code = lowering.emit(functions, machine, level).object_code()
    folder = Path(request["folder"])
    _link(folder, config, work, machine, lowered, code)

    def whole() -> np.ndarray:
        kernel, *bias = weights(config, work, 0)
        return lowered.pack(kernel, bias[0] if bias else None)

    packed = shared_file(Path(request["shared"]), lowered.layout, whole)
    (folder / PACKED).symlink_to(packed.resolve())
    return {"bytes": len(code)}


def weights(config: LayerConfig, work: Workload, seed: int) -> list[np.ndarray]:
    """Kernel and bias that show an error: sums of order one."""
    rng = np.random.default_rng([seed, 1])
    made = []
    for shape in config.weight_shapes(work.plan.in_channels):
        fan = max(1, int(np.prod(shape[:3])) * shape[-1]) if len(shape) == 5 else 1
        drawn = rng.standard_normal(shape, dtype=np.float32) / np.float32(fan**0.5)
        made.append(drawn.astype(numpy_dtype(work.variable_dtype)))
    return made


def no_packer(work: Workload) -> Any:
    """A function in the packer's place that does nothing."""
    from tvm import tirx
    from tvm.tirx.script.builder import ir as T

    from tvmconv.compute.frame import buffer, i64, prim_func

    def body() -> None:
        for name in ("kernel", "bias", "packed", "packed_bias"):
            buffer(name, (1,), work.accumulate_dtype)
        with T.grid(i64(1)):
            T.evaluate(tirx.const(0, "int32"))

    return prim_func("pack", body)


def shared_file(shared: Path, layout: object, packed: Callable[[], np.ndarray]) -> Path:
    """The file of the weights that are packed in a layout: of all candidates that have it."""
    digest = hashlib.sha256(repr(layout).encode()).hexdigest()[:16]
    path = shared / f"packed-{digest}.npy"
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}")
        with partial.open("wb") as file:
            np.save(file, packed())
        partial.rename(path)
    return path


def _link(
    folder: Path, config: LayerConfig, work: Workload, machine: Any, lowered: Lowered, code: bytes
) -> None:
    from tvmconv.codegen import link
    from tvmconv.codegen.parts import KernelShape, Variant

    element = np.dtype(work.accumulate_dtype).itemsize
    kernel = KernelShape(
        f"{NAME}_kernel",
        work.plan.input_shape,
        work.output_shape,
        0 if work.empty else lowered.tiles_per_sample,
        lowered.scratch_size * element,
        f"{NAME}_finish" if lowered.finish is not None else "",
    )
    size = (lowered.packed_size + lowered.bias_size) * element
    scratch = lowered.scratch_size * element
    target = {
        "triple": machine.triple,
        "cpu": machine.cpu,
        "features": list(machine.features),
        "fingerprint": machine.fingerprint(),
    }
    parts = parts_of(
        config, work, target, lowered.tiling.to_json(), code,
        workspace_bytes=-(-scratch // 64) * 64 + 64 if scratch else 0,
        weight_bytes=size,
        variants=(Variant(machine.cpu, machine.required_features(), code, (kernel,)),),
        pack_symbol=f"{NAME}_pack",
        packed_bytes=size,
        bias_offset=lowered.packed_size * element,
        packed_element=element,
    )  # fmt: skip
    link(parts, folder)


def parts_of(
    config: LayerConfig,
    work: Workload,
    target: dict[str, Any],
    decisions: dict[str, Any],
    code: bytes,
    *,
    workspace_bytes: int,
    weight_bytes: int,
    **more: Any,
) -> Parts:
    """What a candidate's library is linked from, with its manifest.

    Parameters
    ----------
    config, work
        The layer, on one input shape.
    target, decisions, code
        For the manifest: the target, the tiling, and what was compiled.
    workspace_bytes, weight_bytes
        Of a call's workspace, and of the packed weights with the bias.
    **more
        The other fields of `Parts`.
    """
    from tvmconv import __version__
    from tvmconv.codegen.parts import Parts
    from tvmconv.manifest import Manifest

    kind = algorithm(decisions["form"])
    manifest = Manifest(
        name=NAME,
        layer=config.get_config(),
        input_shapes=(opened(work.plan.input_shape),),
        output_shapes=(opened(work.output_shape),),
        input_dtype=work.input_dtype,
        output_dtype=work.output_dtype,
        variable_dtype=work.variable_dtype,
        target=target,
        schedule={"origin": "candidate", "form": decisions["form"], "decisions": [decisions]},
        algorithm=kind,
        nonfinite="exact" if kind == "direct" else "tile",
        weights={"mode": "external", "packed_bytes": weight_bytes, "sha256": None},
        workspace_bytes=(workspace_bytes,),
        flops=(work.plan.flops,),
        code_sha256=hashlib.sha256(code).hexdigest(),
        check={},
        threads=0,
        tvmconv=__version__,
        tvm="",
        llvm="",
    )
    return Parts(
        name=NAME,
        input_dtype=work.input_dtype,
        output_dtype=work.output_dtype,
        variable_dtype=work.variable_dtype,
        kernel_shape=work.plan.kernel_shape,
        use_bias=work.use_bias,
        baked=None,
        triple=target["triple"],
        threads=0,
        manifest=manifest.to_json(),
        **more,
    )


def opened(shape: tuple[int, ...]) -> tuple[int | None, ...]:
    """A shape as a manifest has it: None for an open batch."""
    return tuple(None if size < 0 else size for size in shape)


def described(machine: Any) -> dict[str, Any]:
    """A target as a request carries it."""
    return dataclasses.asdict(machine)
