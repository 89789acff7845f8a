"""Weights and configs read from every format: golden files bit for bit, and the finer rules."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from golden_files import GOLDEN, unpack

import tvmconv.errors
from tvmconv import weights
from tvmconv.config import LayerConfig
from tvmconv.errors import WeightsError

MODELS = sorted(path.parent.name for path in (GOLDEN / "models").glob("*/expected.json"))
SHARDS = ("sharded_00000.weights.h5", "sharded_00001.weights.h5")  # parts of a .weights.json
RNG = np.random.default_rng(5)
KERNEL = RNG.standard_normal((2, 3, 2, 4, 3)).astype(np.float32)
BIAS = RNG.standard_normal(4).astype(np.float32)
UP = {"name": "up", "filters": 4, "kernel_size": [2, 3, 2]}


def expected(name: str) -> dict[str, Any]:
    loaded = json.loads((GOLDEN / "models" / name / "expected.json").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def files() -> list[str]:
    assert MODELS
    return [f"{m}/{f}" for m in MODELS for f in expected(m)["files"] if f not in SHARDS]


def same_bits(found: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    return [(a.dtype, a.shape, a.tobytes()) for a in found] == [
        (a.dtype, a.shape, a.tobytes()) for a in wanted
    ]


def config(**arguments: Any) -> LayerConfig:
    return LayerConfig.from_keras({**UP, **arguments}, strict_file=True)


def write_variables(path: Path, groups: dict[str, list[Any]], **names: str) -> Path:
    """A ``.weights.h5`` with the variables of each group; ``names`` are the name attributes."""
    with h5py.File(path, "w") as file:
        for group, arrays in groups.items():
            made = file.create_group(f"{group}/vars")
            for index, array in enumerate(arrays):
                made[str(index)] = array
            if group in names:
                made.attrs["name"] = names[group]
    return path


def layer(name: str, class_name: str = "Conv3DTranspose", **more: Any) -> dict[str, Any]:
    """A serialised layer as Keras writes it."""
    values = {**UP, "name": name} if class_name == "Conv3DTranspose" else {"name": name}
    entry = {"module": "keras.layers", "class_name": class_name, "config": values}
    return {**entry, "registered_name": None, **more}


def model(name: str, layers: list[Any], **more: Any) -> dict[str, Any]:
    config = {"name": name, "layers": layers, "input_layers": [], "output_layers": []}
    return layer(name, "Functional", config=config, **more)


def write_keras(path: Path, top: dict[str, Any], groups: dict[str, list[Any]]) -> Path:
    write_variables(path.with_suffix(".tmp"), groups)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(top))
        archive.write(path.with_suffix(".tmp"), "model.weights.h5")
    return path


@pytest.mark.parametrize("file", files())
def test_golden_file_bit_for_bit(file: str) -> None:
    path = GOLDEN / "models" / file
    entry = expected(path.parent.name)
    arrays = unpack(path.parent / "io.npz", entry["arrays"])
    has_config = not path.name.endswith((".weights.h5", ".weights.json", "weights_legacy.h5"))
    found = weights.read(path)
    assert entry["layers"]
    if has_config:
        assert list(found.layers) == [item["path"] for item in entry["layers"]]
    for item in entry["layers"]:
        wanted = [arrays[name] for name in item["weights"]]
        config = LayerConfig.from_keras(item["config"])
        assert same_bits(weights.find_weights(path, config, item["path"]), wanted)
        assert same_bits(weights.find_weights(path, config), wanted)
        if has_config:
            read = weights.select(found, item["path"])
            assert read.config == config
            assert same_bits(read.load(), wanted)
            assert read.params == sum(array.size for array in wanted)
            if item["build_input_shape"] is not None and path.suffix != ".h5":
                assert list(read.build_input_shape or ()) == item["build_input_shape"]


def test_hdf5_group_path_names_a_layer() -> None:
    entry = expected("subclassed_small")
    path = GOLDEN / "models" / "subclassed_small" / "model.weights.h5"
    arrays = unpack(path.parent / "io.npz", entry["arrays"])
    for item in entry["layers"]:
        renamed = LayerConfig.from_keras({**item["config"], "name": "another"})
        wanted = [arrays[key] for key in item["weights"]]
        assert same_bits(weights.find_weights(path, renamed, item["h5_path"]), wanted)


def test_inspect_lists_what_is_there() -> None:
    rows = weights.inspect(GOLDEN / "models" / "nested_small" / "model.keras")
    assert json.loads(json.dumps(rows)) == rows
    assert [row["path"] for row in rows] == ["block/up", "out"]
    assert rows[0]["kernel_shape"] == [2, 2, 2, 3, 2]
    assert rows[0]["bias_shape"] == [3]
    assert rows[0]["params"] == 51
    assert rows[0]["input_shape"] == [None, 2, 2, 2, 2]
    assert rows[0]["config"]["strides"] == [2, 2, 2]
    assert rows[0]["problem"] is None
    rows = weights.inspect(GOLDEN / "models" / "nested_small" / "model.weights.h5")
    assert [row["config"] for row in rows] == [None, None]
    assert {row["params"] for row in rows} == {51, 25}


def test_inspect_says_why_a_layer_cannot_be_read(tmp_path: Path) -> None:
    bad = layer("bad")
    bad["config"]["padding"] = "full"
    path = write_keras(
        tmp_path / "m.keras",
        model("m", [bad, layer("good")]),
        {"layers/conv3d_transpose_1": [KERNEL, BIAS]},
    )
    rows = {row["path"]: row for row in weights.inspect(path)}
    assert "must be a list/tuple or one of" in rows["bad"]["problem"]
    assert rows["good"]["problem"] is None
    with pytest.raises(WeightsError, match=r"m\.keras: layer 'bad': The `padding` argument"):
        weights.read(path)
    only = weights.read(path, "good")
    assert list(only.layers) == ["good"]
    assert same_bits(only.layers["good"].load(), [KERNEL, BIAS])


def test_select() -> None:
    found = weights.read(GOLDEN / "models" / "nested_small" / "model.keras")
    assert weights.select(found, "up") is weights.select(found, "block/up")
    with pytest.raises(WeightsError, match=r"no Conv3DTranspose layer 'ot'.*'out'.*'block/up'"):
        weights.select(found, "ot")
    with pytest.raises(WeightsError, match="no Conv3DTranspose layer 'xyz'"):
        weights.read(GOLDEN / "models" / "nested_small" / "model.keras", "xyz")


def test_numbers_wrappers_operations_and_shared_layers(tmp_path: Path) -> None:
    other = RNG.standard_normal(KERNEL.shape).astype(np.float32)
    third = RNG.standard_normal(KERNEL.shape).astype(np.float32)
    shared = layer("shared", shared_object_id=7)
    top = model(
        "top",
        [
            model("inner", [shared]),
            layer("add", "Add", module="keras.src.ops.numpy"),
            layer("foreign", module="their_package", registered_name="p>Conv3DTranspose"),
            shared,
            layer("last"),
            layer("t", "TimeDistributed", config={"name": "t", "layer": layer("inside")}),
        ],
    )
    path = write_keras(
        tmp_path / "m.keras",
        top,
        {
            "layers/functional/layers/conv3d_transpose": [KERNEL, BIAS],
            "layers/conv3d_transpose": [third, BIAS],  # the foreign one, which is not read
            "layers/conv3d_transpose_2": [other, BIAS],
            "layers/time_distributed/layer": [third, BIAS],
        },
    )
    found = weights.read(path)
    assert list(found.layers) == ["inner/shared", "last", "t/inside"]
    assert found.aliases == {"shared": "inner/shared"}
    assert same_bits(weights.select(found, "shared").load(), [KERNEL, BIAS])
    assert same_bits(weights.select(found, "last").load(), [other, BIAS])
    assert same_bits(weights.select(found, "inside").load(), [third, BIAS])


def test_ambiguous_bare_name(tmp_path: Path) -> None:
    path = write_keras(
        tmp_path / "m.keras",
        model("top", [model("a", [layer("up")]), model("b", [layer("up")])]),
        {
            "layers/functional/layers/conv3d_transpose": [KERNEL, BIAS],
            "layers/functional_1/layers/conv3d_transpose": [KERNEL, BIAS],
        },
    )
    assert weights.read(path, "b/up").layers["b/up"].problem is None
    with pytest.raises(WeightsError, match="full path: \\['a/up', 'b/up'\\]"):
        weights.read(path, "up")


def test_old_name_of_the_layers_group(tmp_path: Path) -> None:
    path = write_keras(
        tmp_path / "m.keras",
        model("m", [layer("up")]),
        {"_layer_checkpoint_dependencies/conv3d_transpose": [KERNEL, BIAS]},
    )
    assert same_bits(weights.read(path).layers["up"].load(), [KERNEL, BIAS])


@pytest.mark.parametrize("stored", [">f4", "<f8", ">f8", "<f2"])
def test_floats_of_any_width_and_order_are_cast(tmp_path: Path, stored: str) -> None:
    kernel = KERNEL.astype(stored)
    path = write_variables(tmp_path / "w.weights.h5", {"a": [kernel, BIAS.astype(stored)]})
    found = weights.find_weights(path, config())
    assert [array.dtype for array in found] == [np.float32, np.float32]
    assert np.array_equal(found[0], kernel.astype(np.float32))
    assert found[0].dtype.isnative and found[0].flags.c_contiguous and found[0].flags.writeable


def test_bfloat16_without_a_name_is_read_by_policy(tmp_path: Path) -> None:
    kernel = KERNEL.astype(ml_dtypes.bfloat16)
    path = write_variables(tmp_path / "w.weights.h5", {"a": [kernel.view("V2"), BIAS.astype("V2")]})
    found = weights.find_weights(path, config(dtype="bfloat16", use_bias=True))
    assert same_bits(found[:1], [kernel])
    with pytest.raises(WeightsError, match="unknown type in a float32 layer"):
        weights.find_weights(path, config())


@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_chunked_filtered_datasets(tmp_path: Path, version: str) -> None:
    path = tmp_path / "w.weights.h5"
    with h5py.File(path, "w", libver=version) as file:
        group = file.create_group("up/vars")
        group.attrs["name"] = "up"
        group.create_dataset(
            "0",
            data=KERNEL,
            chunks=(2, 2, 1, 3, 2),
            compression="gzip",
            shuffle=True,
            fletcher32=True,
        )
        group.create_dataset("1", data=BIAS, chunks=(3,), fletcher32=True)
    assert same_bits(weights.find_weights(path, config()), [KERNEL, BIAS])


def test_legacy_lists_split_and_nested(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    inner = model("inner", [layer("up"), model("deep", [layer("up")])])
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(model("top", [inner]))
        file.attrs["keras_version"] = "2.12.0"
        group = file.create_group("model_weights/inner")
        group.attrs["weight_names0"] = ["deep/up/bias:0", "deep/up/kernel:0"]
        group.attrs["weight_names1"] = [b"inner/up/kernel:0", b"inner/up/bias:0"]
        group["deep/up/kernel:0"] = KERNEL
        group["deep/up/bias:0"] = BIAS
        group["inner/up/kernel:0"] = KERNEL + 1
        group["inner/up/bias:0"] = BIAS + 1
    found = weights.read(path)
    assert found.keras_version == "2.12.0"
    assert same_bits(found.layers["inner/up"].load(), [KERNEL + 1, BIAS + 1])
    assert same_bits(found.layers["inner/deep/up"].load(), [KERNEL, BIAS])


def test_pairs_are_chosen_by_name_then_path_then_shape(tmp_path: Path) -> None:
    second = KERNEL + 1
    groups: dict[str, list[Any]] = {
        "one": [KERNEL, BIAS],
        "two": [second, BIAS],
        "conv3d": [KERNEL[..., :3, :], BIAS[:3]],
        "optimizer": [KERNEL + 2, BIAS],
    }
    path = write_variables(tmp_path / "w.weights.h5", groups, one="up", two="other")
    assert same_bits(weights.find_weights(path, config())[:1], [KERNEL])
    assert same_bits(weights.find_weights(path, config(), "model/other")[:1], [second])
    assert same_bits(weights.find_weights(path, config(name="x"), "two")[:1], [second])
    with pytest.raises(WeightsError, match=r"several pairs fit.*'one'.*'two'"):
        weights.find_weights(path, config(name="x"))
    with pytest.raises(WeightsError, match=r"expected a kernel of shape .* found 'one'"):
        weights.find_weights(path, config(filters=5))
    assert [row["path"] for row in weights.inspect(path)] == ["one", "two"]


@pytest.mark.parametrize("order", ["C", "F"])
def test_npz(tmp_path: Path, order: Any) -> None:
    path = tmp_path / "w.npz"
    np.savez_compressed(path, kernel=np.asarray(KERNEL, order=order), bias=BIAS)
    assert same_bits(weights.find_weights(path, config()), [KERNEL, BIAS])
    np.savez(path, kernel=KERNEL.astype(">f8"))
    assert same_bits(weights.find_weights(path, config(use_bias=False)), [KERNEL])
    with pytest.raises(WeightsError, match="and a bias of shape"):
        weights.find_weights(path, config())


def test_safetensors_of_the_library(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "w.safetensors"
    save_file({"kernel": KERNEL, "bias": BIAS}, path, metadata={"format": "np"})
    assert same_bits(weights.find_weights(path, config()), [KERNEL, BIAS])
    kernel = KERNEL.astype(ml_dtypes.bfloat16)
    header = {
        "kernel": {"dtype": "BF16", "shape": KERNEL.shape, "data_offsets": [0, kernel.nbytes]}
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + kernel.tobytes())
    found = weights.find_weights(path, config(dtype="mixed_bfloat16", use_bias=False))
    assert same_bits(found, [kernel.astype(np.float32)])


def test_config_json(tmp_path: Path) -> None:
    path = tmp_path / "up.json"
    path.write_text(json.dumps(UP), encoding="utf-8")
    assert weights.read_config_json(path) == config()
    path.write_text(json.dumps(layer("up")), encoding="utf-8")
    assert weights.read_config_json(path) == config()
    for wrong in ("[]", '{"filters": 4}', json.dumps(layer("up", "Dense")), '{"filters": NaN}'):
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(WeightsError, match=r"up\.json: ") as caught:
            weights.read_config_json(path)
        assert "\n" not in str(caught.value)


def test_from_keras_of_a_file() -> None:
    path = GOLDEN.parent.parent / "examples" / "decoder.keras"
    assert path.stat().st_size < 1 << 20
    found = weights.from_keras(path)
    assert isinstance(found, dict) and list(found) == ["up1", "up2", "up3"]
    up1 = weights.from_keras(path, "up1")
    assert not isinstance(up1, dict)
    stored = weights.read(path).layers["up1"]
    assert same_bits(list(up1.get_weights()), stored.load())
    assert up1.get_config() == found["up1"].get_config()
    with pytest.raises(WeightsError, match="use load_weights"):
        weights.from_keras(GOLDEN / "models" / "nested_small" / "model.weights.h5")
    with pytest.raises(tvmconv.errors.ConfigTypeError, match="expected the path"):
        weights.from_keras(3)


@pytest.mark.parametrize(
    "name", ["missing.keras", "missing.h5", "missing.npz", "missing.weights.json", "."]
)
def test_missing_files_and_folders(tmp_path: Path, name: str) -> None:
    for call in (weights.read, weights.inspect, lambda path: weights.find_weights(path, config())):
        with pytest.raises(WeightsError, match=r"no such file|a folder without config"):
            call(tmp_path / name)


def test_missing_h5py_names_the_extra(tmp_path: Path) -> None:
    path = write_variables(tmp_path / "w.weights.h5", {"a": [KERNEL, BIAS]})
    code = (
        "import sys; sys.modules['h5py'] = None\n"
        "from tvmconv import weights\n"
        f"try: weights.read({str(path)!r})\n"
        "except ValueError as error: print(error)\n"
    )
    root = Path(tvmconv.errors.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert "tvmconv[weights]" in done.stdout


def test_import_loads_no_framework() -> None:
    code = (
        "import sys, tvmconv.weights\n"
        "print([m for m in ('keras', 'tensorflow', 'tvm', 'h5py', 'safetensors', 'xgboost')"
        " if m in sys.modules])"
    )
    root = Path(tvmconv.errors.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.strip() == "[]"
