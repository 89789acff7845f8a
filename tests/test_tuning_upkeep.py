"""Logs merged, pruned and promoted: nothing is lost, nothing foreign gets in, nothing half done."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from tuning_records import FINGERPRINT, record, winner
from tuning_search import moment, search
from turns import few

from tvmconv import targets
from tvmconv.compute.tiling import Tiling
from tvmconv.errors import ConfigError, TuningError
from tvmconv.tuning import lookup, records, upkeep, workloads
from tvmconv.tuning.history import entry
from tvmconv.tuning.records import Failure, Record
from tvmconv.tuning.use import choose


def log(folder: Path, found: list[Record]) -> Path:
    records.append(folder, found)
    return folder


def entries(folder: Path) -> list[object]:
    return [entry(one) for one in upkeep.read_all(folder)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """What a checkout has of tuning_logs."""
    (tmp_path / "checkout" / "tuning_logs").mkdir(parents=True)
    (tmp_path / "checkout" / "tuning_logs" / "__init__.py").touch()
    (tmp_path / "checkout" / "pyproject.toml").write_text('[project]\nname = "tvmconv"\n')
    return tmp_path / "checkout" / "tuning_logs"


def test_logs_of_two_machines_become_one(tmp_path: Path) -> None:
    one = log(tmp_path / "one", search(20))
    two = log(tmp_path / "two", search(30, run="another", seed=2, fingerprint="aarch64-a76-128"))
    three = log(tmp_path / "three", search(20, run="third"))
    done = upkeep.merge([two, three], one)
    assert dataclasses.astuple(done) == (31 + 21, 0, 0)
    assert len(records.workload_files(one)) == 2
    assert len(entries(one)) == 21 + 31 + 21
    assert dataclasses.astuple(upkeep.merge([two, three], one)) == (0, 52, 0)
    assert len(entries(one)) == 21 + 31 + 21


def test_a_single_file_is_a_source(tmp_path: Path) -> None:
    upkeep.write_lines(tmp_path / "sent.json", search(5))
    upkeep.merge([tmp_path / "sent.json"], tmp_path / "mine")
    assert entries(tmp_path / "mine") == [entry(one) for one in search(5)]


@pytest.mark.parametrize(
    "evil",
    [
        record(fingerprint="../../escaped"),
        record(fingerprint=".hidden"),
        record(workload_key="../../escaped"),
        record(workload_key="0" * 16),
        record(id="0" * 12),
    ],
    ids=["path as target", "hidden target", "path as key", "key of another", "id of another"],
)
def test_a_record_that_contradicts_itself_is_refused(tmp_path: Path, evil: Record) -> None:
    upkeep.write_lines(tmp_path / "sent.json", [evil, record()])
    done = upkeep.merge([tmp_path / "sent.json"], tmp_path / "deep" / "er" / "mine")
    assert dataclasses.astuple(done) == (1, 0, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"sent.json", "deep"}


def test_a_source_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no log"):
        upkeep.merge([tmp_path / "none"], tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


def test_pruning_keeps_what_is_of_use(tmp_path: Path) -> None:
    folder = log(tmp_path, [*search(60), record(trial=99, space=records.SPACE + 1)])
    (path,) = records.workload_files(folder)
    with path.open("a") as file:
        file.write('{"torn')
    before = list(upkeep.read_all(folder))
    assert upkeep.prune([path], 10, dry_run=True) == (12, 51)
    assert len(list(upkeep.read_all(folder))) == len(before)
    assert upkeep.prune([path], 10) == (12, 51)
    left = list(upkeep.read_all(folder))
    assert sum(one.final is not None for one in left) == 1
    assert any(one.trial == 0 for one in left)
    fastest = sorted(one.time_s for one in before if one.time_s and one.final is None)[:10]
    plain = [one for one in left if one.final is None and one.trial != 0]
    assert sorted(one.time_s or 0 for one in plain) == fastest
    assert upkeep.prune([path], 10) == (12, 0)
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_pruning_forgets_candidates_that_turned_out_wrong(tmp_path: Path) -> None:
    wrong = Failure("wrong", "off by 0.3, whole layer")
    made = [record(trial=1), record(trial=2, seconds=None, error=wrong)]
    folder = log(tmp_path, [*made, record(trial=3, tiling=Tiling("phase", 8, 2, 4, 1))])
    assert upkeep.prune(records.workload_files(folder), 9) == (1, 2)
    assert [one.trial for one in upkeep.read_all(folder)] == [3]


def test_pruning_keeps_the_last_winner_of_each_algorithm(tmp_path: Path) -> None:
    toom_cook = Tiling("toom-cook", 8, 2, 4, 2, outputs=(2, 2, 2))
    made = [winner(when=moment(i), trial=i, run=str(i)) for i in range(3)]
    made += [winner(when=moment(9 - i), trial=i, run=f"t{i}", tiling=toom_cook) for i in range(3)]
    folder = log(tmp_path, made)
    upkeep.prune(records.workload_files(folder), 0)
    left = {one.run for one in upkeep.read_all(folder)}
    assert left == {"2", "t0"}
    assert lookup.best([folder], FINGERPRINT, made[0].workload_key) == made[3]
    assert lookup.best([folder], FINGERPRINT, made[0].workload_key, "direct") == made[2]


APPENDER = """
import sys
from pathlib import Path
from tvmconv.tuning import records
from tuning_records import record
for trial in range(60):
    records.append(Path(sys.argv[1]), 2 * [record(trial=trial)])
