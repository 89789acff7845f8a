"""`Conv3DTranspose`: golden cases, weights, names, copies, and what is compiled when.

Compiling is replaced by the reference, so that these tests need no compiler.
"""

from __future__ import annotations

import copy
import itertools
import pickle
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fake_cache import FakeCompiled, install
from golden_files import Case, assert_close, cases, entries, ids

import tvmconv
from tvmconv.config import LayerConfig
from tvmconv.errors import ConfigError, WeightsError
from tvmconv.runtime.layer import Conv3DTranspose, from_live

CONSTRUCTED = [entry for entry in entries("configs.json") if entry["kind"] == "constructor"]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[FakeCompiled]:
    """The layers compiled so far, in order."""
    return install(monkeypatch)


def tuples(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in kwargs.items()}


def x_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("case", cases(), ids=str)
def test_golden_cases(case: Case, compiled: list[FakeCompiled]) -> None:
    layer = Conv3DTranspose.from_config(case.entry["config"])
    layer.build(case.entry["build_config"]["input_shape"])
    layer.set_weights(case.weights)
    assert_close(layer(case.x), case)
    if "static_shape_differs" not in case.entry["flags"]:
        assert layer.compute_output_shape(case.x.shape) == case.entry["output_shape"]
    assert layer.compute_output_shape(case.x.shape) == case.entry["compute_output_shape"]
    assert len(compiled) <= 1


@pytest.mark.parametrize("entry", CONSTRUCTED, ids=ids(CONSTRUCTED))
def test_config_round_trip(entry: dict[str, Any]) -> None:
    layer = Conv3DTranspose(**{"name": entry["id"], **tuples(entry["kwargs"])})
    assert layer.get_config() == entry["config"]
    assert Conv3DTranspose.from_config(layer.get_config()).get_config() == entry["config"]


def test_all_arguments_may_be_positional() -> None:
    layer = Conv3DTranspose(
        2, 3, 2, "same", "channels_first", 1, 1, "relu", False, "ones", "ones", "l1", "l2", None,
        "non_neg", None,
    )  # fmt: skip
    config = layer.config
    assert (config.output_padding, config.data_format) == ((1, 1, 1), "channels_first")
    assert config.kernel_regularizer is not None
    assert config.use_bias is False


def test_the_arguments_are_attributes() -> None:
    layer = Conv3DTranspose(2, 3, strides=(1, 2, 1), activation="relu", dtype="mixed_float16")
    assert (layer.filters, layer.kernel_size, layer.strides) == (2, (3, 3, 3), (1, 2, 1))
    assert (layer.padding, layer.output_padding, layer.use_bias) == ("valid", None, True)
    assert (layer.variable_dtype, layer.compute_dtype) == ("float32", "float16")
    assert layer.activation.name == "relu"
    assert {"filters", "build", "kernel"} <= set(dir(layer))
    with pytest.raises(AttributeError, match="'Conv3DTranspose' object has no attribute 'group'"):
        _ = layer.group


def test_unnamed_layers_are_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Conv3DTranspose, "_numbers", itertools.count())
    names = [
        Conv3DTranspose(2, 3).name,
        Conv3DTranspose(2, 3, name="up").name,
        Conv3DTranspose.from_config({"filters": 2, "kernel_size": 3}).name,
        Conv3DTranspose(2, 3).name,
    ]
    assert names == ["conv3d_transpose", "up", "conv3d_transpose_1", "conv3d_transpose_2"]


def test_own_variables() -> None:
    layer = Conv3DTranspose(2, 3)
    layer.build((1, 2, 2, 2, 3))
    store: dict[str, Any] = {}
    layer.save_own_variables(store)
    assert list(store) == ["0", "1"]
    other = Conv3DTranspose(2, 3)
    other.build((1, 2, 2, 2, 3))
    other.load_own_variables(store)
    np.testing.assert_array_equal(other.kernel, layer.kernel)
    with pytest.raises(ConfigError, match="must have the keys '0' and '1'"):
        other.load_own_variables({"kernel": store["0"], "bias": store["1"]})
    with pytest.raises(WeightsError, match=r"variable.shape=\(2,\), Received: value.shape=\(3,\)"):
        other.load_own_variables({"0": store["0"], "1": np.zeros(3)})


def test_weights_are_cast_copied_and_counted() -> None:
    layer = Conv3DTranspose(2, 3, dtype="bfloat16")
    layer.build((1, 2, 2, 2, 3))
    assert layer.count_params() == 27 * 6 + 2
    given = [np.full((3, 3, 3, 2, 3), 2, np.int64), np.ones(2, np.float64)]
    layer.set_weights(given)
    assert layer.kernel.dtype == ml_dtypes.bfloat16
    given[0][:] = 5
    taken = layer.get_weights()
    taken[1][:] = 7
    assert layer.kernel.astype(float).max() == 2.0
    assert layer.bias is not None
    assert layer.bias.astype(float).max() == 1.0
    with pytest.raises(ValueError, match="read-only"):
        layer.kernel[0] = 0


def test_one_compilation_for_each_input_shape(compiled: list[FakeCompiled]) -> None:
    layer = Conv3DTranspose(2, 2, 2)
    for batch in (1, 2, 1, 2):
        layer(x_of(batch, 2, 2, 2, 3), training=True)
    assert [one.shape[0] for one in compiled] == [1, 2]
    layer.set_weights([np.zeros_like(value) for value in layer.get_weights()])
    assert not layer(x_of(1, 2, 2, 2, 3)).any()
    assert [one.packed for one in compiled] == [2, 1]
    assert not layer(x_of(2, 2, 2, 2, 3)).any()
    assert [one.packed for one in compiled] == [2, 2]


