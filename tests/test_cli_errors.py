"""The command line on input that is wrong: one line, an exit code, nothing half written."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from command_line import Refused

from tvmconv import compiler
from tvmconv.cli import source


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["compiel"], "invalid choice"),
        (["compile"], "compile: the following arguments are required: SOURCE"),
        (["compile", "m.keras", "-o", "o", "--frobnicate"], "unrecognized arguments: --frob"),
        (["compile", "m.keras", "-o", "o", "--threads", "-1"], "0 to 1024"),
        (["compile", "m.keras", "-o", "o", "--input-shape", "1,2,3"], "five sizes"),
        (["compile", "m.keras", "-o", "o", "--input-shape", "1,?,3,4,5"], "open batch only"),
        (["compile", "m.keras", "-o", "o", "--input-shape", "1,-2,3,4,5"], "open batch only"),
        (["compile", "m.keras", "-o", "o", "--algorithm", "fft"], "invalid choice"),
        (["compile", "m.keras", "-o", ""], "the name of the folder is empty"),
        (["cache"], "required"),
        (["bench", "up1", "--time", "0"], "seconds above 0"),
        (["bench", "up1", "--time", "nan"], "seconds above 0"),
        (["tune", "up1", "--trials", "0"], "a number from 1 on"),
        (["tune", "up1", "--time", "0s"], "a time above 0"),
        (["tune", "up1", "--time", "soon"], "a time above 0"),
        (["tune", "up1", "--cost-model", "best"], "invalid choice: 'best'"),
    ],
)
def test_usage(refused: Refused, arguments: list[str], words: str) -> None:
    code, line = refused(*arguments)
    assert code == 2
    assert words in line


def test_missing_truncated_and_foreign_files(refused: Refused, model: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.keras").write_bytes(model.read_bytes()[:-100])
    (tmp_path / "text.keras").write_text("hello")
    (tmp_path / "empty.h5").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"filters": 3}')
    (tmp_path / "list.json").write_text("[1]")
    names = "cut.keras", "text.keras", "empty.h5", "none.keras", "config.json", "list.json"
    for name in (*names, ""):
        code, line = refused("compile", tmp_path / name, "-o", tmp_path / "o")
        assert code == 2
        assert str(tmp_path / name) in line
    assert not (tmp_path / "o").exists()


def test_hostile_files(refused: Refused, golden: Path, tmp_path: Path) -> None:
    entries = json.loads((golden / "hostile" / "index.json").read_text())
    bad = [e["file"] for e in entries if e["verdict"] == "refuse" and e["file"].endswith("keras")]
    assert len(bad) > 20
    for name in bad:
        file = golden / "hostile" / name
        code, line = refused("compile", file, "--input-shape", "1,2,2,2,2", "-o", tmp_path / "o")
        assert code == 2
        assert name in line
    assert not (tmp_path / "o").exists()


def test_weights_without_configs(refused: Refused, model: Path, tmp_path: Path) -> None:
    code, line = refused("compile", model.with_name("model.weights.h5"), "-o", tmp_path / "o")
    assert code == 2
    assert "--weights" in line


def test_an_unknown_layer_lists_what_is_there(
    refused: Refused, model: Path, tmp_path: Path
) -> None:
    for command in (
        ["compile", model, "--layer", "up2", "-o", tmp_path / "o"],
        ["compile", model, "--input-shape", "up2=1,2,2,2,8", "-o", tmp_path / "o"],
        ["inspect", model, "--layer", "up2"],
    ):
        code, line = refused(*command)
        assert code == 2
        assert "'up1', 'up0'" in line


def rewritten(model: Path, to: Path, old: str, new: str) -> Path:
    """The model with another config."""
    with zipfile.ZipFile(model) as before, zipfile.ZipFile(to, "w") as after:
        for info in before.infolist():
            data = before.read(info)
            if info.filename == "config.json":
                assert old.encode() in data
                data = data.replace(old.encode(), new.encode())
            after.writestr(info, data)
    return to


def test_a_config_that_keras_refuses(refused: Refused, model: Path, tmp_path: Path) -> None:
    file = rewritten(model, tmp_path / "m.keras", '"padding": "same"', '"padding": "causal"')
    code, line = refused("compile", file, "-o", tmp_path / "o")
    assert code == 2
    # Keras' words.
    assert "The `padding` argument must be" in line
    assert "causal" in line


def test_a_custom_activation_is_named(refused: Refused, model: Path, tmp_path: Path) -> None:
    file = rewritten(model, tmp_path / "m.keras", '"activation": "relu"', '"activation": "mine"')
    code, line = refused("compile", file, "--layer", "up0", "-o", tmp_path / "o")
    assert code == 2
    assert "mine" in line


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ("1,9223372036854775,9223372036854775,9223372036854775,8", "too many elements"),
        ("1,4294967296,4294967296,4294967296,8", "too many elements"),
        ("1,10000,10000,10000,8", "this machine has"),
        ("1099511627776,1,1,1,8", "this machine has"),
        ("1,2,2,2,9", "8 input channels"),
    ],
)
def test_shapes_that_cannot_be(
    refused: Refused, model: Path, tmp_path: Path, shape: str, words: str
) -> None:
    options = ["--layer", "up1", "--input-shape", shape, "-o", tmp_path / "o"]
    code, line = refused("compile", model, *options)
    assert code == 2
    assert words in line
    assert not (tmp_path / "o").exists()


def test_shapes_that_are_missing_or_ambiguous(
    refused: Refused, golden: Path, tmp_path: Path
) -> None:
    file = golden / "models" / "dynamic_spatial" / "model.keras"
    out = ["-o", tmp_path / "o"]
    assert "'d0' needs an input shape" in refused("compile", file, *out)[1]
    one = ["--input-shape", "d0=1,2,2,2,2"]
    code, line = refused("compile", file, *one, *out)
    assert (code, "'d1' needs an input shape" in line) == (2, True)
    code, line = refused("compile", file, "--input-shape", "1,2,2,2,2", *out)
    assert (code, "'d0', 'd1'" in line) == (2, True)
    code, line = refused("compile", file, "--layer", "d0", *one, *one, *out)
    assert (code, "twice" in line) == (2, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "raspberry-pi-44"], "did you mean 'raspberry-pi-4'"),
        (["--target", "cuda:sm_91"], "did you mean sm_90?"),
        (["--target", "cuda:sm_72"], "Jetson Xavier"),
        (["--target", "native|cuda:"], "cuda:sm_80,sm_90"),
        (["--target", "native+avx9"], "avx9"),
        (["--dtype", "float33"], "float33"),
        (["--name", "a-b"], "a-b"),
        (["--logs", "no-such-folder"], "no-such-folder"),
        (["--weights", "no-such-file.h5"], "no-such-file.h5"),
    ],
)
def test_options_that_do_not_fit(
    refused: Refused, model: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    code, line = refused("compile", model, "--layer", "up1", *options, "-o", tmp_path / "o")
    assert code == 2
    assert words in line
    assert not (tmp_path / "o").exists()


def test_an_algorithm_that_is_not_built_yet(
    refused: Refused, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "ALGORITHMS", ("auto",))
    code, line = refused("compile", model, "--algorithm", "direct", "-o", tmp_path / "o")
    assert (code, "not in this version; expected auto" in line) == (2, True)


def test_one_name_for_two_layers(refused: Refused, model: Path, tmp_path: Path) -> None:
    code, line = refused("compile", model, "--name", "up", "-o", tmp_path / "o")
    assert (code, "has 2" in line) == (2, True)


def test_a_config_without_weights(refused: Refused, model: Path, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"filters": 2, "kernel_size": [1, 1, 1]}))
    options = ["--input-shape", "1,1,1,1,2", "-o", tmp_path / "o"]
    code, line = refused("compile", tmp_path / "c.json", *options)
    assert (code, "--weights" in line) == (2, True)
    code, line = refused("compile", tmp_path / "c.json", *options, "--weights", model)
    assert (code, "expected a kernel of shape (1, 1, 1, 2, '?')" in line) == (2, True)


def test_weights_that_overflow_the_new_dtype(refused: Refused, tmp_path: Path, model: Path) -> None:
    kernel = np.full((1, 2, 2, 6, 8), 1e6, np.float32)
    np.savez(tmp_path / "w.npz", kernel=kernel, bias=np.zeros(6, np.float32))
    options = ["--layer", "up1", "--weights", tmp_path / "w.npz", "--dtype", "float16"]
    code, line = refused("compile", model, *options, "-o", tmp_path / "o")
    assert (code, "overflow in float16" in line) == (2, True)


def test_no_c_compiler(
    refused: Refused, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no ziglang
    code, line = refused("compile", model, "-o", tmp_path / "o")
    assert code == 1
    assert "apt install gcc" in line
    assert "ziglang" in line
    assert not (tmp_path / "o").exists()


def test_output_folders_that_cannot_be(
    refused: Refused, model: Path, made: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/tvmconv")):
        code, line = refused("compile", model, "--layer", "up1", "-o", folder)
        assert code == 2
        assert str(folder) in line or str(folder.parent) in line
    assert (tmp_path / "file").read_text() == "mine"


def test_a_read_only_folder(
    refused: Refused, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o500)
    if os.geteuid() == 0:  # who may write everywhere
        make = tempfile.mkdtemp

        def read_only(suffix: str | None, prefix: str | None, dir: Path) -> str:
            if dir == tmp_path:
                raise PermissionError(errno.EACCES, "Permission denied")
            return str(make(suffix, prefix, dir))

        monkeypatch.setattr(tempfile, "mkdtemp", read_only)
    code, line = refused("compile", model, "--layer", "up1", "-o", tmp_path)
    assert (code, str(tmp_path) in line) == (2, True)


def test_a_full_folder_stays_as_it_was(
    refused: Refused, model: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(copy)
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.is_relative_to(copy) and path.suffix == ".a":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    code, line = refused("compile", model, "-o", copy)
    assert code == 2
    assert "No space left" in line
    assert contents(copy) == before
    code, line = refused("compile", model, "-o", copy / "new" / "one")
    assert contents(copy) == before
    assert not (copy / "new").exists()


def test_all_layers_or_none(refused: Refused, model: Path, copy: Path) -> None:
    """The second layer meets a foreign file: the first one is taken back."""
    (copy / "up0.h").write_text("mine")
    before = contents(copy)
    code, line = refused("compile", model, "-o", copy)
    assert code == 2
    assert "up0.h" in line
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (
            ZeroDivisionError("eek\nover two lines"),
            1,
            "ZeroDivisionError: eek over two lines (this",
        ),
        (MemoryError(), 1, "not enough memory"),
        (PermissionError(errno.EACCES, "Permission denied", "some.file"), 2, "some.file"),
        (OSError(errno.EIO, "Input/output error"), 1, "Input/output error"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_nobody_foresaw(
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    code: int,
    words: str,
) -> None:
    def fail(args: object) -> None:
        raise raised

    monkeypatch.setattr(source, "jobs", fail)
    found, line = refused("compile", "m.keras", "-o", "o")
    assert found == code
    assert words in line
