"""Models that say which candidates are worth measuring: higher is better.

``xgb`` is MetaSchedule's own cost model, trained on our features; ``random`` says nothing, and is
what it has to be better than.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tvmconv.errors import ConfigError

if TYPE_CHECKING:
    from tvmconv.compute.tiling import Decisions
    from tvmconv.schedules.space import Space

__all__ = ["MODELS", "Model", "check", "make"]

MODELS = ("xgb", "random")
#: Candidates with a time that the model needs before it says anything.
_LEAST = 8


class Model(Protocol):
    """What a search asks.

    Attributes
    ----------
    guided : bool
        False for a search that draws from the whole space and looks at no result.
    """

    guided: bool

    def learn(self, tilings: Sequence[Decisions], seconds: Sequence[float | None]) -> None:
        """Take in candidates that were tried; None stands for one that failed."""

    def scores(self, tilings: Sequence[Decisions]) -> np.ndarray | None:
        """The larger the better; None as long as the model knows too little."""


def make(name: str, space: Space, cores: int = 1) -> Model:
    """The model called ``name``.

    Raises
    ------
    ConfigError
        There is no such model, or xgboost is not installed.
    """
    check(name)
    return _Silent() if name == "random" else _Boosted(space, cores)


def check(name: str) -> None:
    """Refuse a model that there is not.

    Raises
    ------
    ConfigError
        There is no such model, or xgboost is not installed.
    """
    if name not in MODELS:
        raise ConfigError(f"Expected cost_model to be one of {MODELS}. Received: {name!r}")
    if name == "xgb" and importlib.util.find_spec("xgboost") is None:
        raise ConfigError(
            "the cost model needs xgboost, which is not installed: pip install 'tvmconv[tune]', or "
            "use --cost-model random"
        )


class _Silent:
    guided = False

    def learn(self, tilings: Sequence[Decisions], seconds: Sequence[float | None]) -> None:
        pass

    def scores(self, tilings: Sequence[Decisions]) -> np.ndarray | None:
        del tilings
        return None


class _Boosted:
    """MetaSchedule's XGBModel over the carrier's traces."""

    guided = True

    def __init__(self, space: Space, cores: int) -> None:
        from tvm.ir.utils import derived_object
        from tvm.s_tir import meta_schedule as ms
        from tvm.s_tir.meta_schedule.cost_model.xgb_model import XGBConfig

        from tvmconv.tuning import traces

        logging.getLogger("tvm.s_tir.meta_schedule").setLevel(logging.CRITICAL)

        rows: dict[Decisions, np.ndarray] = {}

        @derived_object
        class Extractor(ms.feature_extractor.PyFeatureExtractor):
            def extract_from(self, context: Any, candidates: Any) -> list[Any]:
                del context
                import tvm

                tilings = [traces.tiling_of(space, one.sch) for one in candidates]
                new = [tiling for tiling in tilings if tiling not in rows]
                rows.update(zip(new, traces.features(space, new), strict=True))
                return [tvm.runtime.tensor(rows[tiling][None]) for tiling in tilings]

        self._space = space
        self._ms = ms
        self._known = 0
        self._made: dict[Decisions, Any] = {}
        self._context = _context(traces.carrier())
        self._model = ms.cost_model.XGBModel(
            extractor=Extractor(),
            config=XGBConfig(max_depth=6, eta=0.15, nthread=cores),
            num_warmup_samples=_LEAST,
            early_stopping_rounds=10,
            num_tuning_cores=cores,
        )

    def learn(self, tilings: Sequence[Decisions], seconds: Sequence[float | None]) -> None:
        if not tilings:
            return
        results = [
            self._ms.runner.RunnerResult(
                None if s is None else [s], "failed" if s is None else None
            )
            for s in seconds
        ]
        self._known += sum(s is not None for s in seconds)
        with _own_randomness():
            self._model.update(self._context, self._candidates(tilings), results)

    def scores(self, tilings: Sequence[Decisions]) -> np.ndarray | None:
        if self._known < _LEAST or not tilings:
            return None
        with _own_randomness():
            return np.asarray(self._model.predict(self._context, self._candidates(tilings)))

    def _candidates(self, tilings: Sequence[Decisions]) -> list[Any]:
        from tvmconv.tuning import traces

        for one in tilings:
            if one not in self._made:  # a millisecond each, and pools overlap
                sch = traces.schedule(self._space.find(one), one)
                self._made[one] = self._ms.MeasureCandidate(sch, args_info=[])
        return [self._made[one] for one in tilings]


def _context(module: Any) -> Any:
    """A TuneContext, which the model's interface wants.

    Its own constructor loads every tensor intrinsic of TVM first, which takes half a minute.
    """
    from tvm.s_tir.meta_schedule import TuneContext, _ffi_api
    from tvm.s_tir.meta_schedule.logging import get_logger, get_logging_func

    made = TuneContext.__new__(TuneContext)
    logger = get_logging_func(get_logger(__name__))
    made.__init_handle_by_constructor__(
        _ffi_api.TuneContext, module, None, None, None, "carrier", 1, 1, logger
    )
    return made


@contextlib.contextmanager
def _own_randomness() -> Iterator[None]:
    """MetaSchedule draws from NumPy's global generator, and prints; neither is the caller's."""
    before = np.random.get_state()  # noqa: NPY002
    try:
        with Path(os.devnull).open("w") as null, contextlib.redirect_stdout(null):
            yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
