"""Compile one layer of the benchmark in a process of its own: ``python -m benchmarks.build``.

Standard input is JSON: the workload, ``algorithm``, ``weights`` ("baked" or "external"),
``target`` and ``output``. The last line of standard output is JSON, too. What the process takes
from its start to its end is what a user of ``tvmconv compile`` waits for.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.data import Data
from benchmarks.tvmconv_runner import layer_of
from benchmarks.workloads import Workload
from tvmconv import compile as compile_layer
from tvmconv.errors import TvmconvError
from tvmconv.processors import without_torch

__all__ = ["main"]


def main() -> None:
    """Compile, and say what came out."""
    without_torch()
    asked = json.load(sys.stdin)
    work = Workload.from_json(asked["work"])
    answer: dict[str, Any]
    try:
        artifact = compile_layer(
            layer_of(work, Data(work)),
            work.input_shape,
            algorithm=asked["algorithm"],
            target=asked["target"],
            weights=asked["weights"],
            output=asked["output"],
        )
    except TvmconvError as exc:
        answer = {"reason": str(exc)}
    else:
        manifest = artifact.manifest
        library = Path(asked["output"]) / f"lib{manifest.name}.so"
        answer = {
            "algorithm": manifest.algorithm,
            "form": manifest.schedule.get("form"),
            "origin": manifest.schedule.get("origin"),
            "check": manifest.check,
            "library_bytes": library.stat().st_size,
            "packed_bytes": manifest.weights["packed_bytes"],
            "workspace_bytes": list(manifest.workspace_bytes),
        }
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
