"""``tvmconv logs``: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Capture, refused
from tuning_records import CONFIG, FINGERPRINT, SHAPE, final_of, record, winner
from tuning_search import search

from tvmconv import cli
from tvmconv.tuning import lookup, platforms, records, upkeep, workloads
from tvmconv.tuning.run import processor


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's log, with two workloads; nothing ships."""
    monkeypatch.setenv("TVMCONV_LOGS", str(tmp_path / "own"))
    monkeypatch.setattr(lookup, "shipped_folder", lambda: tmp_path / "shipped")
    records.append(tmp_path / "own", search(30))
    records.append(tmp_path / "own", search(12, shape=(1, 8, 8, 8, 16), layer="inner/up2"))
    return tmp_path / "own"


def ran(capsys: Capture, *arguments: object) -> str:
    assert cli.main(["logs", *map(str, arguments)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def listed(capsys: Capture, *arguments: object) -> Any:
    return json.loads(ran(capsys, *arguments, "--json"))


def test_list(capsys: Capture, tmp_path: Path) -> None:
    lines = ran(capsys, "list").splitlines()
    assert lines[0].split() == [
        "target", "layer", "workload", "key", "trials", "failed", "best", "ms", "GFLOP/s", "gain",
        "default", "log",
    ]  # fmt: skip
    assert {line.split()[1] for line in lines[1:3]} == {"up", "inner/up2"}
    assert lines[-1].startswith(f"2 workloads in {tmp_path / 'own'}")
    facts = listed(capsys, "list", "inner/up2")
    assert [(one["layer"], one["trials"], one["failures"]) for one in facts] == [
        ("inner/up2", 12, {"timeout": 1})
    ]
    assert facts[0]["winner"]["final"]["gain"] > 0


def test_list_shows_what_ships(capsys: Capture, tmp_path: Path) -> None:
    records.append(tmp_path / "shipped", search(9)[-1:])
    assert [one["log"] for one in listed(capsys, "list")].count("shipped") == 1
    assert {one["log"] for one in listed(capsys, "list", "--logs", tmp_path / "shipped")} == {
        str(tmp_path / "shipped")
    }


@pytest.mark.parametrize(
    ("target", "rows", "word"),
    [("x86-64-v3", 0, "same"), ("x86-64-v3", 1, "changed"), ("cuda:sm_90", 0, "same")],
)
def test_list_says_where_the_default_has_changed(
    capsys: Capture, tmp_path: Path, target: str, rows: int, word: str
) -> None:
    machine = processor(target, elsewhere=True)
    decisions = platforms.default(workloads.of_layer(CONFIG, SHAPE), machine).to_json()
    if rows:
        decisions["rows"] += rows
    final = dataclasses.replace(final_of(0.1), default=decisions)
    made = winner(fingerprint=machine.fingerprint(), target=platforms.described(machine))
    records.append(tmp_path / "new", [dataclasses.replace(made, final=final)])
    header, line, *more = ran(capsys, "list", "--logs", tmp_path / "new").splitlines()
    assert line[header.index("default") :].split()[0] == word
    assert any("default changed" in other for other in more) == (word == "changed")
    (facts,) = listed(capsys, "show", "--logs", tmp_path / "new")
    assert facts["default_changed"] == (word == "changed")
    assert ("has changed since" in ran(capsys, "show", "--logs", tmp_path / "new")) == bool(rows)


def test_list_says_nothing_of_a_default_that_it_cannot_know(
    capsys: Capture, tmp_path: Path
) -> None:
    final = dataclasses.replace(final_of(0.1), default={"form": "phase"})
    for at, made in enumerate(
        [
            winner(),
            dataclasses.replace(winner(fingerprint="x86_64-znver2-256"), final=final),
            dataclasses.replace(winner(target={"fingerprint": FINGERPRINT}), final=final),
        ]
    ):
        log = tmp_path / str(at)
        records.append(log, [made])
        (facts,) = listed(capsys, "list", "--logs", log)
        assert facts["default_changed"] is None
        assert "changed" not in ran(capsys, "list", "--logs", log)


def test_list_of_an_empty_log(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVMCONV_LOGS", "/nonexistent/logs")
    assert ran(capsys, "list") == "0 workloads in /nonexistent/logs, or shipped\n"
    assert listed(capsys, "list") == []


def test_show(capsys: Capture, tmp_path: Path) -> None:
    text = ran(capsys, "show", "up", "--count", "3", "--report", tmp_path / "r.html")
    lines = text.splitlines()
    assert lines[0] == "up: 16->16 kernel 3x3x3 strides 2,2,2 on 1x4x4x8"
    assert "  trials     30" in lines
    assert any(line.startswith("  winner     ") and "gain +" in line for line in lines)
    assert any("registers 1" in line for line in lines)
    assert "2 timeout, 1 crash" in text or "1 timeout" in text
    assert lines[-1] == f"report: {tmp_path / 'r.html'}"
    assert "over the default" in (tmp_path / "r.html").read_text()
    at = next(i for i, line in enumerate(lines) if line.startswith("candidate"))
    assert len(lines) - at == 3 + 2


def test_show_by_key_target_and_candidate(capsys: Capture, own: Path) -> None:
    one = search(1)[0]
    for name in (one.workload_key, one.workload_key[:6], one.id):
        assert [found["layer"] for found in listed(capsys, "show", name)] == ["up"]
    assert len(listed(capsys, "show", FINGERPRINT)) == 2


def test_names_from_a_log_do_not_reach_the_terminal(capsys: Capture, own: Path) -> None:
    records.append(own, [record(layer="\x1b[31mred\nline", shape=(1, 5, 5, 5, 16))])
    assert "\x1b" not in ran(capsys, "list")
    assert "\x1b" not in ran(capsys, "show")


def test_export_and_merge(capsys: Capture, tmp_path: Path) -> None:
    sent = tmp_path / "sent.json"
    assert ran(capsys, "export", "up", "-o", sent) == f"{sent}: 31 records\n"
    assert ran(capsys, "export", "up").splitlines() == sent.read_text().splitlines()
    other = tmp_path / "other"
    assert ran(capsys, "merge", sent, tmp_path / "own", "--logs", other) == (
        f"{other}: 44 records added, 31 known\n"
    )
    assert listed(capsys, "merge", sent, "--logs", other) == {
        "log": str(other), "added": 0, "known": 31, "refused": 0,
    }  # fmt: skip


def test_prune(capsys: Capture, own: Path) -> None:
    said = ran(capsys, "prune", "up", "--keep", "4", "--dry-run")
    assert said == f"{own}: 25 lines would be removed, 6 records kept\n"
    assert ran(capsys, "prune", "up", "--keep", "4") == f"{own}: 25 lines removed, 6 records kept\n"
    assert len(list(upkeep.read_all(own))) == 6 + 13


def test_promote(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "checkout" / "tuning_logs"
    place.mkdir(parents=True)
    (place / "__init__.py").touch()
    (place.parent / "pyproject.toml").write_text('[project]\nname = "tvmconv"\n')
    said = ran(capsys, "promote", "up", "--checkout", place.parent, "--dry-run")
    assert said.endswith(f"1 record would be promoted into {place}\n")
    monkeypatch.chdir(place.parent)
    lines = ran(capsys, "promote").splitlines()
    assert lines[-1] == f"2 records promoted into {place}"
    assert len(lines) == 4
    assert listed(capsys, "promote") == []
    code, line = refused(capsys, "logs", "promote", "--checkout", tmp_path)
    assert code == 2
    assert "not in a checkout" in line


def test_damage_is_told_and_costs_nothing_else(capsys: Capture, own: Path) -> None:
    path = records.workload_files(own)[0]
    with path.open("a") as file:
        file.write('{"torn": \n')
    assert cli.main(["logs", "list"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("tvmconv: 1 damaged line left out, the first: ")
    assert str(path) in captured.err
    assert len(captured.err.splitlines()) == 1
    assert "2 workloads" in captured.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "ACTION"),
        (["dance"], "invalid choice"),
        (["show", "nothing"], "no record of 'nothing'"),
        (["export", "nothing"], "there are layers"),
        (["list", "--logs", "/nonexistent"], "there is no log /nonexistent"),
        (["prune", "--logs", "/nonexistent"], "there is no log /nonexistent"),
        (["merge", "/nonexistent"], "there is no log /nonexistent"),
        (["merge"], "LOG"),
        (["list", "--logs", "none"], "name a folder"),
        (["prune", "--keep", "-1"], "--keep"),
        (["prune", "--keep", "few"], "expected a number from 0 on"),
        (["list", "--fast"], "unrecognized arguments: --fast"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refusals(capsys: Capture, arguments: list[str], said: str) -> None:
    code, line = refused(capsys, "logs", *arguments)
    assert code == 2
    assert said in line


def test_what_cannot_be_written(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments in (
        ["export", "-o", tmp_path / "none" / "x.json"],
        ["show", "--report", tmp_path / "none" / "r.html"],
        ["merge", tmp_path / "own", "--logs", tmp_path / "file" / "log"],
    ):
        code, line = refused(capsys, "logs", *arguments)
        assert code == 1
        assert "cannot be written" in line
