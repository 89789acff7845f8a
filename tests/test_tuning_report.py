"""The HTML report as text: complete, small, its own page, and safe whatever a record says."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tuning_records import record, winner
from tuning_search import search

from tvmconv.errors import TuningError
from tvmconv.tuning import chart, report
from tvmconv.tuning.history import histories
from tvmconv.tuning.records import Failure

VOID = {"meta", "link", "br"}


class Nesting(HTMLParser):
    """Fails where an element is not closed, and collects attributes that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.loads += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """SVG's own way to close an element."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag


def points(text: str) -> list[int]:
    return [int(number) for number in re.findall(r'class="mark [^"]*" data-i="(\d+)"', text)]


def told(text: str) -> list[list[str]]:
    """What the page says of each candidate, for each layer."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', text, re.S)
    return [json.loads(one) for one in found]


def test_every_candidate_is_a_point_in_both_charts(tmp_path: Path) -> None:
    report.write(tmp_path / "r.html", search(60))
    text = (tmp_path / "r.html").read_text()
    assert sorted(points(text)) == sorted([*range(60), *range(60)])
    (texts,) = told(text)
    assert len(texts) == 60
    assert texts[0].startswith("trial 1, the default, after 0 s\n")
    assert "registers 1" in texts[0]
    assert "GFLOP/s, " in texts[0]
    assert "failed: timeout: no answer within 10 s" in texts[7]


def test_it_is_one_small_file_that_loads_nothing(tmp_path: Path) -> None:
    report.write(tmp_path / "r.html", [*search(200), *search(30, shape=(1, 8, 8, 8, 16))])
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
    text = (tmp_path / "r.html").read_text()
    assert len(text) < 150_000
    page = Nesting()
    page.feed(text)
    assert page.open == []
    assert page.loads == ["data:,", "#layer0", "#layer1"]
    assert "http:" not in text
    assert "https:" not in text


def test_it_says_what_was_confirmed() -> None:
    text = report.page(histories(search(60)), "Tuning report")
    assert "over the default" in text
    assert "20 rounds in turns on fresh inputs" in text
    assert "a processor, 2 cores; target x86_64-znver3-256" in text
    text = report.page(histories(search(60)[:-1]), "Tuning report")
    assert "not confirmed" in text
    text = report.page(histories([*search(60)[:-1], winner(0.0)]), "Tuning report")
    assert "the default won" in text
    assert ">winner<" not in text


def test_names_from_a_log_are_text() -> None:
    evil = "</script><script>alert(1)</script>"
    failure = Failure("crash", evil)
    made = [record(trial=i, layer=evil, seconds=None, error=failure) for i in range(3)]
    text = report.page(histories([*made, record(trial=9, layer=evil)]), evil)
    assert text.count("<script") == 2
    (texts,) = told(text)
    assert evil in texts[0]


@pytest.mark.parametrize(
    "made",
    [
        [record(trial=0)],
        [record(seconds=None, error=Failure("build", "no"))],
        [record(trial=0, limit_gflops=None), record(trial=1, limit_gflops=None)],
    ],
    ids=["one candidate", "only failures", "no limit"],
)
def test_little_is_enough(made: list) -> None:  # type: ignore[type-arg]
    page = Nesting()
    page.feed(report.page(histories(made), "Little"))
    assert page.open == []


def test_no_record_is_an_error() -> None:
    with pytest.raises(TuningError, match="no tuning record"):
        report.page([], "Nothing")


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "r.html"
    place.write_text("old")
    with pytest.raises(TuningError, match="cannot be written"):
        report.write(tmp_path / "none" / "r.html", search(3))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(TuningError, match="No space left"):
        report.write(place, search(3))
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
    assert place.read_text() == "old"


def test_ticks_are_round() -> None:
    assert chart.ticks(166) == [0, 50, 100, 150]
    assert chart.ticks(1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert chart.ticks(0) == [0]
    assert chart.ticks(float("nan")) == [0]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (3.14159, "3.14"), (0.012345, "0.0123"), (12345.6, "12,346")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert chart.number(value) == text


def test_the_line_of_the_best_goes_up_by_steps() -> None:
    marks = [chart.Point(0, 1, 50.0, "default"), chart.Point(1, 2, 100.0), chart.Point(2, 3, None)]
    drawn = chart.course("c", marks, [(1, 50.0), (2, 100.0)], "trial", 200.0, 4)
    path = re.search(r'class="best-line" d="M([\d.]+) ([\d.]+)H([\d.]+)V([\d.]+)H([\d.]+)"', drawn)
    assert path is not None
    x0, y0, x1, y1, end = map(float, path.groups())
    assert x0 < x1 < end
    assert y0 > y1
    assert (y0 - y1) == pytest.approx(50 / (1.04 * 200) * 250, abs=0.2)
