"""Checks of an input array before a layer runs, and outputs that need no run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmconv import geometry
from tvmconv.errors import InputError
from tvmconv.policies import numpy_dtype

if TYPE_CHECKING:
    from tvmconv.config import LayerConfig

__all__ = ["check_shape", "checked", "output_shape", "spelt", "without_input"]

_RANK = 5


def checked(x: Any, config: LayerConfig, built_shape: Sequence[int | None] | None) -> np.ndarray:
    """``x`` as an array whose rank, channels and dtype the layer takes, in Keras' words if not.

    ``built_shape`` is the input shape for which the layer was built, or None.

    Raises
    ------
    InputError
        The rank is not 5, the channels are others than built, or the dtype is no real float.
    """
    if x is None:
        raise InputError(
            "Inputs to a layer should be tensors. Got 'None' (of type <class 'NoneType'>) as input "
            f"for layer '{config.name}'."
        )
    try:
        array = np.asarray(x)
    except (TypeError, ValueError) as exc:
        raise InputError(
            "Only input tensors may be passed as positional arguments. The following argument "
            f"value should be passed as a keyword argument: {x} (of type {type(x)})"
        ) from exc
    check_shape(array.shape, config, built_shape)
    if not (array.dtype.kind == "f" or array.dtype.name == "bfloat16"):
        raise InputError(
            f"Incompatible type conversion requested to type {array.dtype.name} for layer "
            f"'{config.name}'. Expected a float input; cast it first, for example with "
            f"x.astype('{config.compute_dtype}')."
        )
    return array


def check_shape(
    shape: tuple[int, ...], config: LayerConfig, built_shape: Sequence[int | None] | None
) -> None:
    """Refuse the shape of an input in Keras' words.

    Raises
    ------
    InputError
        The rank is not 5, or the channels are others than built.
    """
    start = f"Input 0 with name 'None' of layer '{config.name}' is incompatible with the layer: "
    if len(shape) < _RANK:
        raise InputError(
            f"{start}expected min_ndim=5, found ndim={len(shape)}. Full shape received: {shape}"
        )
    axis = -1 if config.data_format == "channels_last" else 1
    if built_shape is not None and shape[axis] != built_shape[axis]:
        raise InputError(
            f"{start}expected axis {axis} of input shape to have value {built_shape[axis]}, "
            f"but received input with shape {shape}"
        )
    if len(shape) > _RANK:
        raise InputError(
            f"Input rank not supported: {len(shape)}. Expected a tensor of rank 5 for layer "
            f"'{config.name}'. Full shape received: {shape}"
        )


def output_shape(config: LayerConfig, input_shape: Sequence[int]) -> tuple[int, ...]:
    """The real shape of the output: unlike Keras' static one, it knows that ``glu`` halves an axis.

    Raises
    ------
    InputError
        A size would be negative, or ``glu`` would halve an odd one.
    """
    shape = [int(size or 0) for size in geometry.output_shape(config, input_shape)]
    if min(shape) < 0:
        raise InputError(
            f"The output of layer '{config.name}' would have a negative size: {tuple(shape)}. "
            f"Full shape received: {tuple(input_shape)}"
        )
    if config.activation.name == "glu" and config.activation.axes:
        axis = config.activation.axes[0]
        if shape[axis] % 2:
            raise InputError(
                f"axis size must be divisible by 2. Received: x.shape={tuple(shape)} with "
                f"axis={axis}"
            )
        shape[axis] //= 2
    return tuple(shape)


def without_input(
    config: LayerConfig, bias: np.ndarray | None, shape: tuple[int, ...]
) -> np.ndarray:
    """The output for an input without voxels: nothing, or the activated bias everywhere.

    ``shape`` is the output shape after the activation.
    """
    if 0 in shape:
        return np.empty(shape, numpy_dtype(config.output_dtype))
    full = list(shape)
    if config.activation.name == "glu" and config.activation.axes:
        full[config.activation.axes[0]] *= 2
    y = np.zeros(full)
    if bias is not None:
        rounded = bias.astype(numpy_dtype(config.compute_dtype)).astype(np.float64)
        y += rounded.reshape([-1 if axis == config.channel_axis else 1 for axis in range(_RANK)])
    with np.errstate(over="ignore"):
        return config.activation.evaluate(y).astype(numpy_dtype(config.output_dtype))


def spelt(shape: Sequence[int | None]) -> str:
    """``(?, 4, 4, 4, 8)`` for a shape with an open batch."""
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"
