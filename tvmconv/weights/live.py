"""Layers from files, and from Keras objects that the caller holds, without importing Keras."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmconv.config import LayerConfig
from tvmconv.errors import ConfigTypeError, WeightsError
from tvmconv.weights.model import choose, read, select

if TYPE_CHECKING:
    from tvmconv.runtime.layer import Conv3DTranspose

__all__ = ["from_keras"]

_MAX_DEPTH = 32
_RANK = 5


def from_keras(
    source: object, layer: str | None = None
) -> Conv3DTranspose | dict[str, Conv3DTranspose]:
    """Bring Conv3DTranspose layers over from Keras, weights included.

    Parameters
    ----------
    source
        Path of a ``.keras`` or ``.h5`` model, or a live Keras layer or model (found by its
        methods; Keras itself is not imported here).
    layer
        Path through nested models (``inner/up1``) or a unique bare name.

    Returns
    -------
    One `tvmconv.Conv3DTranspose` with ``layer`` or for a live Conv3DTranspose; else a dict
    of all of them by path, also when there is one.

    Raises
    ------
    WeightsError
        The file is malformed or unsafe, or has no such layer.
    ConfigError
        A live layer has an argument that cannot be compiled.
    """
    from tvmconv.runtime.layer import from_live

    if isinstance(source, str | Path):
        return _from_file(source, layer)
    if _is_layer(source):
        if layer is not None and layer != getattr(source, "name", None):
            raise WeightsError(
                f"{source!r:.80} is the layer {getattr(source, 'name', None)!r}, not {layer!r}"
            )
        return from_live(source)
    if not _is_model(source):
        raise ConfigTypeError(
            "expected the path of a .keras or .h5 file, a Keras Conv3DTranspose layer or a Keras "
            f"model. Received: {source!r:.80} (of type {type(source)})"
        )
    found: dict[str, Any] = {}
    aliases: dict[str, str] = {}
    _walk(source, "", 1, {}, found, aliases)
    name = f"the model {getattr(source, 'name', '')!r}"
    if layer is not None:
        return from_live(found[choose(name, layer, list(found), aliases)])
    return {path: from_live(item) for path, item in found.items()}


def _from_file(
    source: str | Path, layer: str | None
) -> Conv3DTranspose | dict[str, Conv3DTranspose]:
    model = read(source, layer)
    if model.kind not in ("keras", "h5"):
        raise WeightsError(
            f"{model.path}: holds weights without the layers' configs; make the layer with its "
            "arguments and use load_weights"
        )
    made = {
        path: _make(entry.config, entry.build_input_shape, entry.load())
        for path, entry in model.layers.items()
        if entry.config is not None
    }
    return made if layer is None else made[select(model, layer).path]


def _make(
    config: LayerConfig,
    input_shape: tuple[int | None, ...] | None,
    weights: list[np.ndarray],
) -> Conv3DTranspose:
    from tvmconv.runtime.layer import Conv3DTranspose

    made = Conv3DTranspose.from_config(config)
    shape: list[int | None] = list(input_shape) if input_shape else [None] * _RANK
    shape[config.channel_axis] = weights[0].shape[4]
    made.build(tuple(shape))
    made.set_weights(weights)
    return made


def _is_layer(item: object) -> bool:
    """Whether ``item`` is Keras' own layer; a subclass may compute something else."""
    kind = type(item)
    return kind.__name__ == "Conv3DTranspose" and kind.__module__.split(".")[0] in (
        "keras",
        "tf_keras",
    )


def _is_model(item: object) -> bool:
    return isinstance(getattr(item, "layers", None), list) and hasattr(item, "get_config")


def _walk(
    model: Any,
    prefix: str,
    depth: int,
    seen: dict[int, str],
    found: dict[str, Any],
    aliases: dict[str, str],
) -> None:
    if depth > _MAX_DEPTH:
        raise WeightsError(f"models nested deeper than {_MAX_DEPTH}")
    children = [(item, item.name) for item in model.layers] if _is_model(model) else []
    inner = getattr(model, "layer", None)
    if not children and inner is not None and hasattr(inner, "get_config"):
        children = [(inner, inner.name)]
    for item, name in children:
        path = f"{prefix}{name}"
        if id(item) in seen:
            first = seen[id(item)]
            for other in list(found):
                if other == first or other.startswith(f"{first}/"):
                    aliases[path + other[len(first) :]] = other
            continue
        seen[id(item)] = path
        if _is_layer(item):
            if path in found:
                raise WeightsError(f"two layers called {path!r} in the model")
            found[path] = item
        else:
            _walk(item, f"{path}/", depth + 1, seen, found, aliases)
