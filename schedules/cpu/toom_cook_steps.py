"""What the transforms of a tile of the Toom-Cook form take, for the rule's model."""

from __future__ import annotations

import itertools
import math

from tvmconv.compute.points import Combination
from tvmconv.compute.schemes import KINDS, Column
from tvmconv.compute.toom_cook import ToomCookForm

__all__ = ["back_steps", "sum_steps"]


def sum_steps(form: ToomCookForm) -> float:
    """Loads, additions and stores of all transforms of a tile, for one register of channels."""
    total = 0.0
    choices: list[list[tuple[int, tuple[Column, ...]]]] = [
        [(1, axis.columns)]
        if axis.shared
        else [(len(one.places), one.scheme.points) for one in axis.classes]
        for axis in form.axes
    ]
    for parts in itertools.product(*choices):
        times = math.prod(count for count, _ in parts)
        depth, height, width = (columns for _, columns in parts)
        reach = [
            max(offset + KINDS[kind][-1][0] for kind, offset in columns) + 1
            for columns in (height, width)
        ]
        terms = [sum(len(KINDS[kind]) for kind, _ in columns) for columns in (depth, height, width)]
        steps = (2 * terms[0] - len(depth)) * reach[0] * reach[1]
        steps += len(depth) * (terms[1] - len(height)) * reach[1]
        steps += len(depth) * len(height) * terms[2]
        total += times * steps
    return total


def back_steps(one: Combination) -> float:
    """The same for the products of a tile, transformed back."""
    depth, height, width = (group.scheme for group in one.classes)
    terms = [sum(map(bool, itertools.chain(*s.result))) for s in (depth, height, width)]
    across = len(height.points) * len(width.points)
    steps = (2 * terms[0] - depth.outputs) * across
    steps += depth.outputs * (terms[1] - height.outputs) * len(width.points)
    return steps + depth.outputs * height.outputs * (terms[2] + width.outputs)
