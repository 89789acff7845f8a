"""`verify`: an artifact against its manifest, and its code against the definition of the layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from tvmconv import artifact, check
from tvmconv.artifact import Artifact, Finding, Report
from tvmconv.check import Runnable
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.errors import ArtifactError, ConfigError, InputError
from tvmconv.runtime.image import OtherMachineError
from tvmconv.runtime.library import CompiledLayer

__all__ = ["recomputed", "verify"]

_SUBJECT = "output"


def verify(path: str | Path, *, run: bool = True) -> Report:
    """Compare an artifact with its manifest; if all is well, run it and compare with the reference.

    The comparison is the one of the build: random weights and inputs, every input shape, whole
    outputs of small layers and voxels drawn from large ones. It proves the code, while the hashes
    prove the weights inside. Where this machine cannot run the artifact, or has no memory for it,
    the finding is good and says why nothing was computed.

    Parameters
    ----------
    path
        The folder, or the manifest or shared library in it.
    run
        False loads nothing, so that no code of the artifact runs.

    Raises
    ------
    ArtifactError
        There is no artifact, or its manifest cannot be read.
    """
    report = artifact.verify(path)
    if not run or not report.good:
        return report
    found = Artifact(report.path, report.manifest)
    finding = recomputed(found, found.load)
    return replace(report, findings=(*report.findings, finding))


def recomputed(found: Artifact, load: Callable[[], Runnable], where: str = "") -> Finding:
    """What an artifact computes, against the definition of its layer.

    Parameters
    ----------
    found
        The artifact.
    load
        Makes the layer that is compared.
    where
        The machine on which it runs, if it is another one.
    """
    subject = f"{_SUBJECT} on {where}" if where else _SUBJECT
    manifest = found.manifest
    try:
        config = LayerConfig.from_keras(manifest.layer)
        works = [Workload.of(config, shape) for shape in manifest.input_shapes]
        shapes = tuple(_open(work.output_shape) for work in works)
        if shapes != manifest.output_shapes:
            return Finding(subject, False, f"the layer has the output shapes {shapes}")
        dtype = numpy_dtype(config.variable_dtype)
        # Stand-ins: the check draws the numbers.
        kernel = np.zeros(works[0].plan.kernel_shape, dtype)
        bias = np.zeros(config.filters, dtype) if config.use_bias else None
        layer = load()
        results = check.compare(layer, works, config, kernel, bias)
    except ConfigError as exc:
        return Finding(subject, False, f"the layer in the manifest is none: {exc}")
    except (OtherMachineError, InputError, MemoryError) as exc:
        return Finding(subject, True, f"not computed here: {exc}")
    except ArtifactError as exc:
        return Finding(subject, False, f"not computed: {exc}")
    worst = check.worst(results)
    voxels = sum(result.voxels for result in results)
    detail = f"largest error {worst.error:.2g} of {voxels} voxels, tolerance {worst.tolerance:.2g}"
    if manifest.several and isinstance(layer, CompiledLayer) and not layer.on_gpu:
        detail += f", by the code for {layer.processor}"
    return Finding(subject, worst.good, detail)


def _open(shape: tuple[int, ...]) -> tuple[int | None, ...]:
    return tuple(None if size < 0 else size for size in shape)
