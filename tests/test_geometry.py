"""Sizes, crops and phases, against a table, against brute force, and against each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tvmconv import geometry
from tvmconv.config import LayerConfig
from tvmconv.errors import ConfigError
from tvmconv.geometry import Axis, output_length

# Length, kernel, stride, dilation, output padding; full scatter; then out, front crop, back crop of
# "valid" and of "same". From the rules of keras/src/backend/common/backend_utils.py.
TABLE = """
    4 3 1 1 -    6    6 0  0    4 1  1
    4 4 1 1 -    7    7 0  0    4 1  2
    4 4 1 1 0    7    7 0  0    3 2  2
    4 2 2 1 -    8    8 0  0    8 0  0
    4 3 2 1 -    9    9 0  0    8 0  1
    4 3 2 1 0    9    9 0  0    7 1  1
    4 3 2 1 1    9   10 0 -1    8 0  1
    4 4 2 1 -   10   10 0  0    8 1  1
    4 4 2 1 0   10   10 0  0    6 2  2
    4 4 2 1 1   10   11 0 -1    7 1  2
    4 1 2 1 -    7    8 0 -1    8 0 -1
    4 1 2 1 0    7    7 0  0    7 0  0
    4 1 3 1 -   10   12 0 -2   12 0 -2
    4 2 3 1 -   11   12 0 -1   12 0 -1
    4 2 3 1 0   11   11 0  0    9 1  1
    4 2 3 1 2   11   13 0 -2   11 0  0
    4 5 3 1 -   14   14 0  0   12 1  1
    4 5 3 1 2   14   16 0 -2   12 1  1
    4 7 2 1 -   13   13 0  0    8 2  3
    1 5 1 1 -    5    5 0  0    1 2  2
    4 3 1 2 -    8    8 0  0    4 2  2
    4 2 1 3 -    7    7 0  0    4 1  2
    4 2 1 3 0    7    7 0  0    3 2  2
    1 2 5 1 -    2    5 0 -3    5 0 -3
    1 2 5 1 4    2    6 0 -4    4 0 -2
    0 3 1 1 -    0    2 0 -2    0 1 -1
