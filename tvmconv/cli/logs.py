"""List, show, merge, prune, export or promote what tuning has learnt."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmconv.cli import console
from tvmconv.errors import ConfigError, TuningError, one_line

if TYPE_CHECKING:
    from tvmconv.tuning.history import History
    from tvmconv.tuning.records import Record

__all__ = ["add_arguments", "run"]

_KEEP, _SHOWN = 32, 5
_HEADER = (
    "target", "layer", "workload", "key", "trials", "failed", "best ms", "GFLOP/s", "gain",
    "default", "log",
)  # fmt: skip
#: Whether the default of a winner's day is still the default.
_DEFAULT = {True: "changed", False: "same", None: None}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tvmconv logs``."""
    actions = parser.add_subparsers(metavar="ACTION", required=True, dest="action")
    text = "the log, instead of your own"
    names = "layers, keys of workloads (or their first digits), targets; none: everything"

    def action(name: str, about: str, several: bool = True) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=about, description=about, allow_abbrev=False)
        one.add_argument("--logs", type=Path, metavar="DIR", help=text)
        if name != "export":
            one.add_argument("--json", action="store_true", help="print it as JSON")
        if several:
            one.add_argument("names", nargs="*", metavar="NAME", help=names)
        one.set_defaults(parser=one)
        return one

    action("list", "One line for each workload, of your log and of the records that ship.")
    show = action("show", "What was found for a workload, and its fastest candidates.")
    show.add_argument("--count", type=_count, default=_SHOWN, metavar="N", help="of the fastest")
    show.add_argument("--report", type=Path, metavar="FILE.html", help="write the HTML report too")
    merge = action("merge", "Add the records of other logs or exported files to yours.", False)
    merge.add_argument("sources", nargs="+", type=Path, metavar="LOG")
    prune = action("prune", "Remove what is of no more use: failures, slow candidates, damage.")
    prune.add_argument(
        "--keep", type=_count, default=_KEEP, metavar="N",
        help=f"of the fastest candidates of each workload, default {_KEEP}; winners always stay",
    )  # fmt: skip
    export = action("export", "Write records to one file, for `merge` elsewhere.")
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: print them")
    promote = action("promote", "Copy the winners of your log into a checkout of tvmconv.")
    promote.add_argument("--checkout", type=Path, metavar="DIR", help="default: the one we are in")
    for one in (prune, promote):
        one.add_argument("--dry-run", action="store_true", help="say what would be done")


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"expected a number from 0 on, found {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Do what was asked for."""
    actions = {
        "list": _list,
        "show": _show,
        "merge": _merge,
        "prune": _prune,
        "export": _export,
        "promote": _promote,
    }
    damage = _Damage(logging.WARNING)
    log = logging.getLogger("tvmconv.tuning.records")
    log.addHandler(damage)
    try:
        actions[args.action](args)
    finally:
        log.removeHandler(damage)
    if damage.lines:
        lines = _counted(len(damage.lines), "damaged line")
        sys.stderr.write(f"tvmconv: {lines} left out, the first: {damage.lines[0]}\n")
    return 0


class _Damage(logging.Handler):
    """Collects what the reader of records says of lines that it left out, each once."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Remember one warning."""
        text = one_line(record.getMessage())
        if text not in self.lines:
            self.lines.append(text)


def _own(args: argparse.Namespace) -> Path:
    """The log that is worked on: ``--logs``, else the user's."""
    from tvmconv.tuning import lookup

    folder = args.logs or lookup.user_folder()
    if str(folder) == "none":
        raise ConfigError("there is no log named none; name a folder with --logs")
    return Path(folder)


def _found(args: argparse.Namespace, folder: Path) -> list[Record]:
    """The records of a log that fit the names; a name that none fits is refused."""
    from tvmconv.tuning import upkeep

    every = list(upkeep.read_all(folder)) if folder.exists() else []
    if args.logs and not folder.exists():
        raise ConfigError(f"there is no log {folder}")
    return _named(every, args.names, str(folder))


