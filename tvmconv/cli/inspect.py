"""List the Conv3DTranspose layers of a file, or what an artifact was made from and for."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmconv.cli import console
from tvmconv.cli.verify import artifacts, is_artifact
from tvmconv.errors import ConfigError

if TYPE_CHECKING:
    from tvmconv.manifest import Manifest

__all__ = ["add_arguments", "run"]

_HEADER = (
    "layer", "channels", "filters", "kernel", "strides", "padding", "activation", "dtype", "input",
    "parameters",
)  # fmt: skip
_COMPILED = (
    "artifact", "channels", "filters", "kernel", "strides", "padding", "activation", "dtype",
    "input", "processor", "algorithm", "form", "schedule", "error",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tvmconv inspect``."""
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="a model, a file of weights, or an artifact"
    )
    parser.add_argument("--layer", metavar="NAME", help="only this layer")
    parser.add_argument("--json", action="store_true", help="print the layers as JSON")


def run(args: argparse.Namespace) -> int:
    """Print one row a layer, and why a layer cannot be read; of an artifact, its manifest."""
    if is_artifact(args.file):
        return _print_artifacts(args)
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


def _print_artifacts(args: argparse.Namespace) -> int:
    from tvmconv.artifact import read

    if args.layer is not None:
        raise ConfigError(f"{args.file} is compiled already; --layer is for files of Keras")
    found = [read(path).manifest for path in artifacts(args.file)]
    if args.json:
        console.dump([dataclasses.asdict(one) for one in found])
        return 0
    console.table(_COMPILED, [_compiled(one) for one in found])
    console.say("'tvmconv verify' checks an artifact, 'tvmconv bench' times it")
    return 0


def _compiled(one: Manifest) -> list[object]:
    layer, error = one.layer, one.check.get("max_error")
    return [
        one.name,
        one.input_shapes[0][1 if layer.get("data_format") == "channels_first" else 4],
        layer.get("filters"),
        console.sizes(layer.get("kernel_size"), " "),
        console.sizes(layer.get("strides"), " "),
        layer.get("padding"),
        layer.get("activation"),
        one.input_dtype,
        " ".join(map(console.sizes, one.input_shapes)),
        _processors(one.target),
        one.algorithm,
        one.schedule.get("form"),
        one.schedule.get("origin"),
        None if error is None else f"{error:.2g}",
    ]


def _processors(target: Mapping[str, Any]) -> str:
    """CUDA architectures, the processors that the library chooses from, or the only one."""
    several = target.get("variants")
    if "cuda" in target:
        return ", ".join(target["cuda"]["architectures"])
    if isinstance(several, list):
        return ", ".join(str(one.get("name")) for one in several if isinstance(one, dict))
    return str(target.get("cpu"))
