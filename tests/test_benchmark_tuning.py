"""The tables of `benchmarks.tuning_gains`, from made-up figures. Nothing is timed here."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # benchmarks/ is no part of the distribution

from tuning_records import record as made  # noqa: E402
from tuning_simulation import SIMULATED, Simulation, seconds, task  # noqa: E402

from benchmarks import curves, recorded, tuning_gains, tuning_search  # noqa: E402
from benchmarks.tuning_search import Unfinished  # noqa: E402
from benchmarks.workloads import Workload, named  # noqa: E402
from tvmconv.compute.tiling import Tiling  # noqa: E402
from tvmconv.schedules.space import Space  # noqa: E402
from tvmconv.tuning.run import tune_tasks  # noqa: E402
from tvmconv.tuning.session import Budget  # noqa: E402

TASK = task((1, 4, 4, 8, 16), algorithm="direct")
SPACE = Space.of(TASK.work, TASK.machine, "direct")
TILING = SPACE.default
needs_xgboost = pytest.mark.skipif(
    importlib.util.find_spec("xgboost") is None, reason="xgboost is not installed"
)


def times(model: str, trials: int) -> list[float | None]:
    """Gets faster with every trial, with xgboost more so; the third candidate fails."""
    pace = 2.0 if model == "xgb" else 1.0
    return [None if at == 3 else 8e-3 / (1 + pace * at / trials) for at in range(trials + 1)]


def fake_search(
    work: Workload, *, trials: int, model: str, seed: int, until: float, **more: Any
) -> dict[str, Any]:
    """A search without a machine; over once the sitting is."""
    assert more.keys() == {"seconds", "jobs", "log", "bandwidth"}
    if until < time.monotonic():
        raise Unfinished
    final = {"median_s": 4e-3, "default_s": 5e-3, "gain": 0.25, "gain_low": 0.2, "gain_high": 0.3}
    return {
        "layer": work.name, "model": model, "seed": seed, "gflop": 0.4, "limit_gflops": 200.0,
        "least": {"sgemm": 2e-3, "products": 1e-3, "memory": 3e-3},
        "form": "phase", "final": final, "trials": trials, "failed": 1, "search_s": 1.2 * trials,
        "times_s": times(model, trials),
    }  # fmt: skip


def fake_replay(
    work: Workload, found: object, *, model: str, seed: int, trials: int
) -> list[float | None]:
    del work, found, seed
    return times(model, trials)


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The figures of a quick run, in a file."""
    simulate(monkeypatch)
    path = tmp_path / "tuning.json"
    asked = ["--quick", "--seeds", "3", "--tables", "odd", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["tuning_gains", *asked])
    assert tuning_gains.main() == 0
    return path


def simulate(monkeypatch: pytest.MonkeyPatch) -> None:
    """No search, and a table of one candidate, the fastest of all."""
    monkeypatch.setattr(tuning_gains, "search", fake_search)
    monkeypatch.setattr(tuning_gains, "_bandwidth", lambda: 1e10)
    monkeypatch.setattr(recorded, "measure", lambda *_, **__: (513, 513))
    monkeypatch.setattr(recorded, "table", lambda *_: {TILING: made(seconds=(8e-3 / 3,))})
    monkeypatch.setattr(recorded, "replay", fake_replay)
    monkeypatch.setenv("TVMCONV_LOGS", "")  # which the run changes


def test_what_is_measured(record: Path) -> None:
    found = json.loads(record.read_text())
    assert [one["layer"] for one in found["gains"]] == ["psm_conv5", "odd"]
    assert [(one["model"], one["seed"]) for one in found["models"]] == [
        ("xgb", 1), ("random", 1), ("random", 2), ("xgb", 2), ("xgb", 3), ("random", 3),
    ]  # fmt: skip
    assert [(one["model"], one["seed"]) for one in found["tables"]] == [
        (model, seed) for seed in (1, 2, 3) for model in ("xgb", "random")
    ]
    assert found["complete"]


def test_a_run_in_several_sittings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate(monkeypatch)
    calls: list[str] = []

    def once(work: Workload, **more: Any) -> dict[str, Any]:
        calls.append(work.name)
        if len(calls) % 2 == 0:
            raise Unfinished
        return fake_search(work, **more)

    monkeypatch.setattr(tuning_gains, "search", once)
    asked = ["t", "--quick", "--models", "none", "--resume", str(tmp_path), "--at-most", "60"]
    monkeypatch.setattr(sys, "argv", asked)
    assert tuning_gains.main() == 0
    assert "the same command goes on" in capsys.readouterr().err
    kept = json.loads((tmp_path / "tuning.json").read_text())
    assert not kept["complete"] and [one["layer"] for one in kept["gains"]] == ["psm_conv5"]
    assert tuning_gains.main() == 0
    kept = json.loads((tmp_path / "tuning.json").read_text())
    assert kept["complete"] and calls == ["psm_conv5", "odd", "odd"]
    monkeypatch.setattr(sys, "argv", [*asked, "--trials", "5"])
    with pytest.raises(SystemExit):
        tuning_gains.main()
    assert "the sittings differ in their trials: 24, 5" in capsys.readouterr().err


def test_at_most_needs_a_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["t", "--at-most", "60"])
    with pytest.raises(SystemExit):
        tuning_gains.main()
    assert "--at-most is a number above 0, of --resume" in capsys.readouterr().err