def _named(every: Sequence[Record], names: Sequence[str], where: str) -> list[Record]:
    for name in names:
        if not any(_fits(record, name) for record in every):
            layers = ", ".join(dict.fromkeys(record.layer for record in every))
            raise ConfigError(
                f"no record of {name!r} in {where}; "
                + (f"there are layers {layers}" if layers else "it is empty")
            )
    return [r for r in every if not names or any(_fits(r, name) for name in names)]


def _fits(record: Record, name: str) -> bool:
    prefix = len(name) >= 4 and record.workload_key.startswith(name)
    return prefix or name in (record.layer, record.target["fingerprint"], record.id)


def _surveyed(args: argparse.Namespace) -> Iterator[tuple[str, History]]:
    """Each workload with the name of its log: ``--logs`` alone, else the user's and the shipped."""
    from tvmconv.tuning import lookup, upkeep
    from tvmconv.tuning.history import histories

    own = _own(args)
    places = [(str(own), own)]
    if args.logs is None:
        places = [("yours", own), ("shipped", lookup.shipped_folder())]
    elif not own.exists():
        raise ConfigError(f"there is no log {own}")
    read = [(name, list(upkeep.read_all(path))) for name, path in places if path.exists()]
    every = [record for _, found in read for record in found]
    wanted = {id(r) for r in _named(every, args.names, " or ".join(str(p) for _, p in places))}
    for name, found in read:
        yield from ((name, one) for one in histories([r for r in found if id(r) in wanted]))


def _list(args: argparse.Namespace) -> None:
    from tvmconv.tuning import workloads

    found = list(_surveyed(args))
    if args.json:
        console.dump([_facts(name, one) for name, one in found])
        return
    rows = []
    for name, one in found:
        record, best = one.record, one.best
        rows.append(
            (
                record.target["fingerprint"],
                record.layer,
                workloads.title(record.workload),
                record.workload_key[:8],
                len(one.candidates),
                len(one.candidates) - len(one.measured),
                f"{best.seconds * 1e3:.3f}" if best else None,
                f"{best.record.gflops:.1f}" if best else None,
                f"{one.final.gain:+.1%}" if one.final else None,
                _DEFAULT[_default_changed(one)],
                name,
            )
        )
    if rows:
        console.table(_HEADER, rows)
    where = str(args.logs) if args.logs else f"{_own(args)}, or shipped"
    console.say(f"{_counted(len(found), 'workload')} in {where}")
    if any(row[-2] == _DEFAULT[True] for row in rows):
        console.say(
            "default changed: the winner was measured against another default than today's; "
            "`tvmconv tune` lets the two meet"
        )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _default_changed(one: History) -> bool | None:
    """Whether the default that the winner beat is no more; None where that is not known."""
    from tvmconv.tuning import defaults

    return defaults.changed(one.winner) if one.winner else None


def _facts(name: str, one: History) -> dict[str, Any]:
    record, best, winner = one.record, one.best, one.winner
    return {
        "log": name,
        "target": record.target,
        "machine": record.machine,
        "layer": record.layer,
        "workload_key": record.workload_key,
        "workload": record.workload,
        "trials": len(one.candidates),
        "failures": {reason: len(failed) for reason, failed in one.failures.items()},
        "best_s": best.seconds if best else None,
        "gflop": record.gflop,
        "limit_gflops": record.limit_gflops,
        "default_changed": _default_changed(one),
        "importance": {each.name: each.share for each in one.importances},
        "winner": json.loads(winner.to_json()) if winner else None,
    }


def _show(args: argparse.Namespace) -> None:
    found = list(_surveyed(args))
    if not found:
        raise ConfigError(f"nothing was tuned yet: there is no record in {_own(args)}")
    if args.report is not None:
        from tvmconv.tuning import report

        report.write(args.report, [record for _, one in found for record in one.records])
    if args.json:
        console.dump([_facts(name, one) for name, one in found])
        return
    for at, (name, one) in enumerate(found):
        if at:
            console.say()
        _print(name, one, args.count)
    if args.report is not None:
        console.say(f"report: {args.report}")


