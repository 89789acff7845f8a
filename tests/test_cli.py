"""The command line on input that is right: what it writes, what it prints, its exit codes."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tvmconv
from tvmconv import cli
from tvmconv.cli import console

Capture = pytest.CaptureFixture[str]
Tiny = Callable[..., Path]


def call(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def printed(capsys: Capture) -> Any:
    """The only thing on standard output, which is JSON."""
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


@pytest.fixture(scope="session")
def stored(model: Path) -> dict[str, np.ndarray]:
    with np.load(model.with_name("io.npz")) as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def both(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every layer of the model, in one folder."""
    folder = tmp_path_factory.mktemp("cli") / "new" / "both"
    assert call("compile", model, "-o", folder) == 0
    return folder


@pytest.fixture(scope="session")
def external(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("external")
    assert call("compile", model, "--layer", "up1", "--external-weights", "-o", folder) == 0
    return folder


def test_a_whole_model_equals_keras(
    both: Path, stored: dict[str, np.ndarray], tmp_path: Path, capsys: Capture
) -> None:
    for index, name in enumerate(("up1", "up0")):
        np.save(tmp_path / "x.npy", stored[f"layer{index}_call0_x"])
        out = tmp_path / f"{name}.npy"
        assert call("run", both / f"{name}.json", tmp_path / "x.npy", "-o", out, "--json") == 0
        expected = stored[f"layer{index}_call0_y"]
        found = np.load(out)
        assert printed(capsys) == {
            "output": str(out), "dtype": "float32", "shape": list(found.shape),
        }  # fmt: skip
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


def test_one_layer_by_name(model: Path, tmp_path: Path, capsys: Capture) -> None:
    shapes = ["--input-shape", "1,2,2,2,8", "--input-shape", "up1=?,1,2,3,8"]
    options = ["--layer", "up1", "--name", "first", "--threads", "3", *shapes]
    assert call("compile", model, *options, "-o", tmp_path / "o", "--json") == 0
    (made,) = printed(capsys)["artifacts"]
    assert (made["layer"], made["name"]) == ("up1", "first")
    assert made["input_shapes"] == [[1, 2, 2, 2, 8], [None, 1, 2, 3, 8]]
    layer = tvmconv.load(made["path"])
    assert layer.manifest.threads == 3
    assert layer(np.zeros((2, 1, 2, 3, 8), np.float32)).shape == (2, 1, 4, 6, 6)


def test_shapes_by_layer(golden: Path, tmp_path: Path, capsys: Capture) -> None:
    source = golden / "models" / "nested_small" / "model.keras"
    options = ["--input-shape", "up=1,1,2,2,2", "--dtype", "float64", "--json"]
    assert call("compile", source, *options, "-o", tmp_path) == 0
    made = {one["layer"]: one for one in printed(capsys)["artifacts"]}
    assert made["block/up"]["name"] == "block_up"
    assert made["block/up"]["input_shapes"] == [[1, 1, 2, 2, 2]]
    assert made["out"]["input_shapes"] == [[None, 4, 4, 4, 3]]
    assert tvmconv.load(tmp_path / "block_up.json").manifest.input_dtype == "float64"


def test_a_config_with_weights(
    model: Path, stored: dict[str, np.ndarray], tmp_path: Path, capsys: Capture
) -> None:
    config = tvmconv.from_keras(model, layer="up1").get_config()
    (tmp_path / "up1.json").write_text(json.dumps(config))
    weights = ["--weights", model.with_name("model.weights.h5")]
    shape = ["--input-shape", "?,2,2,2,8"]
    out = tmp_path / "o"
    assert call("compile", tmp_path / "up1.json", *weights, *shape, "-o", out) == 0
    y = tvmconv.load(out)(stored["layer0_call0_x"])
    np.testing.assert_allclose(y, stored["layer0_call0_y"], rtol=1e-4, atol=2e-5)
    assert "largest error" in capsys.readouterr().out


def test_external_weights(
    external: Path, model: Path, stored: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", other=np.zeros(3), x=stored["layer0_call0_x"].astype(np.float64))
    out = tmp_path / "y.npz"
    command = ["run", external, tmp_path / "x.npz", "-o", out, "--threads", "1"]
    assert call(*command, "--weights", model, "--layer", "up1") == 0
    with np.load(out) as arrays:
        found = arrays["y"]
    np.testing.assert_allclose(found, stored["layer0_call0_y"], rtol=1e-4, atol=2e-5)


def test_bfloat16_arrays_keep_their_bits(golden: Path, tmp_path: Path) -> None:
    source = golden / "models" / "bf16_open" / "model.keras"
    assert call("compile", source, "-o", tmp_path) == 0
    x = np.random.default_rng(0).normal(size=(2, 1, 3, 2, 3)).astype(ml_dtypes.bfloat16)
    np.save(tmp_path / "x.npy", x)
    assert call("run", tmp_path, tmp_path / "x.npy", "-o", tmp_path / "y.npy") == 0
    y = np.load(tmp_path / "y.npy").view(ml_dtypes.bfloat16)
    assert np.array_equal(y, tvmconv.load(tmp_path)(x))


def test_other_files_stay_and_a_second_build_is_the_same(
    both: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(2):
        assert call("compile", model, "-o", tmp_path) == 0
        made = {path.name: path.read_bytes() for path in both.iterdir()}
        found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert found == {**made, "notes.txt": b"mine"}


def test_debug_dump(model: Path, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    options = ["--layer", "up1", "--debug-dump", dump]
    assert call("compile", model, *options, "-o", tmp_path / "o") == 0
    assert any(".globl" in file.read_text() for file in dump.glob("*.s"))
    assert any("define" in file.read_text() for file in dump.glob("*.ll"))


def test_progress_and_result_are_lines(both: Path, model: Path, capsys: Capture) -> None:
    assert call("compile", model, "-o", both) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["compiling up1 (1 of 2) ...", "compiling up0 (2 of 2) ..."]
    assert [line.partition(":")[0] for line in lines[2:]] == [
        str(both / f"lib{name}.so") for name in ("up1", "up0")
    ]


def test_inspect_lists_layers(model: Path, capsys: Capture) -> None:
    assert call("inspect", model) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["layer", "channels", "filters", "kernel"]
    words = ["up0", "12", "4", *"222", *"222", "same", "relu", "float32", "?,2,4,4,12", "388"]
    assert lines[2].split() == words
    assert call("inspect", model, "--layer", "up0", "--json") == 0
    (row,) = printed(capsys)
    assert (row["path"], row["params"], row["problem"]) == ("up0", 388, None)


def test_inspect_reads_files_of_weights(model: Path, capsys: Capture) -> None:
    assert call("inspect", model.with_name("model.weights.h5"), "--json") == 0
    assert [row["kernel_shape"] for row in printed(capsys)] == [[1, 2, 2, 6, 8], [2, 2, 2, 4, 12]]


def test_inspect_tells_of_an_artifact(both: Path, model: Path, capsys: Capture) -> None:
    assert call("compile", model, "-o", both) == 0
    capsys.readouterr()
    assert call("inspect", both) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["artifact", "channels", "filters", "kernel"]
    assert lines[1].split()[:9] == ["up0", "12", "4", *"222", *"222"]
    assert "verify" in lines[-1]
    for path in ("up1.json", "libup1.so"):
        assert call("inspect", both / path, "--json") == 0
        (manifest,) = printed(capsys)
        assert (manifest["name"], manifest["algorithm"]) == ("up1", "direct")
    assert call("inspect", both, "--layer", "up0") == 2
    assert "compiled already" in capsys.readouterr().err


def test_inspect_says_what_it_cannot_read(golden: Path, capsys: Capture) -> None:
    assert call("inspect", golden / "hostile" / "activation_unknown.keras") == 0
    out, err = capsys.readouterr()
    assert "cannot be read" in out
    assert err == ""


def test_verify(both: Path, external: Path, capsys: Capture) -> None:
    assert call("verify", both, "--json") == 0
    found = printed(capsys)
    assert found["good"]
    assert [one["name"] for one in found["artifacts"]] == ["up0", "up1"]
    assert call("verify", external) == 0
    assert "libup1.so" in capsys.readouterr().out


def test_bench_an_artifact(both: Path, capsys: Capture) -> None:
    options = ["--time", "0.05", "--threads", "1"]
    assert call("bench", both, *options, "--json") == 0
    found = printed(capsys)
    assert [one["name"] for one in found] == ["up0", "up1"]
    assert all(one["calls"] > 0 and one["threads"] == 1 for one in found)
    assert call("bench", both / "up0.json", *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "timing up0 ..."
    assert lines[2].split()[:3] == ["up0", "1,2,4,4,12", "1"]


def test_bench_a_source(model: Path, capsys: Capture) -> None:
    options = ["--layer", "up1", "--input-shape", "2,1,2,3,8", "--time", "0.05"]
    assert call("bench", model, *options, "--json") == 0
    (found,) = printed(capsys)
    assert found["input_shape"] == [2, 1, 2, 3, 8]


def test_targets(capsys: Capture) -> None:
    assert call("targets", "--json") == 0
    found = printed(capsys)
    assert found["native"]["cpu"] in found["cpus"]
    assert "raspberry-pi-4" in found["devices"]
    assert call("targets", "raspberry-pi-4") == 0
    assert "aarch64-cortex-a72-128" in capsys.readouterr().out
    assert call("targets") == 0
    assert "raspberry-pi-4" in capsys.readouterr().out


def test_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("TVMCONV_CACHE", str(tmp_path / "cache"))
    layer = tvmconv.Conv3DTranspose(2, 1)
    layer(np.zeros((1, 1, 1, 2, 3), np.float32))
    assert call("cache", "list", "--json") == 0
    (entry,) = printed(capsys)["entries"]
    assert entry["bytes"] > 1000
    assert call("cache", "list") == 0
    assert entry["key"][:12] in capsys.readouterr().out
    assert call("cache", "clear") == 0
    assert "removed 1 layer " in capsys.readouterr().out
    assert call("cache", "list", "--json") == 0
    assert printed(capsys)["entries"] == []


def test_a_terminal_gets_the_same_words(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    pytest.importorskip("rich", reason="rich is optional")
    monkeypatch.setattr(console, "_rich", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    assert call("inspect", model) == 0
    table = capsys.readouterr().out
    assert "?,2,4,4,12" in table
    with console.Progress(shown=True) as progress:
        progress.task("compiling [bold]")
        progress.step("linking")
    assert "..." not in capsys.readouterr().out


def test_names_from_files_do_not_write_to_the_terminal(capsys: Capture) -> None:
    console.table(("layer",), [["up\x1b[2J\n1"]])
    assert capsys.readouterr().out == "layer\nup\\x1b[2J 1\n"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    for place in ("argument", "environment"):
        arguments = ["inspect", "none.keras"]
        if place == "argument":
            arguments.append("--debug")
        else:
            monkeypatch.setenv("TVMCONV_DEBUG", "1")
        assert cli.main(arguments) == 2
        err = capsys.readouterr().err
        assert "Traceback" in err
        assert err.splitlines()[-1] == "tvmconv: error: none.keras: no such file"
        logging.getLogger("tvmconv").setLevel(logging.NOTSET)


def child(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tvmconv", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, **options)


def test_version_and_help_are_quick_and_load_no_compiler() -> None:
    code = (
        "import sys; from tvmconv import cli; assert cli.main(['--version']) == 0; "
        "assert cli.main(['compile', '--help']) == 0; "
        "assert not {'tvm', 'h5py', 'keras', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"tvmconv {tvmconv.__version__}\n")


def test_as_a_module(model: Path) -> None:
    done = child("inspect", model)
    assert (done.returncode, done.stderr) == (0, "")
    assert "up0" in done.stdout


def test_a_closed_pipe_ends_quietly(model: Path) -> None:
    command = f"set -o pipefail; {sys.executable} -m tvmconv inspect {model} | true"
    done = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_standard_output_that_is_full() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tvmconv", "cache", "list"],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == "tvmconv: error: No space left on device\n"


def test_names_that_the_terminal_lacks_are_escaped(golden: Path) -> None:
    source = golden / "models" / "names_open" / "model.keras"
    done = child("inspect", source, env={"PYTHONIOENCODING": "ascii", "PATH": ""})
    assert (done.returncode, done.stderr) == (0, "")
    assert "d\\xe9codeur.2" in done.stdout
