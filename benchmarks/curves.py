"""Tables and the picture of `benchmarks.tuning_gains`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import table

__all__ = ["best_so_far", "draw", "tables"]

Record = dict[str, Any]
_TITLES = {"xgb": "xgboost", "random": "random"}
_COLOURS = {"xgb": "#c0392b", "random": "#34495e"}
#: How near the best of a whole table a search is said to have come.
_NEAR = 1.02


def best_so_far(times: list[float | None]) -> list[float]:
    """The fastest time up to each trial; the first one, the default's, always has one."""
    found: list[float] = []
    for seconds in times:
        last = found[-1] if found else float("inf")
        found.append(last if seconds is None else min(last, seconds))
    return found


def tables(record: Record) -> dict[str, str]:
    """The parts of docs/tuning.md, by the names of their markers."""
    parts = {"machine": _machine(record)}
    if record["gains"]:
        parts["gains"] = _gains(record)
    if record["tables"]:
        parts["tables"] = _tables(record)
    if record["models"]:
        parts["models"] = _models(record)
    return parts


def _machine(record: Record) -> str:
    machine, options, noise = record["machine"], record["options"], record["noise"]
    lines = [
        f"{machine['date']}: {machine['cpu']}, {machine['cores']} cores, {machine['system']}",
        f"at most {options['trials']} trials and {options['seconds']:.0f} s a search, each from an "
        "empty log",
        f"load average when it began {noise['load_at_start']:.1f}",
    ]
    if record.get("bandwidth"):
        lines.append(f"memory: {record['bandwidth'] / 1e9:.1f} GB/s, the better of copy and fill")
    return "\n".join(f"- {line}" for line in lines)


def _gains(record: Record) -> str:
    """One row a layer: what the search gained, how near the limit it is, what a trial cost."""
    head = [
        "layer", "winner", "limit", "default ms", "tuned ms", "gain", "95 %", "GFLOP/s", "of sgemm",
        "of the limit", "trials", "failed", "s a trial",
    ]  # fmt: skip
    body = []
    for one in record["gains"]:
        final = one["final"]
        least_s, limit = _least(one)
        sgemm = one["least"]["sgemm"]
        body.append(
            [
                one["layer"],
                one["form"] if final["gain"] else "the default",
                limit,
                f"{1e3 * final['default_s']:.3f}",
                f"{1e3 * final['median_s']:.3f}",
                f"{final['gain']:+.1%}",
                f"{final['gain_low']:+.1%} to {final['gain_high']:+.1%}",
                f"{one['gflop'] / final['median_s']:.1f}",
                f"{sgemm / final['median_s']:.0%}" if sgemm else "-",
                f"{least_s / final['median_s']:.0%}" if least_s else "-",
                str(one["trials"]),
                str(one["failed"]),
                f"{one['search_s'] / max(1, one['trials']):.2f}",
            ]
        )
    middle = statistics.median(one["final"]["gain"] for one in record["gains"])
    text = f"Median gain: {middle:+.1%} over {len(body)} layers."
    return f"{text}\n\n{table(head, body, 3)}"


def _least(one: Record) -> tuple[float, str]:
    """The least seconds of a call of the winner's form, and what limits it."""
    least = one["least"]
    found = [(least[name] or 0.0, name) for name in ("products", "memory")]
    return max(found)


def _tables(record: Record) -> str:
    """Searches that were answered from a table of all direct candidates."""
    body, sooner = [], 0
    layers = list(dict.fromkeys(one["layer"] for one in record["tables"]))
    for layer in layers:
        runs = _by_model(record["tables"], layer)
        some = next(one for one in record["tables"] if one["layer"] == layer)
        best_s, reached = some["best_s"], {}
        for model, lines in runs.items():
            at = [10, 25, 50, min(map(len, lines)) - 1]
            middle = [statistics.median(run[i] for run in lines) / best_s - 1 for i in at]
            near = [_first(run, _NEAR * best_s) for run in lines]
            reached[model] = statistics.median(near)
            body.append(
                [
                    layer,
                    _TITLES[model],
                    str(some["candidates"]),
                    str(len(lines)),
                    *(f"{share:+.1%}" for share in middle),
                    f"{reached[model]:.0f}" if reached[model] < float("inf") else "-",
                    f"{sum(trial < float('inf') for trial in near)} of {len(near)}",
                ]
            )
        sooner += reached.get("xgb", 0.0) < reached.get("random", 0.0)
    last = min(len(one["times_s"]) for one in record["tables"]) - 1
    head = [
        "layer", "search", "candidates", "searches", "from the best after 10", "25", "50",
        str(last), f"trials to {_NEAR - 1:.0%}", "of them came there",
    ]  # fmt: skip
    text = (
        f"Within {_NEAR - 1:.0%} of the best of all candidates, xgboost is there sooner on "
        f"{sooner} of {len(layers)} layers (medians over the searches)."
    )
    return f"{text}\n\n{table(head, body, 2)}"


