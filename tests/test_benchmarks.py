"""The benchmark's layers, numbers and processes. Nothing is timed here."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvmconv
from tvmconv import geometry, reference
from tvmconv.config import numpy_dtype

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # benchmarks/ is no part of the distribution

from benchmarks import machine, memory, onnx_model  # noqa: E402
from benchmarks.child import Child, installed  # noqa: E402
from benchmarks.data import TOLERANCE, Data, aligned  # noqa: E402
from benchmarks.isa import isa  # noqa: E402
from benchmarks.runners import LIMITS, PEERS, algorithm_of, make, ours  # noqa: E402
from benchmarks.workloads import QUICK, WORKLOADS, Workload, drawn, named  # noqa: E402

SMALL = Workload("small", "none", 3, 2, (3, 2, 5), (2, 1, 3), "same", (3, 4, 2), activation="relu")
# Smaller relatives of every layer: the same kernels, strides and padding.
RELATIVES = [
    Workload(w.name, "none", 3, 2, w.kernel, w.strides, w.padding, (3, 2, 1), 2, w.activation)
    for w in WORKLOADS
]


def config_of(work: Workload) -> Any:
    return tvmconv.Conv3DTranspose(
        work.filters,
        work.kernel,
        strides=work.strides,
        padding=work.padding,
        activation=work.activation,
    ).config


@pytest.mark.parametrize("work", WORKLOADS, ids=lambda work: work.name)
def test_shapes_and_work_are_those_of_the_geometry(work: Workload) -> None:
    plan = geometry.plan(config_of(work), work.input_shape)
    assert plan.output_shape == work.output_shape
    assert plan.kernel_shape == work.kernel_shape
    assert plan.flops * work.batch == work.flops
    assert [axis.lo for axis in plan.axes] == [axis.lo for axis in work.axes]


@pytest.mark.parametrize("work", [*RELATIVES, SMALL], ids=lambda work: work.name)
def test_work_is_counted_exactly(work: Workload) -> None:
    # Ones through ones: every output is the number of products that it needed.
    bare = Workload(**{**vars(work), "activation": None})
    counted = reference.conv3d_transpose(
        config_of(bare),
        np.ones(work.input_shape),
        np.ones(work.kernel_shape),
        np.zeros(work.filters),
    )
    assert counted.shape == work.output_shape
    assert 2 * counted.sum() == work.flops


def test_the_published_amounts_of_work() -> None:
    gflop = {work.name: work.flops / 1e9 for work in WORKLOADS}
    assert gflop["unet_up3"] == pytest.approx(2.147, abs=5e-4)
    assert gflop["psm_conv5"] == pytest.approx(1.280, abs=5e-4)
    assert gflop["gan_g4"] == pytest.approx(3.905, abs=5e-4)
    assert gflop["gcnet_36"] == pytest.approx(42.85, abs=5e-3)
    assert len(gflop) == len(WORKLOADS) == 25


def test_traffic_is_every_tensor_once() -> None:
    assert SMALL.output_shape == (1, 6, 4, 6, 2)
    assert SMALL.traffic == 4 * (3 * 4 * 2 * 3 + 3 * 2 * 5 * 2 * 3 + 2 + 6 * 4 * 6 * 2)


def test_a_workload_survives_json() -> None:
    for work in WORKLOADS:
        assert Workload.from_json(json.loads(json.dumps({**vars(work), "more": 1}))) == work


def test_layers_by_name() -> None:
    assert [w.name for w in named(["odd", "unet_up3"])] == ["unet_up3", "odd"]
    assert {w.name for w in named(None, quick=True)} == set(QUICK)
    assert len(named(None, nightly=True)) - len(named(None)) == 2
    with pytest.raises(ValueError, match="no layer 'unet'; the layers are keras_doc"):
        named(["unet"])


def test_layers_drawn_at_random_depend_on_the_seed_alone() -> None:
    assert drawn(20, 7) == drawn(20, 7) != drawn(20, 8)
    for work in drawn(20, 7):
        assert 1e7 < work.flops < 6e9
        assert all(1 <= k <= 5 for k in work.kernel)
        assert all(1 <= s <= 3 for s in work.strides)


@pytest.mark.parametrize("work", [*RELATIVES, SMALL], ids=lambda work: work.name)
def test_sampled_outputs_equal_the_reference(work: Workload) -> None:
    data = Data(work)
    whole = reference.conv3d_transpose(config_of(work), data.x, data.kernel, data.bias)
    values, sizes = data.expected
    np.testing.assert_allclose(values, [whole[v] for v in data.voxels], rtol=1e-12, atol=1e-12)
    assert (sizes > 0).all()
    assert data.error(whole) < 1e-12


def test_everybodys_arrays_begin_at_a_line() -> None:
    x = Data(SMALL).x
    turned = aligned(x.transpose(0, 4, 1, 2, 3))
    assert x.ctypes.data % 64 == turned.ctypes.data % 64 == 0
    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(turned.transpose(0, 2, 3, 4, 1), x)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_layers_of_half_width_are_checked_with_numbers_that_the_dtype_has(dtype: str) -> None:
    data = Data(dataclasses.replace(SMALL, dtype=dtype))
    narrow = numpy_dtype(dtype)
    assert data.stored.dtype == narrow and 2 * data.work.traffic == SMALL.traffic
    for values in (data.x, data.kernel, data.bias):
        np.testing.assert_array_equal(values, values.astype(narrow).astype(np.float32))
    np.testing.assert_array_equal(data.stored.astype(np.float32), data.x)
    whole = reference.conv3d_transpose(config_of(SMALL), data.x, data.kernel, data.bias)
    assert data.error(whole.astype(narrow)) < TOLERANCE[dtype] / 3
    assert data.error(np.roll(whole, 1, axis=1)) > TOLERANCE[dtype]


def test_a_wrong_output_is_noticed() -> None:
    data = Data(SMALL)
    whole = reference.conv3d_transpose(config_of(SMALL), data.x, data.kernel, data.bias)
    assert data.error(whole * (1 + 2**-8)) > TOLERANCE["float32"]  # what bfloat16 would give
    assert data.error(np.roll(whole, 1, axis=1)) > 0.01  # another crop
    whole[data.voxels[0]] = np.nan
    assert data.error(whole) > 1e300
    with pytest.raises(ValueError, match="shape"):
        data.error(whole[:, 1:])


def fields(message: bytes) -> list[tuple[int, Any]]:
    """The fields of a protocol buffer: number and integer or bytes."""
    found, at = [], 0

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in itertools.count(0, 7):
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise AssertionError

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            found.append((key >> 3, varint()))
        else:
            assert key & 7 == 2
            size = varint()
            found.append((key >> 3, message[at : at + size]))
            at += size
    return found


def test_the_onnx_model_says_what_the_layer_is() -> None:
    data = Data(SMALL)
    model = fields(onnx_model.conv_transpose(SMALL, data.kernel, data.bias))
    graph = fields(dict(model)[7])
    nodes = [fields(value) for number, value in graph if number == 1]
    assert [dict(node)[4] for node in nodes] == [b"ConvTranspose", b"Relu"]
    attributes = [fields(value) for number, value in nodes[0] if number == 5]
    ints = {dict(a)[1].decode(): [v for number, v in a if number == 8] for a in attributes}
    assert ints == {
        "kernel_shape": [3, 2, 5],
        "strides": [2, 1, 3],
        "pads": [0, 0, 1, 1, 1, 1],
        "output_padding": [0, 0, 0],
    }
    kernel = fields(next(value for number, value in graph if number == 5))
    assert [value for number, value in kernel if number == 1] == [3, 2, 3, 2, 5]
    stored = np.frombuffer(dict(kernel)[9], "<f4").reshape(3, 2, 3, 2, 5)
    np.testing.assert_array_equal(stored, data.kernel.transpose(4, 3, 0, 1, 2))


def test_every_runner_has_a_file_and_a_class() -> None:
    for entry in [*PEERS.values(), *LIMITS.values(), *ours(["auto", "direct"]).values()]:
        module, _, name = entry.home.partition("@")[0].partition(":")
        assert f"class {name}" in (ROOT / "benchmarks" / f"{module}.py").read_text()


def test_our_runners() -> None:
    found = ours(["auto", "toom-cook"])
    assert list(found) == ["tvmconv", "tvmconv_toom-cook", "tvmconv_new"]
    assert [algorithm_of(e) for e in found.values()] == ["auto", "toom-cook", "auto"]
    assert algorithm_of(PEERS["torch"]) == ""


@pytest.mark.parametrize("home", [e.home for n, e in LIMITS.items() if n in ("copy", "fill")])
@pytest.mark.parametrize("threads", [1, 2])
def test_memory_limits_count_the_bytes_they_touch(home: str, threads: int) -> None:
    runner = make(home, threads)
    prepared = runner.prepare(Data(SMALL), None)
    target = runner._target  # type: ignore[attr-defined]
    target.fill(77)
    prepared.call()
    assert (target != 77).all()
    assert prepared.amount == target.size * (2 if "Copy" in home else 1)
    assert prepared.output() is None


def test_memory_of_a_call() -> None:
    kept = []
    added = memory.peak_of(lambda: kept.append(np.ones(1 << 25, np.uint8)))
    if added is None:
        pytest.skip("this system does not say how much memory a process had at its peak")
    assert 1 << 25 <= added < 3 << 24


# NumPy asks CPUID when it is imported.
_FEATURES = """
import json
from numpy._core._multiarray_umath import __cpu_features__ as features
print(json.dumps(features))
"""


def test_a_worker_computes_and_measures() -> None:
    child = Child(LIMITS["sgemm_numpy"].home, 1)
    try:
        assert child.version == np.__version__
        found = child.ask("prepare", work=vars(SMALL), artifact=None)
        assert found["amount"] == 2 * 1536**3
        assert len(child.ask("turn", seconds=0.0)["times_s"]) == 1
        assert "AttributeError" in child.ask("dance")["reason"]
        assert child.ask("release") == {}
    finally:
        child.close()


def test_held_to_avx2_a_process_sees_no_avx512() -> None:
    try:
        with isa("avx2") as held:
            assert held.target == "x86-64-v3"
            environment = os.environ | held.environment
            seen = subprocess.run(
                [sys.executable, "-c", _FEATURES],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            crash = [sys.executable, "-c", "import ctypes; ctypes.string_at(8)"]
            crashed = subprocess.run(crash, env=environment, check=False)
    except ValueError as exc:
        pytest.skip(str(exc))
    features = json.loads(seen.stdout)
    assert features["AVX2"] is (" avx2 " in Path("/proc/cpuinfo").read_text())
    assert not any(on for name, on in features.items() if name.startswith("AVX512"))
    assert crashed.returncode == -signal.SIGSEGV  # other faults stay faults


def test_starts_are_those_of_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("TVMCONV_LOGS", "none")
    assert "PYTHONDONTWRITEBYTECODE" not in installed()
    assert installed()["TVMCONV_LOGS"] == "none"


def test_no_compiler_no_other_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with isa("native") as held:
        assert (held.target, held.environment) == ("native", {})
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="needs a C compiler"), isa("avx2"):
        pass


def test_a_missing_framework_is_said() -> None:
    child = Child("nothing_of_this_name:Runner", 1)
    child.close()
    assert child.reason.startswith("not installed (No module named")


def test_the_machine_is_described_without_its_name() -> None:
    found = machine.describe()
    assert found["cores"] >= 1
    assert set(found) >= {"cpu", "flags", "caches", "python", "date", "memory_bytes"}
    watch = machine.Watch.start()
    noise = watch.stop([])
    assert 0 <= noise["others_share"] <= 1
    assert math.isfinite(noise["load_at_start"])
