"""Weights that a live Keras writes, in each of its formats, read back bit for bit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvmconv import weights
from tvmconv.config import LayerConfig
from tvmconv.errors import ConfigError, WeightsError

SEEDS = range(4)
FORMATS = (".keras", "/", ".h5", ".weights.h5", ".weights.json")


@pytest.fixture(scope="module")
def keras() -> Any:
    """Keras on TensorFlow; its import takes seconds."""
    if sys.version_info >= (3, 14):
        pytest.skip("TensorFlow has no wheel for Python 3.14")
    import keras

    return keras


def randomize(model: Any, rng: np.random.Generator) -> None:
    """Draw every weight anew: Keras' zero biases would hide one that is lost."""
    for variable in model.variables:
        if "float" in variable.dtype:
            variable.assign(rng.standard_normal(variable.shape))


def arguments(rng: np.random.Generator) -> dict[str, Any]:
    """Arguments of a small layer; strides and dilation never both above 1."""
    pick = rng.integers
    given: dict[str, Any] = {
        "filters": int(pick(1, 5)),
        "kernel_size": tuple(int(k) for k in pick(1, 4, 3)),
        "use_bias": bool(pick(0, 2)),
        "padding": ["valid", "same"][pick(0, 2)],
        "activation": [None, "relu", "gelu", "swish"][pick(0, 4)],
    }
    if pick(0, 2):
        given["strides"] = tuple(int(s) for s in pick(1, 4, 3))
    else:
        given["dilation_rate"] = int(pick(1, 3))
    return given


