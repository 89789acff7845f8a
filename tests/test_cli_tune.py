"""`tvmconv tune`: what it refuses, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Capture, refused
from tuning_records import CONFIG
from tuning_simulation import Simulation, seconds

from tvmconv import cli
from tvmconv.compute.tiling import Tiling
from tvmconv.errors import BuildError
from tvmconv.schedules.space import Space
from tvmconv.tuning import models, runners


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "up.json"
    path.write_text(json.dumps(CONFIG.get_config()))
    return path


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is built or run."""
    spaces: list[Space] = []

    def tell(tiling: Tiling) -> float:
        return seconds(spaces[0], tiling)

    one = Simulation(tell, tmp_path / "made")

    def build(task: runners.Task, tilings: list[Tiling]) -> list[runners.Built]:
        if not spaces:
            spaces.append(Space.of(task.work, task.machine, task.algorithm))
        return Simulation.build(one, task, tilings)

    monkeypatch.setattr(one, "build", build)
    monkeypatch.setattr(runners, "LocalBuilder", lambda jobs: one)
    monkeypatch.setattr(runners, "LocalRunner", lambda seed: one)


def test_lines_where_nobody_watches(
    source: Path, tmp_path: Path, simulated: None, capsys: Capture
) -> None:
    arguments = [
        "tune", str(source), "--input-shape", "?,4,4,8,16", "--trials", "12", "--cost-model",
        "random", "--logs", str(tmp_path / "log"), "--report", str(tmp_path / "r.html"),
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert f"records go to {tmp_path / 'log'}" in out
    assert "up: searching, " in out
    assert "up: done, 12 tried, 0 failed, best" in out
    assert "of the limit" in out
    assert "over the default" in out
    assert "0 to try" in out
    assert "wins," in out
    assert "<html" in (tmp_path / "r.html").read_text()


def test_json(source: Path, tmp_path: Path, simulated: None, capsys: Capture) -> None:
    arguments = [
        "tune", str(source), "--input-shape", "1,4,4,8,16", "--trials", "5", "--cost-model",
        "random", "--logs", str(tmp_path / "log"), "--json",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    (one,) = found["layers"]
    assert found["log"] == str(tmp_path / "log")
    assert one["layer"] == "up"
    assert one["trials"] == 5
    assert set(one["final"]) >= {"gain", "gain_low", "gain_high", "rounds"}


def test_the_users_own_log(
    source: Path,
    tmp_path: Path,
    simulated: None,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TVMCONV_LOGS", str(tmp_path / "mine"))
    arguments = ["tune", str(source), "--input-shape", "1,4,4,8,16", "--trials", "2"]
    assert cli.main([*arguments, "--cost-model", "random"]) == 0
    assert list((tmp_path / "mine").glob("*/*.json"))
    capsys.readouterr()


def test_refusals(
    source: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = ["--input-shape", "1,4,4,8,16", "--cost-model", "random"]
    (tmp_path / "file").write_text("")
    cases = [
        ([tmp_path / "no.keras"], 2, "no such file"),
        ([source], 2, "needs an input shape"),
        ([source, *shape, "--target", "x86-64-v3+sse4a+fma4"], 2, "it lacks"),
        ([source, *shape, "--target", "nonsense"], 2, "unknown target"),
        ([source, *shape, "--logs", tmp_path / "file"], 1, "the log"),
        ([source, *shape], 2, "tuning needs a folder for its records"),
    ]
    for arguments, expected, words in cases:
        code, line = refused(capsys, "tune", *arguments)
        assert words in line
        assert code == expected, line

    def missing(cost_model: str) -> None:
        raise BuildError("xgboost is missing")

    with monkeypatch.context() as context:
        context.setattr(models, "check", missing)
        assert "no such file" in refused(capsys, "tune", tmp_path / "no.keras")[1]
        assert "xgboost" in refused(capsys, "tune", source, "--input-shape", "1,4,4,8,16")[1]
    monkeypatch.setenv("TVMCONV_LOGS", str(tmp_path / "log"))
    code, line = refused(capsys, "tune", "examples/decoder.keras", "--layer", "nowhere", *shape)
    assert code == 2
    assert "nowhere" in line
