"""One search of `benchmarks.tuning_gains`, in as many sittings as it takes.

Its log is kept, so that a search that was stopped goes on where it was: as for anybody who starts
the same command again.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.tvmconv_runner import layer_of
from benchmarks.workloads import Workload

if TYPE_CHECKING:
    from tvmconv.tuning.history import Candidate

__all__ = ["Unfinished", "least", "search"]

#: Seconds of a sitting that are not for searching: the start, and the default.
_START_S = 8.0


class Unfinished(Exception):
    """The sitting is over before the search is."""


def search(
    work: Workload,
    *,
    trials: int,
    seconds: float,
    model: str,
    seed: int,
    jobs: int | None,
    log: Path,
    until: float = math.inf,
    bandwidth: float = 0.0,
) -> dict[str, Any]:
    """Tune one layer: every time in the order of the trials, and the verdict.

    Parameters
    ----------
    trials, seconds
        Of the whole search, over all sittings.
    log
        The folder of its records, empty at first.
    until
        When the sitting ends, by `time.monotonic`.
    bandwidth
        Bytes a second, for `least`; 0 where it was not measured.

    Raises
    ------
    Unfinished
        The sitting is over; the same call goes on.
    TvmconvError
        The search could not go on.
    """
    from tvmconv.tuning.run import tune

    done = _candidates(log)
    tried, spent = len(_tried(done)), done[-1].elapsed_s if done else 0.0
    left_s = min(max(1.0, seconds - spent), until - time.monotonic() - _START_S)
    if left_s < 1.0:
        raise Unfinished
    begin = time.monotonic()

    def progress(now: Any) -> None:
        complete = tried + now.trials >= trials or spent + time.monotonic() - begin >= seconds
        if now.step == "building the best" and not complete and time.monotonic() > begin + left_s:
            raise Unfinished

    result = tune(
        layer_of(work), work.input_shape, trials=max(1, trials - tried), seconds=left_s, seed=seed,
        cost_model=model, logs=log, jobs=jobs, callback=progress,
    )  # fmt: skip
    candidates = _candidates(log)
    record, found = result.record, _tried(candidates)
    assert record.final is not None
    rate = (record.limit_gflops or 0.0) * 1e9
    return {
        "layer": work.name,
        "model": model,
        "seed": seed,
        "gflop": record.gflop,
        "limit_gflops": record.limit_gflops,
        "least": least(work, record.decisions, rate, bandwidth),
        "form": record.decisions["form"],
        "final": dataclasses.asdict(record.final),
        "trials": len(found),
        "failed": sum(one.record.error is not None for one in found),
        "search_s": candidates[-1].elapsed_s,
        "times_s": [one.record.time_s for one in [candidates[0], *found]],
    }


def _candidates(log: Path) -> tuple[Candidate, ...]:
    """What a log holds, in the order of measurement."""
    from tvmconv.tuning import upkeep
    from tvmconv.tuning.history import histories

    found = histories(upkeep.read_all(log)) if log.exists() else []
    return found[0].candidates if found else ()


def _tried(candidates: tuple[Candidate, ...]) -> list[Candidate]:
    """Without the default, which every sitting measures again."""
    return [one for one in candidates if one.record.trial > 0]


def least(
    work: Workload, decisions: dict[str, Any], rate: float, bandwidth: float
) -> dict[str, float | None]:
    """Seconds that a call takes at least, by what limits it.

    Parameters
    ----------
    decisions
        Of the form whose products count: Toom-Cook needs fewer.
    rate
        Operations a second of a matrix product on all cores; 0 where it is not known.
    bandwidth
        Bytes a second of memory; 0 where it is not known.

    Returns
    -------
    dict
        ``sgemm``: all products of the layer; ``products``: those of the form; ``memory``: input,
        weights and output once each.
    """
    from tvmconv.compute.tiling import Tiling
    from tvmconv.compute.toom_cook import ToomCookForm
    from tvmconv.tuning import workloads

    share, tiling = 1.0, Tiling.from_json(decisions)
    if tiling.form == "toom-cook":
        of_layer = workloads.of_layer(layer_of(work).config, work.input_shape)
        form = ToomCookForm(of_layer, tiling)
        tiles = math.prod(axis.tiles for axis in form.axes)
        points = sum(
            one.points * math.prod(len(group.places) for group in one.classes)
            for one in form.combinations
        )
        products = 2 * work.batch * tiles * points * work.in_channels * work.filters
        share = products / work.flops
    return {
        "sgemm": work.flops / rate if rate else None,
        "products": share * work.flops / rate if rate else None,
        "memory": work.traffic / bandwidth if bandwidth else None,
    }
