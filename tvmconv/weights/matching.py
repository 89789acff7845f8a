"""Weights for a layer whose config is known, from a file that may hold many."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tvmconv.config import LayerConfig
from tvmconv.weights import formats
from tvmconv.weights.model import values
from tvmconv.weights.pair import Pair
from tvmconv.weights.refusal import refuse

__all__ = ["find_weights"]

_MOST_LISTED = 12


def find_weights(
    path: str | Path, config: LayerConfig, layer: str | None = None
) -> list[np.ndarray]:
    """Find kernel and, with bias, bias of a layer in a file of weights.

    Among the pairs whose shapes fit ``config`` it takes the one whose name is the last part of
    ``layer`` (or the config's name), else the one at that group path, else the only one.

    Parameters
    ----------
    path
        ``.weights.h5``, ``.weights.json``, Keras 2 weights ``.h5``, ``.npz``, ``.safetensors``;
        a whole model serves too, its configs are not judged.
    config
        The layer; its filters, kernel size, bias and variable dtype are used.
    layer
        Name or path of the layer, or HDF5 group path. None: the config's name.

    Returns
    -------
    Kernel ``(kd, kh, kw, filters, in_channels)`` and, with bias, ``(filters,)``, in the variable
    dtype; equal dtypes are bit for bit what the file holds.

    Raises
    ------
    WeightsError
        The file is malformed or unsafe, nothing fits, or several pairs fit equally well.
    """
    opened = formats.open_path(Path(path))
    pairs = _named(opened, layer or config.name) or opened.pairs()
    fitting = [pair for pair in pairs if _fits(pair, config)]
    expected = f"a kernel of shape {(*config.kernel_size, config.filters, '?')} " + (
        f"and a bias of shape {(config.filters,)}" if config.use_bias else "without bias"
    )
    if not fitting:
        raise refuse(opened.name, f"expected {expected}, found {_listing(pairs)}")
    chosen = _choose(fitting, layer or config.name)
    if chosen is None:
        raise refuse(
            opened.name,
            f"several pairs fit {expected}, name one of them: {_listing(fitting)}",
        )
    return values(chosen.open, chosen.shapes, config.variable_dtype, opened.name)


def _named(opened: formats.Opened, layer: str | None) -> list[Pair]:
    """In a whole model, the weights of the layer that its config calls so; else none."""
    if opened.tree is None or not layer:
        return []
    places = {place.path: place for place in opened.tree.layers}
    path = opened.tree.aliases.get(layer, layer)
    if path not in places:
        return []
    place = places[path]
    opener = opened.locate(place)
    with opener() as tensors:
        return [Pair(path, place.parts[-1], tuple(tensors), opener)]


def _fits(pair: Pair, config: LayerConfig) -> bool:
    kernel = pair.shapes[0]
    wanted = [tuple(config.kernel_shape(kernel[4]))]
    if config.use_bias:
        wanted.append((config.filters,))
    return list(pair.shapes) == wanted


def _choose(pairs: list[Pair], layer: str | None) -> Pair | None:
    if layer:
        last = layer.rpartition("/")[2]
        named = [pair for pair in pairs if pair.name == last]
        at_path = [pair for pair in pairs if f"/{pair.path}".endswith(f"/{layer.strip('/')}")]
        both = [pair for pair in named if pair in at_path]
        for few in (named, both, at_path):
            if len(few) == 1:
                return few[0]
    return pairs[0] if len(pairs) == 1 else None


def _listing(pairs: list[Pair]) -> str:
    if not pairs:
        return "no pair of kernel and bias"
    words = [
        f"{pair.path!r}" + (f" (name {pair.name!r})" if pair.name else "") + f" {pair.shapes[0]}"
        for pair in pairs[:_MOST_LISTED]
    ]
    return ", ".join(words) + (" ..." if len(pairs) > _MOST_LISTED else "")
