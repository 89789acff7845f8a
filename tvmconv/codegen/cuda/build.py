"""From workloads to the device code of one layer: rules, kernels, CUDA C, fat binary."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvmconv.codegen.cuda import lowering, nvcc
from tvmconv.codegen.cuda.parts import CudaCode, CudaShape, Launch
from tvmconv.compute.cuda import CudaForm, lower

if TYPE_CHECKING:
    from tvmconv.compute.cuda.tiling import CudaTiling
    from tvmconv.compute.workload import Workload
    from tvmconv.cuda_devices import Architecture

__all__ = ["generate", "source_of"]


def source_of(name: str, works: Sequence[Workload], tilings: Sequence[CudaTiling]) -> CudaCode:
    """The device code of a layer as CUDA C, for one or more input shapes; no fat binary yet.

    Parameters
    ----------
    name
        Prefix of the kernels' symbols.
    works, tilings
        One each for every input shape, of one packed layout.

    Raises
    ------
    BuildError
        TVM refused a kernel.
    """
    forms = [lower(work, tiling) for work, tiling in zip(works, tilings, strict=True)]
    functions, resident, shapes = {}, {}, []
    for index, form in enumerate(forms):
        launches, workspace = [], 0
        for kernel in form.kernels():
            workspace = max(workspace, kernel.workspace_bytes)
            symbol = f"{name}_{kernel.suffix}_{index}"
            functions[symbol] = kernel.emit(symbol, False)
            if kernel.resident:
                resident[symbol] = kernel.resident
            launches.append(
                Launch(
                    symbol,
                    kernel.grid,
                    kernel.per_sample,
                    (kernel.threads, 1, 1),
                    kernel.dynamic_bytes,
                    kernel.arguments,
                    kernel.shared_bytes - kernel.dynamic_bytes,
                )
            )
        work = form.work
        shapes.append(
            CudaShape(work.plan.input_shape, work.output_shape, tuple(launches), workspace)
        )
    first: CudaForm = forms[0]
    assert all(form.layout == first.layout for form in forms)
    packed_bytes, bias_offset, element = first.packed_sizes
    return CudaCode(
        lowering.source(functions, resident),
        b"",
        (),
        tuple(shapes),
        packed_bytes,
        bias_offset,
        element,
        first.packer(),
        tuple(tiling.to_json() for tiling in tilings),
        first,
    )


def generate(
    name: str,
    works: Sequence[Workload],
    tilings: Sequence[CudaTiling],
    targets: Sequence[Architecture],
) -> CudaCode:
    """The device code of a layer, compiled: what a CUDA library is linked from.

    Raises
    ------
    BuildError
        TVM refused a kernel, nvcc was not found, or it refused the source.
    """
    compiler = nvcc.find()
    code = source_of(name, works, tilings)
    built = compiler.build(code.source, targets)
    names = tuple(one.name for one in targets)
    return dataclasses.replace(code, fatbin=built.fatbin, architectures=names)
