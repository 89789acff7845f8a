"""The layout of ``.weights.h5``: ``<layer>/vars`` with the datasets ``0`` (kernel), ``1`` (bias).

Also inside ``.keras`` archives and in the shards of ``.weights.json``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvmconv.errors import WeightsError
from tvmconv.weights.dataset import outline, tensor
from tvmconv.weights.hdf5 import File
from tvmconv.weights.pair import Open, Pair, make
from tvmconv.weights.refusal import refuse
from tvmconv.weights.tensor import KERNEL_RANK, Tensor

__all__ = ["OpenFile", "layer_tensors", "opener", "pairs", "vars_path"]

OpenFile = Callable[[], File]

# Files of TensorFlow 2.13 call the list of layers so.
_OLD_LAYERS = "_layer_checkpoint_dependencies"
# A dense convolution has a kernel of 5 dimensions too; its class gives the group its name.
_OTHER_CLASS = re.compile(r"(.*/)?conv3d(_\d+)?")


def vars_path(file: File, group: str) -> str:
    """Path of the variables of the layer at ``group``, in the spelling of this file."""
    parts = f"{group}/vars".split("/")
    if "layers" in parts and file.find(_OLD_LAYERS) is not None:
        parts = [_OLD_LAYERS if part == "layers" else part for part in parts]
    return "/".join(parts)


def layer_tensors(file: File, group: str) -> list[Tensor]:
    """Kernel and bias of the layer at ``group``, judged but not read.

    Raises
    ------
    WeightsError
        No such group, or its variables are not exactly ``0`` or ``0`` and ``1``.
    """
    path = vars_path(file, group)
    found = file.find(path)
    if found is None or not file.is_group(found):
        raise refuse(file.name, f"has no group {path}, where the layer's weights were expected")
    names = sorted(file.names(found))
    if names not in (["0"], ["0", "1"]):
        raise refuse(
            file.name, f"{path} holds {len(names)} variables {names[:5]}, expected 0 or 0 and 1"
        )
    return [tensor(file, file.child(found, name), f"{path}/{name}") for name in names]


def opener(open_file: OpenFile, group: str) -> Open:
    """Make the function that opens a layer's tensors."""

    @contextmanager
    def opened() -> Iterator[Sequence[Tensor]]:
        with open_file() as file:
            yield layer_tensors(file, group)

    return opened


def pairs(open_file: OpenFile) -> list[Pair]:
    """All pairs in a file without config whose shapes could be a transposed convolution's."""
    found: list[Pair] = []
    with open_file() as file:
        for path, group in file.groups():
            if path.split("/")[-1] != "vars" or path.startswith("optimizer/"):
                continue
            layer = path.rpartition("/")[0]
            if _OTHER_CLASS.fullmatch(layer) or not looks_like_pair(file, group, path):
                continue
            tensors = _readable(file, group, path)
            if not tensors:
                continue
            pair = make(layer, layer_name(file, group), tensors, opener(open_file, layer))
            if pair is not None:
                found.append(pair)
    return found


def looks_like_pair(file: File, group: Any, path: str) -> bool:
    """Whether the variables are a 5-D array ``0`` and perhaps a 1-D array ``1``."""
    names = sorted(file.names(group))
    if names not in (["0"], ["0", "1"]):
        return False
    for name, rank in zip(names, (KERNEL_RANK, 1), strict=False):
        dataset = file.child(group, name)
        if not file.is_dataset(dataset):
            return False
        shape = outline(file, dataset, f"{path}/{name}")
        if shape is None or len(shape) != rank:
            return False
    return True


def layer_name(file: File, group: Any) -> str | None:
    """The attribute ``name`` of a group of variables; None in old files."""
    try:
        names = file.strings(group, "name")
    except WeightsError:
        return None
    return names[0] if names and len(names) == 1 else None


def _readable(file: File, group: Any, path: str) -> list[Tensor] | None:
    """The tensors, or None where they are, say, the integers of a quantized layer."""
    names = sorted(file.names(group))
    try:
        return [tensor(file, file.child(group, name), f"{path}/{name}") for name in names]
    except WeightsError:
        return None