def test_a_search_goes_on_from_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = Simulation(lambda tiling: seconds(SPACE, tiling), tmp_path / "made")

    def simulated(layer: object, shape: object, **more: Any) -> Any:
        del layer, shape
        budget = Budget(more["seconds"], more["trials"])
        (result,) = tune_tasks(
            [TASK], budget, log=more["logs"], seed=more["seed"], cost_model=more["cost_model"],
            builder=simulation, runner=simulation, measured_by=SIMULATED,
            callback=more["callback"],
        )  # fmt: skip
        return result

    monkeypatch.setattr("tvmconv.tuning.run.tune", simulated)
    asked: dict[str, Any] = {
        "seconds": 600.0, "model": "random", "seed": 1, "jobs": None, "log": tmp_path / "log"
    }  # fmt: skip
    (work,) = named(["odd"])
    with pytest.raises(Unfinished):
        tuning_search.search(work, trials=20, until=time.monotonic(), **asked)
    first = tuning_search.search(work, trials=8, **asked)
    assert first["trials"] == 8 and len(first["times_s"]) == 9
    found = tuning_search.search(work, trials=20, **asked)
    assert found["trials"] == 20
    assert set(first["times_s"]) <= set(found["times_s"])
    assert len(simulation.run) == 22  # the default twice


def test_the_least_time_counts_the_products_of_the_form() -> None:
    (work,) = named(["psm_conv5"])
    phase = tuning_search.least(work, Tiling("phase", 8, 2, 4, 2).to_json(), 1e11, 1e10)
    assert phase["sgemm"] == phase["products"] == work.flops / 1e11
    assert phase["memory"] == work.traffic / 1e10
    tiling = Tiling("toom-cook", 8, 2, 4, 1, outputs=(2, 2, 2), block=(1, 2, 4), shared=3)
    toom = tuning_search.least(work, tiling.to_json(), 1e11, 0.0)
    assert toom["products"] is not None and toom["sgemm"] is not None
    # Two taps give two outputs by three products instead of four, one tap by two.
    assert toom["products"] / toom["sgemm"] == pytest.approx((5 / 6) ** 3, rel=0.1)
    assert toom["memory"] is None


@pytest.mark.parametrize("model", ["random", pytest.param("xgb", marks=needs_xgboost)])
def test_a_replay_meets_the_times_of_the_table(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "_direct", lambda _: (TASK, SPACE))
    monkeypatch.setattr("tvmconv.tuning.machine.machine", lambda: SIMULATED)
    found = {
        tiling: made(seconds=(seconds(SPACE, tiling),), tiling=tiling) for tiling in SPACE.all()
    }
    (work,) = named(["odd"])
    times = recorded.replay(work, found, model=model, seed=1, trials=30)
    assert len(times) == 31
    assert times[0] == found[SPACE.default].time_s
    assert set(times) <= {one.time_s for one in found.values()}
    assert times == recorded.replay(work, found, model=model, seed=1, trials=30)


def test_every_candidate_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = Simulation(lambda tiling: seconds(SPACE, tiling), tmp_path / "made")
    monkeypatch.setattr(recorded, "_direct", lambda _: (TASK, SPACE))
    monkeypatch.setattr("tvmconv.tuning.runners.LocalBuilder", lambda _: simulation)
    monkeypatch.setattr("tvmconv.tuning.runners.LocalRunner", lambda **_: simulation)
    (work,) = named(["odd"])
    total = len([*SPACE.all()])
    assert recorded.measure(work, tmp_path, until=time.monotonic()) == (0, total)
    assert recorded.measure(work, tmp_path) == (total, total)
    assert recorded.measure(work, tmp_path) == (total, total)
    assert len(simulation.run) == len(set(simulation.run)) == total


def test_tables(record: Path) -> None:
    parts = curves.tables(json.loads(record.read_text()))
    assert "Median gain: +25.0% over 2 layers." in parts["gains"]
    row = next(line for line in parts["gains"].splitlines() if "psm_conv5" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "psm_conv5", "phase", "memory", "5.000", "4.000", "+25.0%", "+20.0% to +30.0%", "100.0",
        "50%", "75%", "24", "1", "1.20",
    ]  # fmt: skip
    assert "faster than random search on 1 of 1 layers" in parts["models"]
    xgb = next(line for line in parts["models"].splitlines() if "xgboost" in line and "odd" in line)
    # 8 / (1 + 2 t) is 8 / 2 at half of the trials: there random search ends.
    assert [cell.strip() for cell in xgb.strip("|").split("|")][-1] == "12"
    assert "xgboost is there sooner on 1 of 1 layers" in parts["tables"]
    rows = [line for line in parts["tables"].splitlines() if line.startswith("| odd")]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]
    assert found[0] == ["odd", "xgboost", "513", "3", "+150.0%", "+100.0%", "+50.0%", "+0.0%",
                        "98", "3 of 3"]  # fmt: skip
    assert found[1][-2:] == ["-", "0 of 3"]


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
    assert text.count("<!-- begin:") == text.count("<!-- end:") == 5


@pytest.mark.parametrize("option", [["--layers", "nothing"], ["--models", "psm_conv5,nothing"]])
def test_unknown_layers(
    option: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tuning_gains", *option])
    with pytest.raises(SystemExit):
        tuning_gains.main()
    assert "no layer 'nothing'" in capsys.readouterr().err
