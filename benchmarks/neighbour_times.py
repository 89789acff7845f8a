"""Neighbours of a layer, compiled in several processes and timed in one, in turns."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tvmconv
from benchmarks import machine
from benchmarks.data import Data, aligned
from benchmarks.tvmconv_runner import layer_of
from benchmarks.workloads import Workload
from tvmconv.errors import TvmconvError
from tvmconv.policies import numpy_dtype

__all__ = ["Variant", "build", "compiled", "measure", "turn"]


@dataclass(frozen=True)
class Variant:
    """One way to ask for a layer.

    Attributes
    ----------
    kind
        What differs from ``beside``; empty for the layer itself.
    label, beside
        Its name, and that of what it is compared with.
    open_batch
        The library is compiled for any batch and called with the workload's.
    alone
        The library is compiled for one sample, and called with each of the workload's in turn.
    """

    kind: str
    label: str
    beside: str
    work: Workload
    dtype: str = "float32"
    channels_first: bool = False
    open_batch: bool = False
    alone: bool = False

    @property
    def batch(self) -> int | None:
        """That of the library: one serves all sizes of an open batch."""
        if self.open_batch:
            return None
        return 1 if self.alone else self.work.batch

    @property
    def folder(self) -> str:
        """A name that differs where the library differs."""
        described = asdict(self)
        for key in ("kind", "label", "beside", "open_batch", "alone"):
            del described[key]
        described["work"]["batch"] = self.batch
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        return f"{self.work.name}-{digest[:12]}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the input."""
        batch, *sizes, channels = self.work.input_shape
        return (batch, channels, *sizes) if self.channels_first else (batch, *sizes, channels)


def compiled(variant: Variant, folder: Path) -> str:
    """Compile one library, checked like every one; why it failed, or nothing.

    Default schedules: a record of a layer on the list would make its neighbours look bad.
    """
    work, shape = variant.work, variant.shape
    try:
        layer = layer_of(
            work,
            Data(work),
            data_format="channels_first" if variant.channels_first else "channels_last",
            dtype=variant.dtype,
        )
        whole = (variant.batch, *shape[1:])
        tvmconv.compile(layer, whole, weights="baked", output=folder / variant.folder, logs="none")
    except TvmconvError as exc:
        return str(exc)
    return ""


def build(
    groups: dict[str, list[Variant]], folder: Path, say: Callable[[str], None]
) -> dict[str, Path | str]:
    """Compile what is not in ``folder`` yet, a process for each core.

    Returns
    -------
    dict
        For each `Variant.folder` its artifact, or why there is none.
    """
    needed = {one.folder: one for group in groups.values() for one in group}
    absent = [one for name, one in needed.items() if not (folder / name).is_dir()]
    say(f"compiling {len(absent)} libraries")
    # Not forked: the parent may hold threads of a library.
    context = multiprocessing.get_context("spawn")
    found: dict[str, Path | str] = {name: folder / name for name in needed}
    with ProcessPoolExecutor(machine.cores(), mp_context=context) as pool:
        reasons = pool.map(compiled, absent, [folder] * len(absent))
        for number, (one, reason) in enumerate(zip(absent, reasons, strict=True), 1):
            if reason:
                found[one.folder] = reason
                say(f"{one.work.name}, {one.label}: {reason}")
            if number % 10 == 0:
                say(f"{number} of {len(absent)}")
    return found


def measure(
    groups: dict[str, list[Variant]],
    built: dict[str, Path | str],
    rounds: int,
    turn_s: float,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Time each layer's neighbours in turns, the order reversed in every other round.

    A turn is a call that is not timed, then calls for ``turn_s`` seconds, two at least; it counts
    with their median.
    """
    layers = []
    with _one_core():
        for name, group in groups.items():
            say(f"timing {name}")
            calls = [_call(one, built[one.folder]) for one in group]
            times: list[list[float]] = [[] for _ in group]
            for number_of_round in range(rounds):
                order = range(len(group))
                for number in order if number_of_round % 2 == 0 else reversed(order):
                    call = calls[number][0]
                    if call is not None:
                        times[number].append(turn(call, turn_s))
            variants = [
                {
                    **asdict(one),
                    "flops": one.work.flops,
                    "form": about["form"],
                    "reason": about["reason"],
                    "rounds_s": spent,
                }
                for one, (_, about), spent in zip(group, calls, times, strict=True)
            ]
            layers.append({"name": name, "summary": group[0].work.summary, "variants": variants})
    return layers


def _call(
    variant: Variant, artifact: Path | str
) -> tuple[Callable[[], object] | None, dict[str, str]]:
    if isinstance(artifact, str):
        return None, {"form": "", "reason": artifact}
    layer = tvmconv.load(artifact, threads=1)
    x = Data(variant.work).x
    if variant.channels_first:
        x = np.moveaxis(x, -1, 1)
    # Where an input lies is no price of its layout or dtype.
    x = aligned(x.astype(numpy_dtype(variant.dtype)))
    samples = [aligned(one) for one in np.split(x, len(x))] if variant.alone else [x]
    calls = [layer.repeatable(sample) for sample in samples]
    about = {"form": str(layer.manifest.schedule.get("form")), "reason": ""}
    return (lambda: [call() for call in calls]), about


def turn(call: Callable[[], object], seconds: float) -> float:
    """Seconds of a call: the median of those of a turn, after one that is not timed."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@contextmanager
def _one_core() -> Iterator[None]:
    """Keep this process on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
