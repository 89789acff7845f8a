"""Figures of a table from what was measured: the best peer, the limits, ratios and means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["Row", "beside_best_algorithm", "geometric_mean", "of_role", "rows", "scaling"]

Record = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One layer with one number of threads.

    Attributes
    ----------
    ours, peer
        Results of tvmconv and of the fastest peer; each None where nothing was measured.
    peer_name
        The peer's title.
    sgemm, bandwidth
        The best rates of the limits in the same rounds, in FLOP/s and bytes/s; 0: not measured.
    reason
        Why there is no result of ours.
    """

    layer: Record
    threads: int
    ours: Record | None
    peer: Record | None
    peer_name: str
    sgemm: float
    bandwidth: float
    reason: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the best peer."""
        if self.ours is None or self.peer is None:
            return None
        return float(self.peer["median_s"] / self.ours["median_s"])

    @property
    def limit(self) -> tuple[float, str]:
        """The lower of the two limits in FLOP/s, and its name.

        ``bandwidth``: the rate at which input, weights and output move once each at the better of
        the copy's and the fill's bandwidth. A layer that stays in the caches may be above it.
        """
        found = [(self.sgemm, "sgemm")] if self.sgemm else []
        if self.bandwidth:
            seconds = self.layer["traffic_bytes"] / self.bandwidth
            found.append((self.layer["flops"] / seconds, "bandwidth"))
        return min(found, default=(0.0, ""))

    @property
    def share(self) -> float | None:
        """Our rate as a share of the limit; Toom-Cook needs fewer products and may pass it."""
        rate, _ = self.limit
        return None if self.ours is None or not rate else float(self.ours["rate"] / rate)


def of_role(record: Record, role: str) -> dict[str, str]:
    """Name -> title of the runners of a role: ``ours``, ``peer`` or ``limit``."""
    return {
        name: runner["title"]
        for name, runner in record["runners"].items()
        if runner["role"] == role
    }


def rows(record: Record, threads: int) -> list[Row]:
    """A row for each layer, the losing ones first, those without a ratio before all."""
    found = [_row(record, layer, threads) for layer in record["layers"]]
    return sorted(found, key=lambda row: (row.ratio is not None, row.ratio or 0.0))


def _row(record: Record, layer: Record, threads: int) -> Row:
    results = layer["results"].get(str(threads), {})
    first = next(iter(of_role(record, "ours")))
    peers = {
        title: results[name]
        for name, title in of_role(record, "peer").items()
        if "rate" in results.get(name, {})
    }
    best = min(peers, key=lambda title: peers[title]["median_s"], default=None)
    ours = results.get(first, {})
    return Row(
        layer,
        threads,
        ours if "rate" in ours else None,
        peers[best] if best else None,
        best or "",
        _best_rate(results, "sgemm_"),
        max(_best_rate(results, "copy"), _best_rate(results, "fill")),
        ours.get("reason", "not measured"),
    )


def _best_rate(results: Record, prefix: str) -> float:
    rates = [
        one["rate"] for name, one in results.items() if name.startswith(prefix) and "rate" in one
    ]
    return max(rates, default=0.0)


def scaling(layer: Record, name: str, few: int, many: int) -> float | None:
    """How many times as fast ``many`` threads are as ``few``."""
    pair = [layer["results"].get(str(threads), {}).get(name, {}) for threads in (few, many)]
    if any("median_s" not in one for one in pair):
        return None
    return float(pair[0]["median_s"] / pair[1]["median_s"])


def beside_best_algorithm(record: Record, row: Row) -> float | None:
    """The time of the fastest algorithm asked for over that of the first; 1: it is the fastest."""
    results = row.layer["results"].get(str(row.threads), {})
    names = [name for name in of_role(record, "ours") if not name.endswith("_new")]
    times = [results[name]["median_s"] for name in names if "median_s" in results.get(name, {})]
    return None if row.ours is None else float(min(times) / row.ours["median_s"])


def geometric_mean(values: list[float]) -> float | None:
    """None for no values."""
    if not values:
        return None
    return math.exp(math.fsum(math.log(value) for value in values) / len(values))
