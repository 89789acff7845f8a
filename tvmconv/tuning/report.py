"""The report of a search: one HTML file that opens without a network.

The charts are drawn here as SVG, so that the page is complete without its script, which shows what
a candidate under the pointer is. A charting library would be three megabytes in each file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from tvmconv.errors import TuningError
from tvmconv.replacement import replacement
from tvmconv.tuning import workloads
from tvmconv.tuning.chart import Bar, Point, bars, course, number
from tvmconv.tuning.history import Candidate, History, histories, spelt
from tvmconv.tuning.machine import shown

if TYPE_CHECKING:
    from tvmconv.tuning.records import Record

__all__ = ["page", "write"]

#: Candidates in the table below the charts.
_TABLE = 12
#: Decisions among the bars, and failures that are spelt out for each reason.
_DECISIONS, _EXAMPLES = 12, 3
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_MARKS = (
    ("candidate", '<circle class="mark" cx="8" cy="6" r="3"/>'),
    ("best so far", '<path class="best-line" d="M0 6H16"/>'),
    ("default", '<path class="mark default" d="M8 0l6 6l-6 6l-6 -6z"/>'),
    ("failed", '<path class="mark failed" d="M5 3l6 6m0 -6l-6 6"/>'),
    ("limit", '<path class="limit" d="M0 6H16"/>'),
)


def write(path: Path, records: Iterable[Record], title: str = "Tuning report") -> None:
    """Write the report of some records, whole or not at all.

    Parameters
    ----------
    path
        The file, which is replaced.
    records
        Of any number of workloads, targets and runs.
    title
        The heading.

    Raises
    ------
    TuningError
        The file cannot be written, or there is no record.
    """
    text = page(histories(records), title)
    try:
        with replacement(path) as file:
            file.write(text.encode())
    except OSError as exc:
        raise TuningError(f"the report {path} cannot be written: {exc.strerror or exc}") from exc


def page(found: Sequence[History], title: str) -> str:
    """The report as HTML.

    Raises
    ------
    TuningError
        There is no record.
    """
    if not found:
        raise TuningError("there is no tuning record to report")
    files = resources.files(__package__) / "page"
    style, script = ((files / f"report.{kind}").read_text("utf-8") for kind in ("css", "js"))
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">',
            f"<style>\n{style}</style>\n</head>\n<body>",
            f"<header><div><h1>{escape(title)}</h1>{_about(found)}</div>",
            '<button type="button">Light or dark</button></header>\n<main>',
            _overview(found) if len(found) > 1 else "",
            *(_layer(one, place) for place, one in enumerate(found)),
            '</main>\n<div class="tip" hidden></div>',
            '<div class="unseen" role="status" aria-live="polite"></div>',
            f"<script>\n{script}</script>\n</body>\n</html>\n",
        ]
    )


def _about(found: Sequence[History]) -> str:
    """The machines, versions and dates that the records name."""
    machines: dict[str, None] = {}
    dates = []
    for one in found:
        record, about = one.record, shown(one.record.machine)
        target = f"target {record.target['fingerprint']}"
        versions = f"tvmconv {record.tvmconv}, TVM {record.tvm}"
        machines[f"{about}; {target}; {versions}"] = None
        dates += [candidate.record.when[:10] for candidate in one.candidates]
    when = " to ".join(dict.fromkeys((min(dates), max(dates))))
    lines = [*machines, f"Measured {when}"]
    return "".join(f'<p class="soft">{escape(line)}</p>' for line in lines)


def _overview(found: Sequence[History]) -> str:
    rows = []
    for place, one in enumerate(found):
        final, best = one.final, one.best
        link = f'<a href="#layer{place}">{escape(one.record.layer)}</a>'
        cells = [
            str(len(one.candidates)),
            str(len(one.candidates) - len(one.measured)),
            number(best.seconds * 1e3) if best else "-",
            number(best.record.gflops or 0.0) if best else "-",
            f"{best.share:.0%}" if best and best.share else "-",
            f"{final.gain:+.1%}" if final else "not confirmed",
        ]
        rows.append([link, *cells])
    head = ["layer", "trials", "failed", "best ms", "GFLOP/s", "of the limit", "over the default"]
    return f'<div class="wide">{_table(head, rows)}</div>'


def _layer(one: History, place: int) -> str:
    record = one.record
    about = f"{workloads.title(record.workload)} ({record.workload['input_dtype']})"
    texts = json.dumps([_told(candidate, one) for candidate in one.candidates])
    texts = texts.replace("<", "\\u003c")
    parts = [
        f'<section aria-labelledby="layer{place}">',
        f'<h2 id="layer{place}">{escape(record.layer)}</h2><p class="soft">{escape(about)}</p>',
        _tiles(one),
        _courses(one),
        _verdict(one),
        _fastest(one),
        f'<script type="application/json">{texts}</script></section>',
    ]
    return "\n".join(parts)


def _tiles(one: History) -> str:
    best, final = one.best, one.final
    failed = len(one.candidates) - len(one.measured)
    seconds = one.candidates[-1].elapsed_s
    tiles = []
    if best is not None:
        tiles.append((f"{number(best.seconds * 1e3)} ms", "fastest call in the search"))
        tiles.append((f"{number(best.record.gflops or 0.0)} GFLOP/s", _share_text(best)))
    if final is None:
        tiles.append(("not confirmed", "the run did not come to its second measurement"))
    elif not final.gain:
        tiles.append(("the default won", "no candidate beat it beyond doubt, in turns"))
    else:
        spread = f"{final.gain_low:+.1%} to {final.gain_high:+.1%}, measured in turns"
        tiles.append((f"{final.gain:+.1%}", f"over the default ({spread})"))
    tiles.append((str(len(one.candidates)), f"candidates, {failed} of them failed"))
    tiles.append((f"{seconds:.0f} s", "of tuning"))
    cells = (
        f'<div class="tile"><b>{escape(b)}</b><span>{escape(s)}</span></div>' for b, s in tiles
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _share_text(one: Candidate) -> str:
    if one.share is None:
        return "the limit of the machine is not known"
    return f"{one.share:.0%} of the limit, {number(one.record.limit_gflops or 0.0)} GFLOP/s"


def _courses(one: History) -> str:
    broken, default = {best.number for best in one.records_broken}, one.default
    limit = one.record.limit_gflops

    def chart(title: str, axis: str, at: Sequence[float]) -> str:
        points = []
        for candidate, x in zip(one.candidates, at, strict=True):
            kind = "best" if candidate.number in broken else "plain"
            kind = "default" if candidate is default else kind
            points.append(Point(candidate.number - 1, x, candidate.record.gflops, kind))
        line = [(at[best.number - 1], best.record.gflops or 0.0) for best in one.records_broken]
        drawn = course(f"{title}: {one.record.layer}", points, line, axis, limit, at[-1])
        return f"<figure><h3>{title}</h3>{drawn}</figure>"

    key = "".join(
        f'<li><svg viewBox="0 0 16 12" aria-hidden="true">{mark}</svg>{name}</li>'
        for name, mark in _MARKS
    )
    trials = chart("Best against trials", "trial", [float(c.number) for c in one.candidates])
    times = chart("Best against time", "seconds", [c.elapsed_s for c in one.candidates])
    what = "the rate of a matrix product on as many cores"
    if "driver" in one.record.machine:
        what = (
            "what the device multiplies at its highest clock, or what its memory brings where "
            "input, weights and output move once, whichever is less"
        )
    caption = (
        f"The limit is {what}. Toom-Cook needs fewer operations than are counted here, and may "
        "exceed it."
    )
    charts = f'<div class="pair">{trials}{times}</div>'
    return f'<ul class="key">{key}</ul>{charts}<p class="soft">{caption}</p>'


def _verdict(one: History) -> str:
    """Decisions, failures, and the winner beside the default."""
    figures = [_decisions(one), _against_default(one), _failures(one)]
    return f'<div class="row">{"".join(figures)}</div>'


def _figure(title: str, drawn: str, caption: str) -> str:
    return f"<figure><h3>{title}</h3>{drawn}<figcaption>{caption}</figcaption></figure>"


def _decisions(one: History) -> str:
    if not one.importances:
        return _figure("Which decisions matter", "", "Too few candidates to tell.")
    shown = one.importances[:_DECISIONS]
    rows = [Bar(each.name, each.share, f"{each.share:.0%}") for each in shown]
    drawn = bars("Importance of each decision", rows)
    values = [
        [escape(each.name), escape(value), str(count), number(best * 1e3), number(middle * 1e3)]
        for each in shown
        for value, count, best, middle in each.values
    ]
    head = ["decision", "value", "candidates", "best ms", "median ms"]
    table = _table(head, values, texts=2)
    details = f'<details><summary>Times by value</summary><div class="wide">{table}</div></details>'
    caption = (
        "Share of the variance of the time (its logarithm) that the values of a decision explain, "
        "each taken alone; decisions that depend on each other share it."
    )
    return _figure("Which decisions matter", drawn + details, caption)


def _against_default(one: History) -> str:
    final = one.final
    if final is None:
        return _figure("Against the default", "", "The winner was not measured a second time.")
    rows = [Bar("default", final.default_s, f"{number(final.default_s * 1e3)} ms", "default")]
    if final.gain:
        rows.append(Bar("winner", final.median_s, f"{number(final.median_s * 1e3)} ms", "best"))
    gain = f"{final.gain:+.1%} ({final.gain_low:+.1%} to {final.gain_high:+.1%})"
    said = f"Gain {gain}" if final.gain else "The default itself won"
    caption = (
        f"{said}: {final.rounds} rounds in turns on fresh inputs. Largest error against the "
        f"reference on the whole layer: {final.max_error:.1e}."
    )
    return _figure("Against the default", bars("Winner and default", rows), caption)


def _failures(one: History) -> str:
    if not one.failures:
        return _figure("Failures", "", "No candidate failed.")
    rows = [Bar(reason, len(c), str(len(c)), "failed") for reason, c in one.failures.items()]
    examples = []
    for reason, failed in one.failures.items():
        details = dict.fromkeys(c.record.error.detail for c in failed if c.record.error)
        examples += [[reason, escape(detail)] for detail in list(details)[:_EXAMPLES]]
    table = f'<div class="wide">{_table(["reason", "for example"], examples, texts=2)}</div>'
    drawn = bars("Failures by reason", rows)
    return _figure("Failures", f"{drawn}<details><summary>Messages</summary>{table}</details>", "")


def _fastest(one: History) -> str:
    """The best candidates as a table: what the charts show to readers who see none."""
    ordered = sorted(one.measured, key=lambda candidate: candidate.seconds)[:_TABLE]
    names = one.varied
    head = ["candidate", "trial", "ms", "GFLOP/s", "of the limit", *names]
    lines = ["<table><thead><tr>", *(f'<th scope="col">{escape(name)}</th>' for name in head)]
    lines.append("</tr></thead><tbody>")
    for candidate in ordered:
        record = candidate.record
        name = f"{record.id} (default)" if candidate is one.default else record.id
        cells = [
            name, str(candidate.number), number(candidate.seconds * 1e3),
            number(record.gflops or 0.0),
            "-" if candidate.share is None else f"{candidate.share:.0%}",
            *(spelt(record.decisions.get(decision, "-")) for decision in names),
        ]  # fmt: skip
        spelt_cells = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr data-i="{candidate.number - 1}">{spelt_cells}</tr>')
    lines.append("</tbody></table>")
    same = {k: v for k, v in one.record.decisions.items() if k not in names}
    constant = ", ".join(f"{name} {spelt(value)}" for name, value in same.items())
    note = f'<p class="soft">The same for all candidates: {escape(constant)}.</p>' if same else ""
    return f'<h3>The fastest candidates</h3><div class="wide">{"".join(lines)}</div>{note}'


def _told(candidate: Candidate, one: History) -> str:
    """What the page says of one candidate, a line for each thing."""
    record = candidate.record
    default = ", the default" if candidate is one.default else ""
    lines = [f"trial {candidate.number}{default}, after {candidate.elapsed_s:.0f} s"]
    if record.error is not None:
        lines.append(f"failed: {record.error.reason}: {record.error.detail}")
    else:
        share = "" if candidate.share is None else f", {candidate.share:.0%} of the limit"
        lines.append(f"{number(candidate.seconds * 1e3)} ms")
        lines.append(f"{number(record.gflops or 0.0)} GFLOP/s{share}")
    values = (f"{name} {spelt(record.decisions.get(name, '-'))}" for name in one.varied)
    return "\n".join([*lines, *values])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A table of HTML cells; columns after the first ``texts`` are numbers."""
    columns = [' class="n"' if at >= texts else "" for at in range(len(head))]
    cells = [f'<th scope="col"{c}>{escape(n)}</th>' for n, c in zip(head, columns, strict=True)]
    lines = [f"<table><thead><tr>{''.join(cells)}</tr></thead><tbody>"]
    for row in rows:
        spelt_row = (f"<td{c}>{cell}</td>" for cell, c in zip(row, columns, strict=True))
        lines.append(f"<tr>{''.join(spelt_row)}</tr>")
    return "".join([*lines, "</tbody></table>"])
