"""Devices behind TVM's RPC tracker, on loopback: they are killed and stopped in the middle."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip(
    "tornado", reason="TVM's RPC tracker needs tornado: pip install 'tvmconv[tune]'"
)

import candidates
from candidates import CONFIG, FAULTS, SHAPE, faulty
from rpc_fleet import Devices, devices, free_port, signal_all, wait_until

from tvmconv import cli, schedules, targets
from tvmconv.codegen import device as library
from tvmconv.codegen import elf
from tvmconv.compute.workload import Workload
from tvmconv.errors import ConfigError, TuningError
from tvmconv.tuning import building, fleet, tracker, upkeep
from tvmconv.tuning.fleet import Fleet, Tracker
from tvmconv.tuning.processes import ChildError
from tvmconv.tuning.runners import Task

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def task() -> Task:
    """The layer that is tuned."""
    return candidates.small_task()


@pytest.fixture(scope="module")
def folders(task: Task, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Artifacts of three candidates, the default first."""
    return candidates.built(tmp_path_factory.mktemp("built"), task)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Devices]:
    """A tracker with one device, for everything that leaves it alive."""
    with devices(tmp_path_factory.mktemp("rpc"), 1) as (made, _):
        yield made


def test_faulty_candidates_cost_no_device(
    lab: Devices,
    task: Task,
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet, "_RUN_S", 5.0)
    monkeypatch.setattr(fleet, "_DEVICE_BYTES", 1 << 28)
    monkeypatch.setattr(fleet, "_HANGING", 1e5)  # only the device's own clock counts
    made = Fleet(lab.tracker)
    try:
        assert made.prepare(task, folders[0]) is None
        good = made.time(folders[1], None)
        assert good.seconds, good
        for name, (fault, reason, detail) in FAULTS.items():
            found = made.time(faulty(tmp_path / name, folders[0], fault), None)
            assert found.failure is not None, name
            assert (found.failure.reason, detail in found.failure.detail) == (reason, True), found
        with pytest.raises(ChildError, match="SIGSEGV"):
            made.duel([folders[0], tmp_path / "crash"], 1e-4)
        errors = made.check([folders[0], tmp_path / "wrong", tmp_path / "nothing"])
        assert errors[0] is not None and errors[0] < 1e-4
        assert errors[1] is not None and errors[1] > 0.1
        assert errors[2] is None
        assert made.time(folders[2], None).seconds
        assert made.devices == 1
    finally:
        made.close()
    wait_until(lambda: lab.free() == 1, "the device to be free again")


def test_a_default_that_fails_is_told(
    lab: Devices, task: Task, folders: list[Path], tmp_path: Path
) -> None:
    made = Fleet(lab.tracker)
    try:
        failure = made.prepare(task, faulty(tmp_path / "crash", folders[0], "raise(SIGSEGV)"))
    finally:
        made.close()
    assert failure is not None
    assert failure.reason == "crash"
    wait_until(lambda: lab.free() == 1, "the device to be free again")


def test_devices_that_die_and_hang_are_dropped(
    task: Task, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "_DEVICE_S", 3.0)
    with devices(tmp_path, 2) as (lab, (first, second)):
        made = Fleet(lab.tracker, seconds=0.5)
        assert made.devices == 2
        try:
            assert made.prepare(task, folders[0]) is None
            killer = threading.Timer(1.0, signal_all, [first, signal.SIGKILL])
            killer.start()
            found = made.times(folders * 4, None)
            killer.join()
            assert [one.failure for one in found] == [None] * 12
            # Whoever was killed at the very end is missed at the next request.
            wait_until(lambda: made.devices == 1 or not made.times(folders, None), "the loss")
            rounds = np.array(made.duel(folders[:2], 1e-4))
            assert rounds.shape == (20, 2)
            assert (rounds > 0).all()
            (error,) = made.check(folders[1:2])
            assert error is not None and error < 1e-4
            # The other one hangs: it answers nothing any more.
            monkeypatch.setattr(fleet, "_RUN_S", 1.0)
            signal_all(second, signal.SIGSTOP)
            with pytest.raises(TuningError, match="no device 'board' is left behind"):
                made.time(folders[1], None)
            assert made.devices == 0
        finally:
            signal_all(second, signal.SIGCONT)
            made.close()


