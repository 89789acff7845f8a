"""The command line on artifacts and arrays that are wrong: one line, a code, no output."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from command_line import Refused

from tvmconv import cli


@pytest.fixture
def x(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.ones((1, 2, 2, 2, 8), np.float32))
    return tmp_path / "x.npy"


def damage(file: Path, at: int = 5000) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(bytes(data))


def changed(folder: Path, **values: object) -> None:
    manifest = json.loads((folder / "up1.json").read_text())
    (folder / "up1.json").write_text(json.dumps({**manifest, **values}))


@pytest.mark.parametrize("kind", ["bits", "cut", "gone", "abi", "foreign", "json", "other"])
def test_artifacts_that_are_not_right(refused: Refused, copy: Path, x: Path, kind: str) -> None:
    library = copy / "libup1.so"
    if kind == "bits":
        damage(library)
    elif kind == "cut":
        library.write_bytes(library.read_bytes()[:3000])
    elif kind == "gone":
        library.unlink()
    elif kind == "abi":
        changed(copy, abi_version=99)
    elif kind == "foreign":
        changed(copy, format="something-else")
    elif kind == "json":
        (copy / "up1.json").write_text("{")
    else:
        changed(copy, threads=7)
    out = x.with_name("y.npy")
    code, line = refused("run", copy, x, "-o", out)
    assert code == 2
    assert "up1" in line or str(copy) in line
    assert not out.exists()
    code, line = refused("verify", copy)
    assert code == (1 if kind in ("bits", "cut", "gone", "other") else 2)


def test_no_artifact(refused: Refused, tmp_path: Path, x: Path) -> None:
    out = tmp_path / "y.npy"
    for folder in (tmp_path, tmp_path / "none"):
        for command in (["verify", folder], ["run", folder, x, "-o", out], ["bench", folder]):
            code, line = refused(*command)
            assert (code, str(folder) in line) == (2, True)


def header(shape: str, descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        header("(1, 2, 2, 2, 8)") + bytes(100),
        header("(1000000, 1000000, 1000000)"),
        header("(9223372036854775807, 9223372036854775807, 4, 4, 0)"),
        header("(-1, -1)") + bytes(4),
        header("(2,)", "|O") + bytes(16),
        header("__import__('os').system('false')"),
        header("(2,)", "|S4") + bytes(8),
    ],
    ids=["empty", "text", "short", "huge", "overflow", "negative", "objects", "code", "strings"],
)
def test_input_arrays_that_are_not_right(
    refused: Refused, made: Path, x: Path, data: bytes
) -> None:
    x.write_bytes(data)
    assert refused("run", made, x, "-o", x.with_name("y.npy"))[0] == 2
    assert not x.with_name("y.npy").exists()
    with zipfile.ZipFile(x.with_suffix(".npz"), "w") as archive:
        archive.writestr("x.npy", data)
    assert refused("run", made, x.with_suffix(".npz"), "-o", x.with_name("y.npy"))[0] == 2


def test_an_artifact_takes_no_options_of_the_compiler(refused: Refused, made: Path) -> None:
    code, line = refused("bench", made, "--input-shape", "1,2,2,2,8")
    assert (code, "--input-shape is for sources" in line) == (2, True)


def test_archives_without_an_array(refused: Refused, made: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    code, line = refused("run", made, tmp_path / "two.npz", "-o", tmp_path / "y.npy")
    assert (code, "'a', 'b'" in line) == (2, True)


def test_inputs_and_outputs_that_do_not_fit(refused: Refused, made: Path, x: Path) -> None:
    y = x.with_name("y.npy")
    assert refused("run", made, x, "-o", x.with_name("y.txt"))[0] == 2
    assert refused("run", made, x, "-o", x.parent / "none" / "y.npy")[0] == 2
    assert refused("run", made, x.with_name("none.npy"), "-o", y)[0] == 2
    assert refused("run", made, x, "-o", y, "--weights", x)[0] == 2
    np.save(x, np.ones((1, 2, 2, 3, 8), np.float32))
    code, line = refused("run", made, x, "-o", y)
    assert (code, "(1, 2, 2, 2, 8)" in line) == (2, True)
    np.save(x, np.ones((1, 2, 2, 2, 8), np.complex64))
    assert refused("run", made, x, "-o", y)[0] == 2
    y.mkdir()
    np.save(x, np.ones((1, 2, 2, 2, 8), np.float32))
    assert refused("run", made, x, "-o", y)[0] == 2
    assert [path.name for path in x.parent.iterdir() if path.name.startswith(".")] == []


def test_external_weights_are_asked_for(
    refused: Refused, model: Path, tmp_path: Path, x: Path
) -> None:
    options = ["--layer", "up1", "--external-weights", "-o", str(tmp_path / "o")]
    assert cli.main(["compile", str(model), *options]) == 0
    code, line = refused("run", tmp_path / "o", x, "-o", tmp_path / "y.npy")
    assert (code, "--weights" in line) == (2, True)
