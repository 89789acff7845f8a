"""Real kills of a real search, and the shipped logs' benchmark in sittings."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import pytest
from tuning_records import CONFIG, record

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # benchmarks/ is no part of the distribution

from benchmarks import tuning, tuning_kills  # noqa: E402
from benchmarks.workloads import Workload, named  # noqa: E402


def test_what_counts_as_tried_twice() -> None:
    one = record()
    default = dataclasses.replace(one, trial=0)
    other = dataclasses.replace(one, id="other")
    assert tuning_kills.wasted([]) == 0
    assert tuning_kills.wasted([default, default, one, other]) == 0
    assert tuning_kills.wasted([default, one, other, one]) == pytest.approx(1 / 3)


@pytest.mark.nightly
def test_ten_kills_lose_nothing_and_try_nothing_twice(tmp_path: Path) -> None:
    source = tmp_path / "up.json"
    source.write_text(json.dumps(CONFIG.get_config()), encoding="utf-8")
    search = tuning_kills.Search(source, (1, 3, 4, 6, 16), tmp_path / "log", 0)
    found = tuning_kills.killed(search, kills=10, trials=60, most_s=20.0, seed=1)
    assert found["lost"] == 0
    assert tuning_kills.wasted(found["records"]) < 0.05
    assert sum(one.trial > 0 for one in found["records"]) >= 60
    assert found["final"]["gain_low"] >= 0


def test_layers_are_left_for_the_next_sitting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]

    def tune(workload: Workload, args: argparse.Namespace) -> str:
        clock[0] += 40
        return f"{workload.name} for {args.target}"

    monkeypatch.setattr(tuning, "_tune", tune)
    monkeypatch.setattr("benchmarks.tuning.time.monotonic", lambda: clock[0])
    asked = ["--logs", str(tmp_path), "--at-most", "60", "--target", "x86-64-v3"]
    assert tuning.main(asked) == 0
    first, second, third = (work.name for work in named(None)[:3])
    assert capsys.readouterr().out.splitlines() == [
        f"{first} for x86-64-v3", f"{second} for x86-64-v3", f"{third}: for the next sitting"
    ]  # fmt: skip
