"""A compile cache that asks the reference instead of a compiler, and remembers what it made."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tvmconv
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.reference import conv3d_transpose


class FakeCompiled:
    """A compiled layer that asks the reference."""

    def __init__(self, config: LayerConfig, shape: tuple[int, ...]) -> None:
        self.config, self.shape = config, shape
        self.weights: list[np.ndarray] = []
        self.packed = 0

    def set_weights(self, weights: Sequence[np.ndarray]) -> None:
        self.weights = list(weights)
        self.packed += 1

    def __call__(self, x: np.ndarray) -> np.ndarray:
        assert x.shape == self.shape
        assert x.dtype.name == self.config.compute_dtype
        bias = self.weights[1] if len(self.weights) > 1 else None
        out = conv3d_transpose(self.config, x, self.weights[0], bias)
        with np.errstate(over="ignore"):
            return out.astype(numpy_dtype(self.config.output_dtype))


def install(monkeypatch: pytest.MonkeyPatch) -> list[FakeCompiled]:
    """Put the fake in the place of ``tvmconv.cache``; the list grows with every compilation."""
    made: list[FakeCompiled] = []

    def compiled_layer(config: LayerConfig, shape: tuple[int, ...], **options: Any) -> FakeCompiled:
        assert set(options) == {"target", "threads", "algorithm", "precision"}
        made.append(FakeCompiled(config, shape))
        return made[-1]

    cache = ModuleType("tvmconv.cache")
    cache.compiled_layer = compiled_layer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tvmconv.cache", cache)
    monkeypatch.setattr(tvmconv, "cache", cache, raising=False)
    return made
