"""A file as a set of Conv3DTranspose layers, each with its config and its weights."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from tvmconv.config import LayerConfig, build_shape, from_serialized
from tvmconv.errors import TvmconvError, WeightsError, one_line
from tvmconv.weights import formats
from tvmconv.weights.pair import Open, Pair
from tvmconv.weights.refusal import refuse
from tvmconv.weights.tensor import MAX_SIDE, Tensor, pair_problem
from tvmconv.weights.tree import Found

__all__ = ["LayerEntry", "ModelFile", "choose", "entries", "read", "select", "values"]


@dataclass(frozen=True)
class LayerEntry:
    """One Conv3DTranspose layer of a file.

    Attributes
    ----------
    path
        Names through nested models (``inner/up1``); in a file of weights, the group's path.
    config
        The layer's config; None in a file of weights, or where it is refused.
    build_input_shape
        Five sizes, None for an open one; None where the file does not tell.
    shapes
        Shapes of kernel ``(kd, kh, kw, filters, in_channels)`` and, with bias, ``(filters,)``.
    dtype
        The type that `load` gives: ``"float32"``, ``"float64"``, ``"float16"``, ``"bfloat16"``.
    problem
        Why the layer cannot be read; None if it can.
    """

    path: str
    config: LayerConfig | None
    build_input_shape: tuple[int | None, ...] | None
    shapes: tuple[tuple[int, ...], ...]
    dtype: str | None
    problem: str | None
    _load: Callable[[], list[np.ndarray]] = field(repr=False, compare=False)

    @property
    def params(self) -> int:
        """Number of weights, bias included."""
        count = 0
        for shape in self.shapes:
            size = 1
            for side in shape:
                size *= side
            count += size
        return count

    def load(self) -> list[np.ndarray]:
        """Read kernel and, with bias, bias: the stored bits in the layer's variable dtype.

        Raises
        ------
        WeightsError
            The layer has a `problem`, or the file changed since it was judged.
        """
        if self.problem is not None:
            raise WeightsError(self.problem)
        return self._load()


@dataclass(frozen=True)
class ModelFile:
    """What `read` found in a file.

    Attributes
    ----------
    path
        The file as it was named.
    kind
        ``"keras"``, ``"h5"`` (whole models), ``"weights.h5"``, ``"h5-weights"`` (Keras 2),
        ``"weights.json"``, ``"npz"``, ``"safetensors"``.
    keras_version
        What wrote it, where the file tells.
    layers
        Entries by path, in the order of the model.
    aliases
        Second paths of layers that two models share -> path in `layers`.
    """

    path: str
    kind: str
    keras_version: str | None
    layers: dict[str, LayerEntry]
    aliases: dict[str, str] = field(default_factory=dict)


def entries(path: str | Path, layer: str | None = None) -> ModelFile:
    """Find and judge the layers of a file; those that are refused carry their `problem`.

    Raises
    ------
    WeightsError
        The file as a whole is malformed or unsafe, or has no layer called ``layer``.
    """
    opened = formats.open_path(Path(path))
    name = opened.name
    if opened.tree is None:
        found = {pair.path: _from_pair(pair, name) for pair in opened.pairs()}
        if not found:
            raise refuse(name, "holds no kernel of a Conv3DTranspose layer")
        model = ModelFile(name, opened.kind, opened.keras_version, found)
        return model if layer is None else _only(model, select(model, layer))
    places = {place.path: place for place in opened.tree.layers}
    if layer is not None:
        chosen = choose(name, layer, list(places), opened.tree.aliases)
        places = {chosen: places[chosen]}
    judged = {path: _judge(place, opened.locate(place), name) for path, place in places.items()}
    aliases = {other: at for other, at in opened.tree.aliases.items() if at in judged}
    return ModelFile(name, opened.kind, opened.keras_version, judged, aliases)


def read(path: str | Path, layer: str | None = None) -> ModelFile:
    """Read the Conv3DTranspose layers of a file; the weights wait for `LayerEntry.load`.

    Parameters
    ----------
    path
        ``.keras`` (or its unzipped folder), ``.h5``, ``.weights.h5``, ``.weights.json``,
        ``.npz`` or ``.safetensors``.
    layer
        Path or unique bare name; only that layer is judged. None: all of them.

    Raises
    ------
    WeightsError
        The file is malformed or unsafe, or a layer is refused; one line with file and reason.
    """
    model = entries(path, layer)
    for entry in model.layers.values():
        if entry.problem is not None:
            raise WeightsError(entry.problem)
    return model


def select(model: ModelFile, name: str) -> LayerEntry:
    """Find a layer by full path, or by a bare name where it is unique.

    Raises
    ------
    WeightsError
        No such layer, or several; lists what is there.
    """
    return model.layers[choose(model.path, name, list(model.layers), model.aliases)]


def choose(file: str, name: str, paths: Sequence[str], aliases: dict[str, str]) -> str:
    """Path of the layer that ``name`` means: a path, or the end of exactly one; see `select`."""
    if name in paths:
        return name
    if name in aliases:
        return aliases[name]
    # A layer that two models share has two paths and is still one layer.
    at = {path: path for path in paths} | aliases
    fitting = {target for path, target in at.items() if f"/{path}".endswith(f"/{name}")}
    if len(fitting) == 1:
        return fitting.pop()
    known = ", ".join(repr(path) for path in paths[:20]) + (" ..." if len(paths) > 20 else "")
    if fitting:
        raise refuse(
            file, f"several layers are called {name!r}, give the full path: {sorted(fitting)}"
        )
    if not paths:
        raise refuse(file, f"no Conv3DTranspose layer {name!r}: the model has none")
    close = difflib.get_close_matches(name, [*paths, *(p.rpartition("/")[2] for p in paths)], 1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    raise refuse(file, f"no Conv3DTranspose layer {name!r}{hint} (there are: {known})")


def _only(model: ModelFile, entry: LayerEntry) -> ModelFile:
    return ModelFile(model.path, model.kind, model.keras_version, {entry.path: entry})


def _from_pair(pair: Pair, file: str) -> LayerEntry:
    """Make the entry of a file without config: the stored type is all that is known."""
    dtype = pair.tensors[0].dtype
    dtype = "bfloat16" if dtype == "opaque16" else dtype
    return LayerEntry(
        path=pair.path,
        config=None,
        build_input_shape=None,
        shapes=pair.shapes,
        dtype=dtype,
        problem=None,
        _load=partial(values, pair.open, pair.shapes, dtype, file),
    )


def values(
    opener: Open, shapes: tuple[tuple[int, ...], ...], dtype: str, file: str
) -> list[np.ndarray]:
    """Open the file again and read; refuse it if it is no longer the one that was judged."""
    with opener() as tensors:
        if tuple(tensor.shape for tensor in tensors) != shapes:
            raise refuse(file, "the file has changed while it was read")
        return [tensor.values(dtype, file) for tensor in tensors]


def _judge(place: Found, opener: Open, file: str) -> LayerEntry:
    config: LayerConfig | None = None
    build: tuple[int | None, ...] | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    dtype: str | None = None
    problem: str | None = None
    try:
        config = from_serialized(place.entry, strict_file=True)
        dtype = config.variable_dtype
        build = build_shape(place.entry)
        with opener() as tensors:
            shapes = tuple(tensor.shape for tensor in tensors)
            _check(config, build, tensors)
    except TvmconvError as error:
        # One line each: which file, which layer, why.
        reason = one_line(str(error)).removeprefix(one_line(file)).removeprefix(": ")
        problem = f"{one_line(file)}: layer {one_line(repr(place.path))}: {reason}"
    return LayerEntry(
        path=place.path,
        config=config,
        build_input_shape=build,
        shapes=shapes,
        dtype=dtype,
        problem=problem,
        _load=partial(values, opener, shapes, dtype or "float32", file),
    )


def _check(
    config: LayerConfig, build: tuple[int | None, ...] | None, tensors: Sequence[Tensor]
) -> None:
    """Hold what the file declares against the config, before anything is read."""
    expected = 2 if config.use_bias else 1
    if len(tensors) != expected:
        raise WeightsError(
            f"expected {expected} variables (use_bias={config.use_bias}), found {len(tensors)}"
        )
    kernel, bias = tensors[0], tensors[1] if config.use_bias else None
    problem = pair_problem(kernel, bias)
    if problem is not None:
        raise WeightsError(problem)
    channels = kernel.shape[4]
    wanted = tuple(config.kernel_shape(channels))
    if kernel.shape != wanted:
        raise WeightsError(f"the kernel has shape {kernel.shape}, the config expects {wanted}")
    if channels > MAX_SIDE:
        raise WeightsError(f"the kernel has {channels} input channels")
    built = build[config.channel_axis] if build is not None else None
    if built is not None and built != channels:
        raise WeightsError(
            f"the kernel has {channels} input channels, build_config.input_shape expects {built}"
        )
    for tensor in tensors:
        if tensor.dtype == "opaque16" and config.variable_dtype != "bfloat16":
            raise WeightsError(
                f"{tensor.path} holds 2-byte values of unknown type, "
                f"expected {config.variable_dtype}"
            )
