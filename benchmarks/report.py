"""The tables, in Markdown: printed, and put between the markers of docs/performance.md."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.figures import (
    Row,
    beside_best_algorithm,
    geometric_mean,
    of_role,
    rows,
    scaling,
)

__all__ = ["document", "headline", "table", "tables", "update"]

Record = dict[str, Any]
_BEGIN, _END = "<!-- begin: {} -->", "<!-- end: {} -->"


def table(head: list[str], body: Iterable[list[str]], texts: int = 1) -> str:
    """A Markdown table, padded for terminals; columns after the first ``texts`` are flush right."""
    lines = [head, *body]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(head))]

    def spelt(line: list[str]) -> str:
        cells = [
            cell.ljust(width) if i < texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "| " + " | ".join(cells) + " |"

    rule = ["-" * (width - 1) + ("-" if i < texts else ":") for i, width in enumerate(widths)]
    return "\n".join([spelt(head), spelt(rule), *(spelt(line) for line in lines[1:])])


def headline(record: Record, threads: int) -> str:
    """Geometric mean, and how many layers win and lose."""
    ratios = [row.ratio for row in rows(record, threads) if row.ratio is not None]
    mean = geometric_mean(ratios)
    if mean is None:
        return f"{_spelt_threads(threads)}: nothing to compare."
    losing = sum(ratio < 1 for ratio in ratios)
    return (
        f"{_spelt_threads(threads)}: {mean:.2f} times as fast as the best framework of each layer "
        f"(geometric mean of {len(ratios)} layers, lowest {min(ratios):.2f}, highest "
        f"{max(ratios):.2f}); {losing} slower than it."
    )


def _spelt_threads(threads: int) -> str:
    return "One thread" if threads == 1 else f"{threads} threads"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def _rate(result: Record | None) -> str:
    return f"{result['rate'] / 1e9:.1f}" if result and "rate" in result else "-"


def _against(record: Record, threads: int) -> str:
    head = [
        "layer", "GFLOP", "ms", "10 to 90 %", "best ms", "GFLOP/s", "best framework", "its GFLOP/s",
        "ratio", "share of limit", "limit GFLOP/s",
    ]  # fmt: skip

    def cells(row: Row) -> list[str]:
        gflop = f"{row.layer['flops'] / 1e9:.3g}"
        peer = [row.peer_name or "none", _rate(row.peer)]
        if row.ours is None:
            return [row.layer["name"], gflop, *["-"] * 4, *peer, row.reason, "-", "-"]
        low, high, best = (_milliseconds(row.ours[key]) for key in ("p10_s", "p90_s", "best_s"))
        rate, name = row.limit
        return [
            row.layer["name"], gflop, _milliseconds(row.ours["median_s"]), f"{low} to {high}", best,
            _rate(row.ours), *peer, "-" if row.ratio is None else f"{row.ratio:.2f}",
            "-" if row.share is None else f"{row.share:.0%}", f"{rate / 1e9:.0f} {name}",
        ]  # fmt: skip

    return table(head, [cells(row) for row in rows(record, threads)])


def _everybody(record: Record, threads: int) -> str:
    """GFLOP/s of every runner; reasons below the table."""
    names = of_role(record, "ours") | of_role(record, "peer")
    reasons: dict[str, list[str]] = {}
    body = []
    for layer in record["layers"]:
        results = layer["results"].get(str(threads), {})
        body.append([layer["name"], *(_rate(results.get(name)) for name in names)])
        for name, title in names.items():
            reason = results.get(name, {}).get("reason")
            if reason:
                reasons.setdefault(f"{title}: {reason}", []).append(layer["name"])
    lines = [table(["layer", *names.values()], body)]
    for reason, layers in reasons.items():
        everywhere = len(layers) == len(record["layers"])
        lines.append(f"- {'all layers' if everywhere else ', '.join(layers)}: {reason}")
    return "\n\n".join([lines[0], "\n".join(lines[1:])]) if lines[1:] else lines[0]


def _core_share(record: Record) -> str:
    """Share of sgemm, gain from more threads and gain over the direct form, for each algorithm."""
    counts = sorted(record["options"]["threads"])
    few, many = counts[0], counts[-1]
    ours = {n: t for n, t in of_role(record, "ours").items() if not n.endswith("_new")}
    direct = "tvmconv_direct" if len(ours) > 1 and "tvmconv_direct" in ours else ""
    head = ["layer", "algorithm"]
    head += [f"share of sgemm, {_spelt_threads(n).lower()}" for n in counts]
    head += [f"{many} threads against {few}"] if few != many else []
    head += [f"against direct, {_spelt_threads(n).lower()}" for n in counts] if direct else []
    body = []
    for layer in record["layers"]:
        for name, title in ours.items():
            shares = [_share_of_sgemm(record, layer, name, n) for n in counts]
            gains = [scaling(layer, name, few, many)] if few != many else []
            if direct:
                gains += [_against_direct(layer, name, direct, n) for n in counts]
            if any(share is not None for share in shares):
                cells = ["-" if share is None else f"{share:.0%}" for share in shares]
                cells += ["-" if gain is None else f"{gain:.2f}" for gain in gains]
                body.append([layer["name"], title, *cells])
    return table(head, body, 2)


def _share_of_sgemm(record: Record, layer: Record, name: str, threads: int) -> float | None:
    row = next(row for row in rows(record, threads) if row.layer is layer)
    found = layer["results"].get(str(threads), {}).get(name, {})
    return float(found["rate"] / row.sgemm) if "rate" in found and row.sgemm else None


def _against_direct(layer: Record, name: str, direct: str, threads: int) -> float | None:
    results = layer["results"].get(str(threads), {})
    pair = [results.get(one, {}).get("median_s") for one in (direct, name)]
    return float(pair[0] / pair[1]) if pair[0] and pair[1] else None


def _limits(record: Record) -> str:
    """The machine's rates over the whole run: median, lowest and highest of the layers' medians."""
    body = []
    for name, title in of_role(record, "limit").items():
        line = [title]
        for threads in record["options"]["threads"]:
            results = [
                layer["results"].get(str(threads), {}).get(name, {}) for layer in record["layers"]
            ]
            rates = sorted(one["rate"] / 1e9 for one in results if "rate" in one)
            if rates:
                middle = rates[len(rates) // 2]
                line.append(f"{middle:.0f} ({rates[0]:.0f} to {rates[-1]:.0f})")
            else:
                line.append(record["runners"][name]["reason"] or "-")
        body.append(line)
    head = ["GFLOP/s or GB/s", *(_spelt_threads(n).lower() for n in record["options"]["threads"])]
    return table(head, body)


def _memory(record: Record) -> str:
    """MB that the first call adds to a process that holds the input and the weights."""
    threads = max(record["options"]["threads"])
    names = of_role(record, "ours") | of_role(record, "peer")
    body = []
    for layer in record["layers"]:
        results = layer["results"].get(str(threads), {})
        output = 4 * layer["filters"]
        for size in _output_sizes(layer):
            output *= size
        line = [layer["name"], f"{output / 1e6:.1f}"]
        for name in names:
            added = results.get(name, {}).get("added_bytes")
            line.append("-" if added is None else f"{added / 1e6:.1f}")
        body.append(line)
    return table(["MB", "output", *names.values()], body)


def _output_sizes(layer: Record) -> tuple[int, ...]:
    from benchmarks.workloads import Workload

    return Workload.from_json(layer).output_shape[:4]


def _layers(record: Record) -> str:
    """What the layers are, and what was compiled for each."""
    body = []
    for layer in record["layers"]:
        for algorithm, built in layer["builds"].items():
            facts = built.get("reason") or ", ".join(
                str(built[key]) for key in ("algorithm", "form", "origin") if built.get(key)
            )
            asked = f" ({algorithm})" if len(layer["builds"]) > 1 else ""
            seconds = f"{built['seconds']:.1f}" if "seconds" in built else "-"
            body.append([layer["name"], layer["network"], layer["summary"], facts + asked, seconds])
    return table(["layer", "network", "what it is", "compiled as", "s to compile"], body, 4)


def _description(record: Record) -> str:
    """The machine, the versions, and how quiet it was."""
    machine, noise, options = record["machine"], record["noise"], record["options"]
    versions = ", ".join(
        f"{runner['title']} {runner['version']}"
        for name, runner in record["runners"].items()
        if runner["version"] and runner["role"] != "limit" and not name.endswith("_new")
    )
    family = "" if machine["cpu_family"] is None else f" (family {machine['cpu_family']})"
    length = (
        f"{options['rounds']} rounds" if options["rounds"] else f"{options['seconds']} s a layer"
    )
    lines = [
        f"{machine['date']}: {machine['cpu']}{family}, {machine['cores']} cores"
        f"{', virtual' if machine['hypervisor'] else ''}; {', '.join(machine['caches'])}; "
        f"{(machine['memory_bytes'] or 0) / 2**30:.0f} GiB; {machine['system']}; "
        f"Python {machine['python']}.",
        f"{versions}.",
        f"{length}, turns of {options['turn_s']} s. Load average {noise['load_at_start']} before, "
        f"{noise['load_at_end']} at the end; other processes took {noise['others_share']:.1%} of "
        f"the processors' time, the hypervisor {noise['stolen_share']:.1%}.",
    ]
    lines += [f"WARNING: {text}; the figures are not to be trusted." for text in noise["warnings"]]
    if not options["complete"]:
        lines.append(
            "WARNING: the run was interrupted; the layers that are missing were not measured."
        )
    return "\n\n".join(lines)


def _drawn(record: Record, threads: int) -> str:
    """Layers drawn at random: beside the best framework, and beside the best algorithm."""
    first = next(iter(of_role(record, "ours")))

    def cells(row: Row) -> list[str]:
        built = row.layer["builds"].get(_asked(first), {})
        line = [row.layer["summary"], ", ".join(str(built[k]) for k in ("form",) if built.get(k))]
        line.append(f"{row.layer['flops'] / 1e9:.3g}")
        if row.ours is None:
            return [*line, "-", "-", row.peer_name or "none", row.reason, "-"]
        slower = beside_best_algorithm(record, row)
        return [
            *line, _milliseconds(row.ours["median_s"]), _rate(row.ours), row.peer_name or "none",
            "-" if row.ratio is None else f"{row.ratio:.2f}",
            "-" if slower is None else f"{slower:.2f}",
        ]  # fmt: skip

    head = [
        "layer", "form", "GFLOP", "ms", "GFLOP/s", "best framework", "ratio",
        "time of the best algorithm over ours",
    ]  # fmt: skip
    return table(head, [cells(row) for row in rows(record, threads)], 2)


def _asked(name: str) -> str:
    """The algorithm that a runner of ours was compiled with."""
    return name.removeprefix("tvmconv").removeprefix("_") or "auto"


def tables(record: Record) -> dict[str, str]:
    """Every part of the report by the name of its marker.

    Layers drawn at random have one part of their own, beside those of the list; so has a run that
    was held to an instruction set, and one of another dtype.
    """
    counts = record["options"]["threads"]
    if record["layers"] and all(layer["network"] == "drawn" for layer in record["layers"]):
        parts = [_description(record)]
        for threads in counts:
            parts += [headline(record, threads), _drawn(record, threads)]
        return {"drawn": "\n\n".join(parts)}
    against = []
    for threads in counts:
        against += [headline(record, threads), _against(record, threads)]
    isa, dtype = record["options"]["isa"], record["options"].get("dtype", "float32")
    if isa != "native" or dtype != "float32":
        parts = [_description(record), *against, _core_share(record)]
        return {dtype if isa == "native" else isa: "\n\n".join(parts)}
    everybody = []
    for threads in counts:
        everybody += [f"{_spelt_threads(threads)}, GFLOP/s:", _everybody(record, threads)]
    return {
        "machine": _description(record),
        "against": "\n\n".join(against),
        "everybody": "\n\n".join(everybody),
        "cores": _core_share(record),
        "limits": _limits(record),
        "memory": _memory(record),
        "layers": _layers(record),
    }


def document(parts: dict[str, str]) -> str:
    """All parts, for a terminal."""
    return "\n\n".join(parts.values())


def update(path: Path, parts: dict[str, str]) -> list[str]:
    """Put each part between its markers in a file.

    Returns
    -------
    list of str
        The parts whose markers the file lacks.
    """
    text = path.read_text(encoding="utf-8")
    absent = []
    for name, part in parts.items():
        begin, end = _BEGIN.format(name), _END.format(name)
        found = re.search(f"{re.escape(begin)}\n.*?{re.escape(end)}", text, re.DOTALL)
        if found is None:
            absent.append(name)
            continue
        text = f"{text[: found.start()]}{begin}\n\n{part}\n\n{end}{text[found.end() :]}"
    path.write_text(text, encoding="utf-8")
    return absent
