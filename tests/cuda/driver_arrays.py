"""Arrays of others and of NumPy in Python, on the fake driver: run by test_cuda_launcher.py."""

from __future__ import annotations

import copy
import ctypes
import gc
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import launcher_sample
import numpy as np
import pytest
import sample_library as sample
from fake_driver import CUDA, SIZES, count, fail
from foreign_arrays import Interface, Pack, Tensor, get_pointer, set_name

import tvmconv
from tvmconv.artifact import Artifact
from tvmconv.codegen import link
from tvmconv.errors import ArtifactError, ConfigError, InputError, TvmconvError, WeightsError
from tvmconv.runtime import cuda_driver
from tvmconv.runtime.cuda import CudaLayer
from tvmconv.runtime.cuda_arrays import DeviceArray
from tvmconv.runtime.library import load

SHAPE = (2, *SIZES)


KINDS = pytest.mark.parametrize("kind", [Interface, Pack])


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    made = {}
    for name, options in {
        "baked": {}, "external": {"baked": False}, "both": {"cpu": True},
    }.items():  # fmt: skip
        folder = tmp_path_factory.mktemp(name)
        made[name] = link(launcher_sample.parts(folder, **options), folder / "out")
    return made


@pytest.fixture
def layer(artifacts: dict[str, Artifact]) -> CudaLayer:
    found = load(artifacts["baked"].path)
    assert isinstance(found, CudaLayer)
    return found


@pytest.fixture(autouse=True)
def memory_comes_back() -> Iterator[None]:
    yield
    gc.collect()
    assert count("events") == 0


def random(batch: int = 2) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(batch, *SIZES)).astype(np.float32)


def refused(call: Callable[[], object], kind: type[TvmconvError] = InputError) -> str:
    launches = count("launches")
    with pytest.raises(kind) as raised:
        call()
    assert "\n" not in str(raised.value)
    assert count("launches") == launches
    return str(raised.value)


@pytest.mark.parametrize("batch", [0, 1, 2, 3])
def test_numpy_is_copied_there_and_back(layer: CudaLayer, batch: int) -> None:
    x = random(batch)
    y = layer(x)
    assert isinstance(y, np.ndarray)
    np.testing.assert_array_equal(y, sample.expected(x))
    out = np.empty_like(x)
    assert layer(x.astype(np.float64)[...], out=out) is out
    np.testing.assert_array_equal(out, sample.expected(x))


@KINDS
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_arrays_on_a_device_stay_there(layer: CudaLayer, kind: Any, batch: int) -> None:
    x = random(batch)
    given = kind(x)
    uploads = CUDA.fake_calls(b"cuMemcpyHtoDAsync_v2"), CUDA.fake_calls(b"cuMemcpyDtoHAsync_v2")
    y = layer(given)
    assert isinstance(y, DeviceArray)
    # The weights of the library were uploaded at the first call; no array was.
    assert CUDA.fake_calls(b"cuMemcpyHtoDAsync_v2") <= uploads[0] + 1
    assert CUDA.fake_calls(b"cuMemcpyDtoHAsync_v2") == uploads[1]
    assert (y.shape, y.dtype, y.device, y.stream) == (x.shape, np.float32, 0, 0)
    np.testing.assert_array_equal(y.numpy(), sample.expected(x))
    np.testing.assert_array_equal(np.asarray(y), sample.expected(x))
    np.testing.assert_array_equal(layer(y).numpy(), sample.expected(sample.expected(x)))


@KINDS
def test_out(layer: CudaLayer, kind: Any) -> None:
    x, out = random(), kind(np.zeros(SHAPE, np.float32))
    assert layer(kind(x), out=out) is out
    np.testing.assert_array_equal(out.values(), sample.expected(x))


@KINDS
def test_another_device(layer: CudaLayer, kind: Any) -> None:
    x = random()
    y = layer(kind(x, 1))
    assert y.device == 1
    np.testing.assert_array_equal(y.numpy(), sample.expected(x))
    said = refused(lambda: layer(kind(x, 1), out=kind(x, 0)))
    assert "cuda:1" in said and "cuda:0" in said


