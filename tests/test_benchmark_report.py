"""The benchmark's rounds, figures and tables, from made-up answers. Nothing is timed here."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # benchmarks/ is no part of the distribution

from benchmarks import __main__ as command  # noqa: E402
from benchmarks import costs, figures, machine, measure, report, resume  # noqa: E402
from benchmarks.child import Silence  # noqa: E402
from benchmarks.workloads import drawn, named  # noqa: E402


class FakeChild:
    """Answers at once, with times that depend on the runner and on the number of threads."""

    asked: list[tuple[str, str, int]] = []  # noqa: RUF012  (the test empties it)

    def __init__(self, home: str, threads: int, variables: Mapping[str, str]) -> None:
        assert not variables
        self.home, self.threads, self.process = home, threads, 1
        self.version = "1.0"
        self.reason = "not installed (No module named 'openvino')" if "openvino" in home else ""

    def ask(self, op: str, **message: Any) -> dict[str, Any]:
        FakeChild.asked.append((op, self.home, self.threads))
        seconds = (0.002 if "tvmconv" in self.home else 0.008) / self.threads
        if "keras" in self.home and op == "turn":
            raise Silence("the process ended with -11: it said nothing")
        if op == "prepare":
            wrong = 0.5 if "Contiguous" in self.home else 1e-7
            limit = "limits" in self.home or "Sgemm" in self.home
            return {
                "added_bytes": 1 << 20,
                "once_s": 100.0 if "ChannelsLast" in self.home else seconds,
                "error": None if limit else wrong,
                "amount": 10**8 if limit else 0,
            }
        if op == "turn":
            return {"times_s": [seconds, 2 * seconds, 3 * seconds]}
        return {}

    def close(self) -> None:
        pass


def fake_build(*_: Any, **__: Any) -> dict[str, Any]:
    return {"algorithm": "direct", "form": "phase", "origin": "default", "seconds": 1.5}


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A whole run with fake runners."""
    monkeypatch.setattr(measure, "Child", FakeChild)
    monkeypatch.setattr(measure, "build", fake_build)
    FakeChild.asked.clear()
    peers = ["torch", "torch_channels_last", "onnxruntime", "openvino", "keras"]
    options = measure.Options(named(["odd", "gan_g1"]), [1, 2], peers, ["auto"], rounds=5)
    found: dict[str, Any] = json.loads(json.dumps(measure.run(options, lambda line: None)))
    return found


def test_rounds(record: dict[str, Any]) -> None:
    results = record["layers"][0]["results"]["2"]
    assert len(results["tvmconv"]["rounds_s"]) == 5
    assert results["tvmconv"]["median_s"] == pytest.approx(0.002)
    assert results["tvmconv"]["best_s"] == pytest.approx(0.001)
    assert len(results["torch_channels_last"]["rounds_s"]) == 3  # too slow for more
    assert results["torch"]["reason"] == "its output differs from the reference by 0.5"
    assert results["keras"]["reason"] == "the process ended with -11: it said nothing"
    assert "not installed" in results["openvino"]["reason"]
    assert record["runners"]["openvino"]["reason"] == results["openvino"]["reason"]
    turns = [home for op, home, threads in FakeChild.asked if op == "turn" and threads == 1]
    first, second = turns[: len(set(turns))], turns[len(set(turns)) :][: len(set(turns)) - 1]
    assert [home for home in reversed(first) if "keras" not in home] == second


def test_figures(record: dict[str, Any]) -> None:
    rows = figures.rows(record, 2)
    assert {row.layer["name"] for row in rows} == {"odd", "gan_g1"}
    for row in rows:
        assert row.ratio == pytest.approx(4.0)
        assert row.peer_name in ("torch channels_last_3d", "ONNX Runtime")
        assert row.sgemm == pytest.approx(1e8 / 0.008)
        rate, name = row.limit
        assert name == ("sgemm" if row.layer["name"] == "odd" else "bandwidth")
        assert row.ours is not None
        assert row.share == pytest.approx(row.ours["rate"] / rate)
    assert figures.scaling(record["layers"][0], "tvmconv", 1, 2) == pytest.approx(2.0)
    assert figures.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert figures.geometric_mean([]) is None


