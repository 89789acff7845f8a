"""The tables of sizes and of starts: what they hold, and what they say of what cannot be built."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from command_line import Capture

from benchmarks import sizes, startup

LAYER = "ae_s1"


def test_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin: sizes -->\nold\n<!-- end: sizes -->\nafter\n")
    options = ["--layer", LAYER, "--targets", "native,no-such-board", "--no-peers"]
    monkeypatch.setattr("sys.argv", ["sizes", *options, "--docs", str(page)])
    assert sizes.main() == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    (row,) = re.findall(r"^\| native +\| +(\d+) \| +(\d+) \|", text, re.M)
    assert 5 < int(row[0]) < 200 and 5 < int(row[1]) < 200
    assert "Not built on that machine: no-such-board." in text
    assert "unknown target 'no-such-board'" in capsys.readouterr().err
    page.write_text("no markers\n")
    monkeypatch.setattr(sizes, "ours", lambda *_: "table")
    assert sizes.main() == 1
    assert page.read_text() == "no markers\n"


def test_sizes_of_wheels_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    assert [row[1] for row in sizes.peers()] == ["not downloaded"] * 3


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_startup(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("sys.argv", ["startup", "--repeats", "1"])
    assert startup.main() == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| small")]
    assert "1 / 1 / 2" in row
