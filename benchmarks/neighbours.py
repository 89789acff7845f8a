"""What a step away from a layer costs: ``python -m benchmarks.neighbours``.

Beside each layer of the list its neighbours are compiled: sizes that nothing divides, other numbers
of channels, batches, an open batch, channels first, half width. All of them take turns in one
process on one core; a price is the time for a useful operation over that of what it is compared
with, in the same round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import machine, neighbour_times
from benchmarks.child import ROOT
from benchmarks.neighbour_times import Variant
from benchmarks.report import table, update
from benchmarks.workloads import Workload, named

__all__ = ["DEFAULT", "KINDS", "Price", "main", "neighbours", "prices", "rendered"]

DEFAULT = (
    "unet_up1", "unet_up4", "psm_conv5", "gan_g4", "gan_g5", "videogpt_1", "pcc_l1", "ae_s1",
)  # fmt: skip
"""A tiny volume, kernel = stride, k3, k4, one filter, three filters, k5, stride 1."""
_QUICK = ("unet_up1", "psm_conv5", "gan_g5")
_ROUNDS, _QUICK_ROUNDS = 7, 3
_TURN_S = 0.05
_SIZE_STEPS = (-3, -1, 1, 3)
_BATCHES = (2, 3, 4)
#: What is compared, and the most that it may cost; in the order of the table's columns.
KINDS = {
    "size": 1.25,
    "channels": 1.25,
    "batch": 1.05,
    "open batch": 1.05,
    "channels first": 1.10,
    "half width": 1.03,
}


@dataclass(frozen=True)
class Price:
    """A neighbour's time for a useful operation over that of what it stands beside.

    Attributes
    ----------
    layer, kind, label, beside
        The layer of the list, what differs, the neighbour, and what it is compared with.
    value, low, high
        Median, lowest and highest of the rounds; None where one of the two was not timed.
    form
        How the neighbour was compiled.
    reason
        Why there is no value.
    """

    layer: str
    kind: str
    label: str
    beside: str
    value: float | None
    low: float | None = None
    high: float | None = None
    form: str = ""
    reason: str = ""

    @property
    def met(self) -> bool:
        """Whether it costs no more than its kind may."""
        return self.value is not None and self.value <= KINDS[self.kind]


def neighbours(work: Workload, *, quick: bool = False) -> list[Variant]:
    """The layer itself, of one sample, and all that is compared with it or with another of these.

    Parameters
    ----------
    work
        A layer of the list.
    quick
        Fewer of them.
    """
    base = Variant("", "itself", "", replace(work, batch=1))
    found = [base]
    for kind, label, changed in _changed(base.work, quick=quick):
        if changed not in (one.work for one in found):
            found.append(Variant(kind, label, base.label, changed))
    for batch in _BATCHES[:1] if quick else _BATCHES:
        # Beside as many calls: one sample alone may stay in a cache that several do not fit.
        calls = Variant("", f"{batch} calls", "", replace(work, batch=batch), alone=True)
        fixed = replace(
            calls, kind="batch", label=f"batch {batch}", beside=calls.label, alone=False
        )
        label = f"batch {batch} where it is open"
        found += [calls, fixed, replace(fixed, kind="open batch", label=label, beside=fixed.label,
                                        open_batch=True)]  # fmt: skip
    for dtype in ("float16", "bfloat16"):
        found.append(replace(base, kind="half width", label=dtype, beside=base.label, dtype=dtype))
    first = replace(
        base, kind="channels first", label="channels first", beside=base.label, channels_first=True
    )
    return [*found, first]


def _changed(work: Workload, *, quick: bool) -> Iterator[tuple[str, str, Workload]]:
    """Sizes and channels one or three away, and primes."""
    for step in _SIZE_STEPS[1:3] if quick else _SIZE_STEPS:
        # A small axis less three would be another kind of layer.
        depth, height, width = (size + step if size > -2 * step else size for size in work.size)
        yield "size", f"{depth}x{height}x{width}", replace(work, size=(depth, height, width))
    depth, height, width = work.size
    yield "size", f"{depth}x{height}x{width + 1}", replace(work, size=(depth, height, width + 1))
    for filters in (work.filters - 1, work.filters + 1, _prime_above(work.filters + 1)):
        if filters > 0:
            yield "channels", f"{filters} filters", replace(work, filters=filters)
    if not quick:
        for channels in (work.in_channels + 1, _prime_above(work.in_channels + 1)):
            label = f"{channels} input channels"
            yield "channels", label, replace(work, in_channels=channels)


def _prime_above(number: int) -> int:
    while True:
        number += 1
        if number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1)):
            return number


def prices(record: dict[str, Any]) -> list[Price]:
    """The price of every neighbour, the worst beside its limit first; what failed before all."""
    found = []
    for layer in record["layers"]:
        results = {one["label"]: one for one in layer["variants"]}
        for one in layer["variants"]:
            if not one["kind"]:
                continue
            start = (layer["name"], one["kind"], one["label"], one["beside"])
            beside = results[one["beside"]]
            reason = one["reason"] or beside["reason"]
            if reason:
                found.append(Price(*start, None, reason=reason))
                continue
            times = zip(one["rounds_s"], beside["rounds_s"], strict=True)
            scale = beside["flops"] / one["flops"]
            values = [mine / other * scale for mine, other in times]
            found.append(
                Price(*start, statistics.median(values), min(values), max(values), one["form"])
            )
    return sorted(found, key=_excess, reverse=True)


def _excess(price: Price) -> float:
    return float("inf") if price.value is None else price.value / KINDS[price.kind]


def rendered(record: dict[str, Any]) -> str:
    """The worst of each kind for each layer, and all that cost more than they may."""
    found = prices(record)
    body = []
    for layer in record["layers"]:
        line = [layer["name"], layer["variants"][0]["form"]]
        for kind in KINDS:
            worst = next((p for p in found if (p.layer, p.kind) == (layer["name"], kind)), None)
            line.append("-" if worst is None else _spelt(worst))
        body.append(line)
    limits = [f"{kind}, at most {limit:.2f}" for kind, limit in KINDS.items()]
    noise, described = record["noise"], record["machine"]
    lines = [
        f"{described['date']}: {described['cpu']}, one thread; {record['rounds']} rounds, turns of "
        f"{_TURN_S} s; load average {noise['load_at_start']} before, other processes took "
        f"{noise['others_share']:.1%} of the processors' time.",
        *(f"WARNING: {text}; the figures are not to be trusted." for text in noise["warnings"]),
        table(["layer", "form", *limits], body, 2),
        f"{sum(p.met for p in found)} of {len(found)} neighbours cost no more than they may.",
    ]
    over = [price for price in found if not price.met]
    if over:
        lines += ["The others, the worst beside its limit first:", listed(over)]
    return "\n\n".join(lines)


def listed(found: list[Price]) -> str:
    """Prices, one a row."""
    head = ["layer", "neighbour", "form", "beside", "price", "rounds"]
    body = [
        [p.layer, p.label, p.form or p.reason, p.beside, "-", "-"]
        if p.value is None
        else [p.layer, p.label, p.form, p.beside, f"{p.value:.2f}", f"{p.low:.2f} to {p.high:.2f}"]
        for p in found
    ]
    return table(head, body, 4)


def _spelt(price: Price) -> str:
    return "failed" if price.value is None else f"{price.value:.2f} ({price.label})"


def main() -> int:
    """Compile, measure, print, and with ``--docs`` write into the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neighbours", description=__doc__)
    add = parser.add_argument
    add("--layers", default="", metavar="A,B", help=f"default: {','.join(DEFAULT)}")
    add("--quick", action="store_true", help="three layers, fewer neighbours and rounds")
    text = "compile into DIR and leave it; what is there is not compiled again, even if outdated"
    add("--keep", type=Path, metavar="DIR", help=text)
    add("--only-build", action="store_true", help="of --keep: measure another time")
    add("--kinds", default="", metavar="A,B", help=f"of {', '.join(KINDS)}; default: all")
    add("--json", type=Path, metavar="FILE", help="write every figure")
    add("--from", dest="source", type=Path, metavar="FILE", help="measure nothing; read --json's")
    page = ROOT / "docs" / "performance.md"
    add("--docs", nargs="?", type=Path, const=page, metavar="FILE", help=f"default: {page.name}")
    args = parser.parse_args()
    kinds = {kind for kind in args.kinds.split(",") if kind}
    if kinds - set(KINDS):
        parser.error(f"no kind {min(kinds - set(KINDS))!r}; there are {', '.join(KINDS)}")
    if args.only_build and args.keep is None:
        parser.error("--only-build goes with --keep")
    try:
        works = named(
            args.layers.split(",") if args.layers else list(_QUICK if args.quick else DEFAULT)
        )
    except ValueError as exc:
        parser.error(str(exc))
    if args.source:
        record = json.loads(args.source.read_text(encoding="utf-8"))
    else:
        groups = {work.name: _asked(neighbours(work, quick=args.quick), kinds) for work in works}
        with tempfile.TemporaryDirectory(prefix="tvmconv-neighbours-") as name:
            folder = args.keep or Path(name)
            watch = machine.Watch.start()
            built = neighbour_times.build(groups, folder, _say)
            if args.only_build:
                return 0
            rounds = _QUICK_ROUNDS if args.quick else _ROUNDS
            layers = neighbour_times.measure(groups, built, rounds, _TURN_S, _say)
        record = {
            "format": "tvmconv-neighbours",
            "version": 1,
            "machine": machine.describe(),
            "noise": watch.stop([]),
            "rounds": rounds,
            "layers": layers,
        }
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    part = rendered(record)
    print(f"{listed(prices(record))}\n\n{part}")
    if args.docs and update(args.docs, {"neighbours": part}):
        _say(f"{args.docs} has no place for: neighbours")
        return 1
    return 0


def _asked(found: list[Variant], kinds: set[str]) -> list[Variant]:
    """The neighbours of some kinds, what they stand beside, and what that stands beside."""
    if not kinds:
        return found
    beside = {one.label: one.beside for one in found}
    wanted = {one.label for one in found if one.kind in kinds}
    for _ in range(2):
        wanted |= {beside[label] for label in wanted if beside[label]}
    return [one for one in found if one.label in wanted]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
