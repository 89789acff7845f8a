"""What the Toom-Cook rule counts: steps of the transforms, products that are needed, code."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

from tvmconv.compute import finish
from tvmconv.compute.points import Combination
from tvmconv.compute.schemes import KINDS, Column, Scheme
from tvmconv.compute.toom_cook import MANY_SUMS, ToomCookForm
from tvmconv.compute.transforms import AxisTiles

__all__ = [
    "back_steps",
    "code_bytes",
    "pair_steps",
    "read_share",
    "sum_steps",
    "summed_share",
]

#: By measurement with registers of 512 bits: bytes of all that is the same in every library; of a
#: step of a transform; of the register tiles of some phases and filters that fill registers, and
#: that do not; of those that leave the last tile of a row out; of more register tiles where all
#: share one transform back; of filters beside them whose lanes are input channels.
_BYTES, _STEP_BYTES, _TILE_BYTES, _PART_BYTES = 42e3, 11.3, 2.5e3, 4.9e3
_NARROW_BYTES, _MORE_BYTES, _DOTS_BYTES = 1.5e3, 2.4e3, 650.0
#: Turns of a loop over a plane of products of which the compiler writes out one; the steps of a
#: loop up to which it does so, or writes out all where last tiles leave some out.
_TURNS, _ROWS_WRITTEN = 3, 185
#: Where `Tiling.compact`: the first and the second of these, what pairs of channels add, and
#: the turns of a longer loop of which one is written out.
_COMPACT_BYTES, _COMPACT_STEP_BYTES, _PAIRED_BYTES, _COMPACT_TURNS = 30e3, 10.0, 6e3, 12


def code_bytes(form: ToomCookForm) -> float:
    """Bytes of a library, without weights."""
    vector, compact = form.tiling.vector, form.tiling.compact
    total, step = (_COMPACT_BYTES, _COMPACT_STEP_BYTES) if compact else (_BYTES, _STEP_BYTES)
    total += step * sum(_written(form, columns) for _, columns in _columns(form))
    total += step * _last_steps(form)
    if compact and form.tiling.paired:
        total += _PAIRED_BYTES
    tiles = [
        _TILE_BYTES if lanes == vector else _PART_BYTES
        for one in form.groups
        for _, _, lanes in finish.chunks(one.valid, vector)
    ]
    if form.masked:
        tiles = [_TILE_BYTES]
        more = _MORE_BYTES * (len(form.passes) - 1)
        if form.tiling.dots:
            more += _DOTS_BYTES * (2 if form.narrows else 1)
        total += more * len(form.combinations)
    for one, tile in itertools.product(form.combinations, tiles):
        _, height, width = (len(group.scheme.points) for group in one.classes)
        steps, plane = back_steps(one), _plane_steps(one)
        if height * width > MANY_SUMS:
            outputs = one.classes[0].scheme.outputs
            spared = compact and any(axis.is_short for axis in form.axes[1:])
            turns = _TURNS
            if compact and plane / outputs > _ROWS_WRITTEN:
                turns = _COMPACT_TURNS
            elif spared:
                turns = 1
            steps = plane / turns + (steps - plane) / outputs
        total += _STEP_BYTES * steps + tile
        if form.narrows:
            total += _NARROW_BYTES
    return total


def read_share(form: ToomCookForm, one: Combination) -> float:
    """Share of the products of some phases that are read to transform them back."""
    if not form.tiling.compact:
        return 1.0
    axes = list(zip(form.axes, one.classes, strict=True))[1 : 3 if form.narrows else 2]
    return math.prod(axis.needed_share(group) for axis, group in axes if axis.is_short)


@lru_cache(maxsize=1024)
def summed_share(axis: AxisTiles) -> float:
    """Share of the sums of inputs along an axis that tiles need."""
    if not axis.is_short:
        return 1.0
    made, needed = len(axis.columns), len(axis.last() or ())
    if not axis.shared:
        made = sum(len(group.scheme.points) for group in axis.classes)
        needed = sum(len(axis.last(group) or ()) for group in axis.classes)
    return 1 - (1 - needed / made) / axis.tiles


def sum_steps(form: ToomCookForm) -> float:
    """Loads, additions and stores of all transforms of a tile, for one register of channels."""
    return sum(times * steps for times, steps in _sums(form))


def pair_steps(form: ToomCookForm) -> tuple[int, int, int]:
    """Of all transforms of a tile: how many, inputs that they read, sums that they make."""
    found = [0, 0, 0]
    for times, columns in _columns(form):
        reach = [_figures(one)[1] for one in columns]
        for i, count in enumerate((1, math.prod(reach), math.prod(map(len, columns)))):
            found[i] += times * count
    return found[0], found[1], found[2]


def _columns(form: ToomCookForm) -> Iterator[tuple[int, list[tuple[Column, ...]]]]:
    """Each transform of inputs: how many phases have it, and its sums along the axes."""
    choices: list[list[tuple[int, tuple[Column, ...]]]] = [
        [(1, axis.columns)]
        if axis.shared
        else [(len(one.places), one.scheme.points) for one in axis.classes]
        for axis in form.axes
    ]
    for parts in itertools.product(*choices):
        yield math.prod(count for count, _ in parts), [columns for _, columns in parts]


def _sums(form: ToomCookForm) -> Iterator[tuple[int, float]]:
    """Each transform of inputs: how many phases have it, and its steps."""
    for times, columns in _columns(form):
        along_depth, others = _steps_of(columns)
        yield times, along_depth + len(columns[0]) * others


def _steps_of(columns: Sequence[tuple[Column, ...]]) -> tuple[int, int]:
    """Steps of a transform along the depth, and for each of these sums along the other axes."""
    depth, height, _ = map(len, columns)
    terms, reach = zip(*map(_figures, columns), strict=True)
    along_depth = (2 * terms[0] - depth) * reach[1] * reach[2]
    return along_depth, (terms[1] - height) * reach[2] + height * terms[2]


@lru_cache(maxsize=1024)
def _figures(columns: tuple[Column, ...]) -> tuple[int, int]:
    """Of sums along an axis: their terms, and inputs that they reach."""
    reach = max(offset + KINDS[kind][-1][0] for kind, offset in columns) + 1
    return sum(len(KINDS[kind]) for kind, _ in columns), reach


def _written(form: ToomCookForm, columns: Sequence[tuple[Column, ...]]) -> int:
    """Steps of a transform that are code."""
    along_depth, others = _steps_of(columns)
    return along_depth + (1 if form.tiling.compact else len(columns[0])) * others


def _last_steps(form: ToomCookForm) -> int:
    """Steps of the transforms that are for last tiles alone: see `compute.toom_cook_sums`."""
    depth, height, width = form.axes
    if not depth.is_short:
        return 0
    reach = [_figures(tuple(axis.needed()))[1] for axis in (height, width)]
    return (
        4
        * sum(
            len(depth.last(None if depth.shared else group) or ())
            for group in (depth.classes[:1] if depth.shared else depth.classes)
        )
        * math.prod(reach)
    )


@lru_cache(maxsize=1024)
def back_steps(one: Combination) -> float:
    """The same for the products of a tile, transformed back."""
    depth, height, width = (group.scheme for group in one.classes)
    terms = [_terms(scheme) for scheme in (height, width)]
    steps = _plane_steps(one)
    steps += depth.outputs * (terms[0] - height.outputs) * len(width.points)
    return steps + depth.outputs * height.outputs * (terms[1] + width.outputs)


@lru_cache(maxsize=1024)
def _plane_steps(one: Combination) -> int:
    """Those along the depth."""
    depth, height, width = (group.scheme for group in one.classes)
    return (2 * _terms(depth) - depth.outputs) * len(height.points) * len(width.points)


def _terms(scheme: Scheme) -> int:
    return sum(map(bool, itertools.chain(*scheme.result)))
