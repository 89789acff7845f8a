"""One library for several processors: which code runs, that all of it is right, shared weights."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import Capture
from kernels import runs_here

import tvmconv
from tvmconv import cli, reference
from tvmconv.artifact import Artifact
from tvmconv.compute import lower
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.errors import ConfigError, TargetError
from tvmconv.schedules.several import decide_several
from tvmconv.targets import by_demand, resolve, resolve_buildable

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="builds for several processors of x86-64"
)
TARGET = "x86-64-v2|x86-64-v4|x86-64-v3"
LABELS = ["x86-64-v4", "x86-64-v3", "x86-64-v2"]

# Layers of every form; filters that no register divides; a dtype with conversions.
LAYERS = {
    "phase": ((1, 3, 4, 7, 5), {"filters": 37, "kernel_size": 3, "strides": 2, "use_bias": False}),
    "folded": ((2, 3, 4, 5, 19), {"filters": 24, "kernel_size": 2, "strides": 2}),
    "toom": ((1, 5, 6, 9, 24), {"filters": 20, "kernel_size": (2, 4, 4),
             "strides": (1, 2, 2), "padding": "same"}),
    "voxel": ((1, 3, 4, 37, 9), {"filters": 1, "kernel_size": 4, "strides": 2}),
    "dots": ((1, 3, 4, 11, 48), {"filters": 2, "kernel_size": 3, "strides": 2, "padding": "same"}),
    "half dots": (
        (None, 2, 3, 7, 24), {"filters": 1, "kernel_size": 3, "strides": 2, "dtype": "float16"},
    ),
    "half": ((None, 2, 3, 9, 8), {"filters": 18, "kernel_size": 4, "dtype": "float16"}),
    "wide": ((1, 2, 3, 4, 6), {"filters": 10, "kernel_size": 3, "strides": (1, 1, 9),
             "dtype": "float64"}),
}  # fmt: skip


class Artifacts(dict[str, Artifact]):
    """By layer; each is compiled by the first test of a process that asks for it."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        super().__init__()
        self._folders = folders

    def __missing__(self, name: str) -> Artifact:
        shape, arguments = LAYERS[name]
        layer = tvmconv.Conv3DTranspose(**arguments, name=name)  # type: ignore[arg-type]
        folder = self._folders.mktemp(name)
        self[name] = tvmconv.compile(
            layer, shape, target=TARGET, algorithm=algorithm(name), output=folder
        )
        np.savez(folder / "weights.npz", *layer.get_weights())
        return self[name]


def algorithm(name: str) -> str:
    return "toom-cook" if name == "toom" else "auto"


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    return Artifacts(tmp_path_factory)


def test_the_layers_take_every_form() -> None:
    machines, forms = by_demand(resolve(TARGET)), set()
    for name, (shape, arguments) in LAYERS.items():
        work = Workload.of(LayerConfig(**arguments), shape)  # type: ignore[arg-type]
        row = decide_several([work], machines, algorithm=algorithm(name))[0]
        forms.add(row[0].form)
    assert forms == {"phase", "toom-cook", "voxel", "dots", "definition"}


@pytest.mark.parametrize("name", LAYERS)
def test_the_manifest_lists_them_the_most_demanding_first(artifacts: Artifacts, name: str) -> None:
    target = artifacts[name].manifest.target
    assert [one["name"] for one in target["variants"]] == LABELS
    assert target["fingerprint"].count("|") == 2
    assert artifacts[name].manifest.check["where"].startswith("host")