def _print(name: str, one: History, count: int) -> None:
    from tvmconv.tuning import workloads
    from tvmconv.tuning.history import spelt
    from tvmconv.tuning.machine import shown

    record, winner = one.record, one.winner
    console.say(one_line(f"{record.layer}: {workloads.title(record.workload)}"))
    lines = {
        "key": record.workload_key,
        "target": f"{record.target['fingerprint']}, {shown(record.machine)}",
        "log": name,
        "trials": str(len(one.candidates)),
    }
    if one.failures:
        reasons = ", ".join(f"{len(failed)} {reason}" for reason, failed in one.failures.items())
        lines["failed"] = reasons
    final = one.final
    if winner is None or final is None:
        lines["winner"] = "not confirmed: the run did not end"
    else:
        lines["winner"] = (
            f"{winner.id}, {final.median_s * 1e3:.3f} ms, default {final.default_s * 1e3:.3f} ms, "
            f"gain {final.gain:+.1%} ({final.gain_low:+.1%} to {final.gain_high:+.1%})"
        )
        if _default_changed(one):
            lines["default"] = "has changed since; `tvmconv tune` lets the two meet"
        lines["decisions"] = ", ".join(f"{k} {spelt(v)}" for k, v in winner.decisions.items())
    for what, text in lines.items():
        console.say(f"  {what:<10} {one_line(text)}")
    fastest = sorted(one.measured, key=lambda candidate: candidate.seconds)[:count]
    if fastest:
        console.table(
            ("candidate", "trial", "ms", "GFLOP/s", *one.varied),
            [
                (
                    candidate.record.id,
                    candidate.record.trial,
                    f"{candidate.seconds * 1e3:.3f}",
                    f"{candidate.record.gflops:.1f}",
                    *(spelt(candidate.record.decisions.get(name, "-")) for name in one.varied),
                )
                for candidate in fastest
            ],
        )


def _merge(args: argparse.Namespace) -> None:
    import dataclasses

    from tvmconv.tuning import upkeep

    own = _own(args)
    done = upkeep.merge(args.sources, own)
    if args.json:
        console.dump({"log": str(own), **dataclasses.asdict(done)})
        return
    refused = f", {done.refused} refused as inconsistent" if done.refused else ""
    console.say(f"{own}: {_counted(done.added, 'record')} added, {done.known} known{refused}")


def _prune(args: argparse.Namespace) -> None:
    from tvmconv.tuning import records, upkeep

    own = _own(args)
    wanted = {(r.target["fingerprint"], r.workload_key) for r in _found(args, own)}
    paths = [
        path
        for path in records.workload_files(own)
        if not args.names or (path.parent.name, path.stem) in wanted
    ]
    kept, removed = upkeep.prune(paths, args.keep, dry_run=args.dry_run)
    if args.json:
        console.dump({"log": str(own), "kept": kept, "removed": removed, "dry_run": args.dry_run})
        return
    verb = "would be removed" if args.dry_run else "removed"
    console.say(f"{own}: {_counted(removed, 'line')} {verb}, {_counted(kept, 'record')} kept")


def _export(args: argparse.Namespace) -> None:
    from tvmconv.tuning import upkeep

    found = _found(args, _own(args))
    if not found:
        raise ConfigError(f"there is no record in {_own(args)}")
    if args.output is None:
        for record in found:
            console.say(record.to_json())
        return
    try:
        upkeep.write_lines(args.output, found)
    except OSError as exc:
        raise TuningError(f"{args.output} cannot be written: {exc.strerror or exc}") from exc
    console.say(f"{args.output}: {_counted(len(found), 'record')}")


def _promote(args: argparse.Namespace) -> None:
    from tvmconv.tuning import upkeep

    place = upkeep.checkout(args.checkout or Path.cwd())
    own = _own(args)
    fresh = upkeep.promote(_found(args, own), place, dry_run=args.dry_run)
    if args.json:
        console.dump([{"file": str(path), "record": json.loads(r.to_json())} for path, r in fresh])
        return
    rows = [
        (r.layer, r.id, f"{r.final.gain:+.1%}" if r.final else "-", path.relative_to(place))
        for path, r in fresh
    ]
    if rows:
        console.table(("layer", "record", "gain", "file"), rows)
    verb = "would be promoted" if args.dry_run else "promoted"
    console.say(f"{_counted(len(fresh), 'record')} {verb} into {place}")
