"""The picture: bars for each layer, and all layers under the roofline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.figures import Row, of_role, rows

__all__ = ["draw"]

_OURS, _PEER, _OTHER, _LIMIT = "#c0392b", "#34495e", "#95a5a6", "#7f8c8d"


def draw(record: dict[str, Any], path: Path) -> None:
    """Write a PNG (or another format that matplotlib knows by the file's suffix), for most threads.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    threads = max(record["options"]["threads"])
    order = {layer["name"]: index for index, layer in enumerate(record["layers"])}
    found = sorted(rows(record, threads), key=lambda row: order[row.layer["name"]])
    figure, (bars, roof) = plt.subplots(
        1, 2, figsize=(15, 1.5 + 0.32 * max(len(found), 10)), width_ratios=(3, 2)
    )
    _bars(bars, record, found, threads)
    _roofline(roof, found)
    machine = record["machine"]
    figure.suptitle(
        f"Conv3DTranspose, float32, {threads} thread{'s' if threads > 1 else ''}, "
        f"{machine['cpu']}, {machine['date'][:10]}"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bars(axes: Any, record: dict[str, Any], found: list[Row], threads: int) -> None:
    """GFLOP/s of tvmconv and of the best framework; the others as ticks, the limit as a line."""
    peers = of_role(record, "peer")
    labelled: set[str] = set()

    def label(text: str) -> str:
        # The legend wants each name once.
        fresh = text not in labelled
        labelled.add(text)
        return text if fresh else "_"

    for place, row in enumerate(found):
        if row.ours:
            rate = row.ours["rate"] / 1e9
            axes.barh(place - 0.19, rate, 0.38, color=_OURS, label=label("tvmconv"))
        if row.peer:
            rate = row.peer["rate"] / 1e9
            axes.barh(place + 0.19, rate, 0.38, color=_PEER, label=label("best framework"))
            axes.annotate(
                f" {row.peer_name}", (rate, place + 0.19), va="center", fontsize=7, color=_PEER
            )
        results = row.layer["results"].get(str(threads), {})
        others = [results[name]["rate"] / 1e9 for name in peers if "rate" in results.get(name, {})]
        axes.plot(others, [place + 0.19] * len(others), "|", color=_OTHER, label=label("others"))
        limit = row.limit[0] / 1e9
        if limit:
            axes.plot(
                [limit] * 2, [place - 0.4, place + 0.4], color=_LIMIT, lw=1.5,
                label=label("limit: sgemm or bandwidth"),
            )  # fmt: skip
    axes.set_yticks(range(len(found)), [row.layer["name"] for row in found])
    axes.invert_yaxis()
    axes.set_xlabel("GFLOP/s of useful work (medians)")
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncol=4, frameon=False)


def _roofline(axes: Any, found: list[Row]) -> None:
    """Rates over arithmetic intensity, under the medians of the limits."""
    sgemm = sorted(row.sgemm for row in found)[len(found) // 2] if found else 0.0
    bandwidth = sorted(row.bandwidth for row in found)[len(found) // 2] if found else 0.0
    intensities = [row.layer["flops"] / row.layer["traffic_bytes"] for row in found]
    if sgemm and bandwidth:
        ends = [min(intensities) / 2, sgemm / bandwidth, max(intensities) * 2]
        heights = [min(sgemm, bandwidth * one) / 1e9 for one in sorted(ends)]
        axes.plot(sorted(ends), heights, color=_LIMIT, label="sgemm and bandwidth")
    for name, colour, marker in (("ours", _OURS, "o"), ("peer", _PEER, "s")):
        points = [
            (one, getattr(row, name)["rate"] / 1e9)
            for one, row in zip(intensities, found, strict=True)
            if getattr(row, name)
        ]
        if points:
            title = "tvmconv" if name == "ours" else "best framework"
            axes.plot(*zip(*points, strict=True), marker, color=colour, ms=5, label=title)
    for one, row in zip(intensities, found, strict=True):
        if row.ours:
            axes.annotate(row.layer["name"], (one, row.ours["rate"] / 1e9), fontsize=6)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte that must move", ylabel="GFLOP/s")
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(True, which="both", alpha=0.2)
