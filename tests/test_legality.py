"""Tilings that no rule would make: refused, where the kernel would compute something else."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from kernels import target, variants

from tvmconv import schedules
from tvmconv.compute import legality, lower
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.errors import ScheduleError
from tvmconv.schedules.space import Space

LAST, FIRST = (1, 4, 5, 44, 16), (1, 16, 4, 5, 44)
ONE_TAP = {"kernel_size": 2, "strides": 2}


def cook(**decisions: Any) -> Tiling:
    some = Tiling("toom-cook", 8, 1, 3, 1, outputs=(2, 2, 2), block=(1, 2, 22))
    return variants(some, **decisions)


ILLEGAL: dict[str, tuple[dict[str, Any], Tiling, str]] = {
    # Tiles between the last whole register tile of a task and the next task had no products.
    "parts of rows": ({}, cook(width=4, block=(1, 2, 6)), "whole register tiles"),
    "parts of rows, first": (
        {"data_format": "channels_first"}, cook(width=4, block=(1, 2, 6)), "whole register tiles",
    ),
    # And where a task had no whole one, there was nothing to share the weights of the next point.
    "pairs": ({}, cook(paired=True, width=11, block=(1, 1, 4)), "whole register tiles"),
    "parts of mixed rows": (
        {"activation": "softmax"}, cook(block=(1, 2, 3)), "rows that an activation mixes",
    ),
    "pairs of halves": ({"filters": 12}, cook(paired=True, last=4), "whole registers of filters"),
    "more dots than filters": ({}, cook(dots=9), "more than there are filters"),
    "no scheme": ({}, cook(outputs=(2, 2, 9)), "no scheme of 9 outputs"),
    "float64": ({"dtype": "float64"}, cook(), "float32 sums"),
    "tiles as lanes, mixed rows": (
        {"activation": "softmax"}, cook(across=True), "mixes values within rows",
    ),
    "splits": ({}, Tiling("phase", 8, 1, 4, 1, splits=2), "splits must divide"),
    "splits of a line": (
        {"filters": 16, "data_format": "channels_first"}, Tiling("phase", 8, 1, 4, 1, splits=2),
        "whole rows",
    ),
    "mixed, stationary": (
        {"activation": "softmax"}, Tiling("phase", 8, 1, 4, 1, stationary=True), "several task",
    ),
    "part of a register": ({"filters": 9}, Tiling("phase", 8, 1, 4, 1, last=4), "whole registers"),
    "not coupled": ({}, Tiling("phase", 8, 1, 4, 1, coupled=True), "bfloat16"),
    "dots": ({"filters": 1}, Tiling("dots", 32, 1, 4, 1), "fill blocks"),
    "mixed voxels": ({"activation": "softmax"}, Tiling("voxel", 8, 1, 4, 1), "within rows"),
    "reduced": ({"kernel_size": 3, "strides": 2}, Tiling("columns", 8, 1, 4, 1, reduced=1), "taps"),
    "not one tap": ({}, Tiling("pairs", 8, 1, 4, 1, stretch=1), "kernel = stride"),
    "wide pairs": (ONE_TAP, Tiling("pairs", 8, 1, 9, 1, stretch=1), "more voxels than lanes"),
    "no panel": (ONE_TAP, Tiling("pairs", 8, 1, 8, 1, stretch=0), "stretch must"),
    "not first": (ONE_TAP, Tiling("matrix", 8, 3, 2, 1), "kernel = stride, channels first"),
    "two taps": (
        {"strides": 2, "data_format": "channels_first"}, Tiling("matrix", 8, 3, 2, 1), "= stride",
    ),
    "zero": ({}, Tiling("phase", 8, 1, 0, 1), "width must be 1"),
    "negative": ({}, Tiling("phase", 8, 1, 4, 1, stretch=-1), "negative"),
    "three lanes": ({}, Tiling("phase", 3, 1, 4, 1), "power of two"),
    "form": ({}, Tiling("nonsense", 8, 1, 4, 1), "no such form"),
}  # fmt: skip


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_tilings_are_refused(name: str) -> None:
    changes, tiling, message = ILLEGAL[name]
    config = LayerConfig(**{"filters": 8, "kernel_size": 3, "padding": "same", **changes})
    work = Workload.of(config, FIRST if config.data_format == "channels_first" else LAST)
    with pytest.raises(ScheduleError, match=message):
        lower(work, tiling)


def drawn(rng: random.Random) -> Workload:
    """Some small layer."""
    kernel = rng.choice([1, 2, 3, 3, 4])
    first = rng.random() < 0.5
    config = LayerConfig(
        rng.choice([1, 2, 5, 8, 24, 33]),
        kernel,
        strides=rng.choice([1, 2, kernel]),
        padding=rng.choice(["same", "valid"]),
        activation=rng.choice(["linear", "relu", "softmax"]),
        data_format="channels_first" if first else "channels_last",
        dtype=rng.choice(["float32", "bfloat16", "float64"]),
    )
    size = [rng.choice([1, 2, 5, 8, 17]) for _ in range(3)]
    channels = rng.choice([3, 8, 16, 32])
    return Workload.of(config, (1, channels, *size) if first else (1, *size, channels))


@pytest.mark.parametrize("machine", ["x86-64-v3", "znver4", "cortex-m7"])
def test_what_rules_and_spaces_make_is_legal(machine: str) -> None:
    rng = random.Random(machine)
    for _ in range(4):
        work = drawn(rng)
        space = Space.of(work, target(machine))
        tilings = [space.default, schedules.decide(work, target(machine))]
        for variant in rng.sample(space.variants, min(20, len(space.variants))):
            values = tuple(rng.choice(some) for _, some in variant.choices)
            made = variant.tiling(values)
            tilings += [made] if variant.fits(made) else []
        for tiling in tilings:
            assert isinstance(tiling, Tiling)
            assert legality.refusal(work.joined(), tiling) is None, (work, tiling)


def test_decisions_of_other_types_are_a_type_error() -> None:
    rng = random.Random(3)
    space = Space.of(drawn(rng), target())
    odd = ["x", 1.0, None, [1], [1, 2], [1, 2, "3"], [1, 2, 3, 4], {}, [1.0, 1, 1]]
    for variant in rng.sample(space.variants, min(20, len(space.variants))):
        decisions = json.loads(json.dumps(variant.base.to_json()))
        for name in decisions:
            for value in (*odd, *([True] if isinstance(decisions[name], int) else [1])):
                if type(value) is type(decisions[name]) and not isinstance(value, list):
                    continue
                with pytest.raises(TypeError):
                    space.read({**decisions, name: value})
