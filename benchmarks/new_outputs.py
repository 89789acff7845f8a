"""What a call without ``out`` costs beside one with it: ``python -m benchmarks.new_outputs``.

Where memory lies in the caches is chance, and moves a layer of a millisecond by some percent. So
each layer is loaded several times, and each of these has an array of its own for ``out`` and memory
of its own for new outputs. All of them take turns; a price is the median over the places of the
one kind over that of the other. A new output takes the place of the one before, as in a program
that uses one result at a time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import tvmconv
from benchmarks import machine, neighbour_times
from benchmarks.child import ROOT
from benchmarks.data import Array, Data, aligned
from benchmarks.neighbour_times import Variant
from benchmarks.report import table, update
from benchmarks.workloads import Workload, named
from tvmconv.runtime.library import CompiledLayer

__all__ = ["Prices", "main", "measure", "rendered"]

_MOST = 1.05
_PLACES, _ROUNDS = 8, 7
_TURN_S = 0.03


@dataclass(frozen=True)
class Prices:
    """A layer with some threads.

    Attributes
    ----------
    layer : str
        Its name.
    threads : int
        How many.
    kept, new : tuple of float
        Seconds a call for each place, least first: with ``out``, and with new outputs.
    """

    layer: str
    threads: int
    kept: tuple[float, ...]
    new: tuple[float, ...]

    @property
    def price(self) -> float:
        """A call with a new output over one with ``out``."""
        return statistics.median(self.new) / statistics.median(self.kept)


def measure(work: Workload, artifact: Path, threads: int) -> Prices:
    """Time a compiled layer with and without ``out``, in turns."""
    data = Data(work)
    calls: list[Callable[[], None]] = []
    for _ in range(_PLACES):
        layer = tvmconv.load(artifact, threads=threads)
        x = aligned(data.stored)
        out = aligned(np.zeros(work.output_shape, data.dtype))
        calls += [_into(layer, x, out), _anew(layer, x)]
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(_ROUNDS):
        order = range(len(calls))
        for number in order if turn % 2 == 0 else reversed(order):
            times[number].append(neighbour_times.turn(calls[number], _TURN_S))
    medians = [statistics.median(one) for one in times]
    return Prices(work.name, threads, tuple(sorted(medians[::2])), tuple(sorted(medians[1::2])))


def _into(layer: CompiledLayer, x: Array, out: Array) -> Callable[[], None]:
    def call() -> None:
        layer(x, out)

    return call


def _anew(layer: CompiledLayer, x: Array) -> Callable[[], None]:
    last: list[Array] = []

    def call() -> None:
        last.clear()
        last.append(layer(x))

    return call


def rendered(found: list[Prices]) -> str:
    """A row for each layer and number of threads, the dearest first."""
    body = [
        [one.layer, str(one.threads), f"{one.price:.3f}", _spelt(one.kept), _spelt(one.new)]
        for one in sorted(found, key=lambda one: one.price, reverse=True)
    ]
    head = ["layer", "threads", "price", "ms with out, least to most", "ms without"]
    met = sum(one.price <= _MOST for one in found)
    return f"{table(head, body)}\n\n{met} of {len(found)} cost at most {_MOST:.2f}."


def _spelt(times: tuple[float, ...]) -> str:
    least, median, most = (
        f"{1e3 * one:.3g}" for one in (times[0], statistics.median(times), times[-1])
    )
    return f"{median} ({least} to {most})"


def main() -> int:
    """Compile, measure, print, and with ``--docs`` write into the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.new_outputs", description=__doc__)
    add = parser.add_argument
    add("--layers", default="", metavar="A,B", help="default: all, the largest ones, too")
    add("--threads", default="", metavar="N,M", help="default: one, and as many as there are cores")
    page = ROOT / "docs" / "performance.md"
    add("--docs", nargs="?", type=Path, const=page, metavar="FILE", help=f"default: {page.name}")
    args = parser.parse_args()
    try:
        works = named(args.layers.split(",") if args.layers else None, nightly=True)
        cores = sorted({1, machine.cores()})
        counts = [int(n) for n in args.threads.split(",")] if args.threads else cores
        if min(counts) < 1:
            raise ValueError(f"Expected --threads of 1 or more. Received: {args.threads}")
    except ValueError as exc:
        parser.error(str(exc))
    variants = {work.name: [Variant("", "itself", "", work)] for work in works}
    found: list[Prices] = []
    with tempfile.TemporaryDirectory(prefix="tvmconv-new-outputs-") as name:
        built = neighbour_times.build(variants, Path(name), _say)
        watch = machine.Watch.start()
        for work in works:
            artifact = built[variants[work.name][0].folder]
            if isinstance(artifact, str):
                return 1
            _say(f"timing {work.name}")
            found += [measure(work, artifact, threads) for threads in counts]
    noise = watch.stop([])
    part = "\n\n".join(
        [
            f"{machine.describe()['date']}: load average {noise['load_at_start']} before, other "
            f"processes took {noise['others_share']:.1%} of the processors' time. "
            f"{_PLACES} places, {_ROUNDS} rounds.",
            *(f"WARNING: {text}; the figures are not to be trusted." for text in noise["warnings"]),
            rendered(found),
        ]
    )
    print(part)
    if args.docs and update(args.docs, {"new outputs": part}):
        _say(f"{args.docs} has no place for: new outputs")
        return 1
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
