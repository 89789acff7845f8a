"""From a layer to an artifact: plan, lower, schedule, emit, check, link. All or nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmconv.errors import BuildError, ConfigError, TargetError

if TYPE_CHECKING:
    from tvmconv.artifact import Artifact
    from tvmconv.codegen.lowering import Code
    from tvmconv.codegen.parts import Parts
    from tvmconv.compute import Lowered
    from tvmconv.compute.tiling import Tiling
    from tvmconv.compute.workload import Workload
    from tvmconv.runtime.layer import Conv3DTranspose
    from tvmconv.schedules import Scheduled
    from tvmconv.targets import CpuTarget

__all__ = ["ALGORITHMS", "compile"]

ALGORITHMS = ("auto", "direct", "toom-cook")
_log = logging.getLogger(__name__)

Shape = Sequence["int | None"]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Generated:
    """The code of all shapes, before it is linked."""

    scheduled: tuple[Scheduled, ...]
    code: Code
    object_code: bytes


def compile(
    layer: Conv3DTranspose,
    input_shape: Shape | Sequence[Shape],
    *,
    target: str = "native",
    threads: int | None = None,
    algorithm: str = "auto",
    weights: str = "baked",
    name: str | None = None,
    runner: bool = False,
    output: str | Path,
    logs: str | Path | None = None,
    debug_dump: str | Path | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Compile a layer for a processor, ahead of time.

    Parameters
    ----------
    layer : Conv3DTranspose
        Built for the first input shape if it is not built.
    input_shape : sequence of 5 int or None, or several of them
        In the layer's data format, in voxels and channels. None or -1 as batch leaves it open.
    target : str
        ``"native"``, or a CPU or device name.
    threads : int, optional
        What 0 threads means at run time; None: as many as the process may use. No byte of the
        kernels depends on it.
    algorithm : str
        ``"direct"`` multiplies every input with every tap it meets; ``"toom-cook"`` needs fewer
        multiplications, but NaN and infinities spread within tiles of the output
        (docs/numerics.md); ``"auto"`` takes what a model of the processor finds faster.
    weights : str
        ``"baked"`` puts the layer's weights into the library; ``"external"`` leaves them to the
        caller.
    name : str, optional
        Prefix of all symbols; the layer's name by default.
    runner : bool
        Put ``<name>-bench`` beside the library, a static program that times the layer on a device.
    output : path
        The folder of the artifact. Files of another artifact in it stay.
    logs : path, optional
        The folder of tuning logs, or ``"none"``.
    debug_dump : path, optional
        A folder that gets each stage as text: plan, TIR before and after scheduling, LLVM IR,
        assembly.
    progress : callable, optional
        Called with the name of each step.

    Returns
    -------
    Artifact
        The folder and its manifest.

    Raises
    ------
    ConfigError
        The arguments do not fit the layer.
    TargetError
        The target is unknown, or cannot be built for here.
    BuildError
        The compiler failed, or the library differs from the reference.
    ArtifactError
        The folder cannot be written.
    """
    from tvmconv import schedules, targets
    from tvmconv.artifact import symbol_name
    from tvmconv.codegen import link
    from tvmconv.compute.workload import Workload

    del logs  # No rule reads tuning records yet.
    step = progress or _log.debug
    shapes = _shapes(input_shape)
    _check_options(algorithm, weights, threads)
    machine = _one(targets.resolve_buildable(target))
    if not layer.built:
        layer.build(shapes[0])
    works = [Workload.of(layer.config, shape) for shape in shapes]
    _check_channels(layer, works)
    kernel, bias = _weights(layer)
    finite = bool(np.isfinite(kernel).all()) or weights == "external"
    name = symbol_name(layer.name if name is None else name)
    step(f"generating code for {machine.cpu}")
    tilings = schedules.decide_all(works, machine, exact=not finite, algorithm=algorithm)
    generated = _generate(name, works, machine, tilings)
    if debug_dump is not None:
        _dump(Path(debug_dump), works, generated)
    packed = generated.scheduled[0].lowered.pack(kernel, bias)

    def parts(check: dict[str, Any]) -> Parts:
        return _parts(
            name, layer, works, machine, generated, packed, weights == "baked", threads or 0, check
        )

    step("checking against the reference")

    def twin(host: CpuTarget, tilings: list[Tiling]) -> dict[str, Any]:
        made = _generate(name, works, host, tilings)
        blob = made.scheduled[0].lowered.pack(kernel, bias)
        standing_in = _parts(name, layer, works, host, made, blob, True, 0, {})
        return _check(standing_in, works, layer, kernel, bias)

    host = targets.native() if targets.missing_here(machine) else machine
    if host is not machine:
        # It cannot run here: the same schedule, built for this processor, does.
        check = twin(host, tilings)
        check["where"] = f"host, the same schedule built for {host.cpu}"
    else:
        check = _check(parts({}), works, layer, kernel, bias)
    errors = {_algorithm(generated): check["max_error"]}
    if "direct" not in errors:
        direct = schedules.decide_all(works, host, exact=not finite, algorithm="direct")
        errors["direct"] = twin(host, direct)["max_error"]
    check["max_error_float64"] = errors
    step("linking")
    return link(parts(check), Path(output), with_runner=runner)


