"""The Conv3DTranspose layers of a serialised Keras model, found without building anything.

The rules of the HDF5 paths are those of Keras 3's saving: each model numbers its layers by class
name in snake case, in the order of its config.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tvmconv.config import is_conv3d_transpose
from tvmconv.weights.refusal import refuse

__all__ = ["Found", "Tree", "layers"]

_MAX_MODELS = 32
_MAX_TWINS = 100
_MODELS = ("Functional", "Sequential", "Model")
_KERAS = ("keras", "tf_keras", "tensorflow.keras", "tensorflow.python.keras")


@dataclass(frozen=True)
class Found:
    """One Conv3DTranspose entry of a model's config.

    Attributes
    ----------
    parts
        Names from the outermost model's layer to this one.
    group
        Path of the layer's group in ``.weights.h5``.
    entry
        The serialised layer, not yet judged.
    wrapped
        Whether a wrapper such as TimeDistributed holds it.
    """

    parts: tuple[str, ...]
    group: str
    entry: dict[str, Any]
    wrapped: bool

    @property
    def path(self) -> str:
        """Path through nested models, such as ``inner/up1``."""
        return "/".join(self.parts)


@dataclass(frozen=True)
class Tree:
    """All layers of a model, and the second paths of those that two models share."""

    layers: tuple[Found, ...]
    aliases: dict[str, str]


def layers(model: dict[str, Any], file: str) -> Tree:
    """Find the Conv3DTranspose layers of a serialised model.

    Parameters
    ----------
    model
        ``config.json`` of a ``.keras`` file, or the attribute ``model_config`` of a ``.h5`` file.
    file
        For messages.

    Raises
    ------
    WeightsError
        Not a model, entries that are no layers, two layers of one name, or models nested deeper
        than 32.
    """
    walk = _Walk(file)
    if not isinstance(model.get("class_name"), str):
        raise refuse(file, "the config names no class_name, expected a Keras model")
    entries = _model_layers(model, file)
    if entries is None:
        raise refuse(
            file,
            f"the top-level class {model['class_name']!r} is not a Keras model with a list of "
            "layers; save its weights alone (.weights.h5) and give the layer's config (.json)",
        )
    walk.model(entries, (), "", 1)
    return Tree(tuple(walk.found.values()), walk.aliases)


class _Walk:
    """State of the depth-first walk: what was found, and where shared objects came first."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: dict[str, Found] = {}
        self.aliases: dict[str, str] = {}
        # shared_object_id -> path of the first visit; Keras stores the weights there only.
        self.first: dict[tuple[str, int], tuple[str, ...]] = {}
        # Class and name -> entries of the first visits.
        self.visited: dict[tuple[str, str], list[tuple[dict[str, Any], tuple[str, ...]]]] = {}

    def model(self, entries: list[Any], parts: tuple[str, ...], group: str, depth: int) -> None:
        """Walk one model's list of layers, numbering them by class."""
        if depth > _MAX_MODELS:
            raise refuse(self.file, f"models nested deeper than {_MAX_MODELS}")
        used: dict[str, int] = {}
        for entry in entries:
            if not isinstance(entry, dict) or not isinstance(entry.get("class_name"), str):
                raise refuse(self.file, "an entry of the list of layers is not a serialised layer")
            module = entry.get("module")
            if isinstance(module, str) and module.startswith(("keras.src.ops", "keras.ops")):
                continue
            snake = _group_name(entry)
            number = used.get(snake, -1) + 1
            used[snake] = number
            name = f"{snake}_{number}" if number else snake
            below = f"{group}/layers/{name}" if group else f"layers/{name}"
            self.entry(entry, parts, below, depth, snake=name)

    def entry(
        self,
        entry: dict[str, Any],
        parts: tuple[str, ...],
        group: str,
        depth: int,
        *,
        snake: str,
        wrapped: bool = False,
    ) -> None:
        """Look at one layer: ours, a model, a wrapper, or of no concern."""
        own = (*parts, _layer_name(entry, snake))
        ours = is_conv3d_transpose(entry)
        inner = None if ours else _model_layers(entry, self.file)
        wrapper = None if ours or inner is not None else _wrapped(entry)
        if not ours and inner is None and wrapper is None:
            return
        first = self.first_visit(entry, own)
        if first is not None:
            self.share(first, own)
            return
        if ours:
            path = "/".join(own)
            if path in self.found or path in self.aliases:
                raise refuse(self.file, f"two layers called {path!r}")
            self.found[path] = Found(own, group, entry, wrapped)
        elif inner is not None:
            self.model(inner, own, group, depth + 1)
        elif wrapper is not None:
            if depth + 1 > _MAX_MODELS:
                raise refuse(self.file, f"models nested deeper than {_MAX_MODELS}")
            self.entry(
                wrapper,
                own,
                f"{group}/layer",
                depth + 1,
                snake=_snake(wrapper["class_name"]),
                wrapped=True,
            )

    def first_visit(self, entry: dict[str, Any], own: tuple[str, ...]) -> tuple[str, ...] | None:
        """Path where a shared object came before, or None if this is its first visit.

        Keras marks the later visits with ``shared_object_id``; the first one, when it lies in
        a nested model, has lost the mark and is known by its equal config.
        """
        twins = self.visited.setdefault((entry["class_name"], own[-1]), [])
        shared = entry.get("shared_object_id")
        if type(shared) is int:
            key = (entry["class_name"], shared)
            if key not in self.first and 0 < len(twins) <= _MAX_TWINS:
                config = _unmarked(entry.get("config"))
                equal = [path for twin, path in twins if _unmarked(twin.get("config")) == config]
                if len(equal) == 1:
                    self.first[key] = equal[0]
            if key in self.first:
                return self.first[key]
            self.first[key] = own
        twins.append((entry, own))
        return None

    def share(self, first: tuple[str, ...], again: tuple[str, ...]) -> None:
        """Give the layers below a shared object their second paths."""
        for found in list(self.found.values()):
            if found.parts[: len(first)] == first:
                alias = "/".join((*again, *found.parts[len(first) :]))
                if alias not in self.found:
                    self.aliases[alias] = found.path