def test_numpy_on_a_chosen_device(artifacts: dict[str, Artifact]) -> None:
    layer = load(artifacts["baked"].path, device=1)
    modules = count("modules")
    np.testing.assert_array_equal(layer(random()), sample.expected(random()))
    assert count("modules") <= modules + 1
    assert "cuda:1" in repr(layer)
    for device in (2, 7, -2):
        refused(lambda device=device: load(artifacts["baked"].path, device=device), ConfigError)
    assert "no CPU version" in refused(
        lambda: load(artifacts["baked"].path, device=-1), ConfigError
    )


def test_the_cpu_version(artifacts: dict[str, Artifact]) -> None:
    layer = load(artifacts["both"].path, device=-1)
    launches = count("launches")
    np.testing.assert_array_equal(layer(random()), sample.expected(random()))
    assert count("launches") == launches
    np.testing.assert_array_equal(
        layer(Pack(random())).numpy(), sample.expected(random())
    )  # what is on a device is computed there


@KINDS
def test_what_does_not_fit_is_refused(layer: CudaLayer, kind: Any) -> None:
    x = random()
    assert "float64" in refused(lambda: layer(kind(x.astype(np.float64))) if kind is Interface
                                else layer(wide(x)))  # fmt: skip
    strided = kind(x)
    strided.steps = strided.steps[::-1]
    strided.changes = {"strides": tuple(4 * step for step in strided.steps)}
    assert "contiguous" in refused(lambda: layer(strided))
    assert "compiled for the input shape" in refused(lambda: layer(kind(x[:, :1].copy())))
    unaligned = kind(np.concatenate([x, x]))
    unaligned.shape, unaligned.offset = x.shape, 4
    assert "aligned to 16 bytes" in refused(lambda: layer(unaligned))
    given = kind(x)
    assert "overlap" in refused(lambda: layer(given, out=given))
    assert "shape" in refused(lambda: layer(kind(x), out=kind(x[:1].copy())))
    assert "on the CUDA device" in refused(lambda: layer(kind(x), out=x))
    assert "NumPy" in refused(lambda: layer(x, out=kind(x)))
    assert "stream" in refused(lambda: layer(kind(x), stream="default"))
    assert "stream" in refused(lambda: layer(x, stream=0))


def wide(x: np.ndarray) -> Pack:
    made = Pack(x.astype(np.float64))
    made.bits = 64
    return made


def test_a_read_only_out_and_an_interface_that_is_none(layer: CudaLayer) -> None:
    out = Interface(random())
    out.changes = {"data": (out.memory.pointer, True)}
    assert "writeable" in refused(lambda: layer(Interface(random()), out=out))
    broken = Interface(random())
    broken.changes = {"typestr": "what"}
    assert "__cuda_array_interface__" in refused(lambda: layer(broken))


def test_a_producer_that_refuses(layer: CudaLayer) -> None:
    class Graded(Pack):
        def __dlpack__(self, *, stream: int | None = None) -> Any:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()\nx")

    assert "detach" in refused(lambda: layer(Graded(random())))


def stream(device: int = 0) -> int:
    found = ctypes.c_void_p()
    with cuda_driver.device(device).current():
        assert CUDA.cuStreamCreate(ctypes.byref(found), 0) == 0
    return found.value or 0


def test_streams(layer: CudaLayer) -> None:
    mine, x = stream(), Pack(random())
    y = layer(x, stream=mine)
    assert (y.stream, x.streams) == (mine, [mine])
    wrapped = types.SimpleNamespace(ptr=mine)
    assert layer(Pack(random()), stream=wrapped).stream == mine
    protocol = type("S", (), {"__cuda_stream__": lambda self: (0, mine)})()
    assert layer(Pack(random()), stream=protocol).stream == mine
    # A producer with work of its own is waited for, without stopping the host.
    waits = CUDA.fake_calls(b"cuStreamWaitEvent")
    given = Interface(random())
    given.stream = stream()
    assert layer(given, stream=mine).stream == mine
    assert CUDA.fake_calls(b"cuStreamWaitEvent") == waits + 1
    # And consumers wait for the layer.
    y.__dlpack__(stream=given.stream)
    assert CUDA.fake_calls(b"cuStreamWaitEvent") == waits + 2
    y.__dlpack__(stream=mine)
    y.__dlpack__(stream=-1)
    assert CUDA.fake_calls(b"cuStreamWaitEvent") == waits + 2
    assert y.__cuda_array_interface__["stream"] == mine
    assert "another CUDA device" in refused(lambda: layer(Pack(random()), stream=stream(1)))


