"""Building one candidate for a CUDA device: a library with its kernels, its packed weights beside.

nvcc compiles for the architecture of the device alone. As for processors, the packer is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmconv.config import LayerConfig
from tvmconv.cuda_machine import fingerprint
from tvmconv.errors import BuildError
from tvmconv.tuning.building import NAME, PACKED, no_packer, parts_of, shared_file, weights

if TYPE_CHECKING:
    from tvmconv.codegen.cuda.nvcc import Built
    from tvmconv.codegen.cuda.parts import CudaCode
    from tvmconv.compute.cuda import Kernel
    from tvmconv.compute.workload import Workload
    from tvmconv.cuda_devices import Architecture
    from tvmconv.targets import CpuTarget

__all__ = ["build", "verify"]

_PACK = f"{NAME}_cuda_pack"

#: Static shared memory of a block, and a load: what every architecture allows.
_SHARED_BYTES, _VECTOR_BYTES = 48 << 10, 16


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Build ``tiling`` of ``config`` on ``shape`` for ``target`` into ``folder``.

    What the builder process does. Packed weights of one layout lie once in ``shared``.

    Raises
    ------
    BuildError
        TVM or nvcc refuses a kernel, or it takes more than a block can have.
    """
    from tvmconv.codegen import lowering
    from tvmconv.codegen.cuda import build as generation
    from tvmconv.codegen.cuda import nvcc
    from tvmconv.compute.cuda import lower
    from tvmconv.compute.cuda.tiling import CudaTiling
    from tvmconv.compute.workload import Workload
    from tvmconv.cuda_devices import architectures

    config = LayerConfig.from_keras(request["config"])
    work = Workload.of(config, request["shape"])
    targets = architectures([request["target"]["architecture"]])
    tiling = CudaTiling.from_json(request["tiling"])
    for kernel in lower(work, tiling).kernels():
        verify(kernel)
    code = generation.source_of(NAME, [work], [tiling])
    built = nvcc.find().build(code.source, targets)
    folder = Path(request["folder"])
    host = _host(request["target"]["triple"])
    packer = lowering.emit({_PACK: no_packer(work)}, host).object_code()
    _link(folder, config, work, targets, host, packer, code, built)

    def packed() -> np.ndarray:
        kernel, *bias = weights(config, work, 0)
        return np.frombuffer(code.pack(kernel, bias[0] if bias else None), np.uint8)

    file = shared_file(Path(request["shared"]), (tiling.form, code.form.layout), packed)
    (folder / PACKED).symlink_to(file.resolve())
    return {"bytes": len(built.fatbin), "registers": [one.registers for one in built.usage]}


def verify(kernel: Kernel) -> None:
    """Refuse a kernel that takes more than a block can have, by TVM's own count of its code.

    Raises
    ------
    BuildError
        Too much shared memory, or loads that are too wide.
    """
    from tvmconv.codegen.cuda import lowering

    shared = max(_SHARED_BYTES, kernel.shared_bytes)  # more than it declares itself is asked for
    limits = {"max_shared_memory_per_block": shared, "max_vector_bytes": _VECTOR_BYTES}
    if not lowering.fits(kernel.emit(kernel.suffix, False), limits):
        raise BuildError("the kernel takes more shared memory than a block can have")


def _host(triple: str) -> CpuTarget:
    """The smallest processor that may be beside the device."""
    from tvmconv import targets

    native = targets.native()
    return targets.baseline(native if native.triple == triple else targets.resolve(triple)[0])


def _link(
    folder: Path,
    config: LayerConfig,
    work: Workload,
    targets: tuple[Architecture, ...],
    host: CpuTarget,
    packer: bytes,
    code: CudaCode,
    built: Built,
) -> None:
    from tvmconv.codegen import link
    from tvmconv.codegen.cuda.launcher import CudaPart
    from tvmconv.codegen.parts import KernelShape, Variant

    part = CudaPart(
        built.fatbin, code.shapes, _PACK, packer, code.packed_bytes, code.bias_offset,
        code.packed_element, None,
    )  # fmt: skip
    (shape,) = code.shapes
    names = [one.name for one in targets]
    target = {
        "triple": host.triple,
        "cpu": "",
        "features": [],
        "fingerprint": fingerprint(targets[0]),
        "cuda": {
            "architectures": names,
            "ptx": names[-1],
            "cpu": False,
            "workspace_bytes": [shape.workspace_bytes],
        },
    }
    kernel = KernelShape("", shape.input_shape, shape.output_shape, 0, 0)
    parts = parts_of(
        config, work, target, code.decisions[0], built.fatbin,
        workspace_bytes=shape.workspace_bytes,
        weight_bytes=code.packed_bytes,
        variants=(Variant(host.cpu, (), b"", (kernel,)),),
        pack_symbol="",
        packed_bytes=0,
        bias_offset=0,
        cuda=part,
    )  # fmt: skip
    link(parts, folder)