"""


def test_a_writer_loses_nothing_to_a_pruner(tmp_path: Path) -> None:
    # Every record is written twice, so that there is something to prune at any moment. What must
    # not happen is a line written into a file that is no longer there.
    folder = log(tmp_path / "log", 2 * [record(trial=0)])
    (path,) = records.workload_files(folder)
    tests = Path(__file__).parent
    writer = subprocess.Popen([sys.executable, "-c", APPENDER, str(folder)], cwd=tests)
    replaced = 0
    try:
        while writer.poll() is None:
            replaced += upkeep.prune([path], 1000)[1] > 0
    finally:
        writer.kill()
        writer.wait()
    assert writer.returncode == 0
    assert replaced > 0
    upkeep.prune([path], 1000)
    assert [one.trial for one in upkeep.read_all(folder)] == list(range(60))


def test_promotion(tmp_path: Path, place: Path) -> None:
    first = log(tmp_path / "log", [*search(20, trace=[1, 2]), *search(9, shape=(1, 8, 8, 8, 16))])
    fresh = upkeep.promote(upkeep.read_all(first), place)
    assert len(fresh) == 2
    shipped = list(upkeep.read_all(place))
    assert len(shipped) == 2
    assert all(one.final is not None and one.trace is None for one in shipped)
    key = shipped[0].workload_key
    assert lookup.best([place], FINGERPRINT, key) == shipped[0]
    assert upkeep.promote(upkeep.read_all(first), place) == []
    later = winner(when=moment(1e6), run="later")
    assert [r.run for _, r in upkeep.promote([later], place)] == ["later"]
    found = lookup.best([place], FINGERPRINT, later.workload_key)
    assert found is not None
    assert found.run == "later"
    assert len(list(upkeep.read_all(place))) == 2


def test_only_confirmed_records_of_this_version_are_promoted(place: Path) -> None:
    made = [
        *search(9)[:-1],
        winner(space=records.SPACE + 1),
        winner(tvm="0.1"),
        winner(id="0" * 12),
    ]
    assert upkeep.promote(made, place) == []
    assert [path.name for path in place.iterdir()] == ["__init__.py"]


def test_promotion_that_would_be_too_large_writes_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "MOST_BYTES", 3000)
    upkeep.promote([winner()], place)
    with pytest.raises(TuningError, match="at most 3,000"):
        upkeep.promote([winner(shape=(1, n, 4, 4, 16)) for n in (5, 6, 7)], place)
    assert len(records.workload_files(place)) == 1


def test_dry_promotion_writes_nothing(place: Path) -> None:
    assert len(upkeep.promote([winner()], place, dry_run=True)) == 1
    assert records.workload_files(place) == []


def test_a_checkout_is_found_from_within(place: Path, tmp_path: Path) -> None:
    assert upkeep.checkout(place) == place
    assert upkeep.checkout(place.parent) == place
    with pytest.raises(ConfigError, match="not in a checkout"):
        upkeep.checkout(tmp_path)
    (place.parent / "pyproject.toml").write_text('[project]\nname = "other"\n')
    with pytest.raises(ConfigError, match="not in a checkout"):
        upkeep.checkout(place)


def test_what_ships_is_small_and_confirmed() -> None:
    folder = lookup.shipped_folder()
    assert sum(p.stat().st_size for p in records.workload_files(folder)) <= upkeep.MOST_BYTES
    for path in records.workload_files(folder):
        found = list(records.read_file(path))
        assert len(found) == len(path.read_text().splitlines())
        assert all(one.final is not None for one in found), path
        assert len(found) <= 2
        for one in found:
            assert (one.target["fingerprint"], one.workload_key) == (path.parent.name, path.stem)


@pytest.mark.parametrize("step", few([1, 4], (1,)))
def test_what_ships_is_used_by_a_fresh_checkout(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVMCONV_LOGS", str(tmp_path))  # a user without records
    used = 0
    for path in sorted(records.workload_files(lookup.shipped_folder()))[::step]:
        one = list(records.read_file(path))[-1]
        if not records.is_current(one):
            continue
        (machine,) = targets.resolve(one.target["cpu"])
        # Of widths that cut a row alike the default's stands for all, and it depends on the caches.
        machine = dataclasses.replace(
            machine, cores=one.machine["cores"], l1_bytes=48 << 10, l2_bytes=2 << 20
        )
        assert machine.fingerprint() == path.parent.name
        (choice,) = choose([workloads.restore(one.workload)], machine)
        assert (choice.origin, choice.transfer) == (f"record:{one.id}", False), path
        if one.final is not None and one.final.gain > 0:
            assert choice.tiling == Tiling.from_json(one.decisions)
        used += 1
    assert used or not records.workload_files(lookup.shipped_folder())
