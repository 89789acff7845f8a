"""What is refused before memory is taken for it."""

from __future__ import annotations

import numpy as np
import pytest

import tvmconv
from tvmconv import geometry, memory
from tvmconv.config import LayerConfig
from tvmconv.errors import ConfigError


def test_the_bytes_of_the_arrays() -> None:
    plan = geometry.plan(LayerConfig(3, 2, 2, dtype="float16"), (None, 2, 3, 4, 5))
    elements = 2 * 3 * 4 * 5 + 4 * 6 * 8 * 3 + 2 * 2 * 2 * 3 * 5
    assert memory.needed(plan, "float16") == 2 * elements
    assert memory.needed(plan, "float64") == 8 * elements


@pytest.mark.parametrize(("most", "good"), [(None, True), (10**9, True), (1000, False)])
def test_more_than_there_is(most: int | None, good: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: most)
    plan = geometry.plan(LayerConfig(3, 2), (1, 2, 3, 4, 5))
    if good:
        memory.check(plan, "float32")
        return
    with pytest.raises(ConfigError, match="The input shape 1,2,3,4,5 needs"):
        memory.check(plan, "float32")


def test_this_machine_has_some() -> None:
    found = memory.available()
    assert found is None or 1 << 26 < found < 1 << 50


def test_a_small_input_with_a_huge_output() -> None:
    layer = tvmconv.Conv3DTranspose(64, 1, strides=4000)
    with pytest.raises(ConfigError, match="for input, output and kernel"):
        layer(np.zeros((1, 2, 2, 2, 1), np.float32))
