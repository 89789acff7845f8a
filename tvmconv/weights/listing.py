"""Rows for ``tvmconv inspect``: what a file holds, and what of it cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tvmconv.weights.model import LayerEntry, entries

__all__ = ["inspect"]


def inspect(path: str | Path) -> list[dict[str, Any]]:
    """List the Conv3DTranspose layers of a file, readable or not.

    Returns
    -------
    One dict a layer, ready for JSON: ``path``; ``config`` (the arguments that matter at inference,
    None in a file of weights); ``kernel_shape``, ``bias_shape``, ``dtype``, ``params``,
    ``input_shape``, each None where unknown; ``problem``, None or the reason why not.

    Raises
    ------
    WeightsError
        The file as a whole is malformed or unsafe.
    """
    return [_row(entry) for entry in entries(path).layers.values()]


def _row(entry: LayerEntry) -> dict[str, Any]:
    shapes = [list(shape) for shape in entry.shapes]
    return {
        "path": entry.path,
        "config": _summary(entry),
        "kernel_shape": shapes[0] if shapes else None,
        "bias_shape": shapes[1] if len(shapes) > 1 else None,
        "dtype": entry.dtype,
        "params": entry.params if shapes else None,
        "input_shape": list(entry.build_input_shape) if entry.build_input_shape else None,
        "problem": entry.problem,
    }


def _summary(entry: LayerEntry) -> dict[str, Any] | None:
    config = entry.config
    if config is None:
        return None
    whole = config.get_config()
    keys = (
        "filters",
        "kernel_size",
        "strides",
        "padding",
        "output_padding",
        "data_format",
        "dilation_rate",
        "activation",
        "use_bias",
    )
    row = {key: whole[key] for key in keys}
    for key, value in row.items():
        if isinstance(value, tuple):
            row[key] = list(value)
    row["dtype"] = config.dtype
    return row
