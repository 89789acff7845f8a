"""`verify`: the files, then what the code computes."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sample_library as sample

import tvmconv
from tvmconv import check
from tvmconv.artifact import Artifact, Finding, Report
from tvmconv.check import Result
from tvmconv.codegen import link
from tvmconv.errors import ArtifactError

SHAPES = [(None, 3, 2, 4, 3), (1, 2, 2, 2, 3)]


@pytest.fixture(scope="module", params=["baked", "external"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    layer = tvmconv.Conv3DTranspose(5, 3, 2, padding="same", activation="gelu", name="up1")
    layer.build(SHAPES[0])
    folder = tmp_path_factory.mktemp("built")
    return tvmconv.compile(layer, SHAPES, output=folder, weights=request.param, threads=1)


def output(report: Report) -> Finding:
    (found,) = [finding for finding in report.findings if finding.subject == "output"]
    return found


def test_a_good_artifact(built: Artifact) -> None:
    report = tvmconv.verify(built.path)
    assert report.good
    assert {"libup1.so", "libup1.a: manifest", "up1.h"} <= {f.subject for f in report.findings}
    found = output(report)
    voxels = 2 * 6 * 4 * 8 + 4 * 4 * 4  # an open batch is tried with two samples
    assert found.detail.startswith("largest error ")
    assert f"of {voxels} voxels, tolerance 0.0001" in found.detail


def test_without_running_it(built: Artifact) -> None:
    report = tvmconv.verify(built.path, run=False)
    assert report.good
    assert "output" not in {finding.subject for finding in report.findings}


def test_changed_files_are_not_run(built: Artifact, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built.path, tmp_path / "copy"))
    (folder / "up1.h").write_text("")
    report = tvmconv.verify(folder)
    assert [f.subject for f in report.findings if not f.good] == ["up1.h"]
    assert "output" not in {finding.subject for finding in report.findings}


def test_code_that_computes_something_else(tmp_path: Path) -> None:
    # The sample reads the diagonal of its kernel only, which is no transposed convolution.
    report = tvmconv.verify(link(sample.parts(tmp_path), tmp_path / "out").path)
    assert not report.good
    assert [f.subject for f in report.findings if not f.good] == ["output"]
    assert output(report).detail.startswith("largest error ")


@pytest.mark.parametrize("at", [0, 1])
def test_not_a_number_is_an_error(
    built: Artifact, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    results = [Result(1e-7, 1e-4, 10), Result(1e-6, 1e-4, 10)]
    results[at] = Result(float("nan"), 1e-4, 10)
    monkeypatch.setattr(check, "compare", lambda *_: results)
    report = tvmconv.verify(built.path)
    assert not report.good
    assert "largest error nan" in output(report).detail


def test_an_artifact_for_another_machine_is_not_run(tmp_path: Path) -> None:
    parts = sample.parts(tmp_path)
    values = json.loads(parts.manifest)
    values["target"]["triple"] = "vax-linux-gnu"
    made = link(replace(parts, manifest=json.dumps(values, indent=1) + "\n"), tmp_path / "out")
    report = tvmconv.verify(made.path)
    assert report.good
    detail = output(report).detail
    assert detail.startswith("not computed here: the artifact 'up1' is for vax-linux-gnu, this is ")
    assert platform.machine() in detail


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names a feature of x86-64")
def test_an_artifact_for_another_processor_is_not_run(tmp_path: Path) -> None:
    report = tvmconv.verify(link(sample.parts(tmp_path, features=("tbm",)), tmp_path / "out").path)
    assert report.good
    assert "not computed here: " in output(report).detail
    assert "lacks tbm" in output(report).detail


def test_a_library_that_cannot_be_loaded_is_not_good(built: Artifact, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built.path, tmp_path / "copy"))
    # The hashes are right, and the manifest is inside: only the library is none.
    inside = replace(built.manifest, files=None).to_json().encode() + b"\0"
    (folder / "libup1.so").write_bytes(inside)
    values = json.loads((folder / "up1.json").read_text())
    values["files"]["libup1.so"] = hashlib.sha256(inside).hexdigest()
    (folder / "up1.json").write_text(json.dumps(values, indent=1) + "\n")
    report = tvmconv.verify(folder)
    assert [f.subject for f in report.findings if not f.good] == ["output"]
    assert "is no shared library" in output(report).detail


def test_a_manifest_with_an_impossible_layer(tmp_path: Path) -> None:
    parts = sample.parts(tmp_path)
    for changed, text in (
        ({"layer": {"filters": 0, "kernel_size": [1, 1, 1]}}, "filters=0"),
        ({"output_shapes": [[2, 5, 7, 6, 9], [None, 5, 7, 6, 9]]}, "has the output shapes"),
        ({"input_shapes": [[2, 5, 7, 6, 0], [None, 5, 7, 6, 0]]}, "at least one channel"),
    ):
        values = json.dumps({**json.loads(parts.manifest), **changed}, indent=1) + "\n"
        made = link(replace(parts, manifest=values), tmp_path / "out")
        report = tvmconv.verify(made.path)
        assert text in output(report).detail
        assert not report.good


def test_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no artifact"):
        tvmconv.verify(tmp_path)


def test_it_needs_no_compiler(built: Artifact) -> None:
    program = (
        "import sys; sys.modules['tvm'] = sys.modules['keras'] = None\n"
        f"import tvmconv; assert tvmconv.verify({str(built.path)!r}).good"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600)


def test_weights_of_a_loaded_layer_stay(built: Artifact) -> None:
    layer = built.load()
    kernel, bias = (np.ones(shape) for shape in layer.config.weight_shapes(3))
    if built.manifest.weights["mode"] == "external":
        layer.set_weights([kernel, bias])
    x = np.ones((1, *SHAPES[1][1:]), np.float32)
    before = layer(x)
    assert tvmconv.verify(built.path).good
    np.testing.assert_array_equal(layer(x), before)
