"""The command line: ``python -m benchmarks``, from the top of a checkout."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks import costs, machine, measure, picture, report, resume
from benchmarks.child import ROOT
from benchmarks.data import TOLERANCE
from benchmarks.isa import ISAS
from benchmarks.runners import DEFAULT_PEERS, PEERS
from benchmarks.workloads import WORKLOADS, Workload, drawn, named

__all__ = ["main"]

_DOCS = ROOT / "docs" / "performance.md"
_COST_LAYERS = ["unet_up3", "unet_up4", "psm_conv5", "gan_g4", "videogpt_0"]
_ROUNDS, _QUICK_ROUNDS = 10, 3
_TURN_S, _QUICK_TURN_S = 0.2, 0.1


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _counts(text: str) -> list[int]:
    counts = sorted({int(count) for count in _names(text)})
    most = machine.cores()
    if not counts or counts[0] < 1 or counts[-1] > most:
        raise argparse.ArgumentTypeError(f"expected numbers of threads from 1 to {most}")
    return counts


def _peers(text: str) -> list[str]:
    names = [] if text == "none" else list(PEERS) if text == "all" else _names(text)
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no peer {unknown[0]!r}; there are {', '.join(PEERS)}")
    return names


def _layers(text: str) -> list[str]:
    try:
        named(names := _names(text))
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
    return names


def _parser() -> argparse.ArgumentParser:
    every = sorted({1, machine.cores()})
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Times Conv3DTranspose layers of real networks, here and in other frameworks.",
        epilog=f"Layers: {', '.join(work.name for work in WORKLOADS)}.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="few layers, few rounds: under five minutes")
    add("--nightly", action="store_true", help="the largest layers, too")
    add("--layers", type=_layers, metavar="A,B", help="only these layers")
    add("--random", type=int, default=0, metavar="N", help="instead, N layers drawn at random")
    add("--seed", type=int, default=1, help="of --random")
    add("--threads", type=_counts, default=every, metavar="1,2", help="default: one and all cores")
    text = f"of {', '.join(PEERS)}; 'all', 'none'; default: {','.join(DEFAULT_PEERS)}"
    add("--peers", type=_peers, default=list(DEFAULT_PEERS), metavar="A,B", help=text)
    text = "of tvmconv: auto, direct, toom-cook; the first is compared with the peers"
    add("--algorithm", type=_names, default=["auto"], metavar="A,B", help=text)
    text = "hold everybody to it; avx2: as on a processor without AVX-512"
    add("--isa", choices=ISAS, default=ISAS[0], help=text)
    text = "of the layers' arrays; limits stay those of float32"
    add("--dtype", choices=tuple(TOLERANCE), default="float32", help=text)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--rounds", type=int, help="turns that everybody gets")
    length.add_argument("--seconds", type=float, help="time for one layer, instead of --rounds")
    add("--costs", action="store_true", help="start, load, call, compile time, sizes and memory")
    text = "wait up to S seconds for the load average to fall below 0.5"
    add("--settle", type=float, default=0.0, metavar="S", help=text)
    add("--json", type=Path, metavar="FILE", help="write every figure")
    text = "go on with a run: keep the layers of this file, measure the others, write it again"
    add("--resume", type=Path, metavar="FILE", help=text)
    add("--at-most", type=int, metavar="N", help="of --resume: stop after N further layers")
    add("--from", type=Path, metavar="FILE", dest="source",
        help="measure nothing: take the figures from such a file")  # fmt: skip
    add("--picture", type=Path, metavar="FILE.png", help="draw bars and roofline")
    add("--docs", type=Path, nargs="?", const=_DOCS, metavar="FILE.md",
        help="put the tables into docs/performance.md")  # fmt: skip
    return parser


def _works(args: argparse.Namespace) -> list[Workload]:
    if args.random:
        works = drawn(args.random, args.seed)
    else:
        works = named(args.layers, quick=args.quick, nightly=args.nightly)
    return [dataclasses.replace(work, dtype=args.dtype) for work in works]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _measured(args: argparse.Namespace) -> dict[str, Any]:
    machine.settle(args.settle, _say)
    if args.costs:
        return costs.measure(named(args.layers or _COST_LAYERS), _say, 3 if args.quick else 9)
    if args.resume is None:
        return measure.run(_options(args, _works(args)), _say)
    before, works = resume.read(args.resume), _works(args)
    some = resume.left(works, before)[: args.at_most]

    def keep(record: dict[str, Any]) -> dict[str, Any]:
        merged = resume.merge(before, record, works)
        resume.write(args.resume, merged)
        return merged

    if some:
        # Whatever ends the run, no layer is measured twice.
        before = keep(measure.run(_options(args, some), _say, keep))
    _say(f"{args.resume}: {len(resume.left(works, before))} layers are left")
    return before or measure.run(_options(args, []), _say)


def _options(args: argparse.Namespace, works: list[Workload]) -> measure.Options:
    options = measure.Options(
        works,
        args.threads,
        args.peers,
        args.algorithm,
        args.rounds or (_QUICK_ROUNDS if args.quick else _ROUNDS),
        args.seconds,
        _QUICK_TURN_S if args.quick else _TURN_S,
        args.isa,
        args.dtype,
    )
    left_out = [entry.title for name, entry in PEERS.items() if name not in args.peers]
    if left_out and args.peers:
        _say(f"left out, being slow (--peers all asks them, too): {', '.join(left_out)}")
    return options


def main() -> int:
    """Measure, print the tables, write what was asked for."""
    parser = _parser()
    args = parser.parse_args()
    if args.at_most is not None and (args.resume is None or args.at_most < 1):
        parser.error("--at-most is a number from 1 on, of --resume")
    if args.resume and (args.costs or args.source):
        parser.error("--resume goes with neither --costs nor --from")
    try:
        record = json.loads(args.source.read_text()) if args.source else _measured(args)
    except ValueError as exc:
        parser.error(str(exc))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    if record["format"] == "tvmconv-costs":
        parts = {"costs": costs.rendered(record)}
    elif not record["layers"]:
        _say("nothing was measured")
        return 1
    else:
        parts = report.tables(record)
    print(report.document(parts))
    if args.docs and args.picture and "layers" in record:
        link = os.path.relpath(args.picture, args.docs.parent)
        parts["picture"] = f"![GFLOP/s of each layer, and all layers under the roofline]({link})"
    if args.docs:
        absent = report.update(args.docs, parts)
        if absent:
            _say(f"{args.docs} has no place for: {', '.join(absent)}")
    if args.picture and "layers" in record:
        try:
            picture.draw(record, args.picture)
        except ImportError as exc:
            _say(f"no picture: {exc}")
            return 1
    interrupted = "layers" in record and not record["options"]["complete"]
    return 130 if interrupted and not args.source and args.at_most is None else 0


if __name__ == "__main__":
    sys.exit(main())
