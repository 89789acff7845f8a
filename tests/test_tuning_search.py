"""The order in which candidates are tried, on times that a formula gives."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import pytest
from kernels import target
from tuning_simulation import seconds, task

from tvmconv.compute.phase import PhaseForm
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.errors import ConfigError
from tvmconv.schedules.space import Space
from tvmconv.tuning import models, traces
from tvmconv.tuning.search import Search

needs_xgboost = pytest.mark.skipif(
    importlib.util.find_spec("xgboost") is None, reason="xgboost is not installed"
)


def space_of(shape: tuple[int, ...] = (1, 8, 8, 16, 16), algorithm: str = "auto") -> Space:
    one = task(shape, algorithm=algorithm)
    return Space.of(one.work, one.machine, algorithm)


def explore(space: Space, model: str, seed: int, trials: int) -> list[Tiling]:
    """The candidates of a search that measures by the formula."""
    search = Search(space, models.make(model, space), seed)
    tried: list[Tiling] = []
    while len(tried) < trials:
        batch = search.propose(8)
        if not batch:
            break
        search.tell({tiling: seconds(space, tiling) for tiling in batch})
        tried += batch
    return tried


def test_the_default_comes_first() -> None:
    space = space_of()
    assert Search(space, models.make("random", space), 0).propose(8) == [space.default]


def test_nothing_is_tried_twice() -> None:
    space = space_of()
    tried = explore(space, "random", 0, 120)
    assert len(set(tried)) == len(tried) >= 120
    assert all(space.find(tiling) for tiling in tried)


def test_a_seed_decides() -> None:
    space = space_of()
    assert explore(space, "random", 7, 40) == explore(space, "random", 7, 40)
    assert explore(space, "random", 7, 40) != explore(space, "random", 8, 40)


def test_a_small_space_is_measured_whole() -> None:
    one = task((1, 1, 2, 3, 4), LayerConfig(4, 1), "direct")
    space = Space.of(one.work, one.machine, "direct")
    assert set(explore(space, "random", 0, 10**6)) == set(space.all())


def test_a_large_space_ends_too() -> None:
    one = task((1, 2, 3, 20, 16), LayerConfig(16, 3, strides=2), "direct")
    space = Space.of(one.work, one.machine, "direct")
    assert space.size > 256
    assert set(explore(space, "random", 0, 10**6)) == set(space.all())


@needs_xgboost
def test_the_model_finds_better_ones_than_chance() -> None:
    space = space_of((1, 12, 16, 32, 16))
    best = {
        model: [min(seconds(space, t) for t in explore(space, model, seed, 64)) for seed in (0, 1)]
        for model in ("xgb", "random")
    }
    assert sum(best["xgb"]) < sum(best["random"])


@needs_xgboost
def test_the_model_gives_the_same_twice_and_touches_no_global_state(
    capfd: pytest.CaptureFixture[str],
) -> None:
    import numpy as np

    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # type: ignore[union-attr, index]  # noqa: NPY002
    space = space_of()
    assert explore(space, "xgb", 1, 40) == explore(space, "xgb", 1, 40)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[union-attr, index]  # noqa: NPY002
    assert capfd.readouterr() == ("", "")


@needs_xgboost
def test_failures_are_learnt_too() -> None:
    space = space_of()
    search = Search(space, models.make("xgb", space), 0)
    for _ in range(6):
        batch = search.propose(8)
        search.tell({t: None if t.form == "phase" else seconds(space, t) for t in batch})
    found = search.propose(16)
    assert sum(t.form == "phase" for t in found) < len(found) / 2


def test_a_missing_model_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def find(name: str, *rest: Any) -> Any:
        return None if name == "xgboost" else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(ConfigError, match=r"pip install 'tvmconv\[tune\]'.*--cost-model random"):
        models.check("xgb")
    models.check("random")
    with pytest.raises(ConfigError, match="cost_model"):
        models.check("better")


def test_the_cost_model_sees_the_stretch_of_weights() -> None:
    work = Workload.of(LayerConfig(128, 2, strides=2), (1, 6, 6, 6, 768))
    found = Space.of(work, dataclasses.replace(target("x86-64-v4"), l2_bytes=2 << 20))
    with_one = [one for one in found.all() if isinstance(one, Tiling) and one.stretch]
    # Blocks that are not equal are tiles of their own by stretches alone.
    with_one = [one for one in with_one if not PhaseForm(work, one).is_uneven]
    without = [dataclasses.replace(one, stretch=0) for one in with_one]
    assert len(with_one) > 10
    assert all(found.find(one) for one in without)
    rows = zip(traces.features(found, with_one), traces.features(found, without), strict=True)
    assert all((a != b).any() for a, b in rows)