def test_a_run_goes_on_without_a_device_and_compile_takes_its_result(
    tmp_path: Path,
    checkout: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("xgboost", reason="the cost model is xgboost (tvmconv[tune])")
    monkeypatch.setattr(fleet, "_DEVICE_S", 3.0)
    model, logs = str(checkout / "examples" / "decoder.keras"), tmp_path / "logs"
    layer = [model, "--layer", "up2", "--input-shape", "1,4,4,8,16", "--logs", str(logs)]
    layer += ["--algorithm", "direct"]  # which builds sooner
    with devices(tmp_path, 2) as (lab, (first, _)):

        def kill() -> None:
            wait_until(lambda: len(list(logs.glob("*/*.json"))) > 0, "the first record")
            signal_all(first, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        where = ["--device", f"tracker:127.0.0.1:{lab.port},board"]
        try:
            code = cli.main(["tune", *layer, *where, "--trials", "8", "--json"])
        finally:
            killer.join()
    assert code == 0
    (result,) = json.loads(capsys.readouterr().out)["layers"]
    assert result["trials"] == 8
    found = list(upkeep.read_all(logs))
    assert {one.machine["cpu_model"] for one in found} == {"board behind a tracker"}
    assert sum(one.time_s is not None for one in found) >= 6
    assert cli.main(["compile", *layer, "-o", str(tmp_path / "up2")]) == 0
    manifest = json.loads((tmp_path / "up2" / "up2.json").read_text())
    assert manifest["schedule"]["origin"] == f"record:{result['record']}"


def test_the_library_needs_libc_alone(folders: list[Path], tmp_path: Path) -> None:
    header, archive = ((folders[0] / n).read_bytes() for n in ("candidate.h", "libcandidate.a"))
    (tmp_path / "d.so").write_bytes(
        library.build("candidate", header, archive, targets.native().triple)
    )
    listed = subprocess.run(
        ["ldd", tmp_path / "d.so"], check=True, capture_output=True, text=True
    ).stdout
    assert not {"libtvm", "libstdc++", "libgcc", "libtvm_ffi"} & {
        line.split()[0].split(".so")[0] for line in listed.splitlines()
    }
    symbols = {s.name for s in elf.symbols(archive[archive.index(b"\x7fELF") :])}
    assert "candidate_run" in symbols


def test_a_library_for_another_architecture(tmp_path: Path) -> None:
    pytest.importorskip("ziglang", reason="building for another architecture needs ziglang")
    (machine,) = targets.resolve("cortex-a76")
    work = Workload.of(CONFIG, SHAPE)
    (tiling,) = schedules.decide_all([work], machine, exact=False, algorithm="direct")
    (tmp_path / "shared").mkdir()
    request = {
        "config": CONFIG.get_config(),
        "shape": SHAPE,
        "target": building.described(machine),
        "tiling": tiling.to_json(),
        "folder": str(tmp_path / "c"),
        "shared": str(tmp_path / "shared"),
    }
    building.build(json.loads(json.dumps(request)))
    names = ("candidate.h", "libcandidate.a")
    header, archive = ((tmp_path / "c" / name).read_bytes() for name in names)
    made = library.build("candidate", header, archive, machine.triple)
    assert made[:4] == b"\x7fELF"
    assert int.from_bytes(made[18:20], "little") == 183  # EM_AARCH64
    assert b"__tvm_ffi_measure" in made


@pytest.mark.parametrize(
    "text",
    [
        "", "tracker", "tracker:localhost", "tracker:localhost:9190", "tracker:localhost:9190,",
        "tracker::9190,k", "tracker:localhost:0,k", "tracker:localhost:99999,k", "9190,k",
        "tracker:localhost:9190,two keys",
    ],
)  # fmt: skip
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="tracker:HOST:PORT,KEY"):
        Tracker.parse(text)


def test_addresses() -> None:
    assert Tracker.parse("tracker:pi.local:9190,pi4") == Tracker("pi.local", 9190, "pi4")
    assert Tracker.parse("tracker:[::1]:9190,pi4") == Tracker("::1", 9190, "pi4")


def test_a_tracker_that_is_not_there() -> None:
    port = free_port()
    with pytest.raises(TuningError, match=rf"no RPC tracker answers at 127\.0\.0\.1:{port}"):
        Fleet(Tracker("127.0.0.1", port, "board"))


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["silent", "web"]
)
def test_a_tracker_that_is_something_else(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "_ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer, contextlib.suppress(OSError):
                peer.sendall(answer)
                peer.settimeout(60)
                while peer.recv(100):
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(TuningError, match="no RPC tracker answers") as caught:
            Fleet(Tracker("127.0.0.1", server.getsockname()[1], "board"))
        thread.join(60)
    assert "\n" not in str(caught.value)


def test_a_key_that_no_device_has(lab: Devices) -> None:
    with pytest.raises(TuningError, match=r"no device 'phone' behind the tracker .* are: board"):
        Fleet(Tracker("127.0.0.1", lab.port, "phone"))


def test_devices_in_use(lab: Devices, task: Task, folders: list[Path]) -> None:
    made = Fleet(lab.tracker)
    try:
        assert made.prepare(task, folders[0]) is None
        with pytest.raises(TuningError, match=r"are in use \(1\)"):
            Fleet(lab.tracker)
    finally:
        made.close()
    wait_until(lambda: lab.free() == 1, "the device to be free again")


def test_no_process_is_left(lab: Devices, task: Task, folders: list[Path]) -> None:
    made = Fleet(lab.tracker)
    made.prepare(task, folders[0])
    children = [slot.child._process for slot in made._all]
    made.close()
    for child in children:
        assert child is not None
        assert child.poll() is not None
        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)
    wait_until(lambda: lab.free() == 1, "the device to be free again")
