"""The same layer, weights and input through live Keras on TensorFlow and through compiled code.

The weights travel through each file format. Only layers that TensorFlow's CPU kernels can run are
drawn: channels last, no dilation, no `same` with an even kernel and an output padding of 0.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from golden_files import mismatch
from turns import few

import tvmconv
from tvmconv.config import LayerConfig

if sys.version_info >= (3, 14):
    pytest.skip("TensorFlow has no wheel for Python 3.14", allow_module_level=True)

LAYERS = 45
FORMATS = (".keras", ".weights.h5", ".h5", ".npz", ".safetensors", "live")
TOLERANCE = {"float32": (2e-5, 1e-4), "float64": (1e-7, 1e-6), "float16": (8e-3, 8e-3)}
ACTIVATIONS = (
    "relu", "elu", "gelu", "silu", "tanh", "softmax", "softplus", "leaky_relu", "mish",
    "log_softmax", "hard_sigmoid", "selu", "exponential", "softsign", "relu6",
)  # fmt: skip


@pytest.fixture(scope="module")
def keras() -> Any:
    """Keras on TensorFlow; its import takes seconds."""
    import keras

    assert keras.backend.backend() == "tensorflow"
    return keras


def arguments(rng: random.Random) -> dict[str, Any]:
    """The constructor's arguments of a random layer."""
    given: dict[str, Any] = {
        "filters": rng.choice((1, 2, 3, 5, 8, 16, 17, 33)),
        "kernel_size": tuple(rng.choice((1, 2, 3, 3, 4, 5)) for _ in range(3)),
        "strides": tuple(rng.choice((1, 2, 2, 3)) for _ in range(3)),
        "padding": rng.choice(("same", "valid")),
        "use_bias": rng.random() < 0.8,
        "activation": rng.choice((None, *ACTIVATIONS)),
        "dtype": rng.choice(("float32", "float32", "float32", "float64", "mixed_float16")),
    }
    extra = tuple(rng.randrange(stride) for stride in given["strides"])
    even = any(k % 2 == 0 and e == 0 for k, e in zip(given["kernel_size"], extra, strict=True))
    if rng.random() < 0.3 and not (given["padding"] == "same" and even):
        given["output_padding"] = extra
    return given


def randomize(layer: Any, rng: np.random.Generator) -> list[np.ndarray]:
    """Weights of order one, biases too."""
    kernel, *bias = layer.get_weights()
    scale = np.sqrt(max(1, np.prod(kernel.shape[:3]) * kernel.shape[4] / np.prod(layer.strides)))
    drawn = [(rng.standard_normal(kernel.shape) / scale).astype(kernel.dtype)]
    drawn += [rng.standard_normal(values.shape).astype(values.dtype) for values in bias]
    layer.set_weights(drawn)
    return drawn


def through_file(
    model: Any, layer: Any, values: list[np.ndarray], suffix: str, folder: Path
) -> tvmconv.Conv3DTranspose:
    """Our layer with the weights of ``model``'s layer, read from a file of that format."""
    if suffix == "live":
        found = tvmconv.from_keras(layer)
        assert isinstance(found, tvmconv.Conv3DTranspose)
        return found
    path = folder / f"file{suffix}"
    if suffix in (".keras", ".h5"):
        model.save(path)
        found = tvmconv.from_keras(path, layer.name)
        assert isinstance(found, tvmconv.Conv3DTranspose)
        return found
    if suffix == ".weights.h5":
        model.save_weights(path)
    else:
        named = dict(zip(("kernel", "bias"), values, strict=False))
        if suffix == ".npz":
            np.savez(path, **named)
        else:
            safetensors.numpy.save_file(named, path)
    ours = tvmconv.Conv3DTranspose.from_config(layer.get_config())
    ours.load_weights(path)
    return ours


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")
@pytest.mark.parametrize("seed", few(range(LAYERS), range(18)))
def test_random_layers(seed: int, keras: Any, tmp_path: Path) -> None:
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    given = arguments(rng)
    layer = keras.layers.Conv3DTranspose(name="up", **given)
    shape = tuple(rng.randint(1, 7) for _ in range(3))
    channels = rng.choice((1, 2, 3, 8, 19))
    model = keras.Sequential([keras.Input((*shape, channels)), layer])
    values = randomize(layer, numbers)
    ours = through_file(model, layer, values, FORMATS[seed % len(FORMATS)], tmp_path)
    x = numbers.standard_normal((rng.randint(1, 3), *shape, channels))
    x = x.astype(layer.compute_dtype)
    expected = np.asarray(layer(x))
    y = ours(x)
    assert y.shape == expected.shape
    assert y.dtype == expected.dtype
    wrong = mismatch(y, expected, *TOLERANCE[layer.compute_dtype])
    assert not wrong.any(), f"{given}: {y[wrong][:3]} instead of {expected[wrong][:3]}"


