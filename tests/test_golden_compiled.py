"""The golden data through compiled code: every case, every activation, every layer of a model."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from golden_files import GOLDEN, Case, assert_close, cases, entries, ids, mismatch, unpack
from kernels import Kernel
from turns import few

import tvmconv
from tvmconv import geometry
from tvmconv.activations import Activation
from tvmconv.config import LayerConfig

ACTIVATIONS = entries("activations.json")
SHAPES = entries("shapes.json")
MODELS = sorted(path.parent.name for path in (GOLDEN / "models").glob("*/expected.json"))
assert MODELS


@pytest.mark.parametrize(
    ("case", "form"),
    [
        *((case, "default") for case in cases()),
        *few(((case, "definition") for case in cases()), range(0, 1000, 3)),
    ],
    ids=str,
)
def test_cases_through_kernels(case: Case, form: str) -> None:
    kernel = Kernel(case.config, case.x.shape, form=form)
    y = kernel(case.x, case.arrays["kernel"], case.bias, np.random.default_rng(1))
    assert_close(y, case)


# The kernels above have every case; from them to a layer the way is the same. These here LLVM
# makes as it makes what ships.
@pytest.mark.parametrize("case", few(cases(), range(0, 1000, 3)), ids=str)
def test_cases_through_the_layer(case: Case) -> None:
    layer = tvmconv.Conv3DTranspose.from_config(case.entry["config"])
    layer.build(case.x.shape)
    layer.set_weights(case.weights)
    assert_close(layer(case.x), case)


@pytest.mark.parametrize("entry", SHAPES, ids=ids(SHAPES))
def test_shapes(entry: dict[str, Any]) -> None:
    arguments = {
        key: value
        for key, value in entry.items()
        if key not in ("id", "input_shape", "output_shape", "kernel_size", "filters")
    }
    config = LayerConfig(entry["filters"], entry["kernel_size"], **arguments)
    assert geometry.output_shape(config, entry["input_shape"]) == entry["output_shape"]
    layer = tvmconv.Conv3DTranspose(entry["filters"], entry["kernel_size"], **arguments)
    assert layer.compute_output_shape(entry["input_shape"]) == entry["output_shape"]
    if None not in entry["input_shape"][1:]:
        planned = geometry.plan(config, entry["input_shape"])
        expected = [-1 if size is None else size for size in entry["output_shape"]]
        assert list(planned.output_shape) == expected


def along_last(activation: Activation, x: np.ndarray) -> tuple[Activation, np.ndarray]:
    """A mixing activation of one axis, with that axis moved to the end."""
    (axis,) = activation.axes or (-1,)
    return Activation(activation.name, (("axis", -1),)), np.moveaxis(x, axis, -1)


def through_layer(activation: Activation, x: np.ndarray, channels_first: bool) -> np.ndarray:
    """``activation`` of ``x``, by the compiled code of a 1x1x1 layer whose kernel is the identity.

    The last axis of ``x`` is the channels; or, with ``channels_first``, the width of one channel,
    where no voxel is multiplied with another's weight.
    """
    if activation.name == "glu" and channels_first:  # Compiled along channels and width only.
        moved, turned = along_last(activation, x)
        if moved != activation:
            y = through_layer(moved, turned, channels_first)
            return np.moveaxis(y, -1, activation.arguments["axis"])
    arguments = activation.arguments
    if activation.axes is not None:  # Counted from the last: the layer puts axes in front.
        found = tuple(axis % x.ndim - x.ndim for axis in activation.axes)
        arguments["axis"] = found if isinstance(arguments["axis"], tuple) else found[0]
        activation = Activation(activation.name, tuple(arguments.items()))
    channels = 1 if channels_first else x.shape[-1]
    shape = (1, *([1] * (4 - x.ndim)), *x.shape)
    config = LayerConfig(
        channels,
        1,
        data_format="channels_first" if channels_first else "channels_last",
        activation=activation,
        use_bias=False,
        dtype=x.dtype.name,
    )
    weights = np.eye(channels, dtype=np.float32).reshape(1, 1, 1, channels, channels)
    y = Kernel(config, shape)(x.reshape(shape), weights, None)
    return y.reshape(y.shape[5 - x.ndim :])


@pytest.mark.parametrize("channels_first", [False, True], ids=["channels", "width"])
@pytest.mark.parametrize("entry", ACTIVATIONS, ids=ids(ACTIVATIONS))
def test_activations(entry: dict[str, Any], channels_first: bool) -> None:
    arrays = unpack(GOLDEN / "activations.npz", entry["arrays"], f"{entry['id']}_")
    activation = Activation(entry["name"], tuple(entry["args"].items()))
    out = through_layer(activation, arrays["x"], channels_first)
    for expected in (arrays["y_ref"], arrays["y"]):
        assert out.shape == expected.shape
        assert not mismatch(out, expected, entry["atol"], entry["rtol"]).any()


@pytest.mark.parametrize("entry", ACTIVATIONS, ids=ids(ACTIVATIONS))
def test_activations_of_special_values(entry: dict[str, Any]) -> None:
    arrays = unpack(GOLDEN / "activations.npz", entry["arrays"], f"{entry['id']}_")
    activation = Activation(entry["name"], tuple(entry["args"].items()))
    x, agree = arrays["special_x"], arrays["special_agree"]
    if entry["name"] == "sparsemax":  # The backends lose the support where max - 1 rounds to max.
        top = x.max(axis=entry["args"]["axis"], keepdims=True)
        agree = agree & (top - np.asarray(1, x.dtype) != top)
    out = through_layer(activation, x, channels_first=True)
    wrong = mismatch(out, arrays["special_y"], entry["atol"], entry["rtol"])
    assert agree.any()
    assert not wrong[agree].any(), (x, out, arrays["special_y"])


@pytest.mark.parametrize("model", MODELS)
def test_models(model: str) -> None:
    folder = GOLDEN / "models" / model
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    arrays = unpack(folder / "io.npz", expected["arrays"])
    assert expected["layers"]
    for entry in expected["layers"]:
        if (folder / "model.keras").exists():
            layer = tvmconv.from_keras(folder / "model.keras", entry["path"])
        else:  # A subclassed model has no config that tells of its layers.
            layer = tvmconv.Conv3DTranspose.from_config(entry["config"])
            layer.load_weights(folder / "model.weights.h5", entry["h5_path"])
        for call in entry["calls"]:
            x, y = arrays[call["x"]], arrays[call["y"]]
            out = layer(x)
            assert out.shape == y.shape
            assert out.dtype == y.dtype
            assert not mismatch(out, y, entry["atol"], entry["rtol"]).any()
