"""What tuning gains, what a trial costs, and what the cost model is worth.

``python -m benchmarks.tuning_gains``, from the top of a checkout, on a machine that does nothing
else. Every search starts from an empty log. The gain of a layer is the one that the search itself
prints: measured at its end, in turns with the default, on fresh inputs.

With ``--resume DIR`` the logs and all figures stay in a folder, and the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import curves, limits, machine, recorded, report
from benchmarks.child import ROOT
from benchmarks.tuning_search import Unfinished, search
from benchmarks.workloads import named
from tvmconv.replacement import replacement

__all__ = ["main"]

_DOCS = ROOT / "docs" / "tuning.md"
_LAYERS = ["psm_conv5", "psm_conv6", "unet_up5", "gan_g2", "gcnet_37", "pcc_l1", "odd"]
_MODEL_LAYERS = ["psm_conv5", "pcc_l1"]
_TABLE_LAYERS = ["pcc_l1", "odd"]
_MODELS = ("xgb", "random")
_QUICK: dict[str, Any] = {
    "layers": ["psm_conv5", "odd"], "models": ["odd"], "tables": [], "seeds": 1, "replays": 3,
    "trials": 24, "seconds": 60.0,
}  # fmt: skip
#: Trials of a search that is answered from a table.
_REPLAYED = 100


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
    add("--tables", type=_names, metavar="A,B",
        help="layers whose direct candidates are all timed, for the same; 'none'")  # fmt: skip
    add("--seeds", type=int, metavar="N", help="searches of each, for --models; default 3")
    add("--replays", type=int, metavar="N", help="searches of each, for --tables; default 10")
    add("--trials", type=int, metavar="N", help="of each search; default 200")
    add("--seconds", type=float, metavar="S", help="of each search at most; default 600")
    add("--jobs", type=int, metavar="N", help="candidates built at a time; default: all cores")
    add("--resume", type=Path, metavar="DIR",
        help="keep logs and figures in this folder, and go on with what is there")  # fmt: skip
    add("--at-most", type=float, metavar="S",
        help="of --resume: stop after S seconds of searching")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write every figure")
    add("--from", type=Path, metavar="FILE", dest="source",
        help="measure nothing: take the figures from such a file")  # fmt: skip
    add("--picture", type=Path, metavar="FILE.png", help="draw the curves of --models")
    add("--docs", type=Path, nargs="?", const=_DOCS, metavar="FILE.md",
        help="put the tables into docs/tuning.md")  # fmt: skip
    return parser


def _options(args: argparse.Namespace) -> dict[str, Any]:
    default: dict[str, Any] = {
        "layers": _LAYERS, "models": _MODEL_LAYERS, "tables": _TABLE_LAYERS, "seeds": 3,
        "replays": 10, "trials": 200, "seconds": 600.0,
        **(_QUICK if args.quick else {}),
    }  # fmt: skip
    asked = {name: getattr(args, name) for name in default}
    return {name: default[name] if value is None else value for name, value in asked.items()}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _measured(args: argparse.Namespace) -> dict[str, Any]:
    # Nobody's records: neither the user's nor those that ship.
    os.environ["TVMCONV_LOGS"] = "none"
    with _place(args.resume) as place:
        file = place / "tuning.json"
        record = _begun(file, _options(args))
        watch = machine.Watch.start()
        until = time.monotonic() + (args.at_most or float("inf"))

        def keep() -> None:
            with replacement(file) as whole:
                whole.write(json.dumps(record, indent=1).encode() + b"\n")

        try:
            _go_on(record, place, args.jobs, until, keep)
            record["complete"] = True
        except Unfinished:
            _say("stopped: the same command goes on")
        except KeyboardInterrupt:
            _say("interrupted: the tables hold what was done by then")
        load = watch.stop([])["load_at_start"]
        record["noise"] = {"load_at_start": max(load, record["noise"].get("load_at_start", 0.0))}
        keep()
    return record


@contextmanager
def _place(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="tvmconv-bench-") as name:
        yield Path(name)


def _begun(file: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What earlier sittings found; nothing yet in a fresh folder.

    Raises
    ------
    ValueError
        They had other options, or the file is no such record.
    """
    fresh: dict[str, Any] = {
        "format": "tvmconv-tuning", "machine": machine.describe(), "options": options,
        "complete": False, "noise": {}, "gains": [], "models": [], "tables": [],
    }  # fmt: skip
    if not file.exists():
        return fresh
    record = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(record, dict) or record.get("format") != fresh["format"]:
        raise ValueError(f"{file} is no record of this benchmark")
    for name in ("trials", "seconds"):
        if record["options"][name] != options[name]:
            raise ValueError(
                f"the sittings differ in their {name}: {record['options'][name]}, {options[name]}"
            )
    if record["machine"]["cpu"] != fresh["machine"]["cpu"]:
        raise ValueError(f"{file} is from another processor: {record['machine']['cpu']}")
    return {**record, "machine": fresh["machine"], "options": options, "complete": False}


