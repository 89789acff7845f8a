"""List the Conv3DTranspose layers of a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tvmconv.cli import console

__all__ = ["add_arguments", "run"]

_HEADER = (
    "layer", "channels", "filters", "kernel", "strides", "padding", "activation", "dtype", "input",
    "parameters",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tvmconv inspect``."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a model, or a file of weights")
    parser.add_argument("--layer", metavar="NAME", help="only this layer")
    parser.add_argument("--json", action="store_true", help="print the layers as JSON")


def run(args: argparse.Namespace) -> int:
    """Print one row a layer, and why a layer cannot be read."""
    from tvmconv import weights
    from tvmconv.weights.model import entries

    rows = weights.inspect(args.file)
    if args.layer is not None:
        chosen = entries(args.file, args.layer).layers
        rows = [row for row in rows if row["path"] in chosen]
    if args.json:
        console.dump(rows)
        return 0
    if not rows:
        console.say(f"{args.file} has no Conv3DTranspose layer")
        return 0
    console.table(_HEADER, [_cells(row) for row in rows])
    for row in rows:
        if row["problem"] is not None:
            console.say(f"cannot be read: {row['problem']}")
    return 0


def _cells(row: dict[str, Any]) -> list[object]:
    config, kernel = row["config"] or {}, row["kernel_shape"]
    activation = config.get("activation")
    if isinstance(activation, dict):
        activation = activation.get("class_name", "?")
    return [
        row["path"],
        kernel[4] if kernel else None,
        config.get("filters") or (kernel[3] if kernel else None),
        console.sizes(config.get("kernel_size") or (kernel[:3] if kernel else None), " "),
        console.sizes(config.get("strides"), " "),
        config.get("padding"),
        activation,
        config.get("dtype", row["dtype"]),
        console.sizes(row["input_shape"]),
        row["params"],
    ]
