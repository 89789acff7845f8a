"""From a layer to an artifact: plan, lower, schedule, emit, check, link. All or nothing."""

from __future__ import annotations

import dataclasses
import logging
import operator
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmconv.errors import BuildError, ConfigError, ConfigTypeError, TargetError
from tvmconv.policies import numpy_dtype

if TYPE_CHECKING:
    from tvmconv.artifact import Artifact
    from tvmconv.check import Trial
    from tvmconv.codegen.link import Entries
    from tvmconv.compute import Lowered
    from tvmconv.compute.tiling import Tiling
    from tvmconv.compute.workload import Workload
    from tvmconv.generation import Generated
    from tvmconv.runtime.layer import Conv3DTranspose
    from tvmconv.targets import CpuTarget
    from tvmconv.tuning.use import Choice

__all__ = ["ALGORITHMS", "PRECISIONS", "compile"]

ALGORITHMS = ("auto", "direct", "pairs", "toom-cook")
PRECISIONS = ("full", "tf32")
_log = logging.getLogger(__name__)

Shape = Sequence["int | None"]
Progress = Callable[[str], None]


def compile(
    layer: Conv3DTranspose,
    input_shape: Shape | Sequence[Shape],
    *,
    target: str = "native",
    threads: int | None = None,
    algorithm: str = "auto",
    precision: str = "full",
    weights: str = "baked",
    name: str | None = None,
    runner: bool = False,
    output: str | Path,
    logs: str | Path | None = None,
    cc: str | None = None,
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
        ``"native"``, a CPU or device name, ``"cuda:sm_80,sm_90"`` or ``"cuda:native"``, or several
        of these with ``|`` between.
    threads : int, optional
        What 0 threads means at run time; None: as many as the process may use. No byte of the
        kernels depends on it.
    algorithm : str
        ``"direct"`` multiplies every input with every tap it meets; ``"toom-cook"`` needs fewer
        multiplications, but NaN and infinities spread within tiles of the output; ``"pairs"``,
        where kernel = stride on some processors, needs two thirds of them, but an infinity may
        become NaN (docs/numerics.md); ``"auto"`` takes what a model of the processor finds faster.
    precision : str
        ``"tf32"`` lets CUDA devices round the inputs and weights of a float32 layer to 10 bits of
        mantissa and multiply them on tensor cores; sums stay float32 (docs/numerics.md). Only for
        devices from sm_80 on.
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
        A folder of tuning records that comes before the user's own and the shipped ones, or
        ``"none"`` for the default schedules (docs/tuning.md).
    cc : str, optional
        The command of a C compiler that builds for the target, instead of the one that is found.
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
    from tvmconv import check, cuda_target, generation, memory, targets
    from tvmconv.artifact import symbol_name
    from tvmconv.codegen import link, toolchain
    from tvmconv.compute.workload import Workload
    from tvmconv.description import describe
    from tvmconv.runtime.call import checked_threads
    from tvmconv.runtime.state import LayerState
    from tvmconv.systems import TRIPLES

    step = progress or _log.debug
    if not isinstance(layer, LayerState):
        raise ConfigTypeError(
            "Expected a tvmconv.Conv3DTranspose; tvmconv.from_keras makes one of a Keras layer. "
            f"Received: layer={layer!r} (of type {type(layer)})"
        )
    shapes = _shapes(input_shape)
    threads = checked_threads(threads)
    _check_options(algorithm, precision, weights, name)
    _check_logs(logs)
    found, gpus = cuda_target.separate(target)
    machines = targets.by_demand(found)
    if gpus is not None and runner:
        raise TargetError(
            f"target {target!r}: --runner makes a static program, which no CUDA driver can be "
            "opened from; leave it out"
        )
    works = [Workload.of(layer.config, shape) for shape in shapes]
    if precision == "tf32":
        architectures = () if gpus is None else gpus.architectures
        cuda_target.check_tf32(target, architectures, works[0].input_dtype)
    for work in works:
        memory.check(work.plan, work.input_dtype)
        for machine in machines:
            for dtype in (work.input_dtype, work.output_dtype, work.variable_dtype):
                targets.check_dtype(machine, dtype)
    triple = (machines[0] if machines else targets.native()).triple
    linker = toolchain.find_for(triple, cc)
    if gpus is not None and TRIPLES[triple].kind != "linux":
        raise TargetError(f"CUDA devices are for Linux only. Received: target={target!r}")
    if runner and TRIPLES[triple].kind != "linux":
        raise ConfigError(f"A runner is a program for Linux. Received: target={target!r}")
    if not layer.built:
        layer.build(shapes[0])
    _check_channels(layer, works)
    kernel, bias = _weights(layer)
    baked = weights == "baked"
    with np.errstate(over="ignore"):  # What overflows in the compute dtype is infinite there.
        exact = baked and not np.isfinite(kernel.astype(numpy_dtype(works[0].input_dtype))).all()
    name = symbol_name(layer.name if name is None else name)
    dump = None if debug_dump is None else Path(debug_dump)
    cuda = None
    if gpus is not None:
        from tvmconv import cuda_compiler

        cuda = cuda_compiler.generate(
            name, works, layer.config, (kernel, bias), gpus, machines,
            baked=baked, exact=bool(exact), algorithm=algorithm, precision=precision, logs=logs,
            step=step, debug_dump=dump,
        )  # fmt: skip
        if not machines:
            step("linking")
            return link(cuda.alone(name, layer), Path(output), cc=linker)
    several = len(machines) > 1
    variants: list[Generated] = []
    trial = check.Trial(works, layer.config, kernel, bias)
    # Large arrays, which leave Python free: of the check while code is made, of weights meanwhile.
    with ThreadPoolExecutor(1) as beside:
        drawing = beside.submit(trial.case)
        choices = _choices(works, machines, exact, algorithm, logs)
        for index, (machine, row) in enumerate(zip(machines, choices, strict=True)):
            step(f"generating code for {machine.cpu}")
            tilings = [one.tiling for one in row]
            made = generation.generate(
                name, index, works, machine, tilings, packs=not several, origins=row
            )
            variants.append(made)
            if dump is not None:
                _dump(dump / (machine.label if several else ""), made)
        pack_code = None
        if several:
            pack_code = generation.packer(name, variants[-1], targets.baseline(machines[0]))
        drawing.result()

        step("checking against the reference")
        packing = beside.submit(variants[0].pack, kernel, bias) if baked else None
        entries: Entries = {}
        checker = _Checker(name, layer, tuple(works), trial, baked, threads, entries)
        errors = checker.all(variants, pack_code, exact)
    packed = packing.result() if packing is not None else variants[0].blank()
    text = describe(name, layer, variants, packed, errors, baked=baked, threads=threads)
    parts = generation.assemble(
        name, variants, packed, text, baked=baked, threads=threads, pack_code=pack_code
    )
    if cuda is not None:
        parts = cuda.beside(parts)
    step("linking")
    cc_asked = linker if cc else None
    return link(parts, Path(output), cc=cc_asked, with_runner=runner, entries=entries)


def _shapes(input_shape: Any) -> list[tuple[int | None, ...]]:
    try:
        items = list(input_shape)
        several = bool(items) and all(isinstance(item, Sequence) for item in items)
        shapes = [
            tuple(None if size is None else operator.index(size) for size in shape)
            for shape in (items if several else [items])
        ]
    except TypeError as exc:
        raise ConfigTypeError(
            "Expected 5 integers, None for an open batch, or several such shapes. "
            f"Received: input_shape={input_shape!r}"
        ) from exc
    if len(set(shapes)) != len(shapes):
        raise ConfigError(f"An input shape is given twice. Received: input_shape={shapes}")
    return shapes


def _check_options(algorithm: str, precision: str, weights: str, name: str | None) -> None:
    if precision not in PRECISIONS:
        raise ConfigError(f"Expected precision to be one of {PRECISIONS}. Received: {precision!r}")
    if algorithm not in ALGORITHMS:
        raise ConfigError(f"Expected algorithm to be one of {ALGORITHMS}. Received: {algorithm!r}")
    if weights not in ("baked", "external"):
        raise ConfigError(
            f"Expected weights to be 'baked' or 'external'. Received: weights={weights!r}"
        )
    if name is not None and not isinstance(name, str):
        raise ConfigTypeError(f"Expected name to be a string. Received: name={name!r}")


def _check_logs(logs: str | Path | None) -> None:
    if logs is not None and str(logs) != "none" and not Path(logs).is_dir():
        raise ConfigError(f"logs={str(logs)!r}: no such folder; logs='none' uses no records")


def _choices(
    works: list[Workload],
    machines: Sequence[CpuTarget],
    exact: bool,
    algorithm: str,
    logs: str | Path | None,
) -> list[list[Choice]]:
    """For each processor, the decisions of all shapes. Records are for one processor alone."""
    from tvmconv.schedules.several import decide_several
    from tvmconv.tuning.use import Choice, choose

    if len(machines) == 1:
        return [choose(works, machines[0], exact=exact, algorithm=algorithm, logs=logs)]
    found = decide_several(works, machines, exact=exact, algorithm=algorithm)
    return [[Choice(tiling) for tiling in row] for row in found]


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


@dataclasses.dataclass(frozen=True)
class _Checker:
    """Runs linked code on every input shape and compares it with the reference.

    A library is compared while the next one is made.
    """

    name: str
    layer: Conv3DTranspose
    works: tuple[Workload, ...]
    trial: Trial
    baked: bool
    threads: int
    entries: Entries

    def all(
        self, variants: Sequence[Generated], pack_code: bytes | None, exact: bool
    ) -> dict[str, Any]:
        """What the manifest says of the check: the worst of all processors' code."""
        from tvmconv import schedules, targets

        with (
            tempfile.TemporaryDirectory(prefix="tvmconv-check-") as folder,
            ThreadPoolExecutor(1) as beside,
        ):
            waiting: list[Future[dict[str, Any]]] = []

            def submit(made: Generated, code: bytes | None, where: str = "host") -> None:
                linked = self._linked(Path(folder) / str(len(waiting)), made, code)
                waiting.append(beside.submit(self._compare, linked, where))

            for made in variants:
                if not targets.missing_here(made.machine):
                    submit(made, pack_code)
                    continue
                host = targets.native()
                twin = self._twin(host, [one.lowered.tiling for one in made.scheduled])
                submit(twin, None, f"host, the same schedule built for {host.cpu}")
            if variants[0].algorithm != "direct":
                machine = variants[-1].machine
                host = targets.native() if targets.missing_here(machine) else machine
                direct = schedules.decide_all(self.works, host, exact=exact, algorithm="direct")
                submit(self._twin(host, direct), None)
            results = [one.result() for one in waiting]
        own = results[: len(variants)]
        worst = max(own, key=lambda one: float(one["max_error"]))
        found = {**worst, "voxels": sum(one["voxels"] for one in own)}
        elsewhere = [one["where"] for one in own if one["where"] != "host"]
        found["where"] = elsewhere[0] if elsewhere else "host"
        errors = {variants[0].algorithm: found["max_error"]}
        if len(results) > len(variants):
            errors["direct"] = results[-1]["max_error"]
        found["max_error_float64"] = errors
        return found

    def _twin(self, host: CpuTarget, tilings: Sequence[Tiling]) -> Generated:
        from tvmconv.generation import generate

        return generate(self.name, 0, self.works, host, tilings, ships=False)

    def _linked(self, folder: Path, made: Generated, pack_code: bytes | None) -> Artifact:
        """One processor's code, linked without weights, with the entry of what will ship."""
        from tvmconv.codegen import link
        from tvmconv.description import describe
        from tvmconv.generation import assemble

        packed = made.blank()
        text = describe(self.name, self.layer, [made], packed, {}, baked=False, threads=0)
        parts = assemble(
            self.name, [made], packed, text, baked=self.baked, threads=self.threads,
            pack_code=pack_code, blank=True,
        )  # fmt: skip
        return link(parts, folder, entries=self.entries)

    def _compare(self, artifact: Artifact, where: str) -> dict[str, Any]:
        """Load a library and run it."""
        from tvmconv import check

        results = self.trial.compare(artifact.load())
        worst = check.worst(results)
        if not worst.good:
            raise BuildError(
                f"the compiled layer {self.name!r} differs from the reference by "
                f"{worst.error:.3g}, tolerance {worst.tolerance:.3g}: this is a bug of tvmconv, "
                "nothing was written"
            )
        return {
            "where": where,
            "max_error": worst.error,
            "tolerance": worst.tolerance,
            "voxels": sum(result.voxels for result in results),
        }


def _dump(folder: Path, generated: Generated) -> None:
    """Write each stage as text."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index, (work, one) in enumerate(zip(generated.works, generated.scheduled, strict=True)):
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
