"""Records in use: what a compilation takes, and what the manifest and the cache say of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernels import target
from tuning_records import CONFIG, SHAPE, winner

import tvmconv
from tvmconv import cache, compute, schedules
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.errors import ConfigError
from tvmconv.schedules.space import Space
from tvmconv.tuning import records, workloads
from tvmconv.tuning.use import choose, state

WORK = Workload.of(CONFIG, SHAPE)


def rival(work: Workload = WORK, algorithm: str = "direct", **wanted: Any) -> Tiling:
    """A legal tiling that is not the default."""
    space = Space.of(work, target(), algorithm)
    return next(
        tiling
        for tiling in space.all()
        if tiling != space.default
        and all(getattr(tiling, name) == value for name, value in wanted.items())
    )


def put(log: Path, tiling: Tiling, shape: tuple[int, ...] = SHAPE, **more: Any) -> records.Record:
    """A winner in a log, for this machine."""
    fingerprint = target().fingerprint()
    one = winner(shape=shape, fingerprint=fingerprint, tiling=tiling, **more)
    one = dataclasses.replace(one, target={**one.target, "fingerprint": fingerprint})
    records.append(log, [one])
    return one


def layer() -> tvmconv.Conv3DTranspose:
    return tvmconv.Conv3DTranspose(16, 3, strides=2, padding="same", name="up")


def test_the_record_of_the_exact_workload_is_taken(tmp_path: Path) -> None:
    tiling = rival()
    one = put(tmp_path / "log", tiling)
    (choice,) = choose([WORK], target(), logs=tmp_path / "log")
    assert (choice.tiling, choice.origin, choice.transfer) == (tiling, f"record:{one.id}", False)
    made = tvmconv.compile(layer(), SHAPE, output=tmp_path / "out", logs=tmp_path / "log")
    assert made.manifest.schedule["origin"] == f"record:{one.id}"
    assert made.manifest.schedule["transfer"] == [False]
    assert made.manifest.schedule["decisions"] == [json.loads(json.dumps(tiling.to_json()))]


def test_where_the_default_won_it_is_the_one_of_today(tmp_path: Path) -> None:
    old = rival()  # what a rule of another release decided, or one for other cores
    one = put(tmp_path / "log", old, gain=0.0)
    (choice,) = choose([WORK], target(), logs=tmp_path / "log")
    default = Space.of(WORK, target(), "auto").default
    assert (choice.tiling, choice.origin) == (default, f"record:{one.id}")


def test_none_turns_records_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, rival())
    monkeypatch.setenv("TVMCONV_LOGS", str(tmp_path))
    assert choose([WORK], target())[0].origin.startswith("record:")
    assert choose([WORK], target(), logs="none")[0].origin == "default"


def test_a_record_of_as_many_cores_comes_first(tmp_path: Path) -> None:
    log, cores = tmp_path / "log", target().cores
    tiling = rival()
    alike = put(log, tiling, machine={"cpu_model": "a", "cores": cores})
    (default,) = choose([WORK], target(), logs="none")
    later = "2027-01-01T00:00:00+00:00"
    other = put(log, default.tiling, machine={"cpu_model": "a", "cores": cores + 1}, when=later)
    (choice,) = choose([WORK], target(), logs=log)
    assert (choice.origin, choice.cores) == (f"record:{alike.id}", cores)
    more = dataclasses.replace(target(), cores=cores + 1)
    (choice,) = choose([WORK], more, logs=log)
    assert (choice.origin, choice.cores) == (f"record:{other.id}", cores + 1)
    fingerprint = target().fingerprint()
    assert len({state(WORK, fingerprint, logs=log, cores=cores + n) for n in (0, 1)}) == 2
    # The manifest says the number.
    made = tvmconv.compile(layer(), SHAPE, output=tmp_path / "out", logs=log)
    assert made.manifest.schedule["cores"] == [cores]
    near = Workload.of(CONFIG, (*SHAPE[:3], 12, SHAPE[4]))
    (choice,) = choose([near], more, logs=log)
    assert (choice.transfer, choice.cores) == (True, cores + 1)


def test_another_target_and_another_layer_have_no_record(tmp_path: Path) -> None:
    put(tmp_path, rival())
    other = Workload.of(dataclasses.replace(CONFIG, activation="relu"), SHAPE)
    assert choose([other], target(), logs=tmp_path)[0].origin == "default"
    assert choose([WORK], target("x86-64-v2"), logs=tmp_path)[0].origin == "default"


def test_algorithms_take_their_own_records(tmp_path: Path) -> None:
    put(tmp_path, rival(algorithm="toom-cook"))
    assert choose([WORK], target(), algorithm="auto", logs=tmp_path)[0].tiling.form == "toom-cook"
    assert choose([WORK], target(), algorithm="direct", logs=tmp_path)[0].origin == "default"


def test_kernels_that_are_not_finite_take_no_record(tmp_path: Path) -> None:
    put(tmp_path, rival())
    assert choose([WORK], target(), exact=True, logs=tmp_path)[0].origin == "default"


def test_the_nearest_shape_lends_its_record(tmp_path: Path) -> None:
    shape = (1, 4, 6, 8, 16)
    one = put(tmp_path, rival(Workload.of(CONFIG, shape)), shape)
    (choice,) = choose([WORK], target(), logs=tmp_path)
    assert (choice.origin, choice.transfer) == (f"record:{one.id}", True)
    assert Space.of(WORK, target(), "direct").find(choice.tiling) is not None
    far = Workload.of(CONFIG, (1, 40, 4, 8, 16))
    assert choose([far], target(), logs=tmp_path)[0].origin == "default"


def test_decisions_that_the_rule_refuses_are_not_taken(tmp_path: Path) -> None:
    for number, tiling in enumerate(
        (Tiling("phase", 3, 7, 99, 1), Tiling("voxel", 8, 1, 1, 1), Tiling("nonsense", 1, 1, 1, 1))
    ):
        put(tmp_path / str(number), tiling)
        assert choose([WORK], target(), logs=tmp_path / str(number))[0].origin == "default"
    one = winner()
    here = {**one.target, "fingerprint": target().fingerprint()}
    for name, decisions in {
        "unknown": {"form": "phase", "unknown": 1},
        "text": {**one.decisions, "rows": "x"},
        "short": {**rival(algorithm="toom-cook").to_json(), "block": [1]},
    }.items():
        broken = dataclasses.replace(one, decisions=decisions, target=here)
        records.append(tmp_path / name, [broken])
        assert choose([WORK], target(), logs=tmp_path / name)[0].origin == "default"


def test_shapes_of_one_library_share_their_packed_weights(tmp_path: Path) -> None:
    works = [WORK, Workload.of(CONFIG, (1, 4, 4, 16, 16))]
    (first,) = {t.registers for t in schedules.decide_all(works[:1], target())}
    other = next(r for r in (1, 2) if r != first or target().vector_bits < 512)
    for work in works:
        shape = (1, *(axis.size for axis in work.plan.axes), 16)
        put(tmp_path / "alike", rival(work, vector=8), shape)
    alike = choose(works, target(), logs=tmp_path / "alike")
    assert all(one.origin.startswith("record:") for one in alike)
    del other
    put(tmp_path / "mixed", rival(WORK, vector=8, registers=1))
    mixed = choose(works, target(), logs=tmp_path / "mixed")
    layouts = {
        repr(compute.layout(work, one.tiling)) for work, one in zip(works, mixed, strict=True)
    }
    assert len(layouts) == 1
    made = tvmconv.compile(
        layer(), [SHAPE, (1, 4, 4, 16, 16)], output=tmp_path / "out", logs=tmp_path / "mixed"
    )
    assert made.manifest.schedule["origins"] == [one.origin for one in mixed]


def test_the_cache_knows_what_was_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVMCONV_LOGS", str(tmp_path / "log"))
    monkeypatch.setenv("TVMCONV_CACHE", str(tmp_path / "cache"))
    x = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    before = layer()
    expected = before(x)
    one = put(tmp_path / "log", rival())
    after = layer()
    after.build(SHAPE)
    after.set_weights(before.get_weights())
    np.testing.assert_allclose(after(x), expected, rtol=1e-4, atol=1e-4)
    found = [json.loads(p.read_text()) for p in (tmp_path / "cache").glob("layer-*/layer.json")]
    assert sorted(m["schedule"]["origin"] for m in found) == ["default", f"record:{one.id}"]
    assert len(cache.entries()) == 2


def test_the_state_of_a_log_needs_no_tvm(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "import sys, tvmconv; from tvmconv.tuning import use; "
        "from tvmconv.compute.workload import Workload; from tvmconv.config import LayerConfig; "
        "w = Workload.of(LayerConfig(16, 3), (None, 4, 4, 8, 16)); "
        "assert use.state(w, 'x', logs=sys.argv[1]) == 'default'; assert 'tvm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


def test_the_state_changes_with_the_verdict(tmp_path: Path) -> None:
    fingerprint = target().fingerprint()
    assert state(WORK, fingerprint, logs=tmp_path) == "default"
    one = put(tmp_path, rival())
    first = state(WORK, fingerprint, logs=tmp_path)
    assert first.startswith(one.id)
    put(tmp_path, rival(), when="2026-03-02T03:04:05+00:00")
    assert state(WORK, fingerprint, logs=tmp_path) != first
    described = workloads.describe(WORK)
    assert workloads.key(described) == one.workload_key


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder; logs='none'"):
        tvmconv.compile(layer(), SHAPE, output=tmp_path / "out", logs=tmp_path / "nowhere")


def test_a_log_that_cannot_be_read_costs_the_records_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = winner(fingerprint=target().fingerprint())
    (tmp_path / target().fingerprint() / f"{one.workload_key}.json").mkdir(parents=True)
    assert choose([WORK], target(), logs=tmp_path)[0].origin == "default"
    assert "cannot be read" in caplog.text
