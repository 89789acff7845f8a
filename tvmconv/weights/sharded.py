"""Weights in several files: a ``.weights.json`` that maps groups to the shards beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tvmconv.weights.archive import read_regular
from tvmconv.weights.dataset import outline, tensor
from tvmconv.weights.hdf5 import File
from tvmconv.weights.json_text import MAX_BYTES, parse_object
from tvmconv.weights.pair import Open, Pair, make
from tvmconv.weights.refusal import guard, refuse
from tvmconv.weights.tensor import KERNEL_RANK, Tensor
from tvmconv.weights.variables import layer_name

__all__ = ["pairs"]

_MAX_SHARDS = 10_000
_RANKS = {"0": KERNEL_RANK, "1": 1}


def pairs(path: Path) -> list[Pair]:
    """All pairs whose shapes could be a transposed convolution's.

    Raises
    ------
    WeightsError
        No ``weight_map``, or a shard that is no regular file beside ``path``.
    """
    where = str(path)
    index = parse_object(read_regular(path, MAX_BYTES), where)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise refuse(where, "expected an object weight_map")
    plan: dict[str, list[str]] = {}
    for group, value in weight_map.items():
        shards = value if isinstance(value, list) else [value]
        if not shards or len(shards) > _MAX_SHARDS:
            raise refuse(where, f"weight_map[{group!r}] lists {len(shards)} shards")
        for shard in shards:
            _check_shard(path, shard)
        plan[group.strip("/")] = shards
    found: list[Pair] = []
    for group, shards in plan.items():
        layer, _, last = group.rpartition("/")
        if last != "vars" or group.startswith("optimizer/"):
            continue
        with _open(path, shards) as files:
            tensors = _tensors(files, group)
            names = [name for file in files for name in _names(file, group)]
        if tensors:
            name = names[0] if names else None
            pair = make(layer, name, tensors, _opener(path, group, shards))
            if pair is not None:
                found.append(pair)
    return found


def _check_shard(path: Path, shard: object) -> None:
    where = str(path)
    if not isinstance(shard, str) or not shard or shard in (".", ".."):
        raise refuse(where, f"weight_map names the shard {shard!r}")
    if any(c in shard for c in "/\\:\0"):
        raise refuse(where, f"the shard {shard!r} is not beside the file")
    place = path.parent / shard
    with guard(where, f"the shard {shard!r}"):
        if place.is_symlink() or not place.is_file():
            raise refuse(where, f"the shard {shard!r} is not a regular file beside it")


@contextmanager
def _open(path: Path, shards: Sequence[str]) -> Iterator[list[File]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(File(path.parent / shard, f"{path} ({shard})")) for shard in shards
        ]


def _opener(path: Path, group: str, shards: Sequence[str]) -> Open:
    @contextmanager
    def opened() -> Iterator[Sequence[Tensor]]:
        with _open(path, shards) as files:
            yield _tensors(files, group) or []

    return opened


def _tensors(files: Sequence[File], group: str) -> list[Tensor] | None:
    """The variables of a group, one from this shard, another from that; None if no pair."""
    found: dict[str, Tensor] = {}
    for file in files:
        start = file.find(group)
        if start is None or not file.is_group(start):
            continue
        for name in file.names(start):
            dataset = file.child(start, name)
            if name not in _RANKS or not file.is_dataset(dataset):
                return None
            shape = outline(file, dataset, f"{group}/{name}")
            if shape is None or len(shape) != _RANKS[name]:
                return None
            if name in found:
                raise refuse(file.name, f"{group}/{name} is in two shards")
            found[name] = tensor(file, dataset, f"{group}/{name}")
    if sorted(found) not in (["0"], ["0", "1"]):
        return None
    return [found[name] for name in sorted(found)]


def _names(file: File, group: str) -> list[str]:
    start = file.find(group)
    name = layer_name(file, start) if start is not None and file.is_group(start) else None
    return [name] if name else []
