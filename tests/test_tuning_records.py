"""Records as lines, logs as folders: damage, versions, several writers, the order of look-up."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from tuning_records import CONFIG, FINGERPRINT, SHAPE, record, winner

from tvmconv.errors import TuningError
from tvmconv.tuning import lookup, records, workloads
from tvmconv.tuning.records import Failure, Record


def log_file(folder: Path) -> Path:
    (path,) = records.workload_files(folder)
    return path


@pytest.mark.parametrize(
    "one",
    [record(), winner(), record(seconds=None, error=Failure("crash", "signal 11"))],
    ids=["measured", "winner", "failed"],
)
def test_a_record_survives_its_line(one: Record) -> None:
    line = one.to_json()
    assert "\n" not in line
    assert Record.from_json(line) == one
    assert json.loads(line)["format"] == "tvmconv-record"


def test_a_workload_survives_its_description() -> None:
    work = workloads.of_layer(CONFIG, SHAPE)
    described = json.loads(json.dumps(workloads.describe(work)))
    assert workloads.restore(described) == work
    assert workloads.key(described) == workloads.key(workloads.describe(work))


def test_an_open_batch_is_a_batch_of_one() -> None:
    open_batch = workloads.of_layer(CONFIG, (None, *SHAPE[1:]))
    one, other = (workloads.describe(w) for w in (open_batch, workloads.of_layer(CONFIG, SHAPE)))
    assert workloads.key(one) == workloads.key(other)


def test_distance_is_between_shapes_of_one_layer() -> None:
    mine = workloads.describe(workloads.of_layer(CONFIG, SHAPE))
    twice = workloads.describe(workloads.of_layer(CONFIG, (1, 8, 4, 8, 16)))
    other = workloads.describe(workloads.of_layer(CONFIG, (1, 4, 4, 8, 32)))
    assert workloads.distance(mine, mine) == 0
    assert workloads.distance(mine, twice) == 1
    assert workloads.distance(mine, other) is None


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    first, second = record(trial=0), record(trial=1)
    records.append(tmp_path, [first])
    records.append(tmp_path, [second])
    assert records.read(tmp_path, FINGERPRINT, first.workload_key) == [first, second]
    assert log_file(tmp_path) == tmp_path / FINGERPRINT / f"{first.workload_key}.json"


def test_a_torn_line_costs_itself_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records.append(tmp_path, [record(trial=0)])
    path = log_file(tmp_path)
    with path.open("a") as file:
        file.write(record(trial=1).to_json()[:200])  # killed while it wrote
    records.append(tmp_path, [record(trial=2)])
    with caplog.at_level(logging.WARNING):
        found = list(records.read_file(path))
    assert [one.trial for one in found] == [0, 2]
    assert f"{path}:2 is damaged" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        "not JSON",
        "[]",
        "null",
        "[" * 100_000,
        '{"format": "tvmconv-record", "version": 1}',
        record().to_json().replace('"seconds":[0.002,0.001]', '"seconds":[-1]'),
        record().to_json().replace('"seconds":[0.002,0.001]', '"seconds":null'),
        record().to_json().replace('"seconds":[0.002,0.001]', '"seconds":["1"]'),
        record().to_json().replace('"a-run"', "7"),
        record().to_json()[:-1] + ',"unknown":1}',
        "\udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
    ],
)
def test_damage_is_left_out_with_a_warning(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.json"
    path.write_text(f"{damage}\n{record().to_json()}\n")
    with caplog.at_level(logging.WARNING):
        assert list(records.read_file(path)) == [record()]
    assert "log.json:1 is damaged" in caplog.text


def test_other_versions_are_ignored_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = record()
    lines = [
        good.to_json().replace('"version":1', '"version":2'),
        good.to_json().replace('"tvmconv-record"', '"another"'),
        record(space=records.SPACE + 1).to_json(),
        record(tvm="0.26.0").to_json(),
        good.to_json(),
    ]
    path = tmp_path / FINGERPRINT / f"{good.workload_key}.json"
    path.parent.mkdir()
    path.write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING):
        assert records.read(tmp_path, FINGERPRINT, good.workload_key) == [good]
    assert caplog.text == ""


def test_a_post_release_of_tvm_is_the_same_tvm() -> None:
    assert records.is_current(record(tvm=f"{records.tvm_version().split('.post')[0]}.post9"))


def test_two_processes_write_one_log(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from tuning_records import record\n"
        "from tvmconv.tuning import records; from pathlib import Path\n"
        "for n in range(60): records.append(Path(sys.argv[2]), [record(run=sys.argv[3], trial=n)])"
    )
    arguments = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)]
    writers = [subprocess.Popen([*arguments, name]) for name in ("a", "b")]
    assert [writer.wait(300) for writer in writers] == [0, 0]
    found = list(records.read_file(log_file(tmp_path)))
    for name in ("a", "b"):
        assert [one.trial for one in found if one.run == name] == list(range(60))


def test_only_winners_are_used(tmp_path: Path) -> None:
    one = record()
    records.append(tmp_path, [one])
    assert lookup.best([tmp_path], FINGERPRINT, one.workload_key) is None
    records.append(tmp_path, [winner()])
    assert lookup.best([tmp_path], FINGERPRINT, one.workload_key) == winner()
    assert lookup.best([tmp_path], "another-target", one.workload_key) is None


def test_the_last_verdict_stands(tmp_path: Path) -> None:
    later = winner(0.05, when="2026-02-02T03:04:05+00:00")
    records.append(tmp_path, [later, winner(0.2)])
    assert lookup.best([tmp_path], FINGERPRINT, later.workload_key) == later


def test_the_first_folder_wins(tmp_path: Path) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    one = winner(0.1)
    records.append(far, [winner(0.5)])
    assert lookup.best([near, far], FINGERPRINT, one.workload_key) == winner(0.5)
    records.append(near, [one])
    assert lookup.best([near, far], FINGERPRINT, one.workload_key) == one


def test_an_algorithm_takes_its_own_records(tmp_path: Path) -> None:
    from tvmconv.compute.tiling import Tiling

    one = winner(tiling=Tiling("toom-cook", 8, 2, 4, 1))
    records.append(tmp_path, [one])
    found = {
        algorithm: lookup.best([tmp_path], FINGERPRINT, one.workload_key, algorithm)
        for algorithm in ("auto", "toom-cook", "direct")
    }
    assert found == {"auto": one, "toom-cook": one, "direct": None}


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = lookup.shipped_folder()
    monkeypatch.setenv("TVMCONV_LOGS", str(tmp_path / "mine"))
    assert lookup.folders() == [tmp_path / "mine", shipped]
    assert lookup.folders(tmp_path) == [tmp_path, tmp_path / "mine", shipped]
    assert lookup.folders("none") == []
    monkeypatch.setenv("TVMCONV_LOGS", "none")
    assert lookup.folders() == []
    assert lookup.folders(tmp_path) == [tmp_path, shipped]
    monkeypatch.delenv("TVMCONV_LOGS")
    assert lookup.user_folder().name == "logs"


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TuningError, match=r"file cannot be written: .*; give another .*--logs"):
        records.append(tmp_path / "file", [record()])


def test_a_log_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    one = record()
    (tmp_path / FINGERPRINT / f"{one.workload_key}.json").mkdir(parents=True)
    with pytest.raises(TuningError, match="cannot be read"):
        records.read(tmp_path, FINGERPRINT, one.workload_key)


def test_records_load_no_tvm() -> None:
    program = (
        "import sys, tvmconv.tuning.lookup, tvmconv.tuning.workloads\n"
        "assert 'tvm' not in sys.modules and 'xgboost' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
