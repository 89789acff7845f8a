"""Long lists of parameters: `make test` runs a part of them, `make nightly` the others."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest


def flat(values: Any) -> tuple[Any, ...]:
    """The arguments that a value stands for: a tuple for several."""
    return values if isinstance(values, tuple) else (values,)


def few(cases: Iterable[Any], kept: Collection[int]) -> list[Any]:
    """All cases; those whose numbers are not among ``kept`` are nightly ones."""
    return [
        pytest.param(*flat(case), marks=() if number in kept else pytest.mark.nightly)
        for number, case in enumerate(cases)
    ]


def turns(*axes: Sequence[Any]) -> list[Any]:
    """Each value with each, one of the last axis for all others, in turns; the rest is nightly.

    As neighbours get different ones, every pair of values comes up where axes are not much longer.
    """
    count = len(axes[-1])
    found = []
    for numbers in itertools.product(*(range(len(axis)) for axis in axes)):
        values = [axis[number] for axis, number in zip(axes, numbers, strict=True)]
        marks = () if sum(numbers) % count == 0 else pytest.mark.nightly
        found.append(pytest.param(*itertools.chain(*map(flat, values)), marks=marks))
    return found