def _first(run: Sequence[float], seconds: float) -> float:
    """The trial that first takes at most so long; infinity where none does."""
    return next((float(at) for at, one in enumerate(run) if one <= seconds), float("inf"))


def _by_model(found: list[Record], layer: str) -> dict[str, list[list[float]]]:
    runs: dict[str, list[list[float]]] = {}
    for one in found:
        if one["layer"] == layer:
            runs.setdefault(one["model"], []).append(best_so_far(one["times_s"]))
    return runs


def _models(record: Record) -> str:
    """The best time of both models at the same trials, and how soon random's best is reached."""
    body, better = [], 0
    layers = list(dict.fromkeys(one["layer"] for one in record["models"]))
    for layer in layers:
        runs = _by_model(record["models"], layer)
        if set(runs) != set(_TITLES):
            continue  # interrupted
        last = {model: statistics.median(run[-1] for run in lines) for model, lines in runs.items()}
        better += last["xgb"] < last["random"]
        for model, lines in runs.items():
            shortest = min(map(len, lines))
            at = [shortest // 4, shortest // 2, shortest - 1]
            middle = [statistics.median(run[i] for run in lines) for i in at]
            reached = next(
                (
                    str(i)
                    for i in range(shortest)
                    if statistics.median(run[i] for run in lines) <= last["random"]
                ),
                "-",
            )
            ends = ", ".join(f"{1e3 * run[-1]:.3f}" for run in lines)
            spelt = [f"{1e3 * seconds:.3f}" for seconds in middle]
            body.append([layer, _TITLES[model], *spelt, ends, reached])
    head = [
        "layer", "search", "ms after 1/4", "ms after 1/2", "ms at the end", "each seed, ms",
        "trials to random's end",
    ]  # fmt: skip
    text = f"xgboost ends faster than random search on {better} of {len(layers)} layers."
    return f"{text}\n\n{table(head, body, 2)}"


def draw(record: Record, path: Path) -> None:
    """Write the curves as a PNG: a thin line a seed, a thick one for their median.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plots = [
        (title, layer, record[name])
        for name, title in (("tables", "direct forms, times from a table"), ("models", "all forms"))
        for layer in dict.fromkeys(one["layer"] for one in record[name])
    ]
    figure, axes = plt.subplots(1, len(plots), figsize=(6 * len(plots), 4), squeeze=False)
    for axis, (title, layer, found) in zip(axes[0], plots, strict=True):
        for model, lines in _by_model(found, layer).items():
            for run in lines:
                axis.step(
                    range(len(run)), [1e3 * seconds for seconds in run],
                    where="post", color=_COLOURS[model], linewidth=0.7, alpha=0.4,
                )  # fmt: skip
            shortest = min(map(len, lines))
            middle = [1e3 * statistics.median(run[i] for run in lines) for i in range(shortest)]
            axis.step(
                range(shortest), middle,
                where="post", color=_COLOURS[model], linewidth=2, label=_TITLES[model],
            )  # fmt: skip
        axis.set_title(f"{layer}, {title}")
        axis.set_xlabel("trials")
        axis.set_ylabel("best so far, ms")
        axis.grid(alpha=0.3)
        axis.legend()
    machine = record["machine"]
    figure.suptitle(f"{machine['cpu']}, {machine['cores']} cores, {machine['date'][:10]}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
