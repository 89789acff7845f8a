"""What the records of one workload tell: the course of the search, and which decisions mattered."""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvmconv.tuning.records import Final, Record

__all__ = ["Candidate", "History", "Importance", "entry", "histories", "spelt", "wrong_ids"]


@dataclass(frozen=True)
class Candidate:
    """One measured candidate.

    Attributes
    ----------
    record : Record
        What was stored.
    number : int
        From 1 on, in the order of measurement, over all runs.
    elapsed_s : float
        Seconds of tuning before it was stored; pauses between runs do not count.
    """

    record: Record
    number: int
    elapsed_s: float

    @property
    def seconds(self) -> float:
        """Its fastest call, infinity where it failed."""
        return self.record.time_s or math.inf

    @property
    def share(self) -> float | None:
        """Its rate as a share of the limit, where that is known."""
        limit, rate = self.record.limit_gflops, self.record.gflops
        return rate / limit if rate is not None and limit else None


@dataclass(frozen=True)
class Importance:
    """What one decision does to the time, taken alone.

    Attributes
    ----------
    name : str
        The decision.
    share : float
        Share of the variance of the logarithm of the times that its value explains, corrected for
        the number of values (epsilon squared), 0 to 1.
    values : tuple of (str, int, float, float)
        Each value with its number of candidates, best and median seconds, the best value first.
    """

    name: str
    share: float
    values: tuple[tuple[str, int, float, float], ...]


@dataclass(frozen=True)
class History:
    """All records of one workload on one target, in the order of measurement.

    Attributes
    ----------
    candidates : tuple of Candidate
        What was measured.
    finals : tuple of Record
        The confirmed winners, the latest last.
    """

    candidates: tuple[Candidate, ...]
    finals: tuple[Record, ...]

    @property
    def record(self) -> Record:
        """Any record: what it says about layer, target and machine holds for all."""
        return self.finals[-1] if self.finals else self.candidates[-1].record

    @property
    def records(self) -> list[Record]:
        """All its records."""
        return [*(one.record for one in self.candidates), *self.finals]

    @property
    def winner(self) -> Record | None:
        """The latest confirmed record: what compiling uses."""
        return self.finals[-1] if self.finals else None

    @property
    def final(self) -> Final | None:
        """The second measurement of the winner."""
        return self.finals[-1].final if self.finals else None

    @cached_property
    def measured(self) -> tuple[Candidate, ...]:
        """The candidates with a time, but for those that turned out wrong later."""
        wrong = wrong_ids(one.record for one in self.candidates)
        return tuple(
            one for one in self.candidates if one.record.seconds and one.record.id not in wrong
        )

    @cached_property
    def best(self) -> Candidate | None:
        """The fastest candidate of the search."""
        return min(self.measured, key=lambda one: one.seconds, default=None)

    @property
    def default(self) -> Candidate | None:
        """The default rule's own decisions, which every search measures first."""
        return next((one for one in self.measured if one.record.trial == 0), None)

    @cached_property
    def records_broken(self) -> tuple[Candidate, ...]:
        """The candidates that were the fastest when they were measured."""
        found: list[Candidate] = []
        for one in self.measured:
            if not found or one.seconds < found[-1].seconds:
                found.append(one)
        return tuple(found)

    @cached_property
    def failures(self) -> dict[str, list[Candidate]]:
        """The failed candidates by reason, the most frequent first."""
        found: dict[str, list[Candidate]] = {}
        for one in self.candidates:
            if one.record.error is not None:
                found.setdefault(one.record.error.reason, []).append(one)
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))

    @cached_property
    def varied(self) -> tuple[str, ...]:
        """The names of the decisions that differ among the candidates."""
        seen: dict[str, set[str]] = {}
        for one in self.candidates:
            for name, value in one.record.decisions.items():
                seen.setdefault(name, set()).add(spelt(value))
        return tuple(name for name, values in seen.items() if len(values) > 1)

    @cached_property
    def importances(self) -> tuple[Importance, ...]:
        """The varied decisions, the most important first."""
        found = []
        for name in self.varied:
            groups: dict[str, list[float]] = {}
            for one in self.measured:
                if name in one.record.decisions:
                    groups.setdefault(spelt(one.record.decisions[name]), []).append(one.seconds)
            if len(groups) > 1:
                values = [(v, len(s), min(s), statistics.median(s)) for v, s in groups.items()]
                values.sort(key=lambda value: value[2])
                found.append(Importance(name, _explained(list(groups.values())), tuple(values)))
        return tuple(sorted(found, key=lambda one: -one.share))


def histories(records: Iterable[Record]) -> list[History]:
    """Group records by target and workload; in a group, a record that came twice counts once."""
    groups: dict[tuple[str, str], dict[tuple[Any, ...], Record]] = {}
    for record in records:
        group = groups.setdefault((record.target["fingerprint"], record.workload_key), {})
        group[entry(record)] = record
    return [_history(list(group.values())) for group in groups.values()]


def wrong_ids(found: Iterable[Record]) -> set[str]:
    """Candidates that computed wrong numbers at least once, whatever their times."""
    return {one.id for one in found if one.error is not None and one.error.reason == "wrong"}


def entry(record: Record) -> tuple[Any, ...]:
    """What tells one entry of a log from the others: two with the same are one that was copied."""
    return record.run, record.trial, record.id, record.when, record.final is not None


def _history(records: Sequence[Record]) -> History:
    ordered = sorted(records, key=lambda record: (record.when, record.trial))
    finals = [record for record in ordered if record.final is not None]
    searched = [record for record in ordered if record.final is None]
    # A log that was pruned may hold a winner without the candidate that it was.
    known = {record.id for record in searched}
    searched += [record for record in finals if record.id not in known]
    candidates: list[Candidate] = []
    begun: set[str] = set()
    elapsed, before = 0.0, None
    for number, record in enumerate(searched, 1):
        now = _moment(record.when)
        if record.run in begun and before is not None and now is not None:
            elapsed += max(0.0, now - before)
        begun.add(record.run)
        before = now
        candidates.append(Candidate(record, number, elapsed))
    return History(tuple(candidates), tuple(finals))


def _moment(when: str) -> float | None:
    try:
        return datetime.datetime.fromisoformat(when.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def _explained(groups: list[list[float]]) -> float:
    """Epsilon squared of the logarithms: unlike the plain share, chance alone gives 0."""
    logs = [[math.log(seconds) for seconds in group] for group in groups]
    every = [value for group in logs for value in group]
    free = len(every) - len(logs)
    mean = statistics.fmean(every)
    total = sum((value - mean) ** 2 for value in every)
    if free < 1 or total <= 0:
        return 0.0
    within = sum((value - statistics.fmean(group)) ** 2 for group in logs for value in group)
    return max(0.0, 1 - within / total * (len(every) - 1) / free)


def spelt(value: Any) -> str:
    """A decision's value as people read it: ``yes``, ``2 x 2 x 4``."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " x ".join(spelt(one) for one in value)
    return str(value)