def test_at_most_eight_shapes_stay_compiled(compiled: list[FakeCompiled]) -> None:
    layer = Conv3DTranspose(1, 1)
    for batch in [*range(1, 10), 9, 1]:
        layer(x_of(batch, 1, 1, 1, 1))
    assert [one.shape[0] for one in compiled] == [*range(1, 10), 1]


def test_two_threads_compile_a_shape_once(compiled: list[FakeCompiled]) -> None:
    layer = Conv3DTranspose(2, 2)
    x = x_of(1, 2, 2, 2, 3)
    outputs: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: outputs.append(layer(x))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compiled) == 1
    assert len(outputs) == 4
    for output in outputs:
        np.testing.assert_array_equal(output, outputs[0])


def test_a_failed_compilation_is_tried_again(
    compiled: list[FakeCompiled], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Conv3DTranspose(2, 2)
    cache = sys.modules["tvmconv.cache"]
    with monkeypatch.context() as patch:
        patch.setattr(cache, "compiled_layer", SimpleNamespace())
        with pytest.raises(TypeError):
            layer(x_of(1, 2, 2, 2, 3))
    assert layer(x_of(1, 2, 2, 2, 3)).shape == (1, 3, 3, 3, 2)
    assert len(compiled) == 1


def test_copies_keep_the_weights_and_compile_for_themselves(compiled: list[FakeCompiled]) -> None:
    layer = Conv3DTranspose(2, 2, activation="relu", name="up", threads=2)
    x = x_of(1, 2, 2, 2, 3)
    expected = layer(x)
    for twin in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert (twin.name, twin.threads, twin.built) == ("up", 2, True)
        np.testing.assert_array_equal(twin(x), expected)
    assert len(compiled) == 3


def test_outputs_without_a_compilation(compiled: list[FakeCompiled]) -> None:
    layer = Conv3DTranspose(4, 3, activation="glu", dtype="mixed_float16", bias_initializer="ones")
    assert layer(x_of(0, 2, 2, 2, 3)).shape == (0, 4, 4, 4, 2)
    out = layer(x_of(2, 0, 2, 2, 3))
    assert out.dtype == np.float16
    np.testing.assert_allclose(out, np.full((2, 2, 4, 4, 2), 1 / (1 + np.exp(-1))), rtol=1e-3)
    assert not compiled


def test_a_custom_initializer_is_no_obstacle_to_stored_weights(
    compiled: list[FakeCompiled],
) -> None:
    fancy = {"module": "pkg", "class_name": "Fancy", "config": {}, "registered_name": "pkg>Fancy"}
    layer = Conv3DTranspose(2, 1, kernel_initializer=fancy)
    layer.build((1, 2, 2, 2, 3))
    with pytest.raises(ConfigError, match="Fancy is not one of Keras'"):
        layer(x_of(1, 2, 2, 2, 3))
    layer.set_weights([np.ones((1, 1, 1, 2, 3)), np.zeros(2)])
    assert layer(x_of(1, 2, 2, 2, 3)).shape == (1, 2, 2, 2, 2)


def test_load_weights_builds_an_unbuilt_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [np.full((2, 2, 2, 4, 3), 0.5, np.float32), np.ones(4, np.float32)]
    calls = []

    def find_weights(path: str, config: LayerConfig, layer: str | None) -> list[np.ndarray]:
        calls.append((path, config.name, layer))
        return arrays

    weights = ModuleType("tvmconv.weights")
    weights.find_weights = find_weights  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tvmconv.weights", weights)
    monkeypatch.setattr(tvmconv, "weights", weights, raising=False)
    layer = Conv3DTranspose(4, 2, data_format="channels_first", name="up")
    layer.load_weights("m.keras", layer="net/up")
    assert calls == [("m.keras", "up", "net/up")]
    assert layer.get_build_config() == {"input_shape": (None, 3, None, None, None)}
    np.testing.assert_array_equal(layer.kernel, arrays[0])
    other = Conv3DTranspose(5, 2)
    with pytest.raises(WeightsError, match="is not compatible with provided weight shape"):
        other.load_weights("m.keras")


def live(activation: Any, built: bool = True) -> Any:
    """An object that looks like a live Keras layer."""
    ours = Conv3DTranspose(2, 3, name="up")
    ours.build((None, 4, 4, 4, 3))
    methods = {
        "get_config": lambda self: ours.get_config(),
        "get_weights": lambda self: ours.get_weights() if built else [],
        "get_build_config": lambda self: ours.get_build_config(),
        "activation": staticmethod(activation),
        "twin": ours,
    }
    cls = type("Conv3DTranspose", (), methods)
    cls.__module__ = "keras.src.layers.convolutional.conv3d_transpose"
    return cls()


def relu(x: Any) -> Any:
    return x


relu.__module__ = "keras.src.activations.activations"


def test_from_a_live_layer() -> None:
    theirs = live(relu)
    ours = from_live(theirs, threads=3)
    assert (ours.name, ours.config.activation.name, ours.threads) == ("up", "relu", 3)
    np.testing.assert_array_equal(ours.kernel, theirs.twin.kernel)
    assert ours.get_build_config() == {"input_shape": (None, 4, 4, 4, 3)}
    assert not from_live(live(relu, built=False)).built


def test_live_layers_that_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be compiled"):
        from_live(live(lambda x: x))
    with pytest.raises(ConfigError, match=r"Expected a keras.layers.Conv3DTranspose, received"):
        from_live(Conv3DTranspose(2, 3))
