"""Rounds: every runner gets its turn on a layer, then all of them again.

What disturbs one disturbs all, and figures that are compared are seconds apart.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.child import ROOT, Child, Silence, installed
from benchmarks.data import TOLERANCE
from benchmarks.isa import Isa, isa
from benchmarks.runners import LIMITS, PEERS, Entry, algorithm_of, ours
from benchmarks.workloads import Workload

__all__ = ["Options", "run"]

Say = Callable[[str], None]
_BUILD_TIMEOUT_S = 600
# A runner whose one call takes this many turns is timed in few rounds only.
_SLOW_TURNS, _SLOW_ROUNDS = 10, 3
_LEAST_ROUNDS = 3
# Copies of its tensors that a runner may hold, for the guess of what fits into memory.
_COPIES = 4


@dataclass(frozen=True)
class Options:
    """What to measure and for how long.

    Attributes
    ----------
    works
        The layers.
    threads
        Numbers of threads; all of them in the same rounds where memory allows.
    peers, algorithms
        Names of `PEERS`; algorithms of tvmconv.
    rounds
        Turns that everybody gets.
    seconds
        Instead of ``rounds``: how long one layer may take, at least three rounds.
    turn_s
        Length of a turn; a call that takes longer is made once in it, after one that is not timed.
    isa
        One of `ISAS`: the instruction set that everybody is held to.
    dtype
        Of the layers' arrays.
    """

    works: list[Workload]
    threads: list[int]
    peers: list[str]
    algorithms: list[str]
    rounds: int = 10
    seconds: float | None = None
    turn_s: float = 0.2
    isa: str = "native"
    dtype: str = "float32"

    @property
    def entries(self) -> dict[str, Entry]:
        """All runners by name."""
        return {**ours(self.algorithms), **{name: PEERS[name] for name in self.peers}, **LIMITS}


@dataclass
class _Pool:
    """Workers by runner and number of threads, started when they are needed."""

    entries: dict[str, Entry]
    isa: Isa
    children: dict[tuple[str, int], Child] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def get(self, name: str, threads: int) -> Child:
        """The worker; raises `Silence` where it does not start or its framework is missing."""
        if name in self.missing:
            raise Silence(self.missing[name])
        child = self.children.get((name, threads))
        if child is None:
            child = Child(self.entries[name].home, threads, self.isa.environment)
            if child.reason:
                child.close()
                self.missing[name] = child.reason
                raise Silence(child.reason)
            self.children[name, threads] = child
            self.versions[name] = child.version
        return child

    def drop(self, name: str, threads: int) -> None:
        child = self.children.pop((name, threads), None)
        if child is not None:
            child.close()

    def close(self) -> None:
        for name, threads in list(self.children):
            self.drop(name, threads)

    @property
    def processes(self) -> list[int]:
        return [child.process for child in self.children.values()]


@contextmanager
def _pool(options: Options) -> Iterator[_Pool]:
    with isa(options.isa) as held:
        pool = _Pool(options.entries, held)
        try:
            yield pool
        finally:
            pool.close()


def run(
    options: Options, say: Say, keep: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Measure, and return everything as JSON; interrupted, what is complete.

    Parameters
    ----------
    options
        What to measure.
    say
        Gets lines that show how far it is.
    keep
        Gets the record so far after each layer but the last.

    Raises
    ------
    ValueError
        The machine cannot be held to the instruction set.
    """
    watch = machine.Watch.start()
    layers: list[dict[str, Any]] = []
    with _pool(options) as pool, tempfile.TemporaryDirectory(prefix="tvmconv-bench-") as folder:
        with suppress(KeyboardInterrupt):
            for number, work in enumerate(options.works, 1):
                say(f"{work.name} ({number} of {len(options.works)}): {work.summary}")
                layers.append(_layer(work, options, pool, Path(folder), say))
                if keep is not None and len(layers) < len(options.works):
                    keep(_record(options, pool, layers, watch))
        return _record(options, pool, layers, watch)


def _record(
    options: Options, pool: _Pool, layers: list[dict[str, Any]], watch: machine.Watch
) -> dict[str, Any]:
    entries = options.entries
    roles = dict.fromkeys(ours(options.algorithms), "ours") | dict.fromkeys(options.peers, "peer")
    return {
        "format": "tvmconv-benchmark",
        "version": 1,
        "machine": machine.describe(),
        "noise": watch.stop(pool.processes),
        "options": {
            "threads": options.threads,
            "rounds": options.rounds if options.seconds is None else None,
            "seconds": options.seconds,
            "turn_s": options.turn_s,
            "isa": options.isa,
            "dtype": options.dtype,
            "complete": len(layers) == len(options.works),
        },
        "runners": {
            name: {
                "title": entry.title,
                "role": roles.get(name, "limit"),
                "version": pool.versions.get(name),
                "reason": pool.missing.get(name),
            }
            for name, entry in entries.items()
        },
        "layers": list(layers),
    }