def test_losing_layers_come_first(record: dict[str, Any]) -> None:
    record["layers"][1]["results"]["1"]["tvmconv"]["median_s"] *= 9
    del record["layers"][0]["results"]["2"]["tvmconv"]["rate"]
    record["layers"][0]["results"]["2"]["tvmconv"]["reason"] = "it burnt"
    losing = record["layers"][1]["name"]
    assert figures.rows(record, 1)[0].layer["name"] == losing
    assert "1 slower than it" in report.headline(record, 1)
    assert figures.rows(record, 2)[0].ours is None
    assert "it burnt" in report.tables(record)["against"]


def test_tables(record: dict[str, Any]) -> None:
    parts = report.tables(record)
    assert "4.00 times as fast as the best framework" in parts["against"]
    assert "all layers: Keras on TensorFlow: the process ended with -11" in parts["everybody"]
    assert "direct, phase, default" in parts["layers"]
    assert "CPU" in parts["machine"] or record["machine"]["cpu"] in parts["machine"]
    for part in parts.values():
        for block in part.split("\n\n"):
            if block.startswith("|"):
                assert len({line.count("|") for line in block.splitlines()}) == 1, block
    assert report.document(parts).count("| layer ") == 6


def test_layers_drawn_at_random_have_a_table_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "Child", FakeChild)
    monkeypatch.setattr(measure, "build", fake_build)
    algorithms = ["auto", "direct", "toom-cook"]
    options = measure.Options(drawn(2, 3), [1], ["torch_channels_last"], algorithms, rounds=3)
    record = json.loads(json.dumps(measure.run(options, lambda line: None)))
    record["layers"][0]["results"]["1"]["tvmconv_toom-cook"]["median_s"] = 0.003
    (name,) = parts = report.tables(record)
    assert name == "drawn"
    assert parts["drawn"].count("| phase |") == 2
    shares = [figures.beside_best_algorithm(record, row) for row in figures.rows(record, 1)]
    assert sorted(share for share in shares if share) == pytest.approx([0.75, 1.0])
    assert "0.75 |" in parts["drawn"]


def test_waiting_for_a_quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    loads, said = [3.0, 3.0, 3.0, 0.7, 0.2], []
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (loads[0], 0.0, 0.0))
    monkeypatch.setattr(machine.time, "sleep", lambda s: loads.pop(0))
    assert machine.settle(60.0, said.append)
    assert loads == [0.2]
    assert said == ["load average 3.00: waiting up to 60 s for 0.5"]
    loads[:] = [3.0]
    assert not machine.settle(0.0, said.append)


def test_a_table_of_an_interrupted_run(record: dict[str, Any]) -> None:
    record["options"]["complete"] = False
    record["noise"]["warnings"] = ["the load average was 3.00 before the first call"]
    text = report.tables(record)["machine"]
    assert "interrupted" in text
    assert "load average was 3.00" in text


