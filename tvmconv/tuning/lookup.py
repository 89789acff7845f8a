"""Where records are looked for, and which of them a compilation takes. Loads no TVM."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvmconv.errors import ConfigError
from tvmconv.tuning import workloads
from tvmconv.tuning.records import Record, is_current, read, read_file, workload_files

__all__ = [
    "alike",
    "allowed",
    "best",
    "folders",
    "nearest",
    "shipped_folder",
    "user_folder",
    "writable_folder",
]

#: How many factors of two a size of the nearest shape may be away.
_NEAR = 1.0


def shipped_folder() -> Path:
    """The records that ship with tvmconv."""
    from tvmconv import tuning_logs

    return Path(tuning_logs.__file__).parent


def user_folder() -> Path:
    """The user's own log: ``TVMCONV_LOGS``, else a folder among the user's data. It may not exist.

    ``TVMCONV_LOGS=none`` is answered with that word: no log of the user's is read.
    """
    asked = os.environ.get("TVMCONV_LOGS")
    if asked:
        return Path(asked)
    try:
        import platformdirs
    except ImportError:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
        return base / "tvmconv" / "logs"
    return Path(platformdirs.user_data_dir("tvmconv", appauthor=False)) / "logs"


def folders(logs: str | Path | None = None) -> list[Path]:
    """Where records are looked for, the first that has one wins.

    Parameters
    ----------
    logs
        A folder that comes before the user's own and the shipped one; ``"none"`` for no records at
        all; None for the user's and the shipped ones.
    """
    if logs is not None and str(logs) == "none":
        return []
    if logs is None and os.environ.get("TVMCONV_LOGS") == "none":
        return []
    found = [] if logs is None else [Path(logs)]
    found += [user_folder(), shipped_folder()]
    return [path for path in dict.fromkeys(found) if str(path) != "none"]


def best(
    places: Sequence[Path],
    fingerprint: str,
    workload_key: str,
    algorithm: str = "auto",
    cores: int | None = None,
) -> Record | None:
    """The record that a compilation takes: the last winner in the first folder that has one.

    A run looks at all that earlier runs found, so the last verdict stands for all of them; but one
    that was measured with as many cores comes before one that was not.

    Parameters
    ----------
    places
        See `folders`.
    fingerprint, workload_key
        Target and workload, both exact.
    algorithm
        ``"direct"``, ``"pairs"`` and ``"toom-cook"`` take records of those forms only.
    cores
        Of the target; None where they do not matter.
    """
    for folder in places:
        winners = [
            record
            for record in read(folder, fingerprint, workload_key)
            if record.final is not None and allowed(record, algorithm)
        ]
        if winners:
            return max(winners, key=lambda record: (alike(record, cores), record.when))
    return None


def nearest(
    places: Sequence[Path],
    fingerprint: str,
    described: dict[str, Any],
    algorithm: str = "auto",
    cores: int | None = None,
) -> Record | None:
    """The winner of the nearest shape of the same layer, from the first folder that has one.

    None of its sizes is more than twice or less than half as large.

    Parameters
    ----------
    places, fingerprint, algorithm, cores
        See `best`; of several records of the nearest shape.
    described
        The workload (`tvmconv.tuning.workloads.describe`).
    """
    for folder in places:
        found: dict[str, tuple[float, tuple[bool, str], Record]] = {}
        for path in workload_files(folder, fingerprint):
            for record in read_file(path):
                if record.final is None or not is_current(record):
                    continue
                if record.target["fingerprint"] != fingerprint or not allowed(record, algorithm):
                    continue
                away = workloads.distance(described, record.workload)
                if away is not None and 0 < away <= _NEAR:
                    key = record.workload_key
                    rank = (alike(record, cores), record.when)
                    if key not in found or found[key][1] <= rank:
                        found[key] = (away, rank, record)
        if found:
            return min(found.values(), key=lambda one: (one[0], one[2].workload_key))[2]
    return None


def alike(record: Record, cores: int | None) -> bool:
    """Whether a record was measured with so many cores."""
    return cores is None or record.machine.get("cores") == cores


def writable_folder(logs: str | Path | None) -> Path:
    """The folder that a run writes to: ``logs``, else the user's own.

    Raises
    ------
    ConfigError
        There is none: records are turned off.
    """
    folder = user_folder() if logs is None else Path(logs)
    if str(folder) == "none":
        raise ConfigError("tuning needs a folder for its records: 'none' turns records off")
    return folder


def allowed(record: Record, algorithm: str) -> bool:
    """Whether a record computes in the way that was asked for.

    ``"auto"`` takes no winner of a run over Toom-Cook or pairs alone: it has not met other forms.
    """
    if algorithm == "auto":
        return record.kind == "direct" or record.algorithm != record.kind
    return record.kind == algorithm