def _layer(work: Workload, options: Options, pool: _Pool, folder: Path, say: Say) -> dict[str, Any]:
    """Everybody's times on one layer."""
    builds, artifacts = {}, {}
    for algorithm in options.algorithms:
        artifacts[algorithm] = folder / f"{work.name}-{algorithm}"
        builds[algorithm] = build(work, algorithm, artifacts[algorithm], target=pool.isa.target)
        if "reason" in builds[algorithm]:
            say(f"  {algorithm}: {builds[algorithm]['reason']}")
    results: dict[str, dict[str, Any]] = {str(threads): {} for threads in options.threads}
    for group in _groups(work, options):
        keys = [(name, threads) for name in options.entries for threads in group]
        ready: dict[tuple[str, int], float] = {}
        for name, threads in keys:
            algorithm = algorithm_of(options.entries[name])
            reason = builds[algorithm].get("reason") if algorithm else None
            found: dict[str, Any] = {"reason": reason} if reason else {}
            if not reason:
                artifact = str(artifacts[algorithm]) if algorithm else None
                found = _ask(
                    pool, name, threads, "prepare", work=dataclasses.asdict(work), artifact=artifact
                )
            if found.get("error") is not None and not found["error"] <= TOLERANCE[work.dtype]:
                found["reason"] = f"its output differs from the reference by {found['error']:.2g}"
            if "reason" not in found:
                ready[name, threads] = found["once_s"]
                found["rounds_s"], found["best_s"] = [], found["once_s"]
            results[str(threads)][name] = found
        _rounds(ready, results, options, pool)
        for name, threads in ready:
            _ask(pool, name, threads, "release")
            _summarise(results[str(threads)][name], work)
    say(f"  {_outcome(results, options)}")
    return {
        **dataclasses.asdict(work),
        "summary": work.summary,
        "flops": work.flops,
        "traffic_bytes": work.traffic,
        "builds": builds,
        "results": results,
    }


def _groups(work: Workload, options: Options) -> list[list[int]]:
    """The numbers of threads that share rounds: all, unless their memory does not fit."""
    needed = work.traffic * _COPIES * len(options.entries) * len(options.threads)
    if needed < machine.available_bytes() // 2:
        return [options.threads]
    return [[threads] for threads in options.threads]


def _rounds(
    ready: dict[tuple[str, int], float],
    results: dict[str, dict[str, Any]],
    options: Options,
    pool: _Pool,
) -> None:
    """Turns in alternating order, so that nobody always follows the same one."""
    start = time.monotonic()
    number = 0
    while _go_on(number, time.monotonic() - start, options):
        for name, threads in list(ready)[:: -1 if number % 2 else 1]:
            found = results[str(threads)][name]
            if number >= _SLOW_ROUNDS and ready[name, threads] > _SLOW_TURNS * options.turn_s:
                continue
            answer = _ask(pool, name, threads, "turn", seconds=options.turn_s)
            if "reason" in answer:
                found["reason"] = answer["reason"]
                del ready[name, threads]
                continue
            found["rounds_s"].append(float(np.median(answer["times_s"])))
            found["best_s"] = min(found["best_s"], *answer["times_s"])
        number += 1


def _go_on(number: int, elapsed_s: float, options: Options) -> bool:
    if options.seconds is None:
        return number < options.rounds
    return number < _LEAST_ROUNDS or elapsed_s < options.seconds


def _ask(pool: _Pool, name: str, threads: int, op: str, **message: Any) -> dict[str, Any]:
    """An answer, or the reason why there is none."""
    try:
        return pool.get(name, threads).ask(op, **message)
    except Silence as exc:
        pool.drop(name, threads)
        return {"reason": str(exc)}


def _summarise(found: dict[str, Any], work: Workload) -> None:
    """Add median, spread and rate."""
    if "reason" in found or not found["rounds_s"]:
        return
    low, middle, high = np.percentile(found["rounds_s"], (10, 50, 90)).tolist()
    found |= {"p10_s": low, "median_s": middle, "p90_s": high}
    found["rate"] = (found["amount"] or work.flops) / middle


def _outcome(results: dict[str, dict[str, Any]], options: Options) -> str:
    """One line about a layer: GFLOP/s of everybody who computed it."""
    parts = []
    for threads, found in results.items():
        rates = [
            f"{name} {one['rate'] / 1e9:.1f}"
            for name, one in found.items()
            if "rate" in one and name not in LIMITS
        ]
        parts.append(f"{threads} thread{'s' if threads != '1' else ''}: {', '.join(rates)}")
    del options
    return "GFLOP/s, " + "; ".join(parts)


def build(
    work: Workload, algorithm: str, output: Path, weights: str = "baked", target: str = "native"
) -> dict[str, Any]:
    """Compile a layer in a process of its own; ``seconds`` is that process from start to end."""
    asked = {
        "work": dataclasses.asdict(work),
        "algorithm": algorithm,
        "weights": weights,
        "target": target,
        "output": str(output),
    }
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.build"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env=installed(),
            timeout=_BUILD_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return {"reason": f"not compiled within {_BUILD_TIMEOUT_S} s"}
    seconds = time.perf_counter() - start
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        return {"reason": f"the compiler ended with {done.returncode}: {lines[-1]}"}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**answer, "seconds": round(seconds, 3)}
