"""A layer config that stands alone in a ``.json`` file."""

from __future__ import annotations

from pathlib import Path

from tvmconv.config import LayerConfig, from_serialized
from tvmconv.errors import ConfigError
from tvmconv.weights.archive import read_regular
from tvmconv.weights.json_text import MAX_BYTES, parse_object
from tvmconv.weights.refusal import refuse

__all__ = ["read_config_json"]


def read_config_json(path: str | Path) -> LayerConfig:
    """Read a layer config: the dict of ``get_config()``, or Keras' serialised object around it.

    Raises
    ------
    WeightsError
        The file is missing, is no strict JSON, or describes another class or an illegal layer.
    """
    name = str(path)
    value = parse_object(read_regular(Path(path), MAX_BYTES), name)
    try:
        if "class_name" in value:
            return from_serialized(value, strict_file=True)
        return LayerConfig.from_keras(value, strict_file=True)
    except ConfigError as error:
        raise refuse(name, str(error)) from error
