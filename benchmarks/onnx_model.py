"""ONNX files with one ConvTranspose or MatMul node, without the `onnx` package.

The format is protocol buffers (onnx.proto3 of the ONNX project): a field is its number and wire
type, then a varint (type 0) or length and bytes (type 2).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.data import Array
from benchmarks.workloads import Workload

__all__ = ["conv_transpose", "product"]

_IR_VERSION, _OPSET = 8, 17
_FLOAT, _INTS = 1, 7


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _ints(name: str, values: Iterable[int]) -> bytes:
    """An attribute that holds integers."""
    body = b"".join(_number(8, value) for value in values)
    return _bytes(5, _bytes(1, name) + body + _number(20, _INTS))


def _node(kind: str, inputs: Sequence[str], output: str, attributes: bytes = b"") -> bytes:
    names = b"".join(_bytes(1, name) for name in inputs)
    return _bytes(1, names + _bytes(2, output) + _bytes(4, kind) + attributes)


def _tensor(name: str, array: Array) -> bytes:
    dims = b"".join(_number(1, size) for size in array.shape)
    data = np.ascontiguousarray(array, "<f4").tobytes()
    return _bytes(5, dims + _number(2, _FLOAT) + _bytes(8, name) + _bytes(9, data))


def _value(field: int, name: str, shape: Sequence[int]) -> bytes:
    dims = b"".join(_bytes(1, _number(1, size)) for size in shape)
    kind = _bytes(1, _number(1, _FLOAT) + _bytes(2, dims))
    return _bytes(field, _bytes(1, name) + _bytes(2, kind))


def conv_transpose(work: Workload, kernel: Array, bias: Array) -> bytes:
    """The layer as an ONNX model; data in ``(n, c, d, h, w)``, input ``x``, output ``y``.

    ONNX cuts ``pads`` from both ends, each on its own, so Keras' crop needs no mirroring.
    """
    n, *size, channels = work.input_shape
    _, *out, filters = work.output_shape
    axes = work.axes
    attributes = b"".join(
        (
            _ints("kernel_shape", work.kernel),
            _ints("strides", work.strides),
            _ints("pads", [axis.lo for axis in axes] + [max(axis.hi, 0) for axis in axes]),
            _ints("output_padding", [max(-axis.hi, 0) for axis in axes]),
        )
    )
    relu = work.activation == "relu"
    graph = _node("ConvTranspose", ("x", "kernel", "bias"), "z" if relu else "y", attributes)
    if relu:
        graph += _node("Relu", ("z",), "y")
    graph += _bytes(2, work.name)
    graph += _tensor("kernel", kernel.transpose(4, 3, 0, 1, 2)) + _tensor("bias", bias)
    graph += _value(11, "x", (n, channels, *size)) + _value(12, "y", (n, filters, *out))
    return _model(graph)


def product(right: Array) -> bytes:
    """``y = x @ right`` for a square matrix ``right``."""
    graph = _node("MatMul", ("x", "right"), "y") + _bytes(2, "product") + _tensor("right", right)
    return _model(graph + _value(11, "x", right.shape) + _value(12, "y", right.shape))


def _model(graph: bytes) -> bytes:
    opset = _bytes(8, _bytes(1, "") + _number(2, _OPSET))
    return _number(1, _IR_VERSION) + opset + _bytes(7, graph)