def test_the_current_stream_of_a_framework(
    layer: CudaLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = stream()
    current = types.SimpleNamespace(cuda_stream=mine)
    fake = types.SimpleNamespace(cuda=types.SimpleNamespace(current_stream=lambda device: current))
    monkeypatch.setitem(sys.modules, "torch", fake)
    tensor = type("Tensor", (Pack,), {"__module__": "torch"})
    assert layer(tensor(random())).stream == mine


def test_a_tensor_of_torch_by_its_attributes(
    layer: CudaLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, fake = stream(), types.ModuleType("torch")
    fake.Tensor, fake.strided = types.SimpleNamespace, "strided"  # type: ignore[attr-defined]
    fake._C = types.SimpleNamespace(_cuda_getCurrentRawStream=lambda device: mine)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", fake)
    x = Pack(random())
    fields = {"is_cuda": True, "device": types.SimpleNamespace(index=0), "shape": x.shape,
              "dtype": "torch.float32", "data_ptr": lambda: x.memory.pointer, "layout": "strided",
              "requires_grad": False, "is_contiguous": lambda: True}  # fmt: skip
    tensor = types.SimpleNamespace(**fields)
    y = layer(tensor, stream=mine)
    assert y.stream == mine
    np.testing.assert_array_equal(y.numpy(), sample.expected(random()))
    for change in ({"requires_grad": True}, {"layout": "coo"}, {"is_contiguous": lambda: False}):
        refused(lambda change=change: layer(types.SimpleNamespace(**{**fields, **change})))


def test_an_export_keeps_the_memory_alive(layer: CudaLayer) -> None:
    x = random()
    y = layer(Pack(x), stream=stream())
    capsule, place = y.__dlpack__(stream=-1), y.pointer
    del y
    gc.collect()
    again = layer(Pack(x))
    assert again.pointer != place
    tensor = Tensor.from_address(get_pointer(capsule, b"dltensor"))
    assert (tensor.data, tensor.device_type, tensor.code, tensor.bits) == (place, 2, 2, 32)
    assert [tensor.shape[i] for i in range(5)] == list(x.shape)
    found = np.empty_like(x)
    cuda_driver.device(0).download(found.ctypes.data, place, x.nbytes, 2)
    np.testing.assert_array_equal(found, sample.expected(x))
    frees = CUDA.fake_calls(b"cuMemFree_v2")
    # A consumer takes it: renames the capsule, and calls the deleter when it is done.
    set_name(capsule, b"used_dltensor")
    del capsule
    gc.collect()
    assert CUDA.fake_calls(b"cuMemFree_v2") == frees
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(tensor.deleter)(ctypes.addressof(tensor))
    gc.collect()
    assert CUDA.fake_calls(b"cuMemFree_v2") == frees + 1


def test_an_export_nobody_takes_is_given_back(layer: CudaLayer) -> None:
    y = layer(Pack(random()), stream=stream())
    capsule = y.__dlpack__(stream=-1)
    frees = CUDA.fake_calls(b"cuMemFree_v2")
    del y, capsule
    gc.collect()
    assert CUDA.fake_calls(b"cuMemFree_v2") == frees + 1


def test_memory_of_outputs_is_used_again_on_its_stream_only(layer: CudaLayer) -> None:
    x, first, second = Pack(random()), stream(), stream()
    place = layer(x, stream=first).pointer
    allocations = CUDA.fake_calls(b"cuMemAlloc_v2")
    for _ in range(5):
        assert layer(x, stream=first).pointer == place
    assert CUDA.fake_calls(b"cuMemAlloc_v2") == allocations
    assert layer(x, stream=second).pointer != place
    y = layer(x, stream=first)
    assert y.__cuda_array_interface__["data"] == (place, False)  # now anybody may have it
    del y
    gc.collect()
    allocations = CUDA.fake_calls(b"cuMemAlloc_v2")
    layer(x, stream=first)
    assert CUDA.fake_calls(b"cuMemAlloc_v2") == allocations + 1


def test_capture_into_a_graph(layer: CudaLayer) -> None:
    x, out, mine = Pack(random()), Pack(random()), stream()
    layer(x, out=out, stream=mine)
    captured, waits = count("captured"), CUDA.fake_calls(b"cuStreamSynchronize")
    assert CUDA.cuStreamBeginCapture_v2(ctypes.c_void_p(mine), 0) == 0
    assert layer(x, out=out, stream=mine) is out
    assert "out=" in refused(lambda: layer(x, stream=mine))
    graph = ctypes.c_void_p()
    assert CUDA.cuStreamEndCapture(ctypes.c_void_p(mine), ctypes.byref(graph)) == 0
    assert count("captured") == captured + 2
    assert CUDA.fake_calls(b"cuStreamSynchronize") == waits
    assert count("mistakes") == 0


def test_weights_given_at_run_time(artifacts: dict[str, Artifact]) -> None:
    layer = load(artifacts["external"].path)
    x = Pack(random())
    assert "set_weights" in refused(lambda: layer(x), WeightsError)
    layer.__dict__["_packed"] = np.frombuffer(launcher_sample.packed(), np.uint8)
    np.testing.assert_array_equal(layer(x).numpy(), sample.expected(random()))
    np.testing.assert_array_equal(layer(random()), sample.expected(random()))
    uploads = CUDA.fake_calls(b"cuMemcpyHtoDAsync_v2")
    layer(x)
    assert CUDA.fake_calls(b"cuMemcpyHtoDAsync_v2") == uploads
    again = pickle.loads(pickle.dumps(layer))
    np.testing.assert_array_equal(again(x).numpy(), sample.expected(random()))


def test_copies_and_pickles(layer: CudaLayer, artifacts: dict[str, Artifact]) -> None:
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), layer.with_threads(2)):
        np.testing.assert_array_equal(other(random()), sample.expected(random()))
    on_one = pickle.loads(pickle.dumps(load(artifacts["baked"].path, device=1)))
    assert on_one.device == 1


