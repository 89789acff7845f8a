"""Artifacts on another machine: timed there, verified there, refused with a reason."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import ssh_server
from command_line import Capture, refused
from ssh_server import Server

import tvmconv
from tvmconv import cli, deploy
from tvmconv.artifact import Artifact
from tvmconv.codegen import runner
from tvmconv.deploy import RemoteLayer
from tvmconv.errors import DeviceError, InputError
from tvmconv.ssh import Finished

needs_sshd = pytest.mark.skipif(not ssh_server.INSTALLED, reason=ssh_server.MISSING)
SHAPES = ((1, 3, 2, 4, 6), (None, 2, 3, 4, 6))


@dataclass(frozen=True)
class Here:
    """A folder of this machine as a place."""

    folder: Path
    name: str = "here"

    def put(self, name: str, content: bytes, *, executable: bool = False) -> None:
        (self.folder / name).write_bytes(content)
        (self.folder / name).chmod(0o700 if executable else 0o600)

    def get(self, name: str, size: int) -> bytes:
        content = (self.folder / name).read_bytes()
        assert len(content) == size
        return content

    def run(self, arguments: Sequence[str], *, timeout: float) -> Finished:
        command = [str(self.folder / arguments[0]), *arguments[1:]]
        done = subprocess.run(
            command, capture_output=True, cwd=self.folder, timeout=timeout, check=False
        )
        return Finished(done.returncode, done.stdout, done.stderr.decode())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    layer = tvmconv.Conv3DTranspose(5, 3, 2, padding="same", activation="relu", name="up1")
    folder = tmp_path_factory.mktemp("made") / "an artifact; 'quoted'"
    return tvmconv.compile(layer, SHAPES, output=folder, runner=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with ssh_server.serve(tmp_path_factory.mktemp("sshd")) as one:
        yield one


@pytest.fixture
def device(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TVMCONV_SSH", server.command)
    (tmp_path / "a b; 'c'").mkdir()
    return f"{server.device}{tmp_path}/a b; 'c'"


def left(device: str) -> list[Path]:
    """What stayed in the device's folder."""
    return list(Path("/" + device.partition("/")[2]).iterdir())


def test_a_layer_in_another_place(made: Artifact, tmp_path: Path) -> None:
    layer, near = RemoteLayer(made, Here(tmp_path), threads=2), made.load()
    rng = np.random.default_rng(4)
    for shape in ((1, 3, 2, 4, 6), (3, 2, 3, 4, 6)):
        x = rng.normal(size=shape).astype(np.float32)
        np.testing.assert_array_equal(layer(x), near(x))
    values = [rng.normal(size=shape) for shape in near.config.weight_shapes(6)]
    near.replace_weights([value.astype(np.float32) for value in values])
    layer.replace_weights(values)
    np.testing.assert_array_equal(layer(x), near(x))
    with pytest.raises(InputError, match="compiled for"):
        layer(np.zeros((1, 9, 9, 9, 6), np.float32))
    assert [one.input_shape for one in layer.bench(0.01)] == [(1, 3, 2, 4, 6), (1, 2, 3, 4, 6)]


def test_a_runner_of_another_artifact(made: Artifact, tmp_path: Path) -> None:
    program = runner.of(made)
    other = replace(made, manifest=replace(made.manifest, threads=7))
    with pytest.raises(DeviceError, match="another manifest"):
        RemoteLayer(other, Here(tmp_path), program=program)
    with pytest.raises(DeviceError, match="here: "):
        RemoteLayer(made, Here(tmp_path), program=b"#!/bin/sh\necho no >&2; exit 3\n")


@needs_sshd
def test_verify_on_a_device(made: Artifact, device: str, capsys: Capture) -> None:
    assert cli.main(["verify", str(made.path), "--device", device, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["artifacts"]
    last = found["findings"][-1]
    assert last["subject"] == f"output on {device}"
    assert last["good"] is True
    assert "largest error" in last["detail"]
    assert left(device) == []


@needs_sshd
def test_verify_finds_a_runner_that_computes_something_else(
    made: Artifact, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RemoteLayer.__call__
    monkeypatch.setattr(RemoteLayer, "__call__", lambda self, x: real(self, x) + np.float32(1))
    report = deploy.verify(made.path, device)
    assert [one.good for one in report.findings if one.subject.startswith("output")] == [False]
    assert left(device) == []


@needs_sshd
def test_bench_on_a_device(made: Artifact, device: str, capsys: Capture) -> None:
    command = ["bench", str(made.path), "--device", device, "--time", "0.05", "--threads", "1"]
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["input_shape"] for one in found] == [[1, 3, 2, 4, 6], [1, 2, 3, 4, 6]]
    assert {one["threads"] for one in found} == {1}
    assert all(one["gflops"] > 0 and one["gemm_gflops"] is None for one in found)
    assert cli.main(command) == 0
    assert "GFLOP/s" in capsys.readouterr().out
    assert left(device) == []


@needs_sshd
def test_bench_compiles_a_source_and_its_runner(
    checkout: Path, device: str, capsys: Capture
) -> None:
    source = str(checkout / "examples" / "decoder.keras")
    options = ["--layer", "up1", "--input-shape", "1,2,2,2,64", "--time", "0.01", "--json"]
    assert cli.main(["bench", source, *options, "--device", device]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["name"] == "up1"
    assert left(device) == []


@needs_sshd
def test_another_architecture_is_refused(made: Artifact, device: str) -> None:
    target = {**made.manifest.target, "triple": "riscv64-linux-gnu"}
    foreign = replace(made, manifest=replace(made.manifest, target=target))
    with (
        pytest.raises(DeviceError, match="the artifact 'up1' is for riscv64"),
        deploy.connect(foreign, device),
    ):
        pass
    assert left(device) == []


def test_refusals(made: Artifact, capsys: Capture) -> None:
    for command in ("bench", "verify"):
        code, line = refused(capsys, command, made.path, "--device", "ssh:-oProxyCommand=id")
        assert (code, "expected ssh:" in line) == (2, True)
        code, line = refused(capsys, command, made.path, "--device", "tracker:x:1,k")
        assert (code, "expected ssh:" in line) == (2, True)


@needs_sshd
def test_a_device_that_cannot_be_reached(
    made: Artifact, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("TVMCONV_SSH", server.command)
    for command in ("bench", "verify"):
        capsys.readouterr()
        code = cli.main([command, str(made.path), "--device", "ssh:127.0.0.1:1"])
        lines = capsys.readouterr().err.splitlines()
        assert (code, len(lines)) == (1, 1)
        assert "ssh:127.0.0.1:1 cannot be reached: " in lines[0]
