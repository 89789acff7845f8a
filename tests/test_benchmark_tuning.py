"""The tables of `benchmarks.tuning_gains`, from made-up figures. Nothing is timed here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # benchmarks/ is no part of the distribution

from benchmarks import curves, tuning_gains  # noqa: E402
from benchmarks.workloads import Workload  # noqa: E402


def fake_search(
    work: Workload, *, trials: int, seconds: float, model: str, seed: int, jobs: int | None
) -> dict[str, Any]:
    """Gets faster with every trial, with xgboost more so; the third candidate fails."""
    del seconds, jobs
    pace = 2.0 if model == "xgb" else 1.0
    times = [None if at == 3 else 8e-3 / (1 + pace * at / trials) for at in range(trials + 1)]
    final = {"median_s": 4e-3, "default_s": 5e-3, "gain": 0.25, "gain_low": 0.2, "gain_high": 0.3}
    return {
        "layer": work.name, "model": model, "seed": seed, "gflop": 0.4, "limit_gflops": 200.0,
        "form": "phase", "final": final, "trials": trials, "failed": 1, "search_s": 1.2 * trials,
        "times_s": times, "elapsed_s": [1.2 * at for at in range(trials + 1)], "importance": {},
    }  # fmt: skip


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The figures of a quick run, in a file."""
    monkeypatch.setattr(tuning_gains, "search", fake_search)
    monkeypatch.setenv("TVMCONV_LOGS", "")  # which the run changes
    path = tmp_path / "tuning.json"
    monkeypatch.setattr(
        sys, "argv", ["tuning_gains", "--quick", "--seeds", "3", "--json", str(path)]
    )
    assert tuning_gains.main() == 0
    return path


def test_what_is_measured(record: Path) -> None:
    found = json.loads(record.read_text())
    assert [one["layer"] for one in found["gains"]] == ["psm_conv5", "odd"]
    assert [(one["model"], one["seed"]) for one in found["models"]] == [
        ("xgb", 1), ("random", 1), ("random", 2), ("xgb", 2), ("xgb", 3), ("random", 3),
    ]  # fmt: skip
    assert found["complete"]


def test_tables(record: Path) -> None:
    parts = curves.tables(json.loads(record.read_text()))
    assert "Median gain: +25.0% over 2 layers." in parts["gains"]
    row = next(line for line in parts["gains"].splitlines() if "psm_conv5" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "psm_conv5", "phase", "5.000", "4.000", "+25.0%", "+20.0% to +30.0%", "100.0", "50%", "24",
        "1", "1.20",
    ]  # fmt: skip
    assert "faster than random search on 1 of 1 layers" in parts["models"]
    xgb = next(line for line in parts["models"].splitlines() if "xgboost" in line and "odd" in line)
    # 8 / (1 + 2 t) is 8 / 2 at half of the trials: there random search ends.
    assert [cell.strip() for cell in xgb.strip("|").split("|")][-1] == "12"


def test_the_best_so_far_passes_over_failures() -> None:
    assert curves.best_so_far([3.0, None, 2.0, 4.0]) == [3.0, 3.0, 2.0, 2.0]


def test_the_page_has_a_place_for_every_part(
    record: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = tmp_path / "tuning.md"
    page.write_text((ROOT / "docs" / "tuning.md").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["t", "--from", str(record), "--docs", str(page)])
    assert tuning_gains.main() == 0
    assert "no place" not in capsys.readouterr().err
    text = page.read_text(encoding="utf-8")
    assert "Median gain: +25.0%" in text
    assert text.count("<!-- begin:") == text.count("<!-- end:") == 4


@pytest.mark.parametrize("option", [["--layers", "nothing"], ["--models", "psm_conv5,nothing"]])
def test_unknown_layers(
    option: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tuning_gains", *option])
    with pytest.raises(SystemExit):
        tuning_gains.main()
    assert "no layer 'nothing'" in capsys.readouterr().err