def sequential(keras: Any, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
    transposed = [keras.layers.Conv3DTranspose(**arguments(rng)) for _ in range(3)]
    activation = keras.layers.LeakyReLU(negative_slope=0.1)
    last = keras.layers.Conv3DTranspose(2, 2, activation=activation, name="last")
    model = keras.Sequential(
        [
            keras.Input((3, 2, 3, 2)),
            transposed[0],
            keras.layers.Conv3D(3, 1, name="conv3d_transpose_name_of_another"),
            transposed[1],
            keras.layers.BatchNormalization(),
            transposed[2],
            last,
        ]
    )
    return model, {layer.name: layer for layer in [*transposed, last]}


def functional(keras: Any, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
    """Nested model, wrapper, operations, and a layer that is called twice."""
    layers = keras.layers
    inside = keras.Input((2, 3, 2, 3))
    deep = layers.Conv3DTranspose(**{**arguments(rng), "filters": 7}, name="up")
    block = keras.Model(inside, deep(inside), name="block")
    twice = layers.Conv3DTranspose(3, 2, padding="same", name="twice")
    wrapped = layers.Conv3DTranspose(2, (1, 2, 1), name="wrapped")
    out = layers.Conv3DTranspose(**arguments(rng), name="up")
    x = keras.Input((2, 3, 2, 3))
    y = twice(twice(x)) + keras.ops.relu(x)
    many = keras.ops.expand_dims(y, 1)
    side = layers.TimeDistributed(wrapped, name="time")(many)
    model = keras.Model(x, [out(y), block(y), side], name="top")
    found = {"twice": twice, "up": out, "block/up": deep, "time/wrapped": wrapped}
    return model, found


def shared(keras: Any, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
    """One layer in two models: Keras stores it where it is visited first."""
    layers = keras.layers
    both = layers.Conv3DTranspose(2, 3, padding="same", name="both")
    last = layers.Conv3DTranspose(**arguments(rng), name="last")
    inner_in = keras.Input((2, 2, 2, 2))
    inner = keras.Model(inner_in, both(inner_in), name="inner")
    x = keras.Input((2, 2, 2, 2))
    model = keras.Model(x, last(both(inner(x))), name="outer")
    return model, {"inner/both": both, "both": both, "last": last}


def shared_models(keras: Any, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
    """A model inside two models, and a layer first in the outer one."""
    layers = keras.layers
    up = layers.Conv3DTranspose(2, (1, 2, 3), padding="same", name="up")
    early = layers.Conv3DTranspose(2, (3, 2, 1), padding="same", name="early")
    last = layers.Conv3DTranspose(**arguments(rng), name="last")
    x = keras.Input((2, 2, 2, 2))
    block = keras.Model(x, up(x), name="block")
    x = keras.Input((2, 2, 2, 2))
    inner = keras.Model(x, early(block(x)), name="inner")
    x = keras.Input((2, 2, 2, 2))
    model = keras.Model(x, last(block(inner(early(x)))), name="outer")
    found = {"early": early, "inner/block/up": up, "block/up": up, "last": last}
    return model, {**found, "inner/early": early}


BUILDERS = {
    "sequential": sequential,
    "functional": functional,
    "shared": shared,
    "shared_models": shared_models,
}


def save(model: Any, path: Path) -> None:
    if path.suffix == ".json":
        model.save_weights(path, max_shard_size=2e-6)  # GB: about one layer a file
    elif path.name.endswith(".weights.h5"):
        model.save_weights(path)
    elif path.suffix:
        model.save(path)
    else:
        model.save(path, zipped=False)


def same(found: list[np.ndarray], layer: Any) -> bool:
    wanted = layer.get_weights()
    return [(a.dtype, a.shape, a.tobytes()) for a in found] == [
        (a.dtype, a.shape, a.tobytes()) for a in wanted
    ]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", BUILDERS)
def test_round_trip(kind: str, seed: int, suffix: str, tmp_path: Path, keras: Any) -> None:
    rng = np.random.default_rng([seed, len(kind)])
    keras.utils.clear_session(free_memory=False)
    model, layers = BUILDERS[kind](keras, rng)
    randomize(model, rng)
    path = tmp_path / f"m{suffix}"
    save(model, path)
    assert layers
    if suffix in (".keras", "/", ".h5"):
        found = weights.read(path)
        assert found.keras_version == keras.__version__
        assert {*found.layers, *found.aliases} == set(layers)
        for name, layer in layers.items():
            entry = weights.select(found, name)
            assert same(entry.load(), layer)
            assert entry.config == LayerConfig.from_keras(layer.get_config())
    for name, layer in layers.items():
        config = LayerConfig.from_keras(layer.get_config())
        assert same(weights.find_weights(path, config, name), layer)


def test_subclassed_model(tmp_path: Path, keras: Any) -> None:
    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.first = keras.layers.Conv3DTranspose(3, 2, name="a")
            self.rest = [
                keras.layers.Conv3DTranspose(3, 2, name="b"),
                keras.layers.Conv3DTranspose(3, 2, name="c"),
            ]

        def call(self, x: Any) -> Any:
            return self.rest[1](self.rest[0](self.first(x)))

    net = Net()
    net(np.ones((1, 2, 2, 2, 3), np.float32))
    randomize(net, np.random.default_rng(3))
    path = tmp_path / "net.weights.h5"
    net.save_weights(path)
    for layer in (net.first, *net.rest):
        config = LayerConfig.from_keras(layer.get_config())
        assert same(weights.find_weights(path, config), layer)
    assert same(weights.find_weights(path, LayerConfig(3, 2, name="x"), "first"), net.first)
    with pytest.raises(WeightsError, match=r"several pairs fit .*\(name 'b'\)"):
        weights.find_weights(path, LayerConfig(3, 2, name="x"))
    net.save(tmp_path / "net.keras")
    with pytest.raises(WeightsError, match="'Net' is not a Keras model with a list of layers"):
        weights.read(tmp_path / "net.keras")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("policy", ["bfloat16", "float16", "float64", "mixed_bfloat16"])
def test_policies(policy: str, suffix: str, tmp_path: Path, keras: Any) -> None:
    layer = keras.layers.Conv3DTranspose(3, 2, strides=2, dtype=policy, name="up")
    model = keras.Sequential([keras.Input((2, 2, 2, 2)), layer])
    randomize(model, np.random.default_rng(4))
    path = tmp_path / f"m{suffix}"
    save(model, path)
    config = LayerConfig.from_keras(layer.get_config())
    assert same(weights.find_weights(path, config), layer)
    if suffix in (".keras", "/", ".h5"):
        assert same(weights.read(path).layers["up"].load(), layer)


def test_user_classes_and_activations(tmp_path: Path, keras: Any) -> None:
    @keras.saving.register_keras_serializable(package="test_weights_live")
    class Net(keras.Model):
        pass

    @keras.saving.register_keras_serializable(package="test_weights_live")
    class Conv3DTranspose(keras.layers.Conv3DTranspose):
        pass

    @keras.saving.register_keras_serializable(package="test_weights_live")
    def double(y: Any) -> Any:
        return 2 * y

    x = keras.Input((2, 2, 2, 3))
    mine = Conv3DTranspose(3, 2, name="mine")
    ours = keras.layers.Conv3DTranspose(3, 2, name="ours")
    custom = keras.layers.Conv3DTranspose(3, 2, activation=double, name="custom")
    model = Net(x, ours(mine(x)))
    randomize(model, np.random.default_rng(6))
    model.save(tmp_path / "m.keras")
    found = weights.read(tmp_path / "m.keras")
    assert list(found.layers) == ["ours"]
    assert same(found.layers["ours"].load(), ours)
    model = keras.Model(x, ours(custom(x)))
    model.save(tmp_path / "m.keras")
    with pytest.raises(WeightsError, match=r"layer 'custom': .*activation"):
        weights.read(tmp_path / "m.keras")
    assert same(weights.read(tmp_path / "m.keras", "ours").layers["ours"].load(), ours)
    with pytest.raises(ConfigError):
        weights.from_keras(model)
    one = weights.from_keras(model, "ours")
    assert not isinstance(one, dict)
    assert same(list(one.get_weights()), ours)


@pytest.mark.parametrize("kind", BUILDERS)
def test_live_objects(kind: str, keras: Any) -> None:
    rng = np.random.default_rng(9)
    model, layers = BUILDERS[kind](keras, rng)
    randomize(model, rng)
    found = weights.from_keras(model)
    assert isinstance(found, dict)
    assert set(found) <= set(layers)
    assert {id(layer) for layer in layers.values()} == {id(layers[name]) for name in found}
    for name, layer in layers.items():
        one = weights.from_keras(model, name)
        assert not isinstance(one, dict)
        assert same(list(one.get_weights()), layer)
        assert json.dumps(one.get_config()) == json.dumps(layer.get_config())
        alone = weights.from_keras(layer)
        assert not isinstance(alone, dict)
        assert same(list(alone.get_weights()), layer)
    with pytest.raises(WeightsError, match="no Conv3DTranspose layer 'nowhere'"):
        weights.from_keras(model, "nowhere")


def test_unbuilt_live_layer(keras: Any) -> None:
    made = weights.from_keras(keras.layers.Conv3DTranspose(3, 2, name="up"))
    assert not isinstance(made, dict)
    assert not made.built
    assert made.get_config()["name"] == "up"