"""
ROWS = [line.split() for line in TABLE.strip().splitlines()]


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("row", ROWS, ids="_".join)
def test_table(row: list[str], padding: str) -> None:
    size, kernel, stride, dilation = map(int, row[:4])
    extra = None if row[4] == "-" else int(row[4])
    full, *crops = map(int, row[5:])
    out, front, back = crops[:3] if padding == "valid" else crops[3:]
    assert output_length(size, kernel, stride, dilation, padding, extra) == (out, front)
    assert full == ((size - 1) * stride + (kernel - 1) * dilation + 1 if size else 0)
    assert back == full - front - out
    layer = LayerConfig(
        1,
        (kernel, 1, 1),
        strides=(stride, 1, 1),
        dilation_rate=(dilation, 1, 1),
        padding=padding,
        output_padding=None if extra is None else (extra, 0, 0),
    )
    planned = geometry.plan(layer, (2, size, 3, 3, 5))
    assert planned.axes[0] == Axis(size, kernel, stride, dilation, front, out)
    assert planned.output_shape == (2, out, 3, 3, 1)


def axes() -> Iterator[Axis]:
    """Every small axis."""
    for size, kernel, stride, dilation, padding in itertools.product(
        (0, 1, 2, 3, 5, 8), range(1, 7), range(1, 5), (1, 2, 3), ("valid", "same")
    ):
        if stride > 1 and dilation > 1:
            continue
        for extra in (None, *range(stride)):
            out, lo = output_length(size, kernel, stride, dilation, padding, extra)
            if out >= 0:
                yield Axis(size, kernel, stride, dilation, lo, out)


AXES = list(axes())


def contributions(axis: Axis) -> dict[int, set[tuple[int, int]]]:
    """Output position -> pairs (input, tap) that it sums, by scattering."""
    found: dict[int, set[tuple[int, int]]] = {o: set() for o in range(axis.out)}
    for i, t in itertools.product(range(axis.size), range(axis.kernel)):
        o = i * axis.stride + t * axis.dilation - axis.lo
        if o in found:
            found[o].add((i, t))
    return found


def test_many_axes_and_no_negative_crop() -> None:
    assert len(AXES) > 1000
    assert all(axis.lo >= 0 for axis in AXES)


def test_phases_partition_the_output() -> None:
    for axis in AXES:
        outputs = [
            (phase.first + j) * axis.stride + phase.residue - axis.lo
            for phase in axis.phases
            for j in range(phase.count)
        ]
        assert sorted(outputs) == list(range(axis.out)), axis


def test_phases_hold_the_taps_that_the_scatter_has() -> None:
    for axis in AXES:
        expected = contributions(axis)
        for phase in axis.phases:
            assert phase.taps <= axis.max_taps
            for j in range(phase.count):
                q = phase.first + j
                pairs = {
                    (q - t * axis.dilation, phase.residue + t * axis.stride)
                    for t in range(phase.taps)
                }
                o = q * axis.stride + phase.residue - axis.lo
                inside = {(i, t) for i, t in pairs if 0 <= i < axis.size}
                assert inside == expected[o], (axis, phase, o)


def test_useful_taps_are_the_products_of_the_scatter() -> None:
    for axis in AXES:
        assert axis.useful_taps == sum(map(len, contributions(axis).values())), axis


def test_flops() -> None:
    layer = LayerConfig(5, (3, 2, 1), strides=(2, 1, 3), padding="same")
    planned = geometry.plan(layer, (4, 3, 4, 2, 7))
    useful = np.prod([sum(map(len, contributions(axis).values())) for axis in planned.axes])
    assert planned.flops == 2 * 5 * 7 * useful


def test_open_batch_and_layouts() -> None:
    first = geometry.plan(LayerConfig(6, 3, data_format="channels_first"), (None, 4, 1, 2, 3))
    last = geometry.plan(LayerConfig(6, 3), (-1, 1, 2, 3, 4))
    assert first.axes == last.axes
    assert first.input_shape == (-1, 4, 1, 2, 3)
    assert first.output_shape == (-1, 6, 3, 4, 5)
    assert last.output_shape == (-1, 3, 4, 5, 6)
    assert first.kernel_shape == last.kernel_shape == (3, 3, 3, 6, 4)


@pytest.mark.parametrize(
    ("shape", "arguments", "match"),
    [
        ((1, 2, 2, 3), {}, "must have 5 sizes"),
        ((1, 2, None, 2, 3), {}, "must be known and not negative"),
        ((1, 2, 2, 2, None), {}, "must be known and not negative"),
        ((1, -2, 2, 2, 3), {}, "must be known and not negative"),
        ((-2, 2, 2, 2, 3), {}, "must be known and not negative"),
        ((1, 0, 2, 2, 3), {"strides": 4, "output_padding": 0, "padding": "same"}, "negative size"),
        ((1, 2**20, 2**20, 2**20, 3), {}, "too many elements to address"),
        ((2**40, 2, 2, 2, 2**10), {}, "too many elements to address"),
    ],
)
def test_refused(shape: tuple[Any, ...], arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        geometry.plan(LayerConfig(2, 3, **arguments), shape)
    assert "\n" not in str(caught.value)


def test_the_static_answer_keeps_unknown_sizes() -> None:
    layer = LayerConfig(3, 2, strides=2)
    assert geometry.output_shape(layer, (None, None, 4, 5, 7)) == [None, None, 8, 10, 3]
    assert geometry.output_shape(layer, (2, 4, 5, 7)) == [2, 8, 10, 3]


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_the_outputs_that_a_tap_reaches(padding: str) -> None:
    ranges = (1, 2, 5), (1, 2, 3, 5), (1, 2, 3), (1, 2)
    for size, kernel, stride, dilation in itertools.product(*ranges):
        if stride > 1 and dilation > 1:
            continue
        layer = LayerConfig(
            1, (kernel, 1, 1), strides=(stride, 1, 1), dilation_rate=(dilation, 1, 1),
            padding=padding,
        )  # fmt: skip
        axis = geometry.plan(layer, (1, size, 1, 1, 1)).axes[0]
        total = 0
        for phase in axis.phases:
            for tap in range(phase.taps):
                first, end = axis.reached(phase, tap)
                inputs = [phase.first + j - tap * dilation for j in range(phase.count)]
                reached = [j for j, q in enumerate(inputs) if 0 <= q < size]
                assert reached == list(range(first, end))
                total += len(reached)
        assert total == axis.useful_taps
