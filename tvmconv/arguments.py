"""Checks of single layer arguments, with Keras' rules and Keras' wording.

The rules are those of ``keras/src/utils/argument_validation.py`` and of the layer's constructor
(Keras 3.15). Where Keras fails by accident, with an AttributeError or a KeyError, the error here
is a `ConfigError` with a clear text.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, cast

import numpy as np

from tvmconv.errors import ConfigError, ConfigTypeError

__all__ = [
    "MAX_KERNEL_ELEMENTS",
    "MAX_SIZE",
    "check_file_values",
    "check_filters",
    "data_format",
    "layer_name",
    "padding",
    "shape",
    "triple",
]

#: Limits on what a file may ask for: a size along one axis, and the elements of one kernel.
MAX_SIZE = 2**24
MAX_KERNEL_ELEMENTS = 2**31

Triple = tuple[int, int, int]


def triple(value: Any, name: str, *, allow_zero: bool = False) -> Triple:
    """Three integers from an int, which is repeated, or from an iterable of three.

    Floats pass, as in Keras, and fail when the layer is built.

    Raises
    ------
    ConfigError
        Not three integers, or one out of range.
    ConfigTypeError
        An element that cannot be compared with 0, such as a numeric string.
    """
    message = f"The `{name}` argument must be a tuple of 3 integers. Received {name}={value}"
    if isinstance(value, int):
        values: tuple[Any, ...] = (value,) * 3
    else:
        try:
            values = tuple(islice(iter(value), 4))
        except TypeError as exc:
            raise ConfigError(message) from exc
        if len(values) != 3:
            raise ConfigError(message)
        for element in values:
            try:
                int(element)
            except (ValueError, TypeError, OverflowError) as exc:
                raise ConfigError(
                    f"{message}including element {element} of type {type(element)}"
                ) from exc
    try:
        wrong = {v for v in values if (v < 0 if allow_zero else v <= 0)}
    except TypeError as exc:
        raise ConfigTypeError(str(exc)) from exc
    if wrong:
        sign = ">= 0" if allow_zero else "> 0"
        raise ConfigError(f"{message}, including values {wrong} that do not satisfy `value {sign}`")
    return cast(Triple, tuple(_plain(v) for v in values))


def padding(value: Any) -> str:
    """``"valid"`` or ``"same"``, from any letter case."""
    if isinstance(value, str) and value.lower() in ("valid", "same"):
        return value.lower()
    shown = value.lower() if isinstance(value, str) else value
    raise ConfigError(
        "The `padding` argument must be a list/tuple or one of {'valid', 'same'}. "
        f"Received: {shown}"
        + (" (a list or tuple is not supported by this layer)" if _is_list(value) else "")
    )


def data_format(value: Any) -> str:
    """``"channels_last"`` (also for None) or ``"channels_first"``, from any letter case."""
    if value is None:
        return "channels_last"
    name = str(value).lower()
    if name not in ("channels_first", "channels_last"):
        raise ConfigError(
            "The `data_format` argument must be one of {'channels_first', 'channels_last'}. "
            f"Received: data_format={name}"
        )
    return name


def layer_name(value: Any) -> str:
    """A layer name: any string without a slash."""
    if not isinstance(value, str) or "/" in value:
        raise ConfigError(
            "Argument `name` must be a string and cannot contain character `/`. "
            f"Received: name={value} (of type {type(value)})"
        )
    return value


def check_filters(value: Any) -> Any:
    """``filters`` if it is not <= 0; as in Keras, None and fractions fail later, when built."""
    if value is None:
        return None
    try:
        wrong = bool(value <= 0)
    except TypeError as exc:
        raise ConfigTypeError(str(exc)) from exc
    except ValueError as exc:
        raise ConfigError(f"`filters` must be one integer. Received filters={value}") from exc
    if wrong:
        raise ConfigError(
            "Invalid value for argument `filters`. Expected a strictly positive value. "
            f"Received filters={value}."
        )
    return _plain(value)


def shape(values: tuple[Any, ...], path: str) -> tuple[int, ...]:
    """The shape of a variable: integers, none of them unknown or negative.

    ``path`` is the variable's, such as ``conv3d_transpose/kernel``, for the message.

    Raises
    ------
    ConfigError
        A dimension is unknown, negative or no integer.
    """
    for value in values:
        if value is None:
            continue
        try:
            if isinstance(value, str | float):
                raise TypeError
            size = int(value)
        except (TypeError, ValueError) as exc:
            raise ConfigError(
                f"Cannot convert '{values}' to a shape. Found invalid dimension '{value}' of "
                f"type '{type(value)}'. "
            ) from exc
        if size < 0:
            raise ConfigError(
                f"Cannot convert '{values}' to a shape. Negative dimensions are not allowed."
            )
    if None in values:
        raise ConfigError(
            "Shapes used to initialize variables must be fully-defined (no `None` dimensions). "
            f"Received: shape={values} for variable path='{path}'"
        )
    return tuple(int(value) for value in values)


def check_file_values(config: Mapping[str, Any]) -> None:
    """Refuse in a config from a file what Keras lets pass and fails on, or misreads, later.

    Raises
    ------
    ConfigError
        A size is no integer from 1 to 2**24, the kernel is too large, or a flag, name or format
        has another type than Keras writes.
    """
    elements = 1
    for key in ("filters", "kernel_size", "strides", "dilation_rate", "output_padding"):
        if key not in config:
            continue
        value = config[key]
        if value is None and key == "output_padding":
            continue
        values = list(value) if _is_list(value) and key != "filters" else [value]
        low = 0 if key == "output_padding" else 1
        if not all(type(v) is int and low <= v <= MAX_SIZE for v in values):
            raise ConfigError(
                f"The `{key}` of a stored layer must be made of integers from {low} to "
                f"{MAX_SIZE}. Received {key}={value}"
            )
        if key == "kernel_size":
            values = values * 3 if not _is_list(value) else values
        if key in ("filters", "kernel_size"):
            for v in values:
                elements *= v
    if elements > MAX_KERNEL_ELEMENTS:
        raise ConfigError(
            f"The kernel of a stored layer must have at most {MAX_KERNEL_ELEMENTS} elements. "
            f"Received filters={config.get('filters')}, kernel_size={config.get('kernel_size')}"
        )
    types: dict[str, tuple[type, ...]] = {
        "use_bias": (bool,),
        "trainable": (bool,),
        "padding": (str,),
        "data_format": (str, type(None)),
        "name": (str, type(None)),
    }
    for key, expected in types.items():
        if key in config and not isinstance(config[key], expected):
            raise ConfigError(
                f"The `{key}` of a stored layer must be a {expected[0].__name__}. "
                f"Received {key}={config[key]} (of type {type(config[key])})"
            )


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _plain(value: Any) -> Any:
    """Python's own int for bools and NumPy integers, everything else as it is."""
    return int(value) if isinstance(value, int | np.integer) else value
