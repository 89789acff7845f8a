"""Whether the default that a winner beat is still the default.

The rules improve, and a record does not notice: a winner that gained 3 % over the default of its
day may lose to today's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from tvmconv.errors import TvmconvError
from tvmconv.tuning import platforms, workloads

if TYPE_CHECKING:
    from tvmconv.tuning.platforms import Machine
    from tvmconv.tuning.records import Record

__all__ = ["changed"]


def changed(record: Record) -> bool | None:
    """Whether today's rules decide otherwise than those that a winner was measured against.

    Parameters
    ----------
    record
        A winner, on whatever target.

    Returns
    -------
    bool or None
        None where it cannot be told: the record does not say what the default was, its caches are
        those of another machine, or the compiler is not installed.
    """
    met = record.final.default if record.final else None
    if met is None:
        return None
    with contextlib.suppress(TvmconvError, ImportError, KeyError, TypeError, ValueError):
        machine = _machine(record.target)
        if machine is not None:
            work = workloads.restore(record.workload)
            precision = str(record.workload.get("precision", "full"))
            today = platforms.default(work, machine, record.algorithm, precision)
            return bool(json.loads(json.dumps(today.to_json())) != met)
    return None


def _machine(target: dict[str, Any]) -> Machine | None:
    """The target of a record as the rules see it, or None."""
    from tvmconv import targets
    from tvmconv.cuda_machine import elsewhere

    fingerprint = str(target["fingerprint"])
    here = targets.native()
    if fingerprint.startswith("cuda-"):
        return elsewhere(f"cuda:sm_{fingerprint.removeprefix('cuda-')}", here.triple)
    # Of processors that are neither here nor in our own list the caches are not known.
    known = [here, *(targets.resolve(name)[0] for name in targets.DEVICES)]
    for one in known:
        if one.fingerprint() == fingerprint:
            return dataclasses.replace(one, cores=int(target["cores"]))
    return None
