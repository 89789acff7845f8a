"""A source as the command line names it, brought to layers with weights and input shapes.

Everything that can be refused is refused here, before any work is done.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tvmconv.errors import ConfigError, TvmconvError, WeightsError

if TYPE_CHECKING:
    import numpy as np

    from tvmconv.config import LayerConfig
    from tvmconv.runtime.layer import Conv3DTranspose

__all__ = ["GivenShape", "Job", "add_arguments", "add_numbers", "jobs"]

_MOST_THREADS = 1024
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

Shape = tuple["int | None", ...]


@dataclass(frozen=True)
class GivenShape:
    """One ``--input-shape``: five sizes (None: open batch), and the layer if it names one."""

    layer: str | None
    sizes: Shape


@dataclass(frozen=True)
class Job:
    """One layer to compile: its path in the source, the artifact's name, the input shapes."""

    path: str
    name: str
    layer: Conv3DTranspose
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class _Entry:
    """One layer of a source before its weights are read; None for what is not known by then."""

    path: str
    config: LayerConfig
    build_shape: Shape | None
    channels: int | None
    load: Callable[[], list[np.ndarray] | None]


def add_numbers(parser: argparse.ArgumentParser) -> None:
    """Arguments that decide how a layer is computed, and so how it rounds."""
    parser.add_argument(
        "--algorithm", choices=("auto", "direct", "pairs", "toom-cook"), default="auto"
    )
    parser.add_argument(
        "--precision",
        choices=("full", "tf32"),
        default="full",
        help="tf32: float32 layers on CUDA devices with products of 10-bit mantissas, as tensor "
        "cores take them",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say what to compile, for what."""
    parser.add_argument(
        "--layer",
        metavar="NAME",
        help="only this layer: its path through nested models, or a unique name",
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="take the weights from this file instead"
    )
    parser.add_argument(
        "--input-shape",
        type=given_shape,
        action="append",
        default=[],
        metavar="[LAYER=]N,D,H,W,C",
        help="in the layer's data format, ? for an open batch; repeatable",
    )
    parser.add_argument(
        "--target",
        default="native",
        metavar="NAME",
        help="CPU or device (`tvmconv targets`), default: native",
    )
    add_numbers(parser)
    parser.add_argument(
        "--dtype", metavar="POLICY", help="replaces the layer's dtype policy; the weights are cast"
    )
    parser.add_argument(
        "--external-weights",
        action="store_true",
        help="leave the weights out of the library; the caller hands them over",
    )
    parser.add_argument("--name", help="of the artifact and its C functions, for a single layer")
    parser.add_argument("--logs", metavar="DIR|none", help="the folder of tuning logs, or none")


def given_shape(text: str) -> GivenShape:
    """Read ``[LAYER=]1,32,32,32,128``.

    Raises
    ------
    argparse.ArgumentTypeError
        It is not five sizes.
    """
    layer, _, numbers = text.rpartition("=")
    found = [part.strip() for part in numbers.split(",")]
    if len(found) != 5:
        raise argparse.ArgumentTypeError(
            f"expected five sizes as in 1,32,32,32,128, found {len(found)} in {text!r}"
        )
    if not all(re.fullmatch(r"[0-9]{1,18}", part) for part in found[1:]) or not re.fullmatch(
        r"[0-9]{1,18}|\?", found[0]
    ):
        raise argparse.ArgumentTypeError(
            f"expected integers from 0 on, and ? for an open batch only, found {text!r}"
        )
    sizes = tuple(None if part == "?" else int(part) for part in found)
    return GivenShape(layer or None, sizes)


def threads(text: str) -> int:
    """Read a number of threads, 0 to 1024.

    Raises
    ------
    argparse.ArgumentTypeError
        It is not one.
    """
    if not re.fullmatch(r"[0-9]{1,4}", text) or int(text) > _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"expected 0 to {_MOST_THREADS} threads, found {text!r}")
    return int(text)


def jobs(args: argparse.Namespace) -> list[Job]:
    """The layers of ``args.source``, with their weights and input shapes.

    Raises
    ------
    TvmconvError
        A file, a layer's name, a shape or an option does not fit the rest.
    """
    from tvmconv import compiler
    from tvmconv.artifact import symbol_name

    if args.algorithm not in compiler.ALGORITHMS:
        known = " or ".join(compiler.ALGORITHMS)
        raise ConfigError(f"--algorithm {args.algorithm} is not in this version; expected {known}")
    entries, aliases = _entries(args)
    shapes = _shapes(args, entries, aliases)
    if args.logs not in (None, "none") and not Path(args.logs).is_dir():
        raise ConfigError(f"--logs {args.logs}: no such folder; `--logs none` uses no logs")
    if args.name is not None:
        if len(entries) > 1:
            raise ConfigError(
                f"--name {args.name} can name one layer only; {args.source} has {len(entries)}: "
                "choose one with --layer"
            )
        if not _IDENTIFIER.match(args.name):
            raise ConfigError(
                f"--name {args.name!r} begins the names of C functions: expected letters, digits "
                "and _, no digit in front"
            )
    for entry in entries:
        for shape in shapes[entry.path]:
            _check_shape(entry, shape)
    made: list[Job] = []
    for entry in entries:
        name = args.name or symbol_name(entry.path, {job.name for job in made})
        layer = _layer(entry, shapes[entry.path][0])
        made.append(Job(entry.path, name, layer, shapes[entry.path]))
    return made


def _entries(args: argparse.Namespace) -> tuple[list[_Entry], dict[str, str]]:
    source = args.source
    lower = source.name.lower()
    if lower.endswith(".json") and not lower.endswith(".weights.json"):
        return [_config_entry(args)], {}
    from tvmconv.weights import find_weights, read

    model = read(source, args.layer)
    if model.kind not in ("keras", "h5"):
        raise WeightsError(
            f"{source} holds weights without the layers' configs; give a model, or the layer's "
            f"config as a .json file with --weights {source}"
        )
    if not model.layers:
        raise WeightsError(f"{source}: the model has no Conv3DTranspose layer")
    found = []
    for path, entry in model.layers.items():
        assert entry.config is not None
        load, channels = entry.load, entry.shapes[0][4]
        if args.weights is not None:
            load = partial(find_weights, args.weights, entry.config, path)
        config = _with_policy(entry.config, args.dtype)
        found.append(_Entry(path, config, entry.build_input_shape, channels, load))
    return found, model.aliases


def _config_entry(args: argparse.Namespace) -> _Entry:
    from tvmconv.weights import find_weights, read_config_json

    config = _with_policy(read_config_json(args.source), args.dtype)
    if args.weights is None and not args.external_weights:
        raise WeightsError(
            f"{args.source} is a config and holds no weights: give --weights FILE, or "
            "--external-weights to compile without them"
        )

    def load() -> list[np.ndarray] | None:
        return None if args.weights is None else find_weights(args.weights, config, args.layer)

    return _Entry(config.name, config, None, None, load)


def _with_policy(config: LayerConfig, policy: str | None) -> LayerConfig:
    return config if policy is None else replace(config, dtype=policy)


def _shapes(
    args: argparse.Namespace, entries: Sequence[_Entry], aliases: dict[str, str]
) -> dict[str, tuple[Shape, ...]]:
    """The input shapes of each layer, by path."""
    from tvmconv.weights.model import choose

    paths = [entry.path for entry in entries]
    given: dict[str, list[Shape]] = {path: [] for path in paths}
    for one in args.input_shape:
        if one.layer is not None:
            path = choose(f"--input-shape {one.layer}=", one.layer, paths, aliases)
        elif len(paths) == 1:
            path = paths[0]
        else:
            names = ", ".join(repr(path) for path in paths)
            raise ConfigError(
                f"--input-shape does not say for which layer; {args.source} has {names}: write "
                f"--input-shape {paths[0]}=..., or choose one with --layer"
            )
        if one.sizes in given[path]:
            raise ConfigError(f"--input-shape gives a shape of layer {path!r} twice")
        given[path].append(one.sizes)
    return {
        entry.path: tuple(given[entry.path]) or (_stored_shape(entry, args.source),)
        for entry in entries
    }


def _stored_shape(entry: _Entry, source: Path) -> Shape:
    """The input shape that the file tells, with an open batch where it tells none."""
    stored = entry.build_shape
    if stored is None or any(size is None for size in stored[1:]):
        what = "tells none" if stored is None else f"leaves sizes open: {stored}"
        raise ConfigError(
            f"layer {entry.path!r} needs an input shape, {source} {what}; give "
            f"--input-shape {entry.path}=N,D,H,W,C in {entry.config.data_format}"
        )
    return tuple(stored)


def _check_shape(entry: _Entry, shape: Shape) -> None:
    from tvmconv import memory
    from tvmconv.compute.workload import Workload

    config, channels = entry.config, entry.channels
    found = shape[config.channel_axis]
    if channels is not None and found != channels:
        raise ConfigError(
            f"layer {entry.path!r} has {channels} input channels, the input shape "
            f"{_listed(shape)} ({config.data_format}) has {found}"
        )
    try:
        memory.check(Workload.of(config, shape).plan, config.compute_dtype)
    except TvmconvError as exc:
        raise ConfigError(f"layer {entry.path!r}: {exc}") from exc


def _listed(shape: Shape) -> str:
    return ",".join("?" if size is None else str(size) for size in shape)


def _layer(entry: _Entry, shape: Shape) -> Conv3DTranspose:
    """The layer with its weights."""
    import numpy as np

    from tvmconv.runtime.layer import Conv3DTranspose

    values = entry.load()
    if values is not None and values[0].shape[4] != shape[entry.config.channel_axis]:
        raise ConfigError(
            f"layer {entry.path!r}: the weights have {values[0].shape[4]} input channels, the "
            f"input shape {_listed(shape)} ({entry.config.data_format}) has "
            f"{shape[entry.config.channel_axis]}"
        )
    layer = Conv3DTranspose.from_config(entry.config)
    layer.build(shape)
    if values is not None:
        layer.set_weights(values)
        for before, after in zip(values, layer.weights, strict=True):
            wide = before.astype(np.float64)
            if not np.array_equal(np.isfinite(wide), np.isfinite(after.astype(np.float64))):
                raise WeightsError(
                    f"layer {entry.path!r}: weights up to {np.nanmax(np.abs(wide)):.3g} overflow "
                    f"in {layer.dtype}"
                )
    return layer
