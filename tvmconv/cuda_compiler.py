"""The CUDA part of a library: device code, packer, check, and its entries in the manifest."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tvmconv.cuda_serial import SerialLayer
from tvmconv.errors import BuildError

if TYPE_CHECKING:
    from tvmconv.codegen.cuda.launcher import CudaPart
    from tvmconv.codegen.cuda.nvcc import Built
    from tvmconv.codegen.cuda.parts import CudaCode
    from tvmconv.codegen.parts import Parts
    from tvmconv.compute.cuda import CudaForm
    from tvmconv.compute.workload import Workload
    from tvmconv.config import LayerConfig
    from tvmconv.cuda_target import CudaTarget
    from tvmconv.runtime.layer import Conv3DTranspose
    from tvmconv.targets import CpuTarget
    from tvmconv.tuning.cuda_use import CudaChoice

__all__ = ["CudaLibrary", "generate"]

#: Floating-point operations of a serial run; of a larger layer a smaller input is computed.
_MOST_FLOPS: Final = 2e8


@dataclass(frozen=True)
class CudaLibrary:
    """Everything of a layer that is for CUDA devices.

    Attributes
    ----------
    works : tuple of Workload
        One for each input shape.
    code : CudaCode
        Kernels, and how they are launched.
    built : Built
        The fat binary, and what its kernels take.
    part : CudaPart
        What is linked.
    host : CpuTarget
        The smallest processor of the host's architecture, for which the packer is.
    check : dict
        What the comparison with the reference gave.
    choices : tuple of CudaChoice
        The decisions of each shape, and where they come from.
    """

    works: tuple[Workload, ...]
    code: CudaCode
    built: Built
    part: CudaPart
    host: CpuTarget
    check: dict[str, Any]
    choices: tuple[CudaChoice, ...]

    def alone(self, name: str, layer: Conv3DTranspose) -> Parts:
        """The parts of a library without a CPU version."""
        from tvmconv.codegen.parts import KernelShape, Parts, Variant

        first = self.works[0]
        shapes = tuple(
            KernelShape("", one.input_shape, one.output_shape, 0, 0) for one in self.part.shapes
        )
        parts = Parts(
            name=name,
            variants=(Variant(self.host.cpu, (), b"", shapes),),
            pack_symbol="",
            packed_bytes=0,
            bias_offset=0,
            input_dtype=first.input_dtype,
            output_dtype=first.output_dtype,
            variable_dtype=first.variable_dtype,
            kernel_shape=first.plan.kernel_shape,
            use_bias=first.use_bias,
            baked=None if self.part.baked is None else b"",
            triple=self.host.triple,
            threads=0,
            manifest=self._manifest(name, layer),
            cuda=self.part,
        )
        return self.beside(parts, cpu=False)

    def beside(self, parts: Parts, *, cpu: bool = True) -> Parts:
        """The parts of a library for the CPU, with the CUDA part and the manifest of both."""
        from tvmconv.compute import NONFINITE
        from tvmconv.manifest import Manifest

        both = dataclasses.replace(parts, cuda=self.part)
        manifest = Manifest.from_json(parts.manifest)
        fingerprint = f"cuda-{'-'.join(one[3:] for one in self.code.architectures)}"
        if cpu:
            fingerprint = f"{fingerprint}|{manifest.target['fingerprint']}"
        target = {**manifest.target, "fingerprint": fingerprint, "cuda": self._described(cpu)}
        digest = None
        if both.all_baked is not None:
            digest = hashlib.sha256(both.all_baked).hexdigest()
        weights = {
            **manifest.weights,
            "packed_bytes": both.all_packed_bytes,
            "sha256": digest,
            "nonfinite": max(manifest.weights["nonfinite"], self._nonfinite, key=NONFINITE.index),
        }
        code = hashlib.sha256(manifest.code_sha256.encode() + self.built.fatbin).hexdigest()
        check = {**manifest.check, "cuda": self.check} if cpu else self.check
        nonfinite = "tile" if self._algorithm == "toom-cook" else manifest.nonfinite
        text = dataclasses.replace(
            manifest, target=target, weights=weights, code_sha256=code, check=check,
            nonfinite=nonfinite,
        ).to_json()  # fmt: skip
        return dataclasses.replace(both, manifest=text)

    @property
    def _nonfinite(self) -> str:
        """Where NaN and infinities of weights given at run time go, in the worst of the shapes."""
        from tvmconv.compute import NONFINITE
        from tvmconv.compute.cuda import weights_nonfinite

        return max(map(weights_nonfinite, self._forms), key=NONFINITE.index)

    @property
    def _algorithm(self) -> str:
        return "toom-cook" if self.code.decisions[0]["form"] == "toom-cook" else "direct"

    @property
    def _forms(self) -> list[CudaForm]:
        from tvmconv.compute.cuda import lower
        from tvmconv.compute.cuda.tiling import CudaTiling

        tilings = map(CudaTiling.from_json, self.code.decisions)
        return [lower(w, t) for w, t in zip(self.works, tilings, strict=True)]

    def _described(self, cpu: bool) -> dict[str, Any]:
        """The entry ``target.cuda`` of the manifest."""
        from tvmconv.compute.cuda import precision

        return {
            "architectures": list(self.code.architectures),
            "ptx": self.code.architectures[-1],
            "cpu": cpu,
            "workspace_bytes": [shape.workspace_bytes for shape in self.part.shapes],
            "launches": [[one.symbol for one in shape.launches] for shape in self.part.shapes],
            "precision": [precision(form) for form in self._forms],
            "algorithm": self._algorithm,
            "decisions": list(self.code.decisions),
            "origins": [one.origin for one in self.choices],
            "kernels": [dataclasses.asdict(one) for one in self.built.usage],
        }

    def _manifest(self, name: str, layer: Conv3DTranspose) -> str:
        """What the manifest says apart from CUDA."""
        import tvm
        from tvm.target import codegen

        from tvmconv import __version__
        from tvmconv.manifest import Manifest

        first = self.works[0]
        manifest = Manifest(
            name=name,
            layer=layer.get_config(),
            input_shapes=tuple(_open(work.plan.input_shape) for work in self.works),
            output_shapes=tuple(_open(work.output_shape) for work in self.works),
            input_dtype=first.input_dtype,
            output_dtype=first.output_dtype,
            variable_dtype=first.variable_dtype,
            target={"triple": self.host.triple, "cpu": "", "features": [], "fingerprint": ""},
            schedule={
                "origin": self.choices[0].origin,
                "origins": [one.origin for one in self.choices],
                "transfer": [one.transfer for one in self.choices],
                "cores": [one.cores for one in self.choices],
                "form": self.code.decisions[0]["form"],
                "decisions": list(self.code.decisions),
            },
            algorithm=self._algorithm,
            nonfinite="exact",
            weights={
                "mode": "external" if self.part.baked is None else "baked",
                "packed_bytes": 0,
                "sha256": None if self.part.baked is None else "0" * 64,
                "nonfinite": "exact",
            },
            workspace_bytes=tuple(shape.workspace_bytes for shape in self.part.shapes),
            flops=tuple(work.plan.flops for work in self.works),
            code_sha256=hashlib.sha256(self.part.object_code).hexdigest(),
            check=self.check,
            threads=0,
            tvmconv=__version__,
            tvm=tvm.__version__,
            llvm=str(codegen.llvm_version_major()),
        )
        return manifest.to_json()


def generate(
    name: str,
    works: Sequence[Workload],
    config: LayerConfig,
    weights: tuple[np.ndarray, np.ndarray | None],
    target: CudaTarget,
    machines: Sequence[CpuTarget],
    *,
    baked: bool,
    exact: bool,
    algorithm: str,
    precision: str,
    logs: str | Path | None,
    step: Callable[[str], None],
    debug_dump: Path | None = None,
) -> CudaLibrary:
    """Compile the CUDA part of a library and check its schedule.

    ``machines`` are the processors of its CPU version, none where it has none.

    Raises
    ------
    ConfigError
        Toom-Cook is asked for, and does not serve the layer.
    BuildError
        nvcc was not found or failed, or the kernels differ from the reference.
    """
    from tvmconv import targets
    from tvmconv.codegen import lowering
    from tvmconv.codegen.cuda import build, nvcc
    from tvmconv.codegen.cuda.launcher import CudaPart
    from tvmconv.schedules import cuda as rules
    from tvmconv.tuning import cuda_use

    compiler = nvcc.find()
    kernel, bias = weights
    choices = cuda_use.choose(
        works, target.architectures, exact=exact, precision=precision, algorithm=algorithm,
        logs=logs, multiprocessors=target.multiprocessors,
    )  # fmt: skip
    tilings = [one.tiling for one in choices]
    architectures = ", ".join(one.name for one in target.architectures)
    step(f"generating code for CUDA devices ({architectures})")
    code = build.source_of(name, works, tilings)
    if debug_dump is not None:
        _dump(debug_dump, code.source)
    built = compiler.build(code.source, target.architectures)
    names = tuple(one.name for one in target.architectures)
    code = dataclasses.replace(code, fatbin=built.fatbin, architectures=names)
    host = targets.baseline(machines[0] if machines else targets.native())
    symbol = f"{name}_cuda_pack"
    part = CudaPart(
        built.fatbin,
        code.shapes,
        symbol,
        lowering.emit({symbol: code.packer}, host).object_code(),
        code.packed_bytes,
        code.bias_offset,
        code.packed_element,
        code.pack(kernel, bias) if baked else None,
    )
    step("checking the CUDA kernels against the reference")
    check = _check(name, works, tilings, config, kernel, bias)
    errors = {"direct": check["max_error"]}
    if tilings[0].form == "toom-cook":
        direct = rules.decide_all(works, target.architectures, exact=exact)
        plain = _check(name, works, direct, config, kernel, bias)["max_error"]
        errors = {"toom-cook": check["max_error"], "direct": plain}
    check["max_error_float64"] = errors
    return CudaLibrary(tuple(works), code, built, part, host, check, tuple(choices))


def _check(
    name: str,
    works: Sequence[Workload],
    tilings: Sequence[Any],
    config: LayerConfig,
    kernel: np.ndarray,
    bias: np.ndarray | None,
) -> dict[str, Any]:
    """Compare the kernels, with the loops over blocks and threads serial, with the reference."""
    from tvmconv import check
    from tvmconv.compute.cuda import lower, precision

    results, shapes = [], []
    for work, tiling in zip(works, tilings, strict=True):
        small = _smaller(work, config)
        form = lower(small, tiling)
        layer = SerialLayer(form)
        results += check.compare(layer, [small], config, kernel, bias, precision(form))
        shapes.append(_open(small.plan.input_shape))
    worst = check.worst(results)
    if not worst.good:
        raise BuildError(
            f"the CUDA kernels of {name!r} differ from the reference by {worst.error:.3g}, "
            f"tolerance {worst.tolerance:.3g}: this is a bug of tvmconv, nothing was written"
        )
    return {
        "where": "host, the CUDA kernels with the loops over blocks and threads made serial",
        "max_error": worst.error,
        "tolerance": worst.tolerance,
        "voxels": sum(result.voxels for result in results),
        "input_shapes": shapes,
    }


def _smaller(work: Workload, config: LayerConfig) -> Workload:
    """The same layer on an input that one thread computes in about a second."""
    from tvmconv.compute.workload import Workload as Work

    shape = list(work.plan.input_shape)
    axes = (2, 3, 4) if work.plan.channels_first else (1, 2, 3)
    while True:
        found = Work.of(config, [None if size < 0 else size for size in shape])
        axis = max(axes, key=lambda one: shape[one])
        if found.plan.flops * max(1, abs(shape[0])) <= _MOST_FLOPS or shape[axis] <= 2:
            return found
        if shape[0] > 1:
            shape[0] = 1
        else:
            shape[axis] = -(-shape[axis] // 2)


def _dump(folder: Path, source: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "kernels.cu").write_text(source)
    except OSError as exc:
        raise BuildError(f"the folder {folder} for --debug-dump cannot be written: {exc}") from exc


def _open(shape: tuple[int, ...]) -> tuple[int | None, ...]:
    return (None if shape[0] == -1 else shape[0], *shape[1:])