def _shapes(input_shape: Any) -> list[tuple[int | None, ...]]:
    items = list(input_shape)
    several = bool(items) and all(isinstance(item, Sequence) for item in items)
    shapes = [tuple(shape) for shape in (items if several else [items])]
    if len(set(shapes)) != len(shapes):
        raise ConfigError(f"An input shape is given twice. Received: input_shape={shapes}")
    return shapes


def _check_options(algorithm: str, weights: str, threads: int | None) -> None:
    if algorithm not in ALGORITHMS:
        raise ConfigError(f"Expected algorithm to be one of {ALGORITHMS}. Received: {algorithm!r}")
    if weights not in ("baked", "external"):
        raise ConfigError(
            f"Expected weights to be 'baked' or 'external'. Received: weights={weights!r}"
        )
    if threads is not None and not 0 <= threads <= 1024:
        raise ConfigError(f"Expected threads from 0 to 1024. Received: threads={threads}")


def _one(found: tuple[CpuTarget, ...]) -> CpuTarget:
    if len(found) != 1:
        raise TargetError("one library for several processors is not in this version; name one")
    return found[0]


def _check_channels(layer: Conv3DTranspose, works: list[Workload]) -> None:
    expected = layer.kernel.shape[-1]
    for work in works:
        if work.plan.in_channels != expected:
            raise ConfigError(
                f"The layer was built for {expected} input channels. "
                f"Received: input_shape={work.plan.input_shape}"
            )


def _weights(layer: Conv3DTranspose) -> tuple[np.ndarray, np.ndarray | None]:
    arrays = layer.get_weights()
    return arrays[0], arrays[1] if len(arrays) > 1 else None


def _generate(
    name: str, works: list[Workload], machine: CpuTarget, tilings: list[Tiling]
) -> _Generated:
    from tvmconv import compute, schedules
    from tvmconv.codegen import lowering

    scheduled = []
    for tiling, work in zip(tilings, works, strict=True):
        scheduled.append(schedules.apply(compute.lower(work, tiling)))
    functions = {f"{name}_pack": scheduled[0].lowered.packer}
    for index, one in enumerate(scheduled):
        functions[f"{name}_kernel_0_{index}"] = one.kernel
        if one.lowered.finish is not None:
            functions[f"{name}_finish_0_{index}"] = one.lowered.finish
    code = lowering.emit(functions, machine)
    return _Generated(tuple(scheduled), code, code.object_code())


def _parts(
    name: str,
    layer: Conv3DTranspose,
    works: list[Workload],
    machine: CpuTarget,
    generated: _Generated,
    packed: np.ndarray,
    baked: bool,
    threads: int,
    check: dict[str, Any],
) -> Parts:
    from tvmconv.codegen.parts import KernelShape, Parts, Variant

    first = works[0]
    size = packed.itemsize
    shapes = tuple(
        KernelShape(
            f"{name}_kernel_0_{index}",
            work.plan.input_shape,
            work.output_shape,
            0 if work.empty else one.lowered.tiles_per_sample,
            one.lowered.scratch_size * size,
            f"{name}_finish_0_{index}" if one.lowered.finish is not None else "",
        )
        for index, (work, one) in enumerate(zip(works, generated.scheduled, strict=True))
    )
    features = machine.required_features()
    blob = packed.tobytes() if baked else None
    manifest = _manifest(name, layer, works, machine, generated, packed, baked, threads, check)
    return Parts(
        name=name,
        variants=(Variant(machine.cpu, features, generated.object_code, shapes),),
        pack_symbol=f"{name}_pack",
        packed_bytes=packed.nbytes,
        bias_offset=generated.scheduled[0].lowered.packed_size * size,
        packed_element=size,
        input_dtype=first.input_dtype,
        output_dtype=first.output_dtype,
        variable_dtype=first.variable_dtype,
        kernel_shape=first.plan.kernel_shape,
        use_bias=first.use_bias,
        baked=blob,
        triple=machine.triple,
        threads=threads,
        manifest=manifest,
    )


