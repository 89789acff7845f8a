"""Tuning on a device behind ssh, against a server on the loopback interface."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import candidates
import numpy as np
import pytest
import ssh_server
from candidates import FAULTS, faulty
from command_line import Capture, refused
from ssh_server import Server

from tvmconv import cli
from tvmconv.errors import ConfigError, DeviceError, TuningError
from tvmconv.tuning import board, fleet, upkeep
from tvmconv.tuning.board import Board
from tvmconv.tuning.fleet import Fleet
from tvmconv.tuning.machine import model_of
from tvmconv.tuning.processes import ChildError
from tvmconv.tuning.runners import Task

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ssh_server.INSTALLED, reason=ssh_server.MISSING),
]
HOSTILE = "a b'c\"d; touch pwned & $(touch pwned) `touch pwned` | * ~ #\\"


@pytest.fixture(scope="module")
def task() -> Task:
    """The layer that is tuned."""
    return candidates.small_task()


@pytest.fixture(scope="module")
def folders(task: Task, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Artifacts of three candidates, the default first."""
    return candidates.built(tmp_path_factory.mktemp("built"), task)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with ssh_server.serve(tmp_path_factory.mktemp("sshd")) as one:
        yield one


@pytest.fixture
def device(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The device, with a folder whose name has everything in it that a shell could misread."""
    monkeypatch.setenv("TVMCONV_SSH", server.command)
    parent = tmp_path / HOSTILE
    parent.mkdir()
    return f"{server.device}{parent}"


def left(tmp_path: Path) -> list[Path]:
    """What lies in the device's folder, and what a shell has misread."""
    return [*(tmp_path / HOSTILE).iterdir(), *tmp_path.rglob("pwned")]


def switched(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ssh that does what a file says, where there is one."""
    switch, program = tmp_path / "switch", tmp_path / "ssh"
    program.write_text(
        f'#!/bin/sh\n[ -f {shlex.quote(str(switch))} ] && . {shlex.quote(str(switch))}\n'
        f'exec {server.command} "$@"\n'
    )  # fmt: skip
    program.chmod(0o755)
    monkeypatch.setenv("TVMCONV_SSH", shlex.quote(str(program)))
    return switch


def test_candidates_run_there_and_faulty_ones_cost_nothing(
    device: str,
    task: Task,
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet, "_RUN_S", 5.0)
    monkeypatch.setattr(fleet, "_DEVICE_BYTES", 1 << 28)
    monkeypatch.setattr(board, "_PROGRAMS", 3)
    made = Fleet(Board(device, task.machine.triple))
    try:
        assert made.prepare(task, folders[0]) is None
        assert made.time(folders[1], None).seconds
        for name, (fault, reason, detail) in FAULTS.items():
            found = made.time(faulty(tmp_path / name, folders[0], fault), None)
            assert found.failure is not None, name
            assert (found.failure.reason, detail in found.failure.detail) == (reason, True), found
        rounds = np.array(made.duel(folders[:2], 1e-3))
        assert rounds.shape == (20, 2)
        assert (rounds > 0).all()
        with pytest.raises(ChildError, match="SIGSEGV"):
            made.duel([folders[0], tmp_path / "crash"], 1e-4)
        errors = made.check([folders[0], tmp_path / "wrong", tmp_path / "nothing"])
        assert errors[0] is not None and errors[0] < 1e-4
        assert errors[1] is not None and errors[1] > 0.1
        assert errors[2] is None
        assert [len(one.seconds or ()) > 0 for one in made.times(folders, None)] == [True] * 3
        assert made.devices == 1
        # Another layer: nothing of the first one stays.
        assert made.prepare(task, folders[2]) is None
        (inside,) = (tmp_path / HOSTILE).iterdir()
        assert len(list(inside.iterdir())) == 4  # input, places, packed weights, the default
    finally:
        made.close()
    assert left(tmp_path) == []


def test_a_run_and_its_result(device: str, checkout: Path, tmp_path: Path, capsys: Capture) -> None:
    model, logs = str(checkout / "examples" / "decoder.keras"), tmp_path / "logs"
    layer = [model, "--layer", "up2", "--input-shape", "1,4,4,8,16", "--logs", str(logs)]
    tune = ["tune", *layer, "--cost-model", "random", "--trials", "2", "--device", device, "--json"]
    assert cli.main(tune) == 0
    (result,) = json.loads(capsys.readouterr().out)["layers"]
    assert result["trials"] == 2
    found = list(upkeep.read_all(logs))
    expected = model_of(Path("/proc/cpuinfo").read_text()) or "x86_64"
    assert {one.machine["cpu_model"] for one in found} == {expected}
    assert all(one.machine["cores"] > 0 for one in found)
    assert left(tmp_path) == []
    assert cli.main(["compile", *layer, "-o", str(tmp_path / "up2")]) == 0
    manifest = json.loads((tmp_path / "up2" / "up2.json").read_text())
    assert manifest["schedule"]["origin"] == f"record:{result['record']}"


def test_a_device_that_is_lost_once_is_found_again(
    server: Server,
    device: str,
    task: Task,
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    switch = switched(server, tmp_path, monkeypatch)
    made = Fleet(Board(device, task.machine.triple))
    try:
        assert made.prepare(task, folders[0]) is None
        switch.write_text('rm "$0.once" 2>/dev/null && { echo gone >&2; exit 255; }\n')
        (tmp_path / "ssh.once").touch()
        assert made.time(folders[1], None).seconds
        assert not (tmp_path / "ssh.once").exists()
        assert made.devices == 1
    finally:
        made.close()
    assert left(tmp_path) == []


def test_a_device_that_is_gone_ends_the_run_in_one_line(
    server: Server,
    device: str,
    checkout: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    switch = switched(server, tmp_path, monkeypatch)
    logs, seen = tmp_path / "logs", []
    times = Fleet.times

    def gone_later(self: Fleet, *args: object) -> object:
        seen.append(1)
        if len(seen) > 1:
            switch.write_text("echo 'No route to host' >&2; exit 255")
        return times(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Fleet, "times", gone_later)
    code, line = refused(
        capsys, "tune", checkout / "examples" / "decoder.keras", "--layer", "up2", "--input-shape",
        "1,4,4,8,16", "--logs", logs, "--cost-model", "random", "--trials", "20", "--device",
        device, "--jobs", "1", "--algorithm", "direct",
    )  # fmt: skip
    assert code == 1
    assert "is lost (" in line
    assert "No route to host" in line
    assert "what was learnt is kept, and the same command goes on" in line
    assert any(one.time_s for one in upkeep.read_all(logs))


def test_what_is_refused(
    server: Server,
    device: str,
    task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for text in ("ssh:", "ssh:a b", "ssh:-oProxyCommand=x", "board"):
        with pytest.raises(ConfigError, match="expected"):
            fleet.check(text)
    with pytest.raises(DeviceError, match=r"is \w+, the target is riscv64"):
        made = Board(device, task.machine.triple)
        made._triple = "riscv64-linux-gnu"
        made.devices()
    with pytest.raises(DeviceError, match="no folder for temporary files"):
        Fleet(Board(f"{device}/none", task.machine.triple))
    monkeypatch.setenv("TVMCONV_SSH", "no-such-ssh")
    with pytest.raises(DeviceError, match="is not installed"):
        Fleet(Board(device, task.machine.triple))
    assert left(tmp_path) == []


def test_a_default_that_fails_is_told(
    device: str, task: Task, folders: list[Path], tmp_path: Path
) -> None:
    made = Fleet(Board(device, task.machine.triple))
    try:
        failure = made.prepare(task, faulty(tmp_path / "crash", folders[0], "raise(SIGSEGV)"))
    finally:
        made.close()
    assert failure is not None
    assert failure.reason == "crash"


def test_a_device_that_hangs(
    server: Server,
    device: str,
    task: Task,
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    switch = switched(server, tmp_path, monkeypatch)
    made = Fleet(Board(device, task.machine.triple))
    try:
        assert made.prepare(task, folders[0]) is None
        monkeypatch.setattr(board.Board, "patience_s", 1.0)
        monkeypatch.setattr(fleet, "_RUN_S", 1.0)
        monkeypatch.setattr(fleet, "_HANGING", 1.0)
        monkeypatch.setattr("tvmconv.ssh._ADMINISTRATION_S", 2.0)
        switch.write_text("exec sleep 900\n")
        for _ in range(2):
            with pytest.raises(TuningError, match=r"is lost \(.*(did not|no) answer"):
                made.time(folders[1], None)
        assert made.devices == 0
    finally:
        switch.unlink()
        made.close()
