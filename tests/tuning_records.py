"""Records for the tests of tuning: made by hand, measured by nobody."""

from __future__ import annotations

import dataclasses
from typing import Any

from tvmconv.compute.tiling import Tiling
from tvmconv.config import LayerConfig
from tvmconv.tuning import workloads
from tvmconv.tuning.records import Failure, Final, Record, identity, tvm_version

#: A small layer with both forms in its space.
CONFIG = LayerConfig(16, 3, strides=2, padding="same", name="up")
SHAPE = (1, 4, 4, 8, 16)
FINGERPRINT = "x86_64-znver3-256"


def record(
    *,
    seconds: tuple[float, ...] | None = (2e-3, 1e-3),
    error: Failure | None = None,
    final: Final | None = None,
    shape: tuple[int, ...] = SHAPE,
    fingerprint: str = FINGERPRINT,
    tiling: Tiling | None = None,
    **changes: Any,
) -> Record:
    """A record of the layer `CONFIG`."""
    described = workloads.describe(workloads.of_layer(CONFIG, shape))
    key = workloads.key(described)
    decisions = (tiling or Tiling("phase", 8, 2, 4, 2)).to_json()
    made = Record(
        id=identity(key, fingerprint, decisions),
        run="a-run",
        trial=1,
        when="2026-01-02T03:04:05+00:00",
        target={
            "fingerprint": fingerprint,
            "triple": "x86_64-linux-gnu",
            "cpu": "znver3",
            "features": [],
            "cores": 2,
        },
        machine={"cpu_model": "a processor", "cores": 2},
        workload=described,
        workload_key=key,
        layer="up",
        decisions=decisions,
        trace=None,
        seconds=seconds,
        error=error,
        gflop=0.004,
        limit_gflops=100.0,
        final=final,
        tvm=tvm_version(),
        tvmconv="0.1.0",
    )
    return dataclasses.replace(made, **changes)


def winner(gain: float = 0.1, **changes: Any) -> Record:
    """A record that the compiler would take."""
    return record(final=final_of(gain), **changes)


def final_of(gain: float) -> Final:
    """A verdict with a gain."""
    return Final(1e-3, 1e-3 * (1 + gain), gain, gain - 0.01, gain + 0.01, 20, 1e-6)
