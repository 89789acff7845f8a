"""Which format a file has, by its first bytes and its suffix, and how to get at its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tvmconv.errors import WeightsError
from tvmconv.weights import legacy, sharded, tensors, variables
from tvmconv.weights.archive import ZipMembers, open_regular, read_regular
from tvmconv.weights.hdf5 import SIGNATURE, File
from tvmconv.weights.json_text import MAX_BYTES, parse_object
from tvmconv.weights.pair import Open, Pair
from tvmconv.weights.refusal import refuse
from tvmconv.weights.tensor import Tensor, pair_problem
from tvmconv.weights.tree import Found, Tree, layers

__all__ = ["Opened", "open_path"]

_CONFIG = "config.json"
_WEIGHTS = "model.weights.h5"
_PICKLES = "model.weights.npz"
_METADATA = "metadata.json"
_MAX_METADATA = 1 << 16
_SUFFIXES = ".keras, .h5, .weights.h5, .weights.json, .npz, .safetensors"


@dataclass(frozen=True)
class Opened:
    """A file whose format is known.

    Attributes
    ----------
    name
        The path as given.
    kind
        See `tvmconv.weights.model.ModelFile`.
    keras_version
        What wrote it, where the file tells.
    tree
        Layers of its model; None in a file of weights.
    locate
        Gives the function that opens a layer's tensors (files with a model).
    pairs
        Lists what could be weights of a layer, whatever a model says.
    """

    name: str
    kind: str
    keras_version: str | None
    tree: Tree | None
    locate: Callable[[Found], Open]
    pairs: Callable[[], list[Pair]]


def open_path(path: Path) -> Opened:
    """Tell the format of ``path`` and read its model's config, if it has one.

    Raises
    ------
    WeightsError
        No such file, no format that is read here, or one that is malformed.
    """
    name = str(path)
    if path.is_dir():
        return _open_folder(path)
    with open_regular(path) as handle:
        start = handle.read(8)
    if start == SIGNATURE:
        return _open_hdf5(path)
    lower = path.name.lower()
    if lower.endswith(".npz"):
        return _arrays(path, "npz", tensors.npz)
    if lower.endswith(".safetensors"):
        return _arrays(path, "safetensors", tensors.safetensors)
    if lower.endswith(".json"):
        return Opened(name, "weights.json", None, None, _no_model, partial(sharded.pairs, path))
    if lower.endswith((".h5", ".hdf5")):
        raise refuse(name, "not an HDF5 file")
    if start.startswith(b"PK") or lower.endswith((".keras", ".zip")):
        return _open_archive(path)
    raise refuse(name, f"not a format that is read here, expected one of {_SUFFIXES}")


def _open_archive(path: Path) -> Opened:
    name = str(path)
    with ZipMembers(path) as members:
        names = members.names()
        if _CONFIG not in names:
            raise refuse(name, f"the archive has no {_CONFIG}, expected a .keras file")
        if _WEIGHTS not in names and _PICKLES in names:
            raise refuse(name, f"the weights are pickles ({_PICKLES}), which are never read")
        config = members.read(_CONFIG, MAX_BYTES)
        tree = layers(parse_object(config, f"{name}: {_CONFIG}"), name)
        weights = members.read(_WEIGHTS)
        try:
            version = _version(members.read(_METADATA, _MAX_METADATA), name)
        except WeightsError:
            version = None  # says who wrote it, no more
    return _with_variables(name, "keras", version, tree, partial(File, weights, name))


def _open_folder(path: Path) -> Opened:
    name = str(path)
    if not (path / _CONFIG).exists():
        raise refuse(name, f"a folder without {_CONFIG}, expected an unzipped .keras file")
    _plain(path / _CONFIG)
    config = read_regular(path / _CONFIG, MAX_BYTES)
    tree = layers(parse_object(config, f"{name}/{_CONFIG}"), name)
    if not (path / _WEIGHTS).exists() and (path / _PICKLES).exists():
        raise refuse(name, f"the weights are pickles ({_PICKLES}), which are never read")
    _plain(path / _WEIGHTS)
    open_regular(path / _WEIGHTS).close()
    try:
        version = _version(read_regular(path / _METADATA, _MAX_METADATA), name)
    except WeightsError:
        version = None
    open_file = partial(File, path / _WEIGHTS, name)
    return _with_variables(name, "keras", version, tree, open_file)


def _plain(path: Path) -> None:
    """A link inside a folder from a stranger could lead to any file."""
    if path.is_symlink():
        raise refuse(str(path), "is a link, expected a regular file")


def _version(data: bytes, name: str) -> str | None:
    version = parse_object(data, name).get("keras_version")
    return version if isinstance(version, str) and len(version) < 64 else None


def _with_variables(
    name: str, kind: str, version: str | None, tree: Tree, open_file: Callable[[], File]
) -> Opened:
    # The HDF5 part must open even if no layer of the model needs it.
    with open_file():
        pass
    return Opened(
        name=name,
        kind=kind,
        keras_version=version,
        tree=tree,
        locate=lambda place: variables.opener(open_file, place.group),
        pairs=partial(variables.pairs, open_file),
    )


def _open_hdf5(path: Path) -> Opened:
    name = str(path)
    open_file = partial(File, path, name)
    with open_file() as file:
        text = legacy.model_config(file)
        group = legacy.weights_group(file)
        versions = file.strings(file.root, "keras_version")
    version = versions[0] if versions and len(versions[0]) < 64 else None
    if text is not None:
        tree = layers(parse_object(text.encode("utf-8"), f"{name}: model_config"), name)
        return Opened(
            name=name,
            kind="h5",
            keras_version=version,
            tree=tree,
            locate=lambda at: legacy.opener(open_file, at.parts, wrapped=at.wrapped),
            pairs=partial(legacy.pairs, open_file),
        )
    if group is not None:
        return Opened(
            name, "h5-weights", version, None, _no_model, partial(legacy.pairs, open_file)
        )
    return Opened(name, "weights.h5", version, None, _no_model, partial(variables.pairs, open_file))


def _arrays(path: Path, kind: str, reader: Callable[[Path], dict[str, Tensor]]) -> Opened:
    """Files of one layer: the arrays ``kernel`` and ``bias``."""

    @contextmanager
    def opened() -> Iterator[Sequence[Tensor]]:
        found = reader(path)
        yield [found[name] for name in ("kernel", "bias") if name in found]

    def pairs() -> list[Pair]:
        with opened() as found:
            problem = pair_problem(found[0], found[1] if len(found) > 1 else None)
            if problem is not None:
                raise refuse(str(path), problem)
            return [Pair("kernel", None, tuple(found), opened)]

    return Opened(str(path), kind, None, None, _no_model, pairs)


def _no_model(place: Found) -> Open:
    raise AssertionError(f"a file without a model has no layer {place.path}")
