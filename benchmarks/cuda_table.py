"""What GPU kernels take, from their machine code: ``python -m benchmarks.cuda_table [--write]``.

Needs nvcc, cuobjdump and nvdisasm, and no GPU. ``--write`` puts it into docs/cuda-kernels.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import report
from benchmarks.child import ROOT
from benchmarks.workloads import named
from tvmconv.codegen.cuda import build, disassembly, nvcc
from tvmconv.codegen.cuda.disassembly import Loop
from tvmconv.codegen.cuda.nvcc import Usage
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.cuda_devices import ARCHITECTURES, DEFAULT, architectures
from tvmconv.schedules import cuda as rules
from tvmconv.schedules.cuda import definition

__all__ = [
    "DEFINITION",
    "LAYERS",
    "MMA",
    "NEWER",
    "TOOM_COOK",
    "Row",
    "every",
    "main",
    "rows",
    "table",
]

_DOCS = ROOT / "docs" / "cuda-kernels.md"

LAYERS = (
    ("unet_up3", "float32"), ("gan_g4", "float32"), ("unet_up1", "float32"),
    ("psm_conv5", "float32"), ("odd", "float32"), ("gcnet_37", "float32"), ("gan_g2", "float32"),
    ("gan_g1", "float32"), ("unet_up3", "float16"), ("psm_conv5", "float16"), ("gan_g4", "float16"),
)  # fmt: skip
"""Layers and dtypes of the table: the rules' forms and most tiles of builds for `DEFAULT`."""

DEFINITION = (("odd", "float32"),)
"""Those that are shown by the definition, too, which the rules take for what no other form serves.
"""

MMA = (("unet_up3", "float16"), ("psm_conv5", "float16"), ("gan_g4", "float16"),
       ("unet_up3", "bfloat16"), ("unet_up3", "tf32"))  # fmt: skip
"""Those that are shown as they are built for `NEWER` architectures alone."""

TOOM_COOK = (("gan_g4", "float32"), ("psm_conv6", "float32"), ("pcc_l1", "float32"))
"""Those that are shown in Toom-Cook's form, too, for `NEWER` architectures."""

NEWER = tuple(name for name in DEFAULT if ARCHITECTURES[name].number >= 80)


@dataclass(frozen=True)
class Row:
    """One kernel on one architecture."""

    layer: str
    dtype: str
    tiling: CudaTiling
    usage: Usage
    loop: Loop
    dynamic: int

    @property
    def shared(self) -> int:
        """Shared memory of a block, bytes: what the kernel declares, and what the launch gives."""
        return self.usage.shared + self.dynamic

    @property
    def occupancy(self) -> float:
        """The share of the resident threads that the kernel can reach."""
        architecture = ARCHITECTURES[self.usage.architecture]
        return architecture.occupancy(self.tiling.threads, self.usage.registers, self.shared)


def rows(
    layers: Sequence[tuple[str, str]] = LAYERS,
    names: Sequence[str] = DEFAULT,
    algorithm: str = "direct",
    built: Sequence[str] = (),
) -> list[Row]:
    """Build the layers' default kernels and look at them; the dtype ``tf32`` is float32's.

    A second kernel, which adds up sums that blocks share or mixes channels, is left out.

    The rules decide for all architectures ``names``; code is made for those that are ``built``, all
    of them by default. The algorithm ``definition`` takes that form, whatever the rules say.

    Raises
    ------
    BuildError
        A tool is missing.
    """
    targets = architectures(names)
    compiler = nvcc.find()
    disassembly.find()
    found = []
    for name, dtype in layers:
        (layer,) = named([name], nightly=True)
        config = LayerConfig(
            layer.filters, layer.kernel, strides=layer.strides, padding=layer.padding,
            activation=layer.activation, dtype="float32" if dtype == "tf32" else dtype,
        )  # fmt: skip
        work = Workload.of(config, layer.input_shape)
        precision = "tf32" if dtype == "tf32" else "full"
        if algorithm == "definition":
            tiling = definition.decide(work, targets)
        else:
            tiling = rules.decide(work, targets, algorithm=algorithm, precision=precision)
        code = build.source_of("layer", [work], [tiling])
        made = compiler.build(code.source, architectures(built or names))
        dynamic = {launch.symbol: launch.shared_bytes for launch in code.shapes[0].launches}
        loops = {
            (loop.kernel, loop.architecture): loop
            for loop in disassembly.hottest_loops(made.fatbin)
        }
        found += [
            Row(
                name,
                dtype,
                tiling,
                usage,
                loops[usage.kernel, usage.architecture],
                dynamic[usage.kernel],
            )
            for usage in made.usage
            if "_conv_" in usage.kernel
        ]
    return found


def every() -> list[Row]:
    """All rows of the table in the docs."""
    return [
        *rows(),
        *rows(DEFINITION, algorithm="definition"),
        *rows(MMA, NEWER),
        *rows(TOOM_COOK, NEWER, "toom-cook"),
    ]


def table(found: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| layer | dtype | form | tile, threads | architecture | registers | spills in the loop | "
        "shared memory | occupancy | products in the loop |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        tiling, kind = row.tiling, "HMMA" if row.loop.count("HMMA") else "FFMA"
        tile = f"{tiling.block_voxels} x {tiling.block_channels} x {tiling.depth}"
        if tiling.sum_blocks > 1:
            tile += f" / {tiling.sum_blocks}"
        if tiling.form == "small":
            tile = f"{tiling.block_voxels} positions x {tiling.depth}"
        if tiling.form == "split":
            tile = f"{tiling.block_voxels} x {tiling.block_channels}"
        tile = f"{tiling.lanes} channels" if tiling.form == "definition" else tile
        lines.append(
            f"| {row.layer} | {row.dtype} | {tiling.form} | {tile}, {tiling.threads} | "
            f"{row.usage.architecture} | {row.usage.registers} | {row.loop.spills} | "
            f"{row.shared / 1024:.1f} KiB | {row.occupancy:.0%} | "
            f"{row.loop.products} {kind}, {row.loop.share:.0%} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and write it where asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_table", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"put it into {_DOCS.name}, too")
    asked = parser.parse_args(arguments)
    text = table(every())
    print(text)
    if asked.write:
        absent = report.update(_DOCS, {"kernels": text})
        assert not absent, absent
    return 0


if __name__ == "__main__":
    sys.exit(main())
