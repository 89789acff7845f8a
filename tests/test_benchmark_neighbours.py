"""What is compared in the benchmark of neighbours, and the arithmetic of its prices."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Capture

from benchmarks import neighbour_times, neighbours
from benchmarks.neighbour_times import Variant
from benchmarks.workloads import WORKLOADS, Workload, named

TINY = Workload("tiny", "none", 5, 3, (3, 3, 3), (2, 2, 2), "same", (2, 3, 4))


def variant(kind: str, label: str, flops: int, rounds: list[float], **more: str) -> dict[str, Any]:
    beside = more.get("beside", "itself" if kind else "")
    reason = more.get("reason", "")
    return {
        "kind": kind, "label": label, "beside": beside, "flops": flops, "form": "phase",
        "reason": reason, "rounds_s": rounds,
    }  # fmt: skip


def record(*variants: dict[str, Any]) -> dict[str, Any]:
    noise = {"load_at_start": 0.1, "others_share": 0.01, "warnings": ["it was busy"]}
    machine = {"date": "today", "cpu": "some processor"}
    layers = [{"name": "tiny", "summary": "", "variants": list(variants)}]
    return {"machine": machine, "noise": noise, "rounds": 3, "layers": layers}


@pytest.mark.parametrize("work", WORKLOADS, ids=lambda work: work.name)
def test_neighbours(work: Workload) -> None:
    found = neighbours.neighbours(work)
    labels = [one.label for one in found]
    assert len(set(labels)) == len(labels) and labels[0] == "itself"
    assert {one.kind for one in found if one.kind} == set(neighbours.KINDS)
    assert {one.beside for one in found if one.kind} <= set(labels)
    for one in found:
        assert min(one.work.size) >= 1 and one.work.filters >= 1 and one.work.flops > 0
        assert one.kind == "batch" or one.open_batch or one.alone or one.work.batch == 1
    # One library serves every batch where that is open, one all calls of a sample; others differ.
    assert len({one.folder for one in found}) == len(found) - 2 - 3


def test_a_batch_stands_beside_as_many_calls() -> None:
    found = {one.label: one for one in neighbours.neighbours(TINY)}
    for one in found.values():
        if one.kind == "batch":
            calls = found[one.beside]
            assert calls.alone and not calls.kind and calls.folder == found["itself"].folder
            assert calls.work == one.work and calls.batch == 1 and one.batch == one.work.batch


def test_calls_of_a_sample_take_all_of_them(tmp_path: Path) -> None:
    three = replace(TINY, batch=3)
    times = neighbour_times.measure(
        {"tiny": [Variant("", "3 calls", "", three, alone=True)]},
        neighbour_times.build({"tiny": [Variant("", "itself", "", TINY)]}, tmp_path, print),
        rounds=1, turn_s=0.0, say=print,
    )  # fmt: skip
    (found,) = times[0]["variants"]
    assert found["flops"] == 3 * TINY.flops and len(found["rounds_s"]) == 1 and not found["reason"]


def test_a_price_is_the_time_for_a_useful_operation() -> None:
    found = neighbours.prices(
        record(
            variant("", "itself", 100, [1.0, 2.0, 4.0]),
            variant("size", "3x3x3", 200, [2.0, 6.0, 8.4]),
            variant("", "2 calls", 200, [1.6, 4.0, 10.0]),
            variant("batch", "batch 2", 200, [2.0, 4.0, 8.0], beside="2 calls"),
            variant("open batch", "open", 200, [4.0, 8.0, 16.0], beside="batch 2"),
            variant("half width", "float16", 100, [], reason="no such thing"),
        )
    )
    values = {p.label: (p.value, p.low, p.high) for p in found}
    assert values["3x3x3"] == (pytest.approx(1.05), pytest.approx(1.0), pytest.approx(1.5))
    assert values["batch 2"] == (1.0, 0.8, 1.25)
    assert values["open"] == (2.0, 2.0, 2.0)
    assert values["float16"] == (None, None, None)
    # What failed comes first, then what is worst beside its own limit.
    assert [p.label for p in found] == ["float16", "open", "batch 2", "3x3x3"]
    assert [p.met for p in found] == [False, False, True, True]


def test_the_tables_say_what_is_over_its_limit() -> None:
    text = neighbours.rendered(
        record(
            variant("", "itself", 100, [1.0]),
            variant("size", "3x3x3", 100, [1.3]),
            variant("size", "5x5x5", 100, [1.1]),
            variant("channels first", "channels first", 100, [], reason="refused"),
        )
    )
    assert "WARNING: it was busy" in text
    assert "1.30 (3x3x3)" in text and "1.10 (5x5x5)" not in text
    assert "1 of 3 neighbours cost no more" in text
    rows = [line for line in text.splitlines() if line.startswith("| tiny")]
    assert "failed" in rows[0] and "refused" in rows[1] and "1.30 to 1.30" in rows[2]
    assert len(rows) == 3


def test_kinds_bring_what_they_are_compared_with() -> None:
    found = neighbours._asked(neighbours.neighbours(TINY), {"open batch"})
    assert {one.kind for one in found} == {"", "batch", "open batch"}
    found = neighbours._asked(neighbours.neighbours(TINY), {"batch"})
    assert [one.label for one in found[:2]] == ["2 calls", "batch 2"]
    found = neighbours._asked(neighbours.neighbours(TINY), {"half width"})
    assert [one.label for one in found] == ["itself", "float16", "bfloat16"]


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- begin: neighbours -->\nold\n<!-- end: neighbours -->\nb\n")
    monkeypatch.setattr(neighbours, "named", lambda _: [TINY])
    monkeypatch.setattr(neighbours, "_TURN_S", 0.0)
    options = ["neighbours", "--quick", "--kinds", "half width,channels first,open batch"]
    data = tmp_path / "record.json"
    monkeypatch.setattr("sys.argv", [*options, "--json", str(data), "--docs", str(page)])
    assert neighbours.main() == 0
    printed = capsys.readouterr().out
    for label in ("float16", "bfloat16", "channels first", "batch 2 where it is open"):
        assert f"| {label} " in printed
    variants = json.loads(data.read_text())["layers"][0]["variants"]
    assert all(one["form"] and len(one["rounds_s"]) == 3 for one in variants)
    assert page.read_text().startswith("a\n") and "old" not in page.read_text()
    page.write_text("no markers\n")
    monkeypatch.setattr("sys.argv", [*options, "--from", str(data), "--docs", str(page)])
    assert neighbours.main() == 1
    assert page.read_text() == "no markers\n"


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    for wrong, text in (
        (["--kinds", "colour"], "no kind 'colour'"),
        (["--layers", "unet"], "no layer 'unet'"),
        (["--only-build"], "--only-build goes with --keep"),
    ):
        monkeypatch.setattr("sys.argv", ["neighbours", *wrong])
        with pytest.raises(SystemExit):
            neighbours.main()
        assert text in capsys.readouterr().err


def test_what_cannot_be_compiled_has_a_reason(tmp_path: Path) -> None:
    (work,) = named(["ae_s1"])
    reason = neighbour_times.compiled(Variant("", "itself", "", work, dtype="int8"), tmp_path)
    assert "int8" in reason
