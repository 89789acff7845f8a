"""Search faster schedules on this machine; `tvmconv compile` then uses what was found.

Every candidate becomes a record in the log at once. Interrupted or killed, the same command goes on
from there.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmconv.cli import console, source
from tvmconv.cli.interruption import Interruption

if TYPE_CHECKING:
    from tvmconv.tuning.run import Result
    from tvmconv.tuning.runners import Task
    from tvmconv.tuning.session import Progress

__all__ = ["add_arguments", "run"]

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
#: Seconds between two lines of one step, where nobody watches.
_QUIET_S = 10.0
_HEADER = ("layer", "input", "winner", "default ms", "best ms", "gain", "95 %", "GFLOP/s", "share")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tvmconv tune``."""
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help=".keras or .h5 model, or a layer's config .json"
    )
    parser.add_argument("--layer", metavar="NAME", help="only this layer; default: all of them")
    parser.add_argument(
        "--input-shape",
        type=source.given_shape,
        action="append",
        default=[],
        metavar="[LAYER=]N,D,H,W,C",
        help="in the layer's data format; ? for an open batch, measured as 1; repeatable",
    )
    parser.add_argument(
        "--target", default="native", metavar="NAME", help="or cuda:native; default: native"
    )
    source.add_numbers(parser)
    parser.add_argument("--dtype", metavar="POLICY", help="replaces the layer's dtype policy")
    parser.add_argument(
        "--time",
        type=_seconds,
        metavar="T",
        help="how long to search, as in 90s, 10m, 1h; default 10m where no other limit is given",
    )
    parser.add_argument("--trials", type=_count, metavar="N", help="how many candidates to try")
    parser.add_argument(
        "--early-stop", type=_count, metavar="N", help="end after N candidates without a better one"
    )
    parser.add_argument(
        "--jobs", type=_count, metavar="N", help="candidates built at a time; default: all cores"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--logs", metavar="DIR", help="the folder of the records; default: yours")
    parser.add_argument("--cost-model", choices=("xgb", "random"), default="xgb")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a page about it")
    parser.add_argument(
        "--device",
        metavar="WHERE",
        help="measure elsewhere: ssh:[USER@]HOST[:PORT][/FOLDER], or tracker:HOST:PORT,KEY for "
        "devices behind a TVM RPC tracker",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Tune every layer that was asked for."""
    from tvmconv.codegen import toolchain
    from tvmconv.tuning import lookup, models
    from tvmconv.tuning.run import tune_tasks
    from tvmconv.tuning.session import Budget

    begin = time.perf_counter()
    if args.device is not None:
        from tvmconv.tuning import fleet

        fleet.check(args.device)
    tasks = _tasks(args)
    models.check(args.cost_model)
    log = lookup.writable_folder(args.logs)
    toolchain.find()
    show = _Shown(not args.json, log)

    def progress(now: Progress) -> None:
        show.progress(now)
        interruption.check()

    try:
        with contextlib.ExitStack() as stack:
            options: dict[str, Any] = {}
            interruption = stack.enter_context(Interruption())
            if args.device is not None:
                options = fleet.options(args.device, tasks, args.seed)
                stack.callback(options["runner"].close)
            stack.enter_context(show)
            results = tune_tasks(
                tasks,
                Budget(args.time, args.trials, args.early_stop),
                log=log,
                jobs=args.jobs,
                seed=args.seed,
                cost_model=args.cost_model,
                callback=progress,
                finished=show.finished,
                **options,
            )
    except KeyboardInterrupt:
        if not args.json:
            console.say(
                f"{show.trials} candidates are kept in {log}; the same command goes on from there"
            )
        raise
    finally:
        if args.report is not None:
            _report(args.report, log, tasks)
    if args.json:
        seconds = round(time.perf_counter() - begin, 3)
        found = [_described(one) for one in results]
        console.dump({"log": str(log), "layers": found, "seconds": seconds})
        return 0
    console.table(_HEADER, [_row(one) for one in results])
    if args.report is not None:
        console.say(f"{args.report}: the report")
    return 0


def _tasks(args: argparse.Namespace) -> list[Task]:
    """The layers on their shapes."""
    from tvmconv.tuning.run import processor, task_of

    machine = processor(args.target, elsewhere=args.device is not None)
    asked = argparse.Namespace(
        **{**vars(args), "weights": None, "external_weights": True, "name": None, "logs": None}
    )
    return [
        task_of(job.path, job.layer.config, shape, machine, args.algorithm, args.precision)
        for job in source.jobs(asked)
        for shape in job.shapes
    ]


def _report(path: Path, log: Path, tasks: list[Task]) -> None:
    from tvmconv.tuning import records, report, workloads

    keys = {workloads.key(task.described) for task in tasks}
    fingerprint = tasks[0].machine.fingerprint()
    found = [one for key in sorted(keys) for one in records.read(log, fingerprint, key)]
    if found:  # else there was an error, which says more
        report.write(path, found)


class _Shown:
    """What people see while it runs: a moving line on a terminal, plain lines elsewhere."""

    def __init__(self, shown: bool, log: Path) -> None:
        self._shown, self._log = shown, log
        self._console = console.Progress(shown)
        self._before: dict[str, int] = {}
        self._step, self._said = ("", ""), 0.0
        self._plain = not console.is_terminal()

    @property
    def trials(self) -> int:
        """Candidates that were tried."""
        return sum(self._before.values())

    def __enter__(self) -> _Shown:
        if self._shown:
            console.say(f"records go to {self._log}")
        self._console.__enter__()
        return self

    def __exit__(self, *unused: object) -> None:
        self._console.__exit__(*unused)

    def progress(self, now: Progress) -> None:
        """One candidate more."""
        self._before[now.layer] = now.trials
        if not self._shown:
            return
        text = _line(now)
        if not self._plain:
            self._console.task(text)
        elif (now.layer, now.step) != self._step or time.monotonic() - self._said > _QUIET_S:
            self._step, self._said = (now.layer, now.step), time.monotonic()
            console.say(text)

    def finished(self, result: Result) -> None:
        """A layer is done."""
        if self._shown and self._plain:
            final = result.record.final
            assert final is not None
            console.say(
                f"{result.layer}: {_winner(result)} wins, {1e3 * final.median_s:.3f} ms, "
                f"gain {final.gain:+.1%} ({final.gain_low:+.1%} to {final.gain_high:+.1%})"
            )


def _line(now: Progress) -> str:
    parts = [f"{now.layer}: {now.step}", f"{now.trials} tried, {now.failed} failed"]
    if now.best_s is not None and now.default_s is not None:
        rate = now.gflop / now.best_s
        parts.append(f"best {1e3 * now.best_s:.3f} ms, {rate:.1f} GFLOP/s")
        if now.limit_gflops:
            parts.append(f"{rate / now.limit_gflops:.0%} of the limit")
        parts.append(f"{now.default_s / now.best_s - 1:+.1%} over the default")
    if now.left_s is not None:
        parts.append(f"{now.left_s:.0f} s left")
    if now.left_trials is not None:
        parts.append(f"{now.left_trials} to try")
    return ", ".join(parts)


def _winner(result: Result) -> str:
    return str(result.record.decisions["form"]) if result.gain > 0 else "the default"


def _row(result: Result) -> tuple[object, ...]:
    record, final = result.record, result.record.final
    assert final is not None
    rate = record.gflop / final.median_s
    share = None if record.limit_gflops is None else f"{rate / record.limit_gflops:.0%}"
    return (
        result.layer,
        console.sizes(result.input_shape),
        _winner(result),
        f"{1e3 * final.default_s:.3f}",
        f"{1e3 * final.median_s:.3f}",
        f"{final.gain:+.1%}",
        f"{final.gain_low:+.1%} to {final.gain_high:+.1%}",
        f"{rate:.1f}",
        share,
    )


def _described(result: Result) -> dict[str, Any]:
    record = result.record
    assert record.final is not None
    return {
        "layer": result.layer,
        "input_shape": list(result.input_shape),
        "record": record.id,
        "decisions": record.decisions,
        "final": dataclasses.asdict(record.final),
        "gflop": record.gflop,
        "limit_gflops": record.limit_gflops,
        "trials": result.trials,
        "failed": result.failed,
        "resumed": result.resumed,
        "seconds": round(result.seconds, 3),
    }


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)([smh]?)", text.strip())
    value = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < value < 1e7:
        raise argparse.ArgumentTypeError(
            f"expected a time above 0 as in 90s or 10m, found {text!r}"
        )
    return value


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, found {text!r}")
    return int(text)