def _manifest(
    name: str,
    layer: Conv3DTranspose,
    works: list[Workload],
    machine: CpuTarget,
    generated: _Generated,
    packed: np.ndarray,
    baked: bool,
    threads: int,
    check: dict[str, Any],
) -> str:
    import tvm
    from tvm.target import codegen

    from tvmconv import __version__
    from tvmconv.compute import NONFINITE
    from tvmconv.manifest import Manifest

    first = works[0]
    lowered = [one.lowered for one in generated.scheduled]
    sizes = [one.scratch_size * packed.itemsize for one in lowered]
    manifest = Manifest(
        name=name,
        layer=layer.get_config(),
        input_shapes=tuple(_open(work.plan.input_shape) for work in works),
        output_shapes=tuple(_open(work.output_shape) for work in works),
        input_dtype=first.input_dtype,
        output_dtype=first.output_dtype,
        variable_dtype=first.variable_dtype,
        target={
            "triple": machine.triple,
            "cpu": machine.cpu,
            "features": list(machine.features),
            "fingerprint": machine.fingerprint(),
        },
        schedule={
            "origin": generated.scheduled[0].origin,
            "form": lowered[0].tiling.form,
            "decisions": [one.tiling.to_json() for one in lowered],
        },
        algorithm=_algorithm(generated),
        nonfinite="exact" if _algorithm(generated) == "direct" else "tile",
        weights={
            "mode": "baked" if baked else "external",
            "packed_bytes": packed.nbytes,
            "sha256": hashlib.sha256(packed.tobytes()).hexdigest() if baked else None,
            "nonfinite": max((one.weights_nonfinite for one in lowered), key=NONFINITE.index),
        },
        workspace_bytes=tuple(-(-size // 64) * 64 + 64 if size else 0 for size in sizes),
        flops=tuple(work.plan.flops for work in works),
        code_sha256=hashlib.sha256(generated.object_code).hexdigest(),
        check=check,
        threads=threads,
        tvmconv=__version__,
        tvm=tvm.__version__,
        llvm=str(codegen.llvm_version_major()),
    )
    return manifest.to_json()


def _algorithm(generated: _Generated) -> str:
    toom_cook = generated.scheduled[0].lowered.tiling.form == "toom-cook"
    return "toom-cook" if toom_cook else "direct"


def _open(shape: tuple[int, ...]) -> tuple[int | None, ...]:
    return (None if shape[0] == -1 else shape[0], *shape[1:])


def _check(
    parts: Parts,
    works: list[Workload],
    layer: Conv3DTranspose,
    kernel: np.ndarray,
    bias: np.ndarray | None,
) -> dict[str, Any]:
    """Run the linked library on every shape and compare it with the reference."""
    from tvmconv import check
    from tvmconv.codegen import link

    with tempfile.TemporaryDirectory(prefix="tvmconv-check-") as folder:
        artifact = link(dataclasses.replace(parts, baked=None), Path(folder))
        results = check.run(artifact, works, layer.config, kernel, bias)
    # A NaN compares as neither larger nor smaller: one that is not good comes first.
    by_error = sorted(results, key=lambda result: -result.error / result.tolerance)
    worst = ([result for result in results if not result.good] or by_error)[0]
    if not worst.good:
        raise BuildError(
            f"the compiled layer {parts.name!r} differs from the reference by {worst.error:.3g}, "
            f"tolerance {worst.tolerance:.3g}: this is a bug of tvmconv, nothing was written"
        )
    return {
        "where": "host",
        "max_error": worst.error,
        "tolerance": worst.tolerance,
        "voxels": sum(result.voxels for result in results),
    }


def _dump(folder: Path, works: list[Workload], generated: _Generated) -> None:
    """Write each stage as text."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index, (work, one) in enumerate(zip(works, generated.scheduled, strict=True)):
            lowered: Lowered = one.lowered
            stages = {
                "1-workload.txt": f"{work}\n{lowered.tiling}\n",
                "2-algorithm.py": str(lowered.kernel),
                "3-scheduled.py": str(one.kernel),
                "2-packer.py": str(lowered.packer),
            }
            for stage, text in stages.items():
                (folder / f"shape{index}-{stage}").write_text(text)
        (folder / "4-lowered.py").write_text(generated.code.tir)
        (folder / "5-kernel.ll").write_text(generated.code.text("ll"))
        (folder / "6-kernel.s").write_text(generated.code.text("s"))
    except OSError as exc:
        raise BuildError(f"the folder {folder} for --debug-dump cannot be written: {exc}") from exc
