"""The course of a search, and which decisions mattered, from records whose answer is known."""

from __future__ import annotations

import pytest
from tuning_records import FINGERPRINT, record, winner
from tuning_search import moment, search

from tvmconv.compute.tiling import Tiling
from tvmconv.tuning.history import History, histories, spelt
from tvmconv.tuning.records import Failure, Record


def one(records: list[Record]) -> History:
    (found,) = histories(records)
    return found


def test_the_course_of_a_search() -> None:
    found = one(search(60))
    assert len(found.candidates) == 60
    assert [candidate.number for candidate in found.candidates] == list(range(1, 61))
    assert found.candidates[-1].elapsed_s == pytest.approx(59 * 1.5)
    assert found.default is found.candidates[0]
    assert found.best is found.records_broken[-1]
    times = [candidate.seconds for candidate in found.records_broken]
    assert times == sorted(times, reverse=True)
    assert {reason: len(failed) for reason, failed in found.failures.items()} == {
        "timeout": 2, "crash": 2, "wrong": 1,
    }  # fmt: skip
    assert found.winner is not None
    assert found.best is not None
    assert found.winner.id == found.best.record.id


def test_records_are_told_apart_by_workload_and_target() -> None:
    wider = search(5, shape=(1, 8, 8, 8, 16))
    elsewhere = search(5, fingerprint="aarch64-cortex-a76-128")
    assert len(histories([*search(5), *wider, *elsewhere])) == 3


def test_a_record_that_came_twice_counts_once() -> None:
    assert len(one([*search(20), *search(20)]).candidates) == 20


def test_a_pause_between_runs_does_not_count() -> None:
    day = 86_400
    runs = [
        record(run="a", trial=0, when=moment(0)),
        record(run="a", trial=1, when=moment(2)),
        record(run="b", trial=2, when=moment(day)),
        record(run="b", trial=3, when=moment(day + 3)),
    ]
    assert [c.elapsed_s for c in one(runs).candidates] == pytest.approx([0, 2, 2, 5])


def test_runs_at_the_same_time_count_once() -> None:
    runs = [record(run="ab"[i % 2], trial=i, when=moment(i)) for i in range(6)]
    assert one(runs).candidates[-1].elapsed_s == pytest.approx(4)


def test_a_time_that_cannot_be_read_is_no_error() -> None:
    assert one([record(when="yesterday"), record(trial=2, when="?")]).candidates[1].elapsed_s == 0


def test_a_pruned_log_keeps_its_winner() -> None:
    found = one([winner()])
    assert len(found.candidates) == 1
    assert found.best is not None
    assert found.default is None


def test_a_candidate_that_turned_out_wrong_is_not_the_best() -> None:
    wrong = Failure("wrong", "off by 0.3, whole layer")
    made = [
        record(trial=1, seconds=(1e-3,), tiling=Tiling("phase", 8, 2, 4, 1)),
        record(trial=2, seconds=(2e-3,), tiling=Tiling("phase", 8, 2, 4, 2)),
        record(trial=9, seconds=None, error=wrong, tiling=Tiling("phase", 8, 2, 4, 1)),
    ]
    found = one(made)
    assert found.best is not None
    assert found.best.record.trial == 2
    assert list(found.failures) == ["wrong"]


def test_only_failures() -> None:
    found = one([record(trial=i, seconds=None, error=Failure("build", "no")) for i in range(3)])
    assert found.best is None
    assert found.records_broken == ()
    assert found.importances == ()


def test_importance_finds_the_decision_that_matters() -> None:
    first, *others = one(search(200)).importances
    assert first.name == "registers"
    assert first.share > 0.7
    assert [value[0] for value in first.values] == ["1", "2", "3"]
    assert all(other.share < 0.1 for other in others)


def test_importance_is_exact_where_nothing_else_varies() -> None:
    times = {2: 1e-3, 4: 2e-3}
    made = [
        record(trial=i, tiling=Tiling("phase", 8, 2, width, 2), seconds=(times[width],))
        for i, width in enumerate([2, 4, 2, 4, 2])
    ]
    (only,) = one(made).importances
    assert only.share == pytest.approx(1)
    assert only.values == (("2", 3, 1e-3, 1e-3), ("4", 2, 2e-3, 2e-3))


def test_a_value_of_its_own_for_each_candidate_explains_nothing() -> None:
    made = [
        record(trial=i, tiling=Tiling("phase", 8, 2, 4, i + 1), seconds=(1e-3 * (i + 1),))
        for i in range(6)
    ]
    (only,) = one(made).importances
    assert only.share == 0


def test_values_are_spelt_for_people() -> None:
    assert [spelt(value) for value in (True, False, [2, 2, 4], 3)] == [
        "yes",
        "no",
        "2 x 2 x 4",
        "3",
    ]


def test_groups_keep_their_target() -> None:
    assert one(search(3)).record.target["fingerprint"] == FINGERPRINT