@pytest.mark.parametrize("suffix", [".keras", ".h5", "live"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")
def test_activation_layers(suffix: str, keras: Any, tmp_path: Path) -> None:
    numbers = np.random.default_rng(3)
    for activation in (
        keras.layers.LeakyReLU(negative_slope=0.15, name="a"),
        keras.layers.ReLU(max_value=1.0, negative_slope=0.1, threshold=0.2, name="a"),
        keras.layers.Softmax(axis=(1, 2, 3), name="a"),
    ):
        layer = keras.layers.Conv3DTranspose(4, 3, strides=2, activation=activation)
        model = keras.Sequential([keras.Input((2, 3, 4, 3)), layer])
        values = randomize(layer, numbers)
        ours = through_file(model, layer, values, suffix, tmp_path)
        x = numbers.standard_normal((2, 2, 3, 4, 3)).astype(np.float32)
        assert not mismatch(ours(x), np.asarray(layer(x)), *TOLERANCE["float32"]).any()


def test_bfloat16(keras: Any) -> None:
    # One tap of one channel: TensorFlow rounds partial sums to bfloat16.
    numbers = np.random.default_rng(5)
    layer = keras.layers.Conv3DTranspose(7, 1, strides=2, activation="gelu", dtype="bfloat16")
    layer.build((None, 2, 3, 4, 1))
    randomize(layer, numbers)
    ours = tvmconv.from_keras(layer)
    assert isinstance(ours, tvmconv.Conv3DTranspose)
    x = numbers.standard_normal((1, 2, 3, 4, 1)).astype(ml_dtypes.bfloat16)
    y, expected = ours(x), np.asarray(layer(x)).view(ml_dtypes.bfloat16)
    assert y.dtype == ml_dtypes.bfloat16
    assert not mismatch(y, expected, 6e-2, 6e-2).any()


def test_the_example_of_keras_documentation(keras: Any, capsys: pytest.CaptureFixture[str]) -> None:
    text = keras.layers.Conv3DTranspose.__doc__
    example = [line.strip() for line in text.partition("Example:")[2].splitlines()]
    code = [line[4:] for line in example if line.startswith(">>> ")]
    printed = [line for line in example if line and not line.startswith(">>> ")]
    assert any("keras.layers.Conv3DTranspose(" in line for line in code)
    names: dict[str, Any] = {"np": np, "tvmconv": tvmconv}
    np.random.seed(1)  # noqa: NPY002  (the example draws from the global generator)
    exec("\n".join(code).replace("keras.", "tvmconv."), names)
    assert capsys.readouterr().out.split("\n")[:-1] == printed
    # The same numbers for the same weights.
    theirs = keras.layers.Conv3DTranspose(32, 2, 2, activation="relu")
    x = names["x"][:1, :3].astype(np.float32)
    theirs.build(x.shape)
    ours = tvmconv.Conv3DTranspose(32, 2, 2, activation="relu")
    ours.build(x.shape)
    ours.set_weights(theirs.get_weights())
    assert not mismatch(ours(x), np.asarray(theirs(x)), *TOLERANCE["float32"]).any()
    assert ours.get_config().keys() == theirs.get_config().keys()


def test_configs_travel_in_both_directions(keras: Any) -> None:
    for seed in range(LAYERS):
        given = arguments(random.Random(seed))
        theirs = keras.layers.Conv3DTranspose(name="up", **given)
        ours = LayerConfig(name="up", **given)
        assert ours.get_config() == json.loads(json.dumps(theirs.get_config()))
        again = keras.layers.Conv3DTranspose.from_config(ours.get_config())
        assert again.get_config() == theirs.get_config()
