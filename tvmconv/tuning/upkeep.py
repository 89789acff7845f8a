"""Upkeep of logs: merge those of several machines, prune them, promote the best into a checkout."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tvmconv.errors import ConfigError, TuningError
from tvmconv.replacement import replacement
from tvmconv.tuning import lookup, records, workloads
from tvmconv.tuning.history import entry, wrong_ids
from tvmconv.tuning.records import Record

__all__ = [
    "MOST_BYTES",
    "Merged",
    "checkout",
    "merge",
    "promote",
    "prune",
    "read_all",
    "winners",
    "write_lines",
]

#: Of all records that ship.
MOST_BYTES = 2 << 20
_FINGERPRINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")


@dataclass(frozen=True)
class Merged:
    """What came of a merge: new records, known ones, and lines that are no (or foreign) records."""

    added: int
    known: int
    refused: int


def read_all(log: Path) -> Iterator[Record]:
    """The records of a log, or of one file of lines, whatever their version.

    Raises
    ------
    ConfigError
        There is no such folder or file.
    TuningError
        It cannot be read.
    """
    if not log.exists():
        raise ConfigError(f"there is no log {log}")
    for path in records.workload_files(log) if log.is_dir() else [log]:
        yield from records.read_file(path)


def merge(sources: Sequence[Path], into: Path) -> Merged:
    """Add the records of other logs, each once.

    Parameters
    ----------
    sources
        Logs, or files that were exported. They may come from strangers: a record whose names do
        not follow from its contents is refused.
    into
        The log that grows.

    Raises
    ------
    ConfigError
        A source does not exist.
    TuningError
        A log cannot be read or written.
    """
    known = {entry(record) for record in read_all(into)} if into.exists() else set()
    added: list[Record] = []
    again = refused = 0
    for source in sources:
        for record in read_all(source):
            if not _consistent(record):
                refused += 1
            elif entry(record) in known:
                again += 1
            else:
                known.add(entry(record))
                added.append(record)
    records.append(into, added)
    return Merged(len(added), again, refused)


def _consistent(record: Record) -> bool:
    """Whether the names in a record, which become names of files, are those of its contents."""
    fingerprint = record.target["fingerprint"]
    return (
        _FINGERPRINT.fullmatch(fingerprint) is not None
        and record.workload_key == workloads.key(record.workload)
        and record.id == records.identity(record.workload_key, fingerprint, record.decisions)
    )


def winners(found: Iterable[Record]) -> list[Record]:
    """The confirmed records that a compilation may ask for: the last one of each algorithm."""
    last: dict[tuple[str, bool], Record] = {}
    for record in sorted(found, key=lambda record: record.when):
        if record.final is not None:
            last[record.kind, lookup.allowed(record, "auto")] = record
    return list(last.values())


def prune(paths: Iterable[Path], keep: int, *, dry_run: bool = False) -> tuple[int, int]:
    """Reduce files of a log to what is of use.

    That is the winners, the default, and the fastest candidates of this version's search space.
    Failed candidates go too: a later search may try them again.

    Parameters
    ----------
    paths
        Files of a log.
    keep
        The number of candidates for each workload.
    dry_run
        Count, and change nothing.

    Returns
    -------
    tuple of int
        Lines kept and removed.

    Raises
    ------
    TuningError
        A file cannot be read or replaced.
    """
    kept = removed = 0
    for path in paths:
        try:
            handle = records.locked(path)
        except OSError as exc:
            raise _unwritable(path, exc) from exc
        try:
            text = path.read_bytes()
            lines = sum(1 for line in text.split(b"\n") if line.strip())
            left = _useful(list(records.read_file(path)), keep)
            kept, removed = kept + len(left), removed + lines - len(left)
            if not dry_run and lines != len(left):
                write_lines(path, left)
        except OSError as exc:
            raise _unwritable(path, exc) from exc
        finally:
            os.close(handle)
    return kept, removed


def _useful(found: list[Record], keep: int) -> list[Record]:
    own = {entry(record): record for record in found if records.is_current(record)}
    wrong = wrong_ids(own.values())
    plain = [record for record in own.values() if record.final is None and record.seconds]
    plain = [record for record in plain if record.id not in wrong]
    plain.sort(key=lambda record: record.time_s or math.inf)
    left = {entry(record) for record in (*winners(own.values()), *plain[:keep])}
    left |= {entry(record) for record in plain if record.trial == 0}
    return [record for record in own.values() if entry(record) in left]


def promote(
    found: Iterable[Record], place: Path, *, dry_run: bool = False
) -> list[tuple[Path, Record]]:
    """Copy confirmed winners among the records that ship.

    Traces stay behind: the compiler applies the decisions, and a trace is ten times their size.

    Parameters
    ----------
    found
        Records of any kind; only current, confirmed ones count.
    place
        The folder ``tuning_logs`` of a checkout.
    dry_run
        Check, and write nothing.

    Returns
    -------
    list of (path, Record)
        The winners that are new there, and their files.

    Raises
    ------
    TuningError
        The records would be larger than `MOST_BYTES`, or a file cannot be written.
    """
    files: dict[Path, list[Record]] = {}
    for record in found:
        if record.final is not None and records.is_current(record) and _consistent(record):
            path = place / record.target["fingerprint"] / f"{record.workload_key}.json"
            files.setdefault(path, []).append(replace(record, trace=None))
    fresh: list[tuple[Path, Record]] = []
    texts: dict[Path, list[Record]] = {}
    for path, candidates in files.items():
        there = {entry(record): record for record in records.read_file(path)}
        present = {key: one for key, one in there.items() if records.is_current(one)}
        texts[path] = winners([*present.values(), *candidates])
        fresh += [(path, record) for record in texts[path] if entry(record) not in present]
    size = sum(len(f"{record.to_json()}\n") for left in texts.values() for record in left)
    size += sum(p.stat().st_size for p in records.workload_files(place) if p not in texts)
    if size > MOST_BYTES:
        raise TuningError(
            f"the records in {place} would take {size:,} bytes, of at most {MOST_BYTES:,}; name "
            "the layers to promote"
        )
    for path, left in texts.items() if not dry_run else ():
        try:
            path.parent.mkdir(exist_ok=True)
            write_lines(path, left)
        except OSError as exc:
            raise _unwritable(path, exc) from exc
    return fresh


def checkout(start: Path) -> Path:
    """The folder ``tuning_logs`` of the checkout of tvmconv that a folder is in.

    Raises
    ------
    ConfigError
        It is in none.
    """
    for folder in (start.absolute(), *start.absolute().parents):
        project, logs = folder / "pyproject.toml", folder / "tuning_logs"
        if (logs / "__init__.py").is_file() and project.is_file():
            text = project.read_text(encoding="utf-8", errors="replace")
            if re.search(r'^name\s*=\s*"tvmconv"', text, re.M):
                return logs
    raise ConfigError(
        f"{start} is not in a checkout of tvmconv, where records that ship are kept; go to one, or "
        "name it with --checkout"
    )


def write_lines(path: Path, found: Iterable[Record]) -> None:
    """Write records to a file, one a line, whole or not at all.

    Raises
    ------
    OSError
        It cannot be written.
    """
    with replacement(path, durable=True) as file:
        file.writelines(f"{record.to_json()}\n".encode() for record in found)


def _unwritable(path: Path, exc: OSError) -> TuningError:
    return TuningError(f"the log {path} cannot be written: {exc.strerror or exc}")
