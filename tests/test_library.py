"""Calling an artifact from Python: inputs, outputs, threads, weights."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import sample_library as sample

from tvmconv.artifact import Artifact
from tvmconv.codegen import link
from tvmconv.errors import ArtifactError, ConfigError, InputError, TvmconvError, WeightsError
from tvmconv.runtime.library import CompiledLayer, load

FIXED = (2, sample.DEPTH, sample.HEIGHT, sample.ROW, sample.CHANNELS)
OPEN = (None, *FIXED[1:])


@pytest.fixture
def layer(baked: Artifact) -> CompiledLayer:
    return load(baked.path)


def random(batch: int = 2) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(batch, *FIXED[1:])).astype(np.float32)


def refused(call: Callable[[], object], kind: type[TvmconvError]) -> str:
    with pytest.raises(kind) as raised:
        call()
    message = str(raised.value)
    assert message
    assert "\n" not in message
    return message


def test_shapes_and_names(layer: CompiledLayer, baked: Artifact) -> None:
    assert layer.input_shape == layer.output_shape == FIXED
    assert layer.input_shapes == layer.output_shapes == (FIXED, OPEN)
    assert (layer.name, layer.path, layer.manifest) == ("up1", baked.path, baked.manifest)
    assert "up1" in repr(layer)


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 17])
def test_the_shape_is_chosen_by_the_input(layer: CompiledLayer, batch: int) -> None:
    x = random(batch)
    y = layer(x)
    assert (y.dtype, y.shape) == (np.float32, x.shape)
    np.testing.assert_array_equal(y, sample.expected(x))
    assert not np.shares_memory(y, layer(x))


def unaligned(x: np.ndarray) -> np.ndarray:
    moved = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    moved[...] = x
    assert not moved.flags.aligned
    return moved


def read_only(x: np.ndarray) -> np.ndarray:
    x.flags.writeable = False
    return x


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "fortran": np.asfortranarray,
    "strided": lambda x: np.repeat(x, 2, axis=3)[:, :, :, ::2],
    "reversed": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "moved": lambda x: np.moveaxis(np.moveaxis(x, 4, 1).copy(), 1, 4),
    "unaligned": unaligned,
    "read-only": read_only,
    "other-endian": lambda x: x.astype(x.dtype.newbyteorder()),
    "float64": lambda x: x.astype(np.float64),
    "list": lambda x: x.tolist(),
    "subclass": lambda x: x.view(np.recarray),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_an_input(layer: CompiledLayer, form: str) -> None:
    np.testing.assert_array_equal(layer(FORMS[form](random())), sample.expected(random()))


@pytest.mark.parametrize("dtype", [np.float16, np.longdouble, ml_dtypes.bfloat16])
def test_other_floats_are_cast(layer: CompiledLayer, dtype: Any) -> None:
    x = random().astype(dtype)
    np.testing.assert_array_equal(layer(x), sample.expected(x.astype(np.float32)))


def test_a_cast_that_overflows_gives_infinity(layer: CompiledLayer) -> None:
    assert np.isinf(layer(np.full(FIXED, 1e300))).all()


START = "Input 0 with name 'None' of layer 'conv3d_transpose' is incompatible with the layer: "
WRONG_INPUT = {
    "rank-4": (np.zeros(FIXED[1:], "f4"), f"{START}expected min_ndim=5, found ndim=4. Full shape "),
    "rank-6": (np.zeros((*FIXED, sample.CHANNELS), "f4"), "Input rank not supported: 6"),
    "scalar": (np.float32(1), "found ndim=0"),
    "channels": (
        np.zeros((*FIXED[:4], 9), "f4"),
        f"{START}expected axis -1 of input shape to have value 8, but received input with shape ",
    ),
    "size": (np.zeros((2, 5, 7, 7, 8), "f4"), "(2, 5, 7, 6, 8) or (?, 5, 7, 6, 8). Received: x."),
    "int32": (np.zeros(FIXED, "i4"), "Incompatible type conversion requested to type int32 for "),
    "bool": (np.zeros(FIXED, "?"), "Incompatible type conversion requested to type bool for "),
    "complex": (np.zeros(FIXED, "c8"), "Incompatible type conversion requested to type complex64"),
    "object": (np.zeros(FIXED, "O"), "Incompatible type conversion requested to type object"),
    "text": ("x", "found ndim=0"),
    "none": (None, "Inputs to a layer should be tensors. Got 'None'"),
    "ragged": ([[1.0], [1.0, 2.0]], "Only input tensors may be passed as positional arguments."),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_INPUT)
def test_wrong_inputs_in_keras_words(layer: CompiledLayer, case: str) -> None:
    x, text = WRONG_INPUT[case]
    assert text in refused(lambda: layer(x), InputError)
    np.testing.assert_array_equal(layer(random()), sample.expected(random()))


def test_out_is_written_and_returned(layer: CompiledLayer) -> None:
    x, out = random(), np.full(FIXED, np.nan, np.float32)
    assert layer(x, out) is out
    np.testing.assert_array_equal(out, sample.expected(x))
    assert layer(x, out=out[:]).base is out


def test_out_beside_the_input_in_one_array(layer: CompiledLayer) -> None:
    both = np.zeros((4, *FIXED[1:]), np.float32)
    both[:2] = random()
    layer(both[:2], out=both[2:])
    np.testing.assert_array_equal(both[2:], sample.expected(random()))


def test_out_may_overlap_an_input_that_was_copied(layer: CompiledLayer) -> None:
    x = np.asfortranarray(random())
    memory = np.zeros(2 * x.size, np.float32)
    strided = memory[::2].reshape(FIXED)
    strided[...] = x
    layer(strided, out=memory[: x.size].reshape(FIXED))
    np.testing.assert_array_equal(memory[: x.size].reshape(FIXED), sample.expected(x))


WRONG_OUT: dict[str, Callable[[np.ndarray], Any]] = {
    "shape": lambda x: np.zeros((1, *FIXED[1:]), np.float32),
    "flat": lambda x: np.zeros(x.size, np.float32),
    "dtype": lambda x: np.zeros(FIXED, np.float64),
    "fortran": lambda x: np.zeros(FIXED, np.float32, "F"),
    "read-only": lambda x: read_only(np.zeros(FIXED, np.float32)),
    "unaligned": lambda x: unaligned(np.zeros(FIXED, np.float32)),
    "input": lambda x: x,
    "list": lambda x: [],
    "type": lambda x: np.float32,
}


@pytest.mark.parametrize("case", WRONG_OUT)
def test_wrong_outputs_are_not_written(layer: CompiledLayer, case: str) -> None:
    x = random()
    out = WRONG_OUT[case](x)
    before = np.array(out)
    assert "Expected out" in refused(lambda: layer(x, out), InputError)
    np.testing.assert_array_equal(out, before)


def test_weights_given_at_run_time(external: Artifact) -> None:
    layer = load(external.path)
    kernel, bias = sample.weights()
    message = refused(lambda: layer(random()), WeightsError)
    assert "call set_weights([kernel, bias]) before" in message
    layer.set_weights([kernel, bias])
    np.testing.assert_array_equal(layer(random()), sample.expected(random()))
    other = load(external.path)
    other.set_weights([2 * kernel.astype(np.float64), np.zeros(8, int)])
    np.testing.assert_allclose(other(random()), random() * 2 * kernel[0, 0, 0].diagonal())
    np.testing.assert_array_equal(layer(random()), sample.expected(random()))


def test_weights_may_be_changed_and_thrown_away(external: Artifact) -> None:
    layer = load(external.path)
    kernel, bias = sample.weights()
    for factor in (1, 3):
        given = [np.asfortranarray(kernel * factor), unaligned(bias)]
        layer.set_weights(given)
        given[0][...] = given[1][...] = np.nan
        del given
        gc.collect()
        x = random()
        expected = x * (factor * kernel[0, 0, 0].diagonal()) + bias
        np.testing.assert_allclose(layer(x), expected, rtol=1e-6)


WRONG_WEIGHTS: dict[str, tuple[Callable[[np.ndarray, np.ndarray], list[Any]], str]] = {
    "none": (lambda k, b: [], "with a weight list of length 0, but the layer was expecting 2"),
    "three": (lambda k, b: [k, b, b], "of length 3, but the layer was expecting 2 weights."),
    "order": (lambda k, b: [b, k], "weight shape (1, 1, 1, 8, 8) is not compatible with provided"),
    "flat": (lambda k, b: [k.ravel(), b], "not compatible with provided weight shape (64,)."),
    "bias": (lambda k, b: [k, b[:7]], "weight shape (8,) is not compatible with"),
    "complex": (lambda k, b: [k.astype(complex), b], "must be real numbers"),
    "object": (lambda k, b: [k, b.astype(object)], "must be real numbers"),
}


@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_wrong_weights_in_keras_words(external: Artifact, case: str) -> None:
    change, text = WRONG_WEIGHTS[case]
    layer = load(external.path)
    layer.set_weights([*sample.weights()])
    assert text in refused(lambda: layer.set_weights(change(*sample.weights())), WeightsError)
    np.testing.assert_array_equal(layer(random()), sample.expected(random()))


def test_baked_weights_stay(layer: CompiledLayer) -> None:
    message = refused(lambda: layer.set_weights([*sample.weights()]), WeightsError)
    assert "inside its library" in message


def test_the_number_of_threads_changes_no_bit(baked: Artifact) -> None:
    x = random(17)
    expected = load(baked.path, threads=1)(x).tobytes()
    for threads in (None, 0, 2, 3, 64, 1024):
        assert load(baked.path, threads=threads)(x).tobytes() == expected


def test_other_threads_for_the_same_layer(external: Artifact) -> None:
    layer = load(external.path)
    layer.set_weights([*sample.weights()])
    other = layer.with_threads(3)
    assert (layer.threads, other.threads) == (0, 3)
    layer.set_weights([value * 0 for value in sample.weights()])
    np.testing.assert_array_equal(other(random()), sample.expected(random()))
    assert not layer(random()).any()
    assert "threads=-1" in refused(lambda: layer.with_threads(-1), ConfigError)


COPIES: dict[str, Callable[[CompiledLayer], CompiledLayer]] = {
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("mode", ["baked", "external"])
def test_a_copy_is_loaded_again(
    mode: str, way: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = request.getfixturevalue(mode).path
    monkeypatch.chdir(path.parent)
    layer = load(path.name, threads=2)
    if mode == "external":
        assert not COPIES[way](layer).has_weights
        layer.set_weights([*sample.weights()])
    monkeypatch.chdir("/")
    copied = COPIES[way](layer)
    assert copied is not layer
    assert (copied.threads, copied.manifest) == (2, layer.manifest)
    np.testing.assert_array_equal(copied(random()), sample.expected(random()))
    if mode == "external":
        copied.set_weights([value * 0 for value in sample.weights()])
        np.testing.assert_array_equal(layer(random()), sample.expected(random()))


def test_a_pickle_of_another_build_is_refused(tmp_path: Path) -> None:
    text = pickle.dumps(link(sample.parts(tmp_path), tmp_path / "out").load())
    link(sample.parts(tmp_path, batches=(3,)), tmp_path / "out")
    assert "expected" in refused(lambda: pickle.loads(text), ArtifactError)


def test_calls_from_many_threads_at_once(baked: Artifact) -> None:
    layer = load(baked.path)
    inputs = [random(1 + index % 3) * (index + 1) for index in range(8)]

    def work(index: int) -> bool:
        x, y = inputs[index], sample.expected(inputs[index])
        return all(np.array_equal(layer(x), y) for _ in range(100))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [True] * 8
    # One set of arguments for each call that ran at the same time, not for each call.
    assert sum(map(len, layer._idle)) <= 16


def test_weights_change_while_other_threads_call(external: Artifact) -> None:
    layer = load(external.path)
    kernel, bias = sample.weights()
    layer.set_weights([kernel, bias])
    x = random()
    allowed = {sample.expected(x).tobytes(), np.zeros_like(x).tobytes()}
    stop = threading.Event()
    seen: set[bytes] = set()

    def call() -> None:
        while not stop.is_set():
            seen.add(layer(x).tobytes())

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for _ in range(100):
        layer.set_weights([0 * kernel, 0 * bias])
        layer.set_weights([kernel, bias])
    stop.set()
    for caller in callers:
        caller.join()
    assert seen
    assert {value.replace(b"\0\0\0\x80", b"\0\0\0\0") for value in seen} <= {
        value.replace(b"\0\0\0\x80", b"\0\0\0\0") for value in allowed
    }


FORK = """
import os, sys
import numpy as np
from tvmconv.runtime.library import load
layer = load(sys.argv[1], threads=4)
x = np.load(sys.argv[2])
y = layer(x)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(layer(x), y) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert np.array_equal(layer(x), y)
"""


def test_after_a_fork(baked: Artifact, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", random(17))
    command = [sys.executable, "-W", "ignore", "-c", FORK]
    subprocess.run([*command, str(baked.path), str(tmp_path / "x.npy")], check=True, timeout=600)


def test_a_call_costs_little(baked: Artifact) -> None:
    # An empty batch computes nothing. The quickest of many: the machine may be busy.
    layer, x = load(baked.path), random(0)
    times = []
    for _ in range(2000):
        start = time.perf_counter()
        layer(x)
        times.append(time.perf_counter() - start)
    assert min(times) < 20e-6


def test_an_error_code_is_an_error(layer: CompiledLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "_run", lambda _: 10)
    message = refused(lambda: layer(random()), ArtifactError)
    assert message == "up1_run failed with code 10: args->input is not aligned to its element"