def test_threads(layer: CudaLayer) -> None:
    def work(number: int) -> bool:
        x = np.full(SHAPE, number, np.float32)
        given, mine = Pack(x, number % 2), stream(number % 2)
        expected = sample.expected(x)
        return all(
            np.array_equal(layer(given, stream=mine).numpy(), expected)
            and np.array_equal(layer(x), expected)
            for _ in range(20)
        )

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(work, range(6)))


@pytest.mark.parametrize(
    ("function", "result", "kind"),
    [
        ("cuMemAlloc_v2", 2, InputError),
        ("cuMemAlloc_v2", 719, ArtifactError),
        ("cuMemcpyHtoDAsync_v2", 719, ArtifactError),
        ("cuMemcpyDtoHAsync_v2", 719, ArtifactError),
        ("cuLaunchKernel", 701, ArtifactError),
        ("cuCtxPushCurrent_v2", 719, ArtifactError),
    ],
)
def test_a_failure_of_the_driver_is_an_error(
    artifacts: dict[str, Artifact], function: str, result: int, kind: type[TvmconvError]
) -> None:
    layer = load(artifacts["baked"].path)
    fail(function, 1, result)
    with pytest.raises(kind) as raised:
        layer(random())
    assert "\n" not in str(raised.value)
    np.testing.assert_array_equal(layer(random()), sample.expected(random()))


def test_an_older_device(artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver.device(0), "capability", (7, 5))
    said = refused(lambda: load(artifacts["baked"].path), ArtifactError)
    assert "sm_80" in said and "sm_75" in said
    monkeypatch.setattr(cuda_driver.device(0), "capability", (12, 0))
    load(artifacts["baked"].path)  # by its PTX


def test_bench_times_the_device(artifacts: dict[str, Artifact]) -> None:
    launches = count("launches")
    found = tvmconv.bench(artifacts["baked"].path, seconds=0.01)
    assert len(found) == 2
    assert found[0].calls > 0 and found[0].gemm_gflops is None
    assert count("launches") >= launches + 2 * sum(one.calls for one in found)


def test_everything_is_freed(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    gc.collect()
    layer = load(artifacts["baked"].path)
    layer(Pack(random()))
    del layer
    gc.collect()
    before = count("allocations")
    layer = load(artifacts["baked"].path)
    kept = [layer(Pack(random())) for _ in range(3)] + [layer(random())]
    del layer, kept
    gc.collect()
    assert count("allocations") == before
