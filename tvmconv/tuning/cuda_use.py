"""Which tiling a compilation for CUDA devices takes: a record's, or the default rule's."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvmconv import cuda_machine
from tvmconv.errors import TvmconvError
from tvmconv.tuning import lookup, workloads

if TYPE_CHECKING:
    from tvmconv.compute.cuda.tiling import CudaTiling
    from tvmconv.compute.workload import Workload
    from tvmconv.cuda_devices import Architecture
    from tvmconv.schedules.space import Space
    from tvmconv.tuning.records import Record

__all__ = ["CudaChoice", "choose"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CudaChoice:
    """A tiling, and where it comes from: see `tvmconv.tuning.use.Choice`.

    ``cores`` are the multiprocessors of the device that the record was measured on.
    """

    tiling: CudaTiling
    origin: str = "default"
    transfer: bool = False
    cores: int | None = None


def choose(
    works: Sequence[Workload],
    targets: Sequence[Architecture],
    *,
    exact: bool = False,
    precision: str = "full",
    algorithm: str = "direct",
    logs: str | Path | None = None,
    multiprocessors: int | None = None,
) -> list[CudaChoice]:
    """The tilings of several shapes of one layer, which share one layout of packed weights.

    Records are used where the binary is for one architecture alone.

    Parameters
    ----------
    works, targets, exact, precision, algorithm
        As for `tvmconv.schedules.cuda.decide_all`. With ``exact`` no record is used. Where the
        rules round to TF32, those of runs that did so are.
    logs
        See `tvmconv.tuning.lookup.folders`.
    multiprocessors
        Of the device: records of one with as many come first. None for any device.
    """
    from tvmconv.compute.cuda import lower
    from tvmconv.compute.cuda import precision as products_of
    from tvmconv.schedules import cuda as rules
    from tvmconv.schedules.cuda.space import space

    tilings = rules.decide_all(
        works, targets, exact=exact, precision=precision, algorithm=algorithm
    )
    default = [CudaChoice(tiling) for tiling in tilings]
    if exact or len(targets) != 1:
        return default
    places = lookup.folders(logs)
    chosen = []
    for work, own in zip(works, default, strict=True):
        rounds = products_of(lower(work, own.tiling))
        described = workloads.describe(work, rounds)
        record = _best(places, targets[0], described, algorithm, multiprocessors)
        if record is not None:
            here = space(work, targets, algorithm=algorithm, precision=rounds)
            own = _recorded(record, here, described) or own  # noqa: PLW2901
        chosen.append(own)
    layouts = {lower(w, one.tiling).layout for w, one in zip(works, chosen, strict=True)}
    # Shapes whose records pack the weights in different ways cannot share a library.
    return chosen if len(layouts) == 1 else default


def _recorded(record: Record, here: Space, described: dict[str, object]) -> CudaChoice | None:
    """A record's choice; None where its rule refuses it on this shape."""
    from tvmconv.compute.cuda.tiling import CudaTiling

    transfer = record.workload_key != workloads.key(described)
    try:
        tiling = here.read(record.decisions)
    except TypeError as exc:
        _log.warning("record %s is not used: %s", record.id, exc)
        return None
    if record.final is not None and record.final.gain == 0:
        tiling = here.default  # it won: today's
    elif tiling != here.default and here.find(tiling) is None:
        nearest = here.nearest(tiling) if transfer else None
        if nearest is None:
            _log.info("record %s is not used: its rule refuses it on this shape", record.id)
            return None
        tiling = nearest
    assert isinstance(tiling, CudaTiling)
    cores = record.machine.get("cores") or None
    return CudaChoice(tiling, f"record:{record.id}", transfer, cores)


def _best(
    places: Sequence[Path],
    target: Architecture,
    described: dict[str, object],
    algorithm: str,
    multiprocessors: int | None,
) -> Record | None:
    name, key = cuda_machine.fingerprint(target), workloads.key(described)
    with contextlib.suppress(TvmconvError):
        exact = lookup.best(places, name, key, algorithm, multiprocessors)
        return exact or lookup.nearest(places, name, described, algorithm, multiprocessors)
    return None
