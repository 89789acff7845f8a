"""Code for each processor of a library, and the parts that it is linked from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvmconv.compute.tiling import algorithm

if TYPE_CHECKING:
    import numpy as np

    from tvmconv.codegen.lowering import Code
    from tvmconv.codegen.parts import Parts, Variant
    from tvmconv.compute.tiling import Tiling
    from tvmconv.compute.workload import Workload
    from tvmconv.schedules import Scheduled
    from tvmconv.targets import CpuTarget
    from tvmconv.tuning.use import Choice

__all__ = ["Generated", "assemble", "generate", "packer"]


@dataclass(frozen=True)
class Generated:
    """The code of all shapes for one processor, before it is linked.

    Attributes
    ----------
    index
        Place of the processor among those of the library: a part of the symbols.
    machine
        The processor.
    works, scheduled
        What is computed and how, for each input shape.
    code, object_code
        Printable, and the relocatable object.
    """

    index: int
    machine: CpuTarget
    works: tuple[Workload, ...]
    scheduled: tuple[Scheduled, ...]
    code: Code
    object_code: bytes

    @property
    def algorithm(self) -> str:
        """``direct``, ``pairs`` or ``toom-cook``."""
        return algorithm(self.scheduled[0].lowered.tiling.form)

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """The packed weights, the same for every processor of the library."""
        return self.scheduled[0].lowered.pack(kernel, bias)

    def blank(self) -> np.ndarray:
        """Zeros of the size of packed weights, where no more is asked of them."""
        import numpy as np

        lowered = self.scheduled[0].lowered
        return np.zeros(lowered.packed_size + lowered.bias_size, self.works[0].accumulate_dtype)


def generate(
    name: str,
    index: int,
    works: Sequence[Workload],
    machine: CpuTarget,
    tilings: Sequence[Tiling],
    *,
    packs: bool = True,
    origins: Sequence[Choice] = (),
    ships: bool = True,
) -> Generated:
    """Compile the kernels of one processor, and with them, unless not `packs`, the packer.

    ``origins`` say for each tiling where it comes from; by default from the rules. For code that
    is only compared, not ``ships``, LLVM tries less hard.

    Raises
    ------
    BuildError
        TVM or LLVM refused the code.
    """
    from tvmconv import compute, schedules
    from tvmconv.codegen import lowering

    scheduled = []
    for at, (tiling, work) in enumerate(zip(tilings, works, strict=True)):
        lowered = compute.lower(work, tiling)
        if origins:
            origin = origins[at]
            scheduled.append(schedules.apply(lowered, origin.origin, origin.transfer, origin.cores))
        else:
            scheduled.append(schedules.apply(lowered))
    functions = {f"{name}_pack": scheduled[0].lowered.packer} if packs else {}
    for shape, one in enumerate(scheduled):
        functions[f"{name}_kernel_{index}_{shape}"] = one.kernel
        if one.lowered.finish is not None:
            functions[f"{name}_finish_{index}_{shape}"] = one.lowered.finish
    level = lowering.effort((one.lowered.tiling.form for one in scheduled), ships=ships)
    code = lowering.emit(functions, machine, level)
    return Generated(index, machine, tuple(works), tuple(scheduled), code, code.object_code())


def packer(name: str, generated: Generated, machine: CpuTarget) -> bytes:
    """An object with the packer alone: it must run where any of several kernels does."""
    from tvmconv.codegen import lowering

    functions = {f"{name}_pack": generated.scheduled[0].lowered.packer}
    return lowering.emit(functions, machine).object_code()


def assemble(
    name: str,
    variants: Sequence[Generated],
    packed: np.ndarray,
    manifest: str,
    *,
    baked: bool,
    threads: int,
    pack_code: bytes | None = None,
    blank: bool = False,
) -> Parts:
    """What the library is linked from.

    Parameters
    ----------
    variants
        The most demanding processor first.
    packed
        The packed weights; into the library if `baked`, and not `blank`.
    pack_code
        An object with the packer; None where the last of `variants` holds it.
    """
    from tvmconv.codegen.parts import Parts

    first, lowered = variants[0].works[0], variants[0].scheduled[0].lowered
    return Parts(
        name=name,
        variants=tuple(_variant(name, one, packed.itemsize) for one in variants),
        pack_symbol=f"{name}_pack",
        pack_code=pack_code,
        packed_bytes=packed.nbytes,
        bias_offset=lowered.packed_size * packed.itemsize,
        packed_element=packed.itemsize,
        input_dtype=first.input_dtype,
        output_dtype=first.output_dtype,
        variable_dtype=first.variable_dtype,
        kernel_shape=first.plan.kernel_shape,
        use_bias=first.use_bias,
        baked=(b"" if blank else packed.tobytes()) if baked else None,
        triple=variants[0].machine.triple,
        threads=threads,
        manifest=manifest,
    )


def _variant(name: str, generated: Generated, size: int) -> Variant:
    from tvmconv.codegen.parts import KernelShape, Variant

    index = generated.index
    shapes = tuple(
        KernelShape(
            f"{name}_kernel_{index}_{shape}",
            work.plan.input_shape,
            work.output_shape,
            0 if work.empty else one.lowered.tiles_per_sample,
            one.lowered.scratch_size * size,
            f"{name}_finish_{index}_{shape}" if one.lowered.finish is not None else "",
        )
        for shape, (work, one) in enumerate(zip(generated.works, generated.scheduled, strict=True))
    )
    machine = generated.machine
    return Variant(machine.label, machine.required_features(), generated.object_code, shapes)
