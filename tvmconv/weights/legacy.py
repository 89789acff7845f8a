"""The HDF5 layout of Keras 2, which Keras 3 still writes as ``.h5``.

One group for each top-level layer, whose attribute ``weight_names`` lists the datasets below it;
in a whole model they lie in ``model_weights``, in a file of weights at the root.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tvmconv.errors import WeightsError
from tvmconv.weights.dataset import outline, tensor
from tvmconv.weights.hdf5 import File
from tvmconv.weights.pair import Open, Pair, make
from tvmconv.weights.refusal import refuse
from tvmconv.weights.tensor import KERNEL_RANK, Tensor
from tvmconv.weights.variables import OpenFile

__all__ = ["layer_tensors", "model_config", "opener", "pairs", "weights_group"]

_MODEL_WEIGHTS = "model_weights"
_INDEX = re.compile(r":\d+$")
_MAX_LISTS = 10_000
_SHORTEST = 2


def model_config(file: File) -> str | None:
    """The JSON text of the model, or None in a file of weights."""
    texts = file.strings(file.root, "model_config")
    if texts is None:
        return None
    if len(texts) != 1:
        raise refuse(file.name, "the attribute model_config is not one text")
    return texts[0]


def weights_group(file: File) -> str | None:
    """Path of the group of layers (``""``: the root), or None if this is another layout."""
    found = file.find(_MODEL_WEIGHTS)
    if found is not None and file.is_group(found):
        return _MODEL_WEIGHTS
    for name in ("layer_names", "layer_names0"):
        if file.strings(file.root, name) is not None:
            return ""
    return None


def layer_tensors(file: File, parts: Sequence[str], *, wrapped: bool) -> list[Tensor]:
    """Kernel and bias of the layer at the model path ``parts``, judged but not read.

    Parameters
    ----------
    parts
        Names through nested models; the first is the group's.
    wrapped
        Whether the last but one is a wrapper: Keras 2 names the weights after it.

    Raises
    ------
    WeightsError
        Nothing or more than one thing fits, or a name leaves its group.
    """
    base = weights_group(file)
    top = f"{base}/{parts[0]}" if base else parts[0]
    names = _weight_names(file, top)
    if names is None:
        raise refuse(file.name, f"has no group {top}, where the layer's weights were expected")
    prefixes = _prefixes(names)
    for last in (parts[-1], parts[-2]) if wrapped else (parts[-1],):
        fitting = [prefix for prefix in prefixes if f"/{prefix}".endswith(f"/{last}")]
        if fitting:
            break
    scores = [_common_tail(prefix.split("/"), parts) for prefix in fitting]
    best = [p for p, score in zip(fitting, scores, strict=True) if score == max(scores)]
    if len(best) != 1:
        word = "no weights" if not best else f"{len(best)} sets of weights"
        raise refuse(file.name, f"{top} lists {word} for the layer {'/'.join(parts)}")
    return _pair_tensors(file, top, best[0], prefixes[best[0]])


def opener(open_file: OpenFile, parts: Sequence[str], *, wrapped: bool) -> Open:
    """Make the function that opens a layer's tensors."""

    @contextmanager
    def opened() -> Iterator[Sequence[Tensor]]:
        with open_file() as file:
            yield layer_tensors(file, parts, wrapped=wrapped)

    return opened


def pairs(open_file: OpenFile) -> list[Pair]:
    """All pairs whose shapes could be a transposed convolution's, without a config."""
    found: list[Pair] = []
    with open_file() as file:
        base = weights_group(file) or ""
        start = file.find(base) if base else file.root
        for layer in file.names(start):
            top = f"{base}/{layer}" if base else layer
            if not file.is_group(file.child(start, layer)):
                continue
            for prefix, names in _prefixes(_weight_names(file, top) or []).items():
                dataset = file.find(f"{top}/{names[0]}")
                if dataset is None or not file.is_dataset(dataset):
                    continue
                shape = outline(file, dataset, names[0])
                if shape is None or len(shape) != KERNEL_RANK:
                    continue
                try:
                    tensors = _pair_tensors(file, top, prefix, names)
                except WeightsError:
                    continue
                opened = _pair_opener(open_file, top, prefix, names)
                path = prefix if prefix.split("/")[0] == layer else f"{layer}/{prefix}"
                pair = make(path, prefix.split("/")[-1], tensors, opened)
                if pair is not None:
                    found.append(pair)
    return found


def _pair_opener(open_file: OpenFile, top: str, prefix: str, names: list[str]) -> Open:
    @contextmanager
    def opened() -> Iterator[Sequence[Tensor]]:
        with open_file() as file:
            yield _pair_tensors(file, top, prefix, names)

    return opened


def _pair_tensors(file: File, top: str, prefix: str, names: list[str]) -> list[Tensor]:
    words = [_INDEX.sub("", name).split("/")[-1] for name in names]
    if words not in (["kernel"], ["kernel", "bias"]):
        raise refuse(
            file.name, f"{top} lists the variables {words[:5]} of {prefix}, expected kernel, bias"
        )
    found: list[Tensor] = []
    for name in names:
        dataset = file.find(f"{top}/{name}")
        if dataset is None:
            raise refuse(file.name, f"{top} lists {name}, which is not there")
        found.append(tensor(file, dataset, f"{top}/{name}"))
    return found


def _prefixes(names: list[str]) -> dict[str, list[str]]:
    """Weight names by what stands before their last part, kernel first."""
    found: dict[str, list[str]] = {}
    for name in names:
        prefix = name.rpartition("/")[0]
        found.setdefault(prefix, []).append(name)
    for group in found.values():
        group.sort(key=lambda name: not _INDEX.sub("", name).endswith("/kernel"))
    return {
        prefix: group
        for prefix, group in found.items()
        if _INDEX.sub("", group[0]).endswith("/kernel")
    }


def _weight_names(file: File, top: str) -> list[str] | None:
    """The list of a layer's datasets, joined if it was split; None if there is no such layer."""
    group = file.find(top)
    if group is None or not file.is_group(group):
        return None
    names = file.strings(group, "weight_names")
    if names is None:
        names = []
        for index in range(_MAX_LISTS):
            more = file.strings(group, f"weight_names{index}")
            if more is None:
                break
            names += more
    for name in names:
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\0" in name:
            raise refuse(
                file.name, f"{top} lists the weight {name!r}, expected a path below its group"
            )
    if len(set(names)) != len(names):
        raise refuse(file.name, f"{top} lists a weight twice")
    return names


def _common_tail(prefix: Sequence[str], parts: Sequence[str]) -> int:
    count = 0
    for ours, theirs in zip(reversed(prefix), reversed(parts), strict=False):
        if ours != theirs:
            break
        count += 1
    return count
