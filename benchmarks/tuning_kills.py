"""What a kill costs a search: ``python -m benchmarks.tuning_kills``.

One search runs undisturbed. A second one, of the same layer and number of trials, is killed
(SIGKILL) at random moments and started again each time, then ends. Printed is what it lost, what it
tried twice, and both results. The default is measured anew at each start and is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import machine
from benchmarks.child import ROOT
from benchmarks.report import table
from benchmarks.tvmconv_runner import layer_of
from benchmarks.workloads import named

if TYPE_CHECKING:
    from tvmconv.tuning.records import Record

__all__ = ["Search", "killed", "main", "wasted"]


@dataclass(frozen=True)
class Search:
    """One ``tvmconv tune`` command."""

    source: Path
    shape: tuple[int, ...]
    log: Path
    seed: int

    def start(self, trials: int) -> subprocess.Popen[str]:
        """Begin it, or go on, for so many candidates more."""
        command = [
            sys.executable, "-m", "tvmconv", "tune", str(self.source), "--input-shape",
            ",".join(map(str, self.shape)), "--logs", str(self.log), "--trials", str(trials),
            "--seed", str(self.seed), "--json",
        ]  # fmt: skip
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "TVMCONV_LOGS": "none"},
        )  # fmt: skip

    def records(self) -> list[Record]:
        """What is stored, in its order."""
        from tvmconv.tuning import records

        return [one for path in records.workload_files(self.log) for one in records.read_file(path)]


def wasted(found: list[Record]) -> float:
    """Share of the candidates that were tried more than once, without the default."""
    tried = [one.id for one in found if one.trial > 0 and one.final is None]
    return 1 - len(set(tried)) / len(tried) if tried else 0.0


def killed(search: Search, kills: int, trials: int, most_s: float, seed: int) -> dict[str, Any]:
    """Start, kill at a random moment, look at the log, and again; then let it end."""
    drawn = random.Random(seed)
    lost, made = 0, []
    before: list[Record] = []
    for number in range(kills):
        wait = drawn.uniform(0.0, most_s)
        process = search.start(max(1, trials - _count(before)))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
        alive = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        after = search.records()
        lost += after[: len(before)] != before
        made.append(len(after) - len(before))
        _say(
            f"kill {number + 1} after {wait:.1f} s: {len(after)} records"
            + ("" if alive else ", ended")
        )
        before = after
    return {"lost": lost, "made": made, **_ended(search, trials - _count(before))}


def _ended(search: Search, trials: int) -> dict[str, Any]:
    begin = time.monotonic()
    process = search.start(max(1, trials))
    out, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"the search failed: {err.strip()}")
    (layer,) = json.loads(out)["layers"]
    return {
        "final": layer["final"], "decisions": layer["decisions"],
        "records": search.records(), "seconds": time.monotonic() - begin,
    }  # fmt: skip


def _count(found: list[Record]) -> int:
    return sum(one.trial > 0 and one.final is None for one in found)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _row(name: str, found: dict[str, Any]) -> list[str]:
    final = found["final"]
    default_ms, tuned_ms = (f"{1e3 * final[key]:.3f}" for key in ("default_s", "median_s"))
    return [
        name, str(_count(found["records"])), f"{wasted(found['records']):.1%}",
        default_ms, tuned_ms, f"{final['gain']:+.1%}",
        f"{final['gain_low']:+.1%} to {final['gain_high']:+.1%}",
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run both searches and print what came out."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tuning_kills", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--layer", default="odd", metavar="NAME", help="default: odd")
    parser.add_argument("--trials", type=int, default=100, metavar="N", help="default: 100")
    parser.add_argument("--kills", type=int, default=10, metavar="N", help="default: 10")
    parser.add_argument("--most", type=float, default=25.0, metavar="S", help="to live; default 25")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    (work,) = named([args.layer])
    with tempfile.TemporaryDirectory(prefix="tvmconv-bench-") as name:
        place = Path(name)
        source = place / f"{work.name}.json"
        source.write_text(json.dumps(layer_of(work).get_config()), encoding="utf-8")
        alone, victim = (
            Search(source, work.input_shape, place / part, args.seed)
            for part in ("alone", "killed")
        )
        _say(f"{work.name}: {args.trials} trials, undisturbed")
        calm = _ended(alone, args.trials)
        _say(f"{work.name}: {args.trials} trials, killed {args.kills} times")
        found = killed(victim, args.kills, args.trials, args.most, args.seed)
    head = ["search", "tried", "twice", "default ms", "tuned ms", "gain", "95 %"]
    described = machine.describe()
    print(f"- {described['date']}: {described['cpu']}, {described['cores']} cores, {work.name}")
    print(f"- records lost that were stored before a kill: {found['lost']} of {args.kills} times")
    print(f"- records stored between two kills: {', '.join(map(str, found['made']))}")
    faster = found["final"]["gain"] - calm["final"]["gain"]
    print(f"- gain against the undisturbed search's: {faster:+.1%}\n")
    print(table(head, [_row("undisturbed", calm), _row("killed", found)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
