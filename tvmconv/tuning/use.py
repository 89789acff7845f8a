"""Which tiling a compilation takes: a record's, the nearest shape's, or the default rule's."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvmconv.errors import TvmconvError
from tvmconv.tuning import lookup, workloads

if TYPE_CHECKING:
    from tvmconv.compute.tiling import Tiling
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget
    from tvmconv.tuning.records import Record

__all__ = ["Choice", "choose", "state"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """A tiling, and where it comes from.

    Attributes
    ----------
    tiling : Tiling
        The decisions.
    origin : str
        ``"default"`` or ``"record:<id>"``.
    transfer : bool
        Whether the record was made on another shape of the layer.
    cores : int or None
        That the record was measured with.
    """

    tiling: Tiling
    origin: str = "default"
    transfer: bool = False
    cores: int | None = None


def choose(
    works: Sequence[Workload],
    target: CpuTarget,
    *,
    exact: bool = False,
    algorithm: str = "auto",
    logs: str | Path | None = None,
) -> list[Choice]:
    """The tilings of several shapes of one layer, which share one layout of packed weights.

    Parameters
    ----------
    works, target, exact, algorithm
        As for `tvmconv.schedules.decide_all`. With ``exact`` no record is used.
    logs
        See `tvmconv.tuning.lookup.folders`.

    Raises
    ------
    ConfigError
        Toom-Cook is asked for, and does not serve one of them.
    """
    from tvmconv import schedules

    defaults = schedules.decide_all(works, target, exact=exact, algorithm=algorithm)
    default = [Choice(tiling) for tiling in defaults]
    places = [] if exact else lookup.folders(logs)
    found = [_recorded(work, target, algorithm, places) for work in works] if places else []
    if not any(found):
        return default
    chosen = [one or own for one, own in zip(found, default, strict=True)]
    if len(works) == 1 or _one_layout(works, chosen):
        return chosen
    # Shapes whose records pack the weights in different ways cannot share a library.
    for lead in (one for one in chosen if one.transfer or one.origin != "default"):
        alike = [_alike(lead, one, work, target) for one, work in zip(chosen, works, strict=True)]
        fitting = [one for one in alike if one is not None]
        if len(fitting) == len(works) and _one_layout(works, fitting):
            return fitting
    return default


def state(
    work: Workload,
    fingerprint: str,
    algorithm: str = "auto",
    logs: str | Path | None = None,
    cores: int | None = None,
    precision: str = "full",
) -> str:
    """What `choose` would look at, in a few letters: part of the key of the compile cache.

    Loads no TVM.
    """
    described = workloads.describe(work, precision)
    places = lookup.folders(logs)
    with contextlib.suppress(TvmconvError):
        record = _best(places, fingerprint, described, algorithm, cores)
        if record is not None:
            line = record.to_json().encode()
            return f"{record.id}-{hashlib.sha256(line).hexdigest()[:8]}"
    return "default"


def _best(
    places: Sequence[Path],
    fingerprint: str,
    described: dict[str, object],
    algorithm: str,
    cores: int | None,
) -> Record | None:
    record = lookup.best(places, fingerprint, workloads.key(described), algorithm, cores)
    return record or lookup.nearest(places, fingerprint, described, algorithm, cores)


def _recorded(
    work: Workload, target: CpuTarget, algorithm: str, places: Sequence[Path]
) -> Choice | None:
    """The best record's choice; None where there is none, or its rule refuses it here."""
    from tvmconv.compute.tiling import Tiling
    from tvmconv.schedules.space import Space

    described = workloads.describe(work)
    try:
        record = _best(places, target.fingerprint(), described, algorithm, target.cores)
    except TvmconvError as exc:
        _log.warning("tuning records are not used: %s", exc)
        return None
    if record is None:
        return None
    transfer = record.workload_key != workloads.key(described)
    try:
        space = Space.of(work, target, algorithm)
        tiling = space.read(record.decisions)
    except (TypeError, TvmconvError) as exc:
        _log.warning("record %s is not used: %s", record.id, exc)
        return None
    if record.final is not None and record.final.gain == 0:
        # The default won: today's, for this number of cores.
        tiling = space.default
    elif tiling != space.default and space.find(tiling) is None:
        tiling_here = space.nearest(tiling) if transfer else None
        if tiling_here is None:
            _log.info("record %s is not used: its rule refuses it on this shape", record.id)
            return None
        tiling = tiling_here
    assert isinstance(tiling, Tiling)
    cores = record.machine.get("cores")
    if not lookup.alike(record, target.cores):
        _log.info("record %s was measured with %s cores", record.id, cores)
    return Choice(tiling, f"record:{record.id}", transfer, cores)


def _alike(lead: Choice, own: Choice, work: Workload, target: CpuTarget) -> Choice | None:
    """A shape's choice with the packed weights of another's: its own, else the rule's answer."""
    from tvmconv.schedules.cpu import phase, toom_cook
    from tvmconv.schedules.cpu.coupled import coupled_tiling

    if _one_layout([work, work], [lead, own]):
        return own
    work = work.joined()
    if lead.tiling.form == "toom-cook":
        tiling = toom_cook.with_layout(lead.tiling, work, target)
    elif lead.tiling.form == "phase":
        rule = coupled_tiling if lead.tiling.coupled else phase.decide
        default = rule(work, target)
        tiling = default and phase.with_lanes(default, lead.tiling, work, target)
    else:
        tiling = None
    return None if tiling is None else Choice(tiling)


def _one_layout(works: Sequence[Workload], chosen: Sequence[Choice]) -> bool:
    from tvmconv import compute

    first = compute.layout(works[0], chosen[0].tiling)
    pairs = zip(works[1:], chosen[1:], strict=True)
    return all(compute.layout(work, one.tiling) == first for work, one in pairs)
