"""The records of a whole search, made up: it gets faster, some candidates fail, one wins."""

from __future__ import annotations

import datetime
import math
import random
from typing import Any

from tuning_records import record

from tvmconv.compute.tiling import Tiling
from tvmconv.tuning.records import Failure, Final, Record

FAULTS = (
    Failure("timeout", "no answer within 10 s"),
    Failure("crash", "ended by signal 11 (SIGSEGV)"),
    Failure("wrong", "differs from the reference by 0.3, tolerance 0.0001"),
)
_BEGIN = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)


def moment(seconds: float) -> str:
    """A time of the search as records spell it."""
    return (_BEGIN + datetime.timedelta(seconds=seconds)).isoformat()


def search(count: int = 60, *, seed: int = 1, **changes: Any) -> list[Record]:
    """Records of one run, a trial in 1.5 s: one in eleven fails, the registers decide the time."""
    drawn = random.Random(seed)
    found = []
    for trial in range(count):
        tiling = Tiling("phase", 8, 1 + trial % 3, 2 + trial % 7, 1 << trial % 4)
        milliseconds = 40e-3 * (1 + 0.35 * (trial % 3)) * (1 + 0.4 * math.exp(-trial / 20))
        found.append(
            record(
                tiling=tiling,
                trial=trial,
                when=moment(1.5 * trial),
                seconds=None if trial % 11 == 7 else (milliseconds * drawn.uniform(1, 1.02) / 1e3,),
                error=FAULTS[trial // 11 % 3] if trial % 11 == 7 else None,
                **changes,
            )
        )
    fastest = min(found, key=lambda one: one.time_s or math.inf)
    best_s, default_s = fastest.time_s or 1.0, found[0].time_s or 1.0
    gain = default_s / best_s - 1
    final = Final(best_s, default_s, gain, gain - 0.02, gain + 0.02, 20, 3e-7)
    tiling = Tiling.from_json(fastest.decisions)
    won = {"tiling": tiling, "trial": fastest.trial, "seconds": fastest.seconds, "final": final}
    return [*found, record(when=moment(1.5 * count), **won, **changes)]
