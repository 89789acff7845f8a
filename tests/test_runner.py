"""The runner of an artifact: what it computes, what it prints, how it refuses."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tvmconv
from tvmconv import artifact, cli
from tvmconv.artifact import Artifact
from tvmconv.codegen import runner
from tvmconv.errors import ArtifactError
from tvmconv.policies import numpy_dtype

SHAPES = ((1, 3, 2, 4, 6), (None, 2, 3, 4, 6))


def compiled(folder: Path, *, weights: str = "baked", **arguments: object) -> Artifact:
    arguments = {"filters": 5, "kernel_size": 3, "strides": 2, "padding": "same", **arguments}
    layer = tvmconv.Conv3DTranspose(**arguments, name="up1")  # type: ignore[arg-type]
    return tvmconv.compile(layer, SHAPES, output=folder, weights=weights, runner=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return compiled(tmp_path_factory.mktemp("made"), activation="relu")


def call(found: Artifact, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(found.path / "up1-bench"), *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip


def computed(found: Artifact, folder: Path, x: np.ndarray, *arguments: object) -> np.ndarray:
    """The output for an input, through files."""
    (folder / "x").write_bytes(x.tobytes())
    done = call(found, "--input", folder / "x", "--output", folder / "y", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return np.frombuffer((folder / "y").read_bytes(), numpy_dtype(found.manifest.output_dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "mixed_bfloat16"])
@pytest.mark.parametrize("weights", ["baked", "external"])
def test_it_computes_what_the_library_computes(tmp_path: Path, dtype: str, weights: str) -> None:
    found = compiled(tmp_path / "out", weights=weights, dtype=dtype, use_bias=dtype != "float64")
    layer = found.load(threads=1)
    rng = np.random.default_rng(1)
    shapes = layer.config.weight_shapes(6)
    values = [
        rng.normal(size=shape).astype(numpy_dtype(found.manifest.variable_dtype))
        for shape in shapes
    ]
    given: list[object] = []
    if weights == "external":
        layer.set_weights(values)
        for option, value in zip(("--kernel", "--bias"), values, strict=False):
            (tmp_path / option).write_bytes(value.tobytes())
            given += [option, tmp_path / option]
    for shape, batch in ((0, 1), (1, 3)):
        x = rng.normal(size=(batch, *SHAPES[shape][1:]))
        x = x.astype(numpy_dtype(found.manifest.input_dtype))
        options = [*given, "--shape", shape, "--batch", batch, "--threads", 2]
        np.testing.assert_array_equal(
            computed(found, tmp_path, x, *options).reshape(layer(x).shape), layer(x)
        )


def test_weights_given_take_the_place_of_those_inside(made: Artifact, tmp_path: Path) -> None:
    layer = made.load()
    values = [np.full(shape, 0.5, np.float32) for shape in layer.config.weight_shapes(6)]
    for option, value in zip(("kernel", "bias"), values, strict=True):
        (tmp_path / option).write_bytes(value.tobytes())
    x = np.ones(SHAPES[0], np.float32)
    options = ["--shape", 0, "--kernel", tmp_path / "kernel", "--bias", tmp_path / "bias"]
    found = computed(made, tmp_path, x, *options)
    layer.replace_weights(values)
    np.testing.assert_array_equal(found, layer(x).ravel())


def test_the_measurements(made: Artifact) -> None:
    done = call(made, "--seconds", "0.05", "--threads", 2, "--batch", 1, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert [one["input_shape"] for one in found] == [[1, 3, 2, 4, 6], [1, 2, 3, 4, 6]]
    assert [one["output_shape"] for one in found] == [[1, 6, 4, 8, 5], [1, 4, 6, 8, 5]]
    for one, flops in zip(found, made.manifest.flops, strict=True):
        assert (one["name"], one["dtype"]) == ("up1", "float32")
        assert 1 <= one["threads"] <= 2
        assert one["calls"] >= 1
        times = [one[f"{at}_s"] for at in ("fastest", "p10", "median", "p90", "slowest")]
        assert times == sorted(times)
        assert times[0] > 0
        assert math.isclose(one["gflops"], flops / one["median_s"] / 1e9, rel_tol=1e-3)
    lines = call(made, "--seconds", "0.01", "--shape", 1, "--batch", 2).stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("up1 2x2x3x4x6 -> 2x4x6x8x5 float32")
    assert "GFLOP/s" in lines[1]


@pytest.mark.parametrize("weights", ["baked", "external"])
def test_random_weights_where_there_are_none(tmp_path: Path, weights: str) -> None:
    found = compiled(tmp_path, weights=weights)
    done = call(found, "--output", tmp_path / "y", "--shape", 0)
    assert done.returncode == 0, done.stderr
    y = np.frombuffer((tmp_path / "y").read_bytes(), np.float32)
    assert np.isfinite(y).all()
    assert len(set(y.tolist())) > 10


REFUSED = {
    "unknown": (["--frobnicate", "1"], 2, "unknown option --frobnicate"),
    "no-value": (["--seconds"], 2, "no value"),
    "word": (["hello"], 2, "unexpected argument 'hello'"),
    "threads": (["--threads", "-1"], 2, "--threads"),
    "many": (["--threads", "99999999999999999999"], 2, "--threads"),
    "shape": (["--shape", "2"], 2, "from 0 to 1"),
    "seconds": (["--seconds", "nan"], 2, "--seconds"),
    "batch": (["--shape", "0", "--batch", "2"], 2, "the batch of this layer is 1"),
    "huge": (["--shape", "1", "--batch", "2147483647"], 1, "memory"),
    "which": (["--input", "x"], 2, "--shape"),
    "missing": (["--input", "missing", "--shape", "0"], 2, "missing: No such file"),
    "bias": (["--bias", "x"], 2, "--kernel"),
    "kernel": (["--kernel", "x"], 2, "--bias"),
    "unwritable": (["--shape", "0", "--output", "/dev/null/y"], 1, "cannot be written"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line(made: Artifact, case: str) -> None:
    arguments, code, text = REFUSED[case]
    done = call(made, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("up1-bench: ")
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("change", [-4, 4])
def test_files_of_another_size_are_refused(made: Artifact, tmp_path: Path, change: int) -> None:
    size = 4 * math.prod(SHAPES[0][1:]) + change  # type: ignore[arg-type]
    (tmp_path / "x").write_bytes(bytes(size))
    done = call(made, "--input", tmp_path / "x", "--output", tmp_path / "y", "--shape", 0)
    assert (done.returncode, "expected exactly 576 bytes" in done.stderr) == (2, True)
    assert not (tmp_path / "y").exists()


def test_it_holds_the_manifest(made: Artifact) -> None:
    text = call(made, "--manifest").stdout
    assert text == replace(made.manifest, files=None).to_json()
    assert "up1-bench" in (made.manifest.files or {})
    report = tvmconv.verify(made.path)
    assert report.good
    assert {"up1-bench", "up1-bench: manifest"} <= {one.subject for one in report.findings}
    assert "--threads" in call(made, "--help").stdout


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf (binutils)")
def test_it_needs_nothing_on_the_device(made: Artifact) -> None:
    program = made.path / "up1-bench"
    text = subprocess.run(
        ["readelf", "-dlW", program], capture_output=True, text=True, check=True
    ).stdout
    assert "INTERP" not in text
    assert "NEEDED" not in text
    assert "GNU_STACK" in text
    assert " RWE " not in text


def test_the_same_layer_gives_the_same_runner(made: Artifact, tmp_path: Path) -> None:
    program = (made.path / "up1-bench").read_bytes()
    assert runner.of(made) == program
    without = replace(
        made, manifest=replace(made.manifest, files={
            name: digest for name, digest in (made.manifest.files or {}).items()
            if name != "up1-bench"}))  # fmt: skip
    assert runner.of(without) == program  # built anew, from the header and the static library
    assert str(tmp_path.parent).encode() not in program


def test_a_damaged_runner_is_not_used(made: Artifact, tmp_path: Path) -> None:
    shutil.copytree(made.path, tmp_path / "copy")
    copy = artifact.read(tmp_path / "copy")
    (copy.path / "up1-bench").write_bytes(b"#!/bin/sh\n")
    with pytest.raises(ArtifactError, match="not as it was built"):
        runner.of(copy)
    (copy.path / "up1-bench").unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        runner.of(copy)


def test_the_option_of_compile(checkout: Path, tmp_path: Path) -> None:
    source = str(checkout / "examples" / "decoder.keras")
    command = ["compile", source, "--layer", "up1", "--input-shape", "1,2,2,2,64"]
    assert cli.main([*command, "--runner", "-o", str(tmp_path)]) == 0
    assert (tmp_path / "up1-bench").stat().st_mode & 0o111
    (tmp_path / "up1.notes").write_text("mine")
    assert cli.main([*command, "-o", str(tmp_path)]) == 0
    # A runner of the build before would run another layer.
    assert not (tmp_path / "up1-bench").exists()
    assert (tmp_path / "up1.notes").exists()
