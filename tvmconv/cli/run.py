"""Run an artifact on an array from a file.

The output is written beside and renamed into place.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tvmconv.cli import console, source
from tvmconv.errors import InputError, WeightsError

if TYPE_CHECKING:
    import numpy as np

    from tvmconv.manifest import Manifest
    from tvmconv.runtime.library import CompiledLayer

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tvmconv run``."""
    parser.add_argument("artifact", type=Path, metavar="DIR")
    parser.add_argument(
        "input", type=Path, metavar="X", help=".npy, or .npz with one array or one called x"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="Y", help=".npy, or .npz (array y)"
    )
    parser.add_argument("--threads", type=source.threads, metavar="N")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="for an artifact with external weights"
    )
    parser.add_argument("--layer", metavar="NAME", help="the layer's name in that file")
    parser.add_argument(
        "--emulate", action="store_true", help="run in an emulator of the target (QEMU)"
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def run(args: argparse.Namespace) -> int:
    """Load, call, write."""
    from tvmconv import load
    from tvmconv.cli import arrays

    arrays.check_name(args.output)
    if not args.output.parent.is_dir():
        raise InputError(f"{args.output} cannot be written: no folder {args.output.parent}")
    x = arrays.read(args.input)
    chosen = ""
    if args.emulate:
        y = _emulated(args, x)
    else:
        layer = load(args.artifact, threads=args.threads)
        _set_weights(layer, args)
        chosen = layer.processor if layer.manifest.several and not layer.on_gpu else ""
        y = layer(_typed(x, layer.manifest.input_dtype, args.input))
    arrays.write(args.output, y)
    if args.json:
        found = {"output": str(args.output), "dtype": y.dtype.name, "shape": y.shape}
        console.dump({**found, "processor": chosen} if chosen else found)
        return 0
    by = f", by the code for {chosen}" if chosen else ""
    console.say(f"{args.output}: {y.dtype.name}, shape {console.sizes(y.shape)}{by}")
    return 0


def _emulated(args: argparse.Namespace, x: np.ndarray) -> np.ndarray:
    from tvmconv import artifact
    from tvmconv.config import LayerConfig
    from tvmconv.emulation import emulated
    from tvmconv.weights import find_weights

    found = artifact.read(args.artifact)
    with emulated(found, threads=args.threads or 0) as layer:
        if _external(found.manifest, args):
            config = LayerConfig.from_keras(found.manifest.layer)
            layer.replace_weights(find_weights(args.weights, config, args.layer))
        return layer(_typed(x, found.manifest.input_dtype, args.input))


def _set_weights(layer: CompiledLayer, args: argparse.Namespace) -> None:
    if _external(layer.manifest, args):
        from tvmconv.weights import find_weights

        layer.set_weights(find_weights(args.weights, layer.config, args.layer))


def _external(manifest: Manifest, args: argparse.Namespace) -> bool:
    """Whether weights come from a file, which was given."""
    external = manifest.weights["mode"] == "external"
    if external and args.weights is None:
        raise WeightsError(f"{args.artifact} has no weights inside: give them with --weights FILE")
    if not external and args.weights is not None:
        raise WeightsError(f"{args.artifact} has its weights inside, and takes none from a file")
    return external


def _typed(x: np.ndarray, wanted: str, path: Path) -> np.ndarray:
    """Give bfloat16 values their type back; the layer judges every other array."""
    from tvmconv.config import numpy_dtype

    if x.dtype.kind != "V":
        return x
    if wanted != "bfloat16":
        raise InputError(f"{path} holds two-byte values of no type, expected {wanted}")
    return x.view(numpy_dtype(wanted))
