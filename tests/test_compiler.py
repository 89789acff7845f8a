"""`tvmconv.compile`: options, several shapes, reproducible bytes, what it writes and refuses."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvmconv
from tvmconv import artifact, check, schedules
from tvmconv.compute.workload import Workload
from tvmconv.errors import ArtifactError, BuildError, ConfigError, ConfigTypeError, TargetError
from tvmconv.reference import conv3d_transpose

SHAPE = (None, 3, 4, 5, 6)
STAGES = ("1-workload.txt", "2-algorithm.py", "2-packer.py", "3-scheduled.py")


def made(shape: Any = SHAPE, **arguments: Any) -> tvmconv.Conv3DTranspose:
    """A built layer with random weights."""
    given: dict[str, Any] = {"filters": 9, "kernel_size": 3, "strides": 2, "padding": "same"}
    layer = tvmconv.Conv3DTranspose(**{**given, "name": "up", **arguments})
    layer.build(shape)
    rng = np.random.default_rng(1)
    layer.set_weights([rng.standard_normal(w.shape) for w in layer.get_weights()])
    return layer


def weights(layer: tvmconv.Conv3DTranspose) -> tuple[np.ndarray, np.ndarray | None]:
    kernel, *bias = layer.get_weights()
    return kernel, bias[0] if bias else None


def drawn(shape: Any, batch: int = 2) -> np.ndarray:
    sizes = [batch if shape[0] in (None, -1) else shape[0], *shape[1:]]
    return np.random.default_rng(2).standard_normal(sizes).astype(np.float32)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assert_equals_reference(y: np.ndarray, layer: tvmconv.Conv3DTranspose, x: np.ndarray) -> None:
    np.testing.assert_allclose(
        y, conv3d_transpose(layer.config, x, *weights(layer)), rtol=1e-4, atol=2e-5
    )


def test_one_call_from_layer_to_numbers(tmp_path: Path) -> None:
    layer = made(activation="gelu")
    built = tvmconv.compile(layer, SHAPE, output=tmp_path)
    assert built.path == tmp_path
    assert artifact.verify(tmp_path).good
    x = drawn(SHAPE)
    assert_equals_reference(built.load()(x), layer, x)
    assert_equals_reference(tvmconv.load(tmp_path)(x), layer, x)


def test_an_unbuilt_layer_is_built(tmp_path: Path) -> None:
    layer = tvmconv.Conv3DTranspose(2, 2)
    built = tvmconv.compile(layer, (1, 2, 2, 2, 4), output=tmp_path)
    assert layer.built
    assert layer.kernel.shape == (2, 2, 2, 2, 4)
    assert built.manifest.name == layer.name


def test_the_manifest_tells_what_was_built(tmp_path: Path) -> None:
    layer = made(filters=32)
    options: dict[str, Any] = {"name": "a-b", "threads": 3, "algorithm": "direct"}
    manifest = tvmconv.compile(layer, SHAPE, output=tmp_path, **options).manifest
    assert manifest.name == "a_b"
    assert manifest.layer == json.loads(json.dumps(layer.get_config()))
    assert manifest.input_shapes == (SHAPE,)
    assert manifest.output_shapes == ((None, 6, 8, 10, 32),)
    assert (manifest.input_dtype, manifest.output_dtype, manifest.variable_dtype) == (
        "float32", "float32", "float32",
    )  # fmt: skip
    assert (manifest.algorithm, manifest.nonfinite, manifest.threads) == ("direct", "exact", 3)
    assert manifest.schedule["origin"] == "default"
    assert manifest.schedule["form"] == manifest.schedule["decisions"][0]["form"] == "phase"
    assert manifest.flops == (Workload.of(layer.config, SHAPE).plan.flops,)
    assert manifest.check["where"] == "host"
    assert 0 <= manifest.check["max_error"] <= manifest.check["tolerance"] == 1e-4
    assert manifest.check["voxels"] >= 6 * 8 * 10
    assert manifest.weights["mode"] == "baked"
    assert len(manifest.weights["sha256"]) == len(manifest.code_sha256) == 64
    kernel = np.prod(layer.kernel.shape) * 4
    assert kernel <= manifest.weights["packed_bytes"] <= 2 * kernel + 1024
    assert set(manifest.target) == {"triple", "cpu", "features", "fingerprint"}
    assert manifest.tvmconv == tvmconv.__version__


def test_dtypes_of_a_mixed_policy(tmp_path: Path) -> None:
    layer = made(dtype="mixed_bfloat16")
    built = tvmconv.compile(layer, SHAPE, output=tmp_path)
    manifest = built.manifest
    assert (manifest.input_dtype, manifest.output_dtype, manifest.variable_dtype) == (
        "bfloat16", "bfloat16", "float32",
    )  # fmt: skip
    assert manifest.check["tolerance"] == 6e-2
    assert built.load()(drawn(SHAPE)).dtype.name == "bfloat16"


def test_several_shapes_share_the_weights(tmp_path: Path) -> None:
    shapes = [(None, 3, 4, 5, 6), (1, 1, 1, 1, 6), (2, 2, 7, 3, 6)]
    layer = made(filters=20)
    built = tvmconv.compile(layer, shapes, output=tmp_path / "several")
    alone = tvmconv.compile(layer, shapes[0], output=tmp_path / "one")
    assert built.manifest.weights == alone.manifest.weights
    assert built.manifest.input_shapes == tuple(shapes)
    assert len(built.manifest.workspace_bytes) == len(built.manifest.flops) == 3
    run = built.load()
    for shape in shapes:
        x = drawn(shape)
        assert_equals_reference(run(x), layer, x)


def test_shapes_of_several_forms_take_one(tmp_path: Path) -> None:
    # The phase form serves no empty input: both shapes get the definition.
    layer = made(padding="valid", strides=1)
    shapes = [(1, 2, 2, 2, 6), (1, 0, 2, 2, 6)]
    built = tvmconv.compile(layer, shapes, output=tmp_path)
    assert {one["form"] for one in built.manifest.schedule["decisions"]} == {"definition"}
    for shape in shapes:
        assert_equals_reference(built.load()(drawn(shape)), layer, drawn(shape))


@pytest.mark.parametrize(
    "shape", [(0, 2, 3, 4, 6), (None, 1, 2, 3, 6)], ids=["batch 0", "no voxel"]
)
def test_empty_outputs(shape: Any, tmp_path: Path) -> None:
    more = {"kernel_size": 2, "output_padding": 0} if shape[0] is None else {}
    layer = made(shape, **more)
    built = tvmconv.compile(layer, shape, output=tmp_path)
    y = built.load()(drawn(shape))
    assert y.size == 0
    assert y.shape[1:] == built.manifest.output_shapes[0][1:]


def test_external_weights(tmp_path: Path) -> None:
    layer = made()
    built = tvmconv.compile(layer, SHAPE, output=tmp_path, weights="external")
    assert built.manifest.weights["mode"] == "external"
    assert built.manifest.weights["sha256"] is None
    run = built.load()
    x = drawn(SHAPE)
    run.set_weights(layer.get_weights())
    assert_equals_reference(run(x), layer, x)
    layer.set_weights([2 * w for w in layer.get_weights()])
    run.set_weights(layer.get_weights())
    assert_equals_reference(run(x), layer, x)
    baked = tvmconv.compile(layer, SHAPE, output=tmp_path / "baked").load()
    assert run(x).tobytes() == baked(x).tobytes()


def test_the_same_bytes_in_every_folder_and_process(tmp_path: Path) -> None:
    first = tvmconv.compile(made(), SHAPE, output=tmp_path / "a")
    second = tvmconv.compile(made(), SHAPE, output=tmp_path / "elsewhere" / "b", threads=None)
    assert contents(first.path) == contents(second.path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); import test_compiler as t;"
        "t.tvmconv.compile(t.made(), t.SHAPE, output=sys.argv[1])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "Asia/Tokyo"}
    subprocess.run(
        [sys.executable, "-c", code, "c", str(Path(__file__).parent)],
        cwd=tmp_path, env=environment, check=True,
    )  # fmt: skip
    assert contents(tmp_path / "c") == contents(first.path)


def test_no_byte_of_the_kernels_depends_on_the_threads(tmp_path: Path) -> None:
    one = tvmconv.compile(made(), SHAPE, output=tmp_path / "a", threads=1)
    many = tvmconv.compile(made(), SHAPE, output=tmp_path / "b", threads=64)
    assert one.manifest.code_sha256 == many.manifest.code_sha256


def test_other_artifacts_in_the_folder_stay(tmp_path: Path) -> None:
    tvmconv.compile(made(), SHAPE, output=tmp_path, name="one")
    before = contents(tmp_path)
    tvmconv.compile(made(filters=2), SHAPE, output=tmp_path, name="two")
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(after) == 2 * len(before)
    tvmconv.compile(made(filters=2), SHAPE, output=tmp_path, name="one")
    assert contents(tmp_path)["libone.so"] != before["libone.so"]


def test_debug_dump(tmp_path: Path) -> None:
    shapes = [SHAPE, (1, 2, 2, 2, 6)]
    tvmconv.compile(made(), shapes, output=tmp_path / "out", debug_dump=tmp_path / "dump")
    dumped = contents(tmp_path / "dump")
    expected = {f"shape{index}-{stage}" for index in (0, 1) for stage in STAGES}
    assert set(dumped) == expected | {"4-lowered.py", "5-kernel.ll", "6-kernel.s"}
    assert all(dumped.values())
    assert b"up_kernel_0_1" in dumped["6-kernel.s"]
    assert b"define" in dumped["5-kernel.ll"]
    assert b"Tiling(" in dumped["shape0-1-workload.txt"]
    # What is dumped changes no byte of what is built.
    plain = tvmconv.compile(made(), shapes, output=tmp_path / "plain")
    assert contents(plain.path) == contents(tmp_path / "out")


def test_a_dump_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="--debug-dump cannot be written"):
        tvmconv.compile(made(), SHAPE, output=tmp_path / "out", debug_dump=tmp_path / "file" / "x")
    assert not (tmp_path / "out").exists()


def test_progress_names_the_steps(tmp_path: Path) -> None:
    steps: list[str] = []
    tvmconv.compile(made(), SHAPE, output=tmp_path, progress=steps.append)
    assert [step.split()[0] for step in steps] == ["generating", "checking", "linking"]


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"algorithm": "winograd"}, ConfigError, "Expected algorithm to be one of"),
    ({"weights": "inside"}, ConfigError, "Expected weights to be 'baked' or 'external'"),
    ({"threads": -1}, ConfigError, "Expected threads from 0 to 1024"),
    ({"threads": 10_000}, ConfigError, "Expected threads from 0 to 1024"),
    ({"threads": 2.0}, ConfigError, "Expected threads from 0 to 1024"),
    ({"threads": "2"}, ConfigError, "Expected threads from 0 to 1024"),
    ({"name": 3}, ConfigTypeError, "Expected name to be a string"),
    ({"target": None}, TargetError, "expected the name of a target"),
    ({"target": "x86-64-v9"}, TargetError, "did you mean"),
    ({"target": "cuda:sm_53"}, TargetError, "CUDA 13 no longer builds for sm_53"),
    ({"target": "cuda:sm_90", "runner": True}, TargetError, "--runner"),
    ({"target": "native|native"}, TargetError, "the same target"),
    ({"layer": None}, ConfigTypeError, "Expected a tvmconv.Conv3DTranspose"),
    ({"layer": {"filters": 2}}, ConfigTypeError, "from_keras makes one of a Keras layer"),
    ({"input_shape": (1, 2, 3, 4)}, ConfigError, "must have 5 sizes"),
    ({"input_shape": 3}, ConfigTypeError, "Expected 5 integers"),
    ({"input_shape": "1,2,2,2,6"}, ConfigTypeError, "Expected 5 integers"),
    ({"input_shape": (1, 2, 2, 2.0, 6)}, ConfigTypeError, "Expected 5 integers"),
    ({"input_shape": (1, None, 2, 2, 6)}, ConfigError, "must be known"),
    ({"input_shape": (1, 2, 2, 2, 7)}, ConfigError, "built for 6 input channels"),
    ({"input_shape": [SHAPE, SHAPE]}, ConfigError, "given twice"),
    ({"input_shape": [SHAPE, (1, 2, 2, 2, 5)]}, ConfigError, "built for 6 input channels"),
    ({"input_shape": (1, 2**20, 2**20, 2**20, 6)}, ConfigError, "too many elements"),
    ({"input_shape": (1, 2**31, 2, 2, 6)}, ConfigError, "too many elements"),
    ({"input_shape": (1, 2**16, 2**12, 2**10, 6)}, ConfigError, "for input, output and kernel"),
]


@pytest.mark.parametrize(
    ("options", "error", "words"), REFUSED, ids=[str(option) for option, *_ in REFUSED]
)
def test_refused_before_anything_is_written(
    options: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = {"layer": made(), "input_shape": SHAPE, "output": out, **options}
    with pytest.raises(error, match=words) as caught:
        tvmconv.compile(**given)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_a_wrong_kernel_is_not_handed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tvmconv.compile(made(), SHAPE, output=tmp_path)
    before = contents(tmp_path)

    def off_by_a_voxel(*arguments: Any) -> np.ndarray:
        return np.roll(conv3d_transpose(*arguments), 1, axis=3)

    monkeypatch.setattr(check.reference, "conv3d_transpose", off_by_a_voxel)
    with pytest.raises(BuildError, match="differs from the reference") as caught:
        tvmconv.compile(made(filters=4), SHAPE, output=tmp_path)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def test_a_failure_in_code_generation_leaves_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tvmconv.compile(made(), SHAPE, output=tmp_path)
    before = contents(tmp_path)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(schedules, "apply", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tvmconv.compile(made(filters=4), SHAPE, output=tmp_path)
    assert contents(tmp_path) == before


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ArtifactError) as caught:
        tvmconv.compile(made(), SHAPE, output=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out").read_text() == "mine"


def test_large_layers_are_checked_on_voxels_of_the_whole_run(tmp_path: Path) -> None:
    shape = (None, 8, 20, 20, 64)
    layer = made(shape, filters=64, use_bias=False)
    assert Workload.of(layer.config, shape).plan.flops > 2e8
    manifest = tvmconv.compile(layer, shape, output=tmp_path, algorithm="direct").manifest
    assert 96 <= manifest.check["voxels"] <= 200
    assert 0 < manifest.check["max_error"] < 1e-5


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_libraries_are_compared_with_one_trial(data_format: str) -> None:
    shapes = [(1, 8, 20, 20, 64), (2, 3, 4, 5, 64)]
    if data_format == "channels_first":
        shapes = [(shape[0], shape[4], *shape[1:4]) for shape in shapes]
    layer = made(shapes[0], filters=64, data_format=data_format)
    kernel, bias = weights(layer)
    works = [Workload.of(layer.config, shape) for shape in shapes]
    trial = check.Trial(works, layer.config, kernel, bias)
    assert trial.case() is trial.case()

    class Model:
        """Wrong at the last voxel of the shapes from a number on."""

        wrong = len(works)
        inputs: list[np.ndarray]

        def replace_weights(self, given: Any) -> None:
            self.weights, self.inputs = given, []

        def __call__(self, x: np.ndarray) -> np.ndarray:
            y = np.array(conv3d_transpose(layer.config, x, *self.weights))
            last = (slice(None), slice(None), -1, -1, -1)
            if data_format == "channels_last":
                last = (slice(None), -1, -1, -1)
            if len(self.inputs) >= self.wrong:
                y[last] += 1
            self.inputs.append(x)
            return y

    model, other = Model(), Model()
    assert max(result.error for result in trial.compare(model)) < 1e-12
    other.wrong = 1
    first, second = trial.compare(other)
    assert (first.good, second.good) == (True, False)
    for mine, theirs in zip(model.inputs, other.inputs, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    other.wrong = 0
    assert [result.good for result in trial.compare(other)] == [False, False]
    assert 96 <= first.voxels <= 200
    assert second.voxels == 2 * 6 * 8 * 10


def test_each_input_is_drawn_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Though the direct form, too, is compared with the definition.
    real, inputs = check._drawn, []

    def counted(*arguments: Any) -> Any:
        inputs.append(real(*arguments))
        return inputs[-1]

    monkeypatch.setattr(check, "_drawn", counted)
    layer = made((1, 6, 6, 6, 16), filters=16)
    options: dict[str, Any] = {"algorithm": "toom-cook", "output": tmp_path}
    manifest = tvmconv.compile(layer, (1, 6, 6, 6, 16), **options).manifest
    assert set(manifest.check["max_error_float64"]) == {"toom-cook", "direct"}
    assert len(inputs) == 1


def test_the_weights_are_where_the_manifest_says(tmp_path: Path) -> None:
    built = tvmconv.compile(made(), SHAPE, output=tmp_path)
    work = Workload.of(made().config, SHAPE)
    from tvmconv import targets
    from tvmconv.compute import lower

    packed = lower(work, schedules.decide(work, targets.native())).pack(*weights(made()))
    assert built.manifest.weights["packed_bytes"] == packed.nbytes
    assert built.manifest.weights["sha256"] == hashlib.sha256(packed.tobytes()).hexdigest()
    assert packed.tobytes() in built.library.read_bytes()
