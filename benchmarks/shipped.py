"""Records that ship beside today's default: ``python -m benchmarks.shipped``.

A record keeps the gain over the default of its day. Defaults get better, and then it may hold a
layer back. Each winner meets the default of now in turns, as at the end of a search; with
``--update`` the file of one that does not win again is deleted, and the others get the new verdict.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.tvmconv_runner import layer_of
from benchmarks.workloads import WORKLOADS

if TYPE_CHECKING:
    from tvmconv.targets import CpuTarget
    from tvmconv.tuning.records import Final, Record
    from tvmconv.tuning.runners import Builder, Runner, Task

__all__ = ["main", "winners"]


def main(argv: list[str] | None = None) -> int:
    """Print a line for each winner; 1 where one does not win again and stays."""
    from tvmconv.errors import TvmconvError
    from tvmconv.tuning import lookup, upkeep
    from tvmconv.tuning.run import processor
    from tvmconv.tuning.runners import LocalBuilder, LocalRunner

    parser = argparse.ArgumentParser(prog="python -m benchmarks.shipped", description=__doc__)
    parser.add_argument("--logs", type=Path, metavar="DIR", help="default: those that ship")
    parser.add_argument("--target", default="native", metavar="NAME", help="default: native")
    parser.add_argument(
        "--update", action="store_true", help="delete what does not win again, renew the others"
    )
    args = parser.parse_args(argv)
    lost = 0
    builder, runner = LocalBuilder(1), LocalRunner()
    try:
        machine = processor(args.target)
        for path, record in winners((args.logs or lookup.shipped_folder()) / machine.fingerprint()):
            final = _final(record, machine, builder, runner)
            says = "does not win again" if final is None else f"gain {final.gain:+.1%} now"
            before = record.final.gain if record.final else 0.0
            print(f"{record.layer}: {says}, {before:+.1%} when it was made", flush=True)
            if args.update and final is None:
                path.unlink()
            elif args.update:
                upkeep.write_lines(path, [dataclasses.replace(record, final=final)])
            lost += final is None and not args.update
    except TvmconvError as exc:
        print(exc, file=sys.stderr)
        return 1
    finally:
        runner.close()
        builder.close()
    return 1 if lost else 0


def winners(folder: Path) -> Iterator[tuple[Path, Record]]:
    """Files and records of one target that beat their default, of layers of the list."""
    from tvmconv.tuning import records

    known = {work.name for work in WORKLOADS}
    for path in sorted(folder.glob("*.json")):
        record = list(records.read_file(path))[-1]
        won = record.final is not None and record.final.gain > 0
        if won and records.is_current(record) and record.layer in known:
            yield path, record


def _final(record: Record, machine: CpuTarget, builder: Builder, runner: Runner) -> Final | None:
    """The verdict against today's default; None where it is not used, or not beyond doubt."""
    from tvmconv.errors import TuningError
    from tvmconv.schedules.space import Space
    from tvmconv.tuning import verdict
    from tvmconv.tuning.run import task_of

    (work,) = [one for one in WORKLOADS if one.name == record.layer]
    task: Task = task_of(
        work.name, layer_of(work).config, work.input_shape, machine, record.algorithm
    )
    space = Space.of(task.work, machine, record.algorithm)
    tiling = space.read(record.decisions)
    if tiling == space.default or space.find(tiling) is None:
        return None
    built = builder.build(task, [space.default, tiling])
    default, other = (one.folder for one in built)
    if default is None or other is None:
        raise TuningError(f"{work.name}: not built: {[one.failure for one in built]}")
    failure = runner.prepare(task, default)
    timed = runner.time(default, None)
    if failure is not None or timed.seconds is None:
        raise TuningError(f"{work.name}: the default does not run: {failure or timed.failure}")
    found = verdict.decide(
        runner,
        verdict.Finalist(space.default, default),
        [verdict.Finalist(tiling, other)],
        min(timed.seconds),
        task.tolerance,
    )
    return found.final if found.winner == tiling else None


if __name__ == "__main__":
    sys.exit(main())