def _go_on(
    record: dict[str, Any], place: Path, jobs: int | None, until: float, keep: Callable[[], None]
) -> None:
    """Measure what a record lacks; ``keep`` is called after each part.

    Raises
    ------
    Unfinished
        It is ``until``.
    """
    options = record["options"]
    if "bandwidth" not in record:
        record["bandwidth"] = _bandwidth()
    shared = {
        "trials": options["trials"], "seconds": options["seconds"], "jobs": jobs, "until": until,
        "bandwidth": record["bandwidth"],
    }  # fmt: skip
    for work in named(options["layers"]):
        if work.name not in {one["layer"] for one in record["gains"]}:
            _say(f"{work.name}: tuning")
            log = place / "gains" / work.name
            record["gains"].append(search(work, model="xgb", seed=0, log=log, **shared))
            keep()
    _tables(record, place, until, keep)
    done = {(one["layer"], one["model"], one["seed"]) for one in record["models"]}
    for work in named(options["models"]):
        for seed in range(1, options["seeds"] + 1):
            # In turns, so that a change of the machine's speed meets both alike.
            for model in _MODELS[:: 1 if seed % 2 else -1]:
                if (work.name, model, seed) not in done:
                    _say(f"{work.name}: {model}, seed {seed}")
                    log = place / "models" / f"{work.name}-{model}-{seed}"
                    found = search(work, model=model, seed=seed, log=log, **shared)
                    record["models"].append(found)
                    keep()


def _tables(record: dict[str, Any], place: Path, until: float, keep: Callable[[], None]) -> None:
    """Time every direct candidate of some layers, and let both searches meet these times."""
    options = record["options"]
    for work in named(options["tables"]):
        log = place / "tables" / work.name
        has, total = recorded.measure(work, log, until=until)
        if has < total:
            _say(f"{work.name}: {has} of {total} candidates")
            raise Unfinished
        found = recorded.table(work, log)
        best_s = min(one.time_s for one in found.values() if one.time_s)
        done = {(one["layer"], one["model"], one["seed"]) for one in record["tables"]}
        for seed in range(1, options["replays"] + 1):
            for model in _MODELS:
                if (work.name, model, seed) in done:
                    continue
                if time.monotonic() > until:
                    raise Unfinished
                times = recorded.replay(work, found, model=model, seed=seed, trials=_REPLAYED)
                one = {"layer": work.name, "model": model, "seed": seed, "times_s": times}
                record["tables"].append({**one, "candidates": total, "best_s": best_s})
                keep()


def _bandwidth() -> float:
    """Bytes a second of memory, with all cores: the better of a copy and a fill."""
    rates = []
    for kind in (limits.Copy, limits.Fill):
        prepared = kind(machine.cores()).prepare(None, None)  # type: ignore[arg-type]
        times = []
        for _ in range(8):
            begin = time.perf_counter()
            prepared.call()
            times.append(time.perf_counter() - begin)
        rates.append(prepared.amount / min(times))
    return max(rates)


def main() -> int:
    """Measure, print the tables, write what was asked for."""
    parser = _parser()
    args = parser.parse_args()
    if args.at_most is not None and (args.resume is None or not args.at_most > 0):
        parser.error("--at-most is a number above 0, of --resume")
    try:
        record = json.loads(args.source.read_text()) if args.source else _measured(args)
    except ValueError as exc:
        parser.error(str(exc))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    parts = curves.tables(record)
    print(report.document(parts))
    if args.picture and (record["models"] or record["tables"]):
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
    return 0 if record["complete"] or args.source or args.at_most else 130


if __name__ == "__main__":
    sys.exit(main())