def _unmarked(value: Any) -> Any:
    """A copy of a JSON value without the marks of shared objects."""
    if isinstance(value, dict):
        return {key: _unmarked(item) for key, item in value.items() if key != "shared_object_id"}
    return [_unmarked(item) for item in value] if isinstance(value, list) else value


def _is_keras(module: object) -> bool:
    if module is None:
        return True
    return isinstance(module, str) and any(
        module == base or module.startswith(f"{base}.") for base in _KERAS
    )


def _model_layers(entry: dict[str, Any], file: str) -> list[Any] | None:
    """The list of layers if ``entry`` is a model, else None.

    A user's class counts as a model if its config is that of a Functional or Sequential one:
    only the layers inside are looked at, the class itself is never needed.
    """
    config = entry.get("config")
    plain = (
        entry["class_name"] in _MODELS
        and _is_keras(entry.get("module"))
        and entry.get("registered_name") in (None, *_MODELS)
    )
    if plain and entry["class_name"] == "Sequential" and isinstance(config, list):
        return config  # Keras before 2.3
    if not isinstance(config, dict):
        if plain:
            raise refuse(file, f"the config of a {entry['class_name']} is not an object")
        return None
    entries = config.get("layers")
    if plain:
        if entries is None and entry["class_name"] == "Model":
            return None  # a subclassed model, whose config says nothing of its layers
        if not isinstance(entries, list):
            raise refuse(file, f"the layers of a {entry['class_name']} are not a list")
        return entries
    registered = entry.get("registered_name")
    if not _is_keras(entry.get("module")) or (registered and registered != entry["class_name"]):
        good = isinstance(entries, list) and all(
            isinstance(item, dict) and isinstance(item.get("class_name"), str) for item in entries
        )
        if good and entries:
            return entries
    return None


def _wrapped(entry: dict[str, Any]) -> dict[str, Any] | None:
    """The layer inside a wrapper of Keras (TimeDistributed and the like)."""
    config = entry.get("config")
    if not _is_keras(entry.get("module")) or not isinstance(config, dict):
        return None
    if ">" in str(entry.get("registered_name")):
        return None
    inner = config.get("layer")
    if isinstance(inner, dict) and isinstance(inner.get("class_name"), str):
        return inner
    return None


def _layer_name(entry: dict[str, Any], otherwise: str) -> str:
    config = entry.get("config")
    for holder in (config, entry):
        if isinstance(holder, dict) and isinstance(holder.get("name"), str):
            return str(holder["name"])
    return otherwise


def _group_name(entry: dict[str, Any]) -> str:
    """Snake case of the class the entry becomes when Keras builds it."""
    if is_conv3d_transpose(entry):
        return "conv3d_transpose"
    if entry["class_name"] == "Model" and _is_keras(entry.get("module")):
        return "functional"
    return _snake(entry["class_name"])


def _snake(name: str) -> str:
    """Keras' own snake case (`keras.src.utils.naming.to_snake_case`)."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