def test_the_document_keeps_what_people_wrote(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("# A\n<!-- begin: one -->\nold\n<!-- end: one -->\nwords\n")
    assert report.update(path, {"one": "new \\1", "two": "absent"}) == ["two"]
    text = path.read_text()
    assert text == "# A\n<!-- begin: one -->\n\nnew \\1\n\n<!-- end: one -->\nwords\n"
    report.update(path, {"one": "new \\1"})
    assert path.read_text() == text


def test_performance_page_has_a_place_for_every_table(record: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    for name in [*report.tables(record), "costs", "drawn", "avx2", "picture"]:
        assert page.count(f"<!-- begin: {name} -->") == page.count(f"<!-- end: {name} -->") == 1


def test_a_run_of_another_dtype_has_a_part_of_its_own(record: dict[str, Any]) -> None:
    record["options"]["dtype"] = "bfloat16"
    parts = report.tables(record)
    assert list(parts) == ["bfloat16"] and "best framework" in parts["bfloat16"]
    record["options"]["isa"] = "avx2"
    assert list(report.tables(record)) == ["avx2"]


def test_costs_table() -> None:
    found = [
        costs.Cost("import tvmconv", 0.05, 0.2, "s"),
        costs.Cost("a call", 30.0, 20.0, "us"),
        costs.Cost("compile", None, 10.0, "s", "the compiler ended with 1: no room"),
    ]
    assert [cost.met for cost in found] == [True, False, False]
    record = {
        "costs": [{**vars(cost), "met": cost.met} for cost in found],
        "noise": {"warnings": []},
    }
    lines = costs.rendered(record).splitlines()
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["yes", "NO", "NO"]
    assert "no room" in lines[4]


def test_command_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    record: dict[str, Any],
) -> None:
    source, copy, page = tmp_path / "in.json", tmp_path / "out.json", tmp_path / "page.md"
    source.write_text(json.dumps(record))
    page.write_text("<!-- begin: against -->\n<!-- end: against -->\n")
    arguments = ["--from", str(source), "--json", str(copy), "--docs", str(page)]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    assert command.main() == 0
    assert json.loads(copy.read_text()) == record
    assert "times as fast" in page.read_text()
    assert "times as fast" in capsys.readouterr().out


def test_a_run_in_several_sittings(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    record: dict[str, Any],
) -> None:
    del record  # its fixture puts fake runners in place
    path = tmp_path / "results.json"
    arguments = ["--layers", "odd,gan_g1", "--threads", "1", "--rounds", "3", "--peers", "torch"]
    arguments += ["--resume", str(path), "--at-most", "1"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    assert command.main() == 0
    first = json.loads(path.read_text())
    assert [layer["name"] for layer in first["layers"]] == ["gan_g1"]
    assert not first["options"]["complete"]
    assert "1 layers are left" in capsys.readouterr().err
    FakeChild.asked.clear()
    assert command.main() == 0
    both = json.loads(path.read_text())
    assert [layer["name"] for layer in both["layers"]] == ["gan_g1", "odd"]
    assert both["options"]["complete"]
    assert both["layers"][0] == first["layers"][0]
    FakeChild.asked.clear()
    assert command.main() == 0
    assert not FakeChild.asked, "nothing was left to measure"
    assert json.loads(path.read_text()) == both


def test_sittings_that_do_not_belong_together(record: dict[str, Any], tmp_path: Path) -> None:
    works = named(["odd", "gan_g1"])
    assert resume.merge(None, record, works)["layers"] == record["layers"]
    worse = {**record, "noise": {**record["noise"], "load_at_start": 999.0}}
    assert resume.merge(record, worse, works)["noise"]["load_at_start"] == 999.0
    busier = {**record, "noise": {**record["noise"], "load_at_start": 1000.0}}
    found = resume.merge(worse, busier, works)["noise"]["warnings"]
    loads = [text for text in found if "load average" in text]
    assert len(loads) == 1 and "1000.00" in loads[0], "one for all sittings, of the worst"
    for part, name, value in (("machine", "cpu", "another"), ("options", "rounds", 99)):
        other = {**record, part: {**record[part], name: value}}
        with pytest.raises(ValueError, match="differ"):
            resume.merge(record, other, works)
    assert resume.read(tmp_path / "none.json") is None
    wrong = tmp_path / "wrong.json"
    for text in ("", "[]", '{"format": "something"}'):
        wrong.write_text(text)
        with pytest.raises(ValueError, match=r"wrong\.json"):
            resume.read(wrong)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--at-most", "3"], "of --resume"),
        (["--resume", "a.json", "--at-most", "0"], "from 1 on"),
        (["--resume", "a.json", "--costs"], "neither"),
        (["--resume", "pyproject.toml"], "not JSON"),
        (["--layers", "unet"], "no layer 'unet'"),
        (["--threads", "0"], "expected numbers of threads from 1"),
        (["--threads", "99999"], "expected numbers of threads from 1"),
        (["--peers", "caffe"], "no peer 'caffe'"),
        (["--rounds", "2", "--seconds", "3"], "not allowed with"),
    ],
)
def test_wrong_arguments(
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
