"""A run in several sittings: what is left to measure, and two records as one.

A long benchmark needs a machine that nobody else uses, which there may be for minutes at a time
only. Layers are measured one after the other, so it can stop after any of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import warnings
from benchmarks.workloads import WORKLOADS, Workload
from tvmconv.replacement import replacement

__all__ = ["left", "merge", "read", "write"]

Record = dict[str, Any]


def read(path: Path) -> Record | None:
    """The record of the sittings before; None where there was none.

    Raises
    ------
    ValueError
        The file is no record of a benchmark.
    """
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as exc:
        raise ValueError(f"{path} is not JSON: {exc}") from exc
    if not isinstance(record, dict) or record.get("format") != "tvmconv-benchmark":
        raise ValueError(f"{path} is no record of a benchmark")
    return record


def write(path: Path, record: Record) -> None:
    """Write a record as a whole: an interruption leaves the one before."""
    with replacement(path) as file:
        file.write(json.dumps(record, indent=1).encode() + b"\n")


def left(works: Sequence[Workload], record: Record | None) -> list[Workload]:
    """The layers that a record lacks."""
    done = {layer["name"] for layer in record["layers"]} if record else set()
    return [work for work in works if work.name not in done]


def merge(before: Record | None, record: Record, works: Sequence[Workload]) -> Record:
    """Two records of one machine and one set of options as one.

    Layers stand in the order of the list of workloads; of the noise the worst counts.

    Raises
    ------
    ValueError
        They differ in the processor, the options, or who took part.
    """
    if before is None:
        merged = dict(record)
        layers = list(record["layers"])
    else:
        _same("processor", before["machine"]["cpu"], record["machine"]["cpu"])
        for name in ("threads", "rounds", "seconds", "turn_s", "isa"):
            _same(name, before["options"][name], record["options"][name])
        # Older files have it not.
        _same("dtype", *(one["options"].get("dtype", "float32") for one in (before, record)))
        _same("runners", sorted(before["runners"]), sorted(record["runners"]))
        merged = {**before, "machine": record["machine"]}
        names = {layer["name"] for layer in record["layers"]}
        kept = [layer for layer in before["layers"] if layer["name"] not in names]
        layers = kept + list(record["layers"])
        merged["noise"] = _worst(before["noise"], record["noise"])
        merged["runners"] = {
            name: {**old, **{key: value for key, value in record["runners"][name].items() if value}}
            for name, old in before["runners"].items()
        }
    places = {work.name: number for number, work in enumerate([*WORKLOADS, *works])}
    layers.sort(key=lambda layer: places.get(layer["name"], len(places)))
    complete = {layer["name"] for layer in layers} >= {work.name for work in works}
    options = {**merged["options"], "complete": complete}
    return {**merged, "options": options, "layers": layers}


def _same(what: str, before: object, now: object) -> None:
    if before != now:
        raise ValueError(f"the sittings differ in their {what}: {before}, {now}")


def _worst(before: Record, now: Record) -> Record:
    numbers = ("load_at_start", "load_at_end", "others_share", "stolen_share")
    worst = {name: max(before[name], now[name]) for name in numbers}
    return {**worst, "warnings": warnings(worst)}
