"""What tuning gains, what a trial costs, and what the cost model is worth.

``python -m benchmarks.tuning_gains``, from the top of a checkout, on a machine that does nothing
else. Every search starts from an empty log. The gain of a layer is the one that the search itself
prints: measured at its end, in turns with the default, on fresh inputs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import curves, machine, report
from benchmarks.child import ROOT
from benchmarks.tvmconv_runner import layer_of
from benchmarks.workloads import Workload, named

__all__ = ["main", "search"]

_DOCS = ROOT / "docs" / "tuning.md"
_LAYERS = ["psm_conv5", "psm_conv6", "unet_up5", "gan_g2", "gcnet_37", "pcc_l1", "odd"]
_MODEL_LAYERS = ["psm_conv5", "pcc_l1"]
_MODELS = ("xgb", "random")
_QUICK: dict[str, Any] = {
    "layers": ["psm_conv5", "odd"], "models": ["odd"], "seeds": 1, "trials": 24, "seconds": 60.0
}  # fmt: skip


def _names(text: str) -> list[str]:
    names = [] if text == "none" else [name for name in text.split(",") if name]
    try:
        named(names)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tuning_gains", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="few layers, few trials: about five minutes")
    add("--layers", type=_names, metavar="A,B", help="to tune; 'none' for no layer")
    add("--models", type=_names, metavar="A,B",
        help="layers on which the cost model meets random search; 'none'")  # fmt: skip
    add("--seeds", type=int, metavar="N", help="searches of each, for --models; default 3")
    add("--trials", type=int, metavar="N", help="of each search; default 200")
    add("--seconds", type=float, metavar="S", help="of each search at most; default 600")
    add("--jobs", type=int, metavar="N", help="candidates built at a time; default: all cores")
    add("--json", type=Path, metavar="FILE", help="write every figure")
    add("--from", type=Path, metavar="FILE", dest="source",
        help="measure nothing: take the figures from such a file")  # fmt: skip
    add("--picture", type=Path, metavar="FILE.png", help="draw the curves of --models")
    add("--docs", type=Path, nargs="?", const=_DOCS, metavar="FILE.md",
        help="put the tables into docs/tuning.md")  # fmt: skip
    return parser


def _options(args: argparse.Namespace) -> dict[str, Any]:
    default: dict[str, Any] = {
        "layers": _LAYERS, "models": _MODEL_LAYERS, "seeds": 3, "trials": 200, "seconds": 600.0,
        **(_QUICK if args.quick else {}),
    }  # fmt: skip
    asked = {name: getattr(args, name) for name in default}
    return {name: default[name] if value is None else value for name, value in asked.items()}


def search(
    work: Workload, *, trials: int, seconds: float, model: str, seed: int, jobs: int | None
) -> dict[str, Any]:
    """Tune one layer from an empty log: every time in the order of the trials, and the verdict.

    Raises
    ------
    TvmconvError
        The search could not go on.
    """
    from tvmconv.tuning import upkeep
    from tvmconv.tuning.history import histories
    from tvmconv.tuning.run import tune

    begin: list[float] = []
    end: list[float] = []

    def progress(now: Any) -> None:
        if now.step == "searching" and not begin:
            begin.append(time.perf_counter())
        if now.step not in ("searching", "measuring the default") and not end:
            end.append(time.perf_counter())

    with tempfile.TemporaryDirectory(prefix="tvmconv-bench-") as place:
        result = tune(
            layer_of(work), work.input_shape, trials=trials, seconds=seconds, seed=seed,
            cost_model=model, logs=place, jobs=jobs, callback=progress,
        )  # fmt: skip
        (history,) = histories(upkeep.read_all(Path(place)))
    record = result.record
    assert record.final is not None
    return {
        "layer": work.name,
        "model": model,
        "seed": seed,
        "gflop": record.gflop,
        "limit_gflops": record.limit_gflops,
        "form": record.decisions["form"],
        "final": dataclasses.asdict(record.final),
        "trials": result.trials,
        "failed": result.failed,
        "search_s": round(end[0] - begin[0], 3),
        "times_s": [one.record.time_s for one in history.candidates],
        "elapsed_s": [one.elapsed_s for one in history.candidates],
        "importance": {one.name: round(one.share, 3) for one in history.importances},
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _measured(options: dict[str, Any], jobs: int | None) -> dict[str, Any]:
    # Nobody's records: neither the user's nor those that ship.
    os.environ["TVMCONV_LOGS"] = "none"
    record: dict[str, Any] = {
        "format": "tvmconv-tuning", "machine": machine.describe(), "options": options,
        "complete": False, "gains": [], "models": [],
    }  # fmt: skip
    watch = machine.Watch.start()
    budget = {"trials": options["trials"], "seconds": options["seconds"], "jobs": jobs}
    try:
        for work in named(options["layers"]):
            _say(f"{work.name}: tuning")
            record["gains"].append(search(work, model="xgb", seed=0, **budget))
        for work in named(options["models"]):
            for seed in range(1, options["seeds"] + 1):
                # In turns, so that a change of the machine's speed meets both alike.
                for model in _MODELS[:: 1 if seed % 2 else -1]:
                    _say(f"{work.name}: {model}, seed {seed}")
                    record["models"].append(search(work, model=model, seed=seed, **budget))
        record["complete"] = True
    except KeyboardInterrupt:
        _say("interrupted: the tables hold what was done by then")
    record["noise"] = watch.stop([])
    return record


def main() -> int:
    """Measure, print the tables, write what was asked for."""
    args = _parser().parse_args()
    record = (
        json.loads(args.source.read_text()) if args.source else _measured(_options(args), args.jobs)
    )
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    parts = curves.tables(record)
    print(report.document(parts))
    if args.picture and record["models"]:
        try:
            curves.draw(record, args.picture)
        except ImportError as exc:
            _say(f"no picture: {exc}")
            return 1
        if args.docs:
            link = os.path.relpath(args.picture, args.docs.parent)
            parts["picture"] = f"![Best time so far against trials, for both models]({link})"
    if args.docs:
        absent = report.update(args.docs, parts)
        if absent:
            _say(f"{args.docs} has no place for: {', '.join(absent)}")
    return 0 if record["complete"] or args.source else 130


if __name__ == "__main__":
    sys.exit(main())
