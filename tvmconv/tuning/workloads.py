"""A workload as JSON: what tells it from others, and enough to make it again."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

from tvmconv.activations import Activation
from tvmconv.compute.workload import Workload
from tvmconv.geometry import Axis, Plan

if TYPE_CHECKING:
    from tvmconv.config import LayerConfig

__all__ = ["describe", "distance", "key", "of_layer", "restore", "title"]

_AXIS = ("size", "kernel", "stride", "dilation", "lo", "out")
#: The parts that two shapes of one layer may differ in.
_SIZES = ("batch", "axes")


def of_layer(config: LayerConfig, input_shape: tuple[int | None, ...]) -> Workload:
    """The workload of a layer; `tvmconv.compute.workload.Workload.of`."""
    return Workload.of(config, input_shape)


def describe(work: Workload, precision: str = "full") -> dict[str, Any]:
    """The workload as JSON values.

    An open batch is a batch of one: that is what is measured for it. Another precision than
    ``full`` is another workload: its results differ.
    """
    plan, activation = work.plan, work.activation
    return {
        "batch": max(1, plan.batch),
        "axes": [{name: getattr(axis, name) for name in _AXIS} for axis in plan.axes],
        "in_channels": plan.in_channels,
        "filters": plan.filters,
        "channels_first": plan.channels_first,
        "input_dtype": work.input_dtype,
        "output_dtype": work.output_dtype,
        "variable_dtype": work.variable_dtype,
        "use_bias": work.use_bias,
        "activation": {
            "name": activation.name,
            "args": [[name, value] for name, value in activation.args],
            "policy": activation.policy,
        },
        **({} if precision == "full" else {"precision": precision}),
    }


def restore(described: dict[str, Any]) -> Workload:
    """The inverse of `describe`.

    Raises
    ------
    KeyError, TypeError, ValueError
        It is not what `describe` gives.
    """
    axes = [Axis(*(int(axis[name]) for name in _AXIS)) for axis in described["axes"]]
    if len(axes) != 3:
        raise ValueError(f"expected three axes, found {len(axes)}")
    activation = described["activation"]
    args = tuple(
        (str(name), tuple(value) if isinstance(value, list) else value)
        for name, value in activation["args"]
    )
    plan = Plan(
        int(described["batch"]),
        (axes[0], axes[1], axes[2]),
        int(described["in_channels"]),
        int(described["filters"]),
        bool(described["channels_first"]),
    )
    return Workload(
        plan,
        str(described["input_dtype"]),
        str(described["output_dtype"]),
        str(described["variable_dtype"]),
        Activation(str(activation["name"]), args, activation["policy"]),
        bool(described["use_bias"]),
    )


def key(described: dict[str, Any]) -> str:
    """16 hexadecimal digits that stand for a described workload."""
    text = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def title(described: dict[str, Any]) -> str:
    """The workload in a few words, for people: ``64x3x3x3x32 stride 2,2,2 on 12x16x32``."""
    axes = described["axes"]
    kernel = "x".join(str(axis["kernel"]) for axis in axes)
    strides = ",".join(str(axis["stride"]) for axis in axes)
    sizes = "x".join(str(axis["size"]) for axis in axes)
    channels = f"{described['in_channels']}->{described['filters']}"
    text = f"{channels} kernel {kernel} strides {strides} on {described['batch']}x{sizes}"
    return f"{text} {described['precision']}" if "precision" in described else text


def distance(one: dict[str, Any], other: dict[str, Any]) -> float | None:
    """How far two shapes of one layer are apart, in factors of two; None for another layer."""
    if any(one.get(name) != other.get(name) for name in {*one, *other} - {*_SIZES}):
        return None
    total = abs(math.log2(one["batch"] / max(1, int(other["batch"]))))
    for mine, theirs in zip(one["axes"], other["axes"], strict=True):
        if any(mine[name] != theirs[name] for name in ("kernel", "stride", "dilation", "lo")):
            return None
        if min(mine["size"], theirs["size"]) < 1:
            return None
        total = max(total, abs(math.log2(mine["size"] / theirs["size"])))
    return total