PROGRAM = """
import json, sys, numpy as np, tvmconv
layer = tvmconv.load(sys.argv[1])
np.save(sys.argv[3], layer(np.load(sys.argv[2])))
print(layer.processor)
"""


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_version_is_right_when_it_is_asked_for(
    artifacts: Artifacts, tmp_path: Path, name: str, label: str
) -> None:
    if not runs_here(label):
        pytest.skip(f"this processor is no {label}")
    manifest = artifacts[name].manifest
    shape = [size or 2 for size in manifest.input_shapes[0]]
    x = np.random.default_rng(4).standard_normal(shape).astype(manifest.input_dtype)
    np.save(tmp_path / "x.npy", x)
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM, artifacts[name].path, tmp_path / "x.npy",
         tmp_path / "y.npy"],
        env={**os.environ, "TVMCONV_CPU": label},
        capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    assert out.stdout.split() == [label]
    assert running(artifacts[name], label) == label
    with np.load(artifacts[name].path / "weights.npz") as weights:
        values = [weights[key] for key in weights.files]
    config = LayerConfig.from_keras(manifest.layer)
    bias = values[1] if len(values) > 1 else None
    expected = reference.conv3d_transpose(config, x, values[0], bias)
    found = np.load(tmp_path / "y.npy").astype(np.float64)
    tolerance = 1e-2 if x.dtype == np.float16 else 1e-4
    assert np.abs(found - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


def test_the_best_that_runs_is_taken_by_itself(
    artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TVMCONV_CPU", raising=False)
    best = next(label for label in LABELS if runs_here(label))
    assert tvmconv.load(artifacts["folded"].path).processor == best


def test_commands_say_whose_code_ran(artifacts: Artifacts, tmp_path: Path, capsys: Capture) -> None:
    artifact = artifacts["folded"]
    shape, _ = LAYERS["folded"]
    chosen = tvmconv.load(artifact.path).processor
    np.save(tmp_path / "x.npy", np.ones(shape, np.float32))
    command = ["run", str(artifact.path), str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy")]
    assert cli.main(command) == 0
    assert f"by the code for {chosen}" in capsys.readouterr().out
    assert cli.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["processor"] == chosen
    assert cli.main(["verify", str(artifact.path)]) == 0
    assert f"by the code for {chosen}" in capsys.readouterr().out
    assert cli.main(["bench", str(artifact.path), "--time", "0.05"]) == 0
    assert f"folded: timed the code for {chosen}" in capsys.readouterr().out


RUNNING = """
import ctypes, json, sys
manifest = ctypes.CDLL(sys.argv[1])[sys.argv[2] + "_manifest"]
manifest.restype = ctypes.c_char_p
print(json.loads(manifest())["target"].get("running"))
"""


def running(artifact: Artifact, asked: str) -> str:
    """``target.running`` of the library's own manifest."""
    out = subprocess.run(
        [sys.executable, "-c", RUNNING, artifact.library, artifact.manifest.name],
        env={**os.environ, "TVMCONV_CPU": asked},
        capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    return out.stdout.strip()


def processor(artifact: Artifact, asked: str) -> tuple[int, str]:
    program = "import sys, tvmconv; print(tvmconv.load(sys.argv[1]).processor)"
    out = subprocess.run(
        [sys.executable, "-c", program, artifact.path], env={**os.environ, "TVMCONV_CPU": asked},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    return out.returncode, out.stdout.strip() or out.stderr


def test_names_that_are_not_in_the_library_ask_for_nothing(artifacts: Artifacts) -> None:
    best = next(label for label in LABELS if runs_here(label))
    for asked in ("", "x86-64", "x86-64-v22", "x86-64-v2 ", "!", "x86-64-v2!!"):
        assert processor(artifacts["folded"], asked) == (0, best)
    assert processor(artifacts["folded"], "x86-64-v2!") == (0, "x86-64-v2")


def test_a_version_that_cannot_run_is_refused_unless_trusted(tmp_path: Path) -> None:
    layer = tvmconv.Conv3DTranspose(4, 2, 2, name="up")
    target = "x86-64-v2+tbm|x86-64-v2"
    artifact = tvmconv.compile(layer, (1, 2, 2, 2, 4), target=target, output=tmp_path)
    assert processor(artifact, "") == (0, "x86-64-v2")
    code, text = processor(artifact, "x86-64-v2+tbm")
    assert code == 1
    assert "lacks tbm, which this library was compiled for (x86-64-v2+tbm)" in text
    assert running(artifact, "x86-64-v2+tbm") == "None"
    assert processor(artifact, "x86-64-v2+tbm!") == (0, "x86-64-v2+tbm")
    assert running(artifact, "x86-64-v2+tbm!") == "x86-64-v2+tbm"


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    "target", [TARGET, "cortex-a53|cortex-a76|neoverse-v1", "riscv64-rva22|riscv64-rvv"]
)
def test_packed_weights_are_shared(name: str, target: str) -> None:
    shape, arguments = LAYERS[name]
    work = Workload.of(LayerConfig(**arguments), shape)  # type: ignore[arg-type]
    machines = by_demand(resolve(target))
    tilings = decide_several([work], machines, algorithm=algorithm(name))
    layouts = [lower(work, row[0]).layout for row in tilings]
    assert all(layout == layouts[0] for layout in layouts)


def test_code_is_small_beside_the_weights_that_it_shares(tmp_path: Path) -> None:
    layer = tvmconv.Conv3DTranspose(64, 4, 2, padding="same", name="gan_g4")
    artifact = tvmconv.compile(layer, (1, 8, 8, 8, 128), target=TARGET, output=tmp_path)
    weights = artifact.manifest.weights["packed_bytes"]
    assert artifact.library.stat().st_size - weights < 200_000


WRONG = {
    "x86-64-v2|x86-64-v2": "are the same target",
    "cortex-a76|x86-64-v2": "one library is for one system",
    "x86-64-v2|": "the target is empty",
}


@pytest.mark.parametrize("target", WRONG)
def test_targets_that_do_not_go_together(target: str) -> None:
    with pytest.raises(TargetError, match=WRONG[target]):
        resolve_buildable(target)


def test_toom_cook_that_does_not_serve_is_refused(tmp_path: Path) -> None:
    layer = tvmconv.Conv3DTranspose(4, 2, 2, name="up")
    with pytest.raises(ConfigError, match="toom-cook"):
        tvmconv.compile(
            layer, (1, 2, 2, 2, 4), target=TARGET, algorithm="toom-cook", output=tmp_path / "x"
        )
    assert not (tmp_path / "x").exists()


def test_the_cache_keeps_them_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVMCONV_CACHE", str(tmp_path))
    layer = tvmconv.Conv3DTranspose(3, 2, 2, target="x86-64-v2|x86-64-v3")
    x = np.ones((1, 2, 2, 2, 3), np.float32)
    y = layer(x)
    assert y.shape == (1, 4, 4, 4, 3)
    (entry,) = tmp_path.glob("layer-*")
    target = json.loads((entry / "layer.json").read_text())["target"]
    assert [one["name"] for one in target["variants"]] == ["x86-64-v3", "x86-64-v2"]
