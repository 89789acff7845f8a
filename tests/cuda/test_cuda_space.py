"""What the CUDA rules leave to tuning: legal, the default among it, and right as serial loops."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from cuda_samples import Emulated, Serial, needs_gcc

from tvmconv import cuda_machine, targets
from tvmconv.compute.cuda import lower
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.compute.element import round_tf32
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.cuda_devices import ARCHITECTURES, architectures
from tvmconv.errors import ConfigError, TargetError
from tvmconv.reference import conv3d_transpose
from tvmconv.runtime.cuda_driver import Hardware
from tvmconv.schedules import cuda as rules
from tvmconv.schedules.cuda.space import space as space_of
from tvmconv.schedules.space import Space, Variant
from tvmconv.tuning import platforms, traces

LAYERS = {
    "gemm": (LayerConfig(32, 3, strides=2, padding="same"), (1, 4, 5, 6, 16)),
    "shared sums": (
        LayerConfig(64, 4, strides=2, padding="same", activation="tanh"),
        (1, 3, 3, 4, 128),
    ),
    "folded": (LayerConfig(12, 2, strides=2), (2, 3, 4, 9, 8)),
    "wmma": (LayerConfig(32, 4, strides=2, padding="same", dtype="float16"), (1, 3, 4, 6, 32)),
    "split": (LayerConfig(64, 4, strides=2, padding="same"), (1, 2, 2, 2, 128)),
    "small": (LayerConfig(1, 3, strides=2, padding="same"), (1, 5, 6, 17, 8)),
    "nothing divides": (
        LayerConfig(13, (3, 2, 5), strides=(2, 1, 3), padding="same", activation="relu"),
        (1, 3, 4, 7, 11),
    ),
    "channels first": (
        LayerConfig(16, 3, strides=2, padding="same", data_format="channels_first"),
        (1, 16, 3, 4, 9),
    ),
    "float64": (LayerConfig(9, 3, strides=2, dtype="float64"), (1, 3, 4, 5, 6)),
    "glu": (LayerConfig(8, 3, strides=2, activation="glu"), (1, 2, 3, 4, 5)),
    "toom-cook": (LayerConfig(24, 4, strides=2, padding="same"), (1, 3, 4, 7, 20)),
    "three taps": (
        LayerConfig(
            18, (3, 3, 4), strides=(1, 2, 2), activation="elu", data_format="channels_first"
        ),
        (2, 9, 3, 4, 5),
    ),
    "tf32": (LayerConfig(24, 3, strides=2, padding="same"), (1, 3, 4, 7, 20)),
}
#: What is asked for beside.
OPTIONS = {
    "toom-cook": {"algorithm": "toom-cook"},
    "three taps": {"algorithm": "toom-cook"},
    "tf32": {"precision": "tf32"},
}


def layer_space(name: str, architecture: str = "sm_80") -> Space:
    config, shape = LAYERS[name]
    work = Workload.of(config, shape)
    return space_of(work, architectures((architecture,)), **OPTIONS.get(name, {}))


def draw(space: Space, rng: random.Random) -> tuple[Variant, CudaTiling]:
    """A legal candidate, each form as often as another."""
    while True:
        form = rng.choice(sorted({variant.base.form for variant in space.variants}))
        variant = rng.choice([v for v in space.variants if v.base.form == form])
        tiling = variant.tiling(tuple(rng.choice(values) for _, values in variant.choices))
        if variant.fits(tiling):
            assert isinstance(tiling, CudaTiling)
            return variant, tiling


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90", "sm_120"])
def test_the_default_comes_first_and_is_one_of_them(name: str, architecture: str) -> None:
    space = layer_space(name, architecture)
    work = Workload.of(*LAYERS[name])
    asked = OPTIONS.get(name, {})
    assert space.default == rules.decide(work, architectures((architecture,)), **asked)
    home = space.find(space.default)
    assert home is not None
    assert home.values(space.default) is not None
    assert next(space.all()) == space.default
    assert space.default.form in space.forms


@pytest.mark.parametrize("name", LAYERS)
def test_candidates_are_legal_on_the_device(name: str) -> None:
    config, shape = LAYERS[name]
    work = Workload.of(config, shape)
    chooser = random.Random(4)
    for architecture in ("sm_75", "sm_90"):
        space = layer_space(name, architecture)
        one = ARCHITECTURES[architecture]
        seen = set()
        for _ in range(60):
            variant, tiling = draw(space, chooser)
            seen.add(tiling)
            assert space.find(tiling) is variant
            for kernel in lower(work, tiling).kernels():
                assert kernel.threads <= 1024 and kernel.threads >= 32
                most = one.block_shared_bytes if kernel.dynamic_bytes else 48 << 10
                assert kernel.shared_bytes <= most
                assert one.occupancy(kernel.threads, 32, kernel.shared_bytes) > 0
                blocks = max(1, kernel.resident)
                assert blocks * kernel.threads <= one.threads
        assert len(seen) > (15 if space.size > 300 else 3)


def computes(kind: type[Serial] | type[Emulated], name: str, tiling: CudaTiling) -> None:
    config, shape = LAYERS[name]
    rng = np.random.default_rng(1)
    dtype = numpy_dtype(config.compute_dtype)
    channels = shape[config.channel_axis]
    x = rng.standard_normal(shape).astype(dtype)
    kernel, *bias = (
        (rng.standard_normal(s) / 8).astype(dtype) for s in config.weight_shapes(channels)
    )
    rounded = (round_tf32(x), round_tf32(kernel)) if name == "tf32" else (x, kernel)
    expected = conv3d_transpose(config, *rounded, bias[0] if bias else None)
    y = kind(config, shape, tiling).run(x, kernel, bias[0] if bias else None)
    allowed = 4e-2 if dtype == np.float16 else 2e-3
    np.testing.assert_allclose(
        y.astype(np.float64), expected, rtol=allowed, atol=allowed, err_msg=str(tiling)
    )


def test_forms_of_what_was_asked_for() -> None:
    assert layer_space("toom-cook").forms == layer_space("three taps").forms == ("toom-cook",)
    assert layer_space("tf32").forms == ("mma",)
    assert "mma" not in layer_space("tf32", "sm_75").forms  # nothing there rounds to TF32
    config, shape = LAYERS["toom-cook"]
    work, targets_of = Workload.of(config, shape), architectures(("sm_80",))
    every = space_of(work, targets_of)
    assert every.default.form != "toom-cook" and "toom-cook" in every.forms
    assert "mma" not in every.forms
    direct = space_of(work, targets_of, algorithm="direct")
    assert set(every.forms) - set(direct.forms) == {"toom-cook"}
    half = Workload.of(LayerConfig(32, 4, strides=2, dtype="float16"), (1, 3, 4, 6, 32))
    assert "toom-cook" not in space_of(half, targets_of).forms
    few = Workload.of(LayerConfig(4, 4, strides=2), (1, 3, 4, 6, 32))
    assert "toom-cook" not in space_of(few, targets_of).forms
    with pytest.raises(ConfigError, match="one tap"):
        space_of(
            Workload.of(LayerConfig(16, 2, strides=2), shape), targets_of, algorithm="toom-cook"
        )


@pytest.mark.parametrize("name", ["toom-cook", "three taps"])
def test_a_transfer_keeps_the_scheme(name: str) -> None:
    config, shape = LAYERS[name]
    larger = Workload.of(config, tuple(size + (1 < at < 4) for at, size in enumerate(shape)))
    here = space_of(larger, architectures(("sm_80",)), **OPTIONS[name])
    chooser, found = random.Random(8), 0
    for _ in range(20):
        tiling = draw(layer_space(name), chooser)[1]
        near = here.nearest(tiling)
        if near is not None:
            assert isinstance(near, CudaTiling) and near.outputs == tiling.outputs
            assert here.find(near) is not None
            found += 1
    assert found > 10


@pytest.mark.parametrize("name", LAYERS)
def test_candidates_compute_the_layer(name: str) -> None:
    space, chooser = layer_space(name), random.Random(2)
    for _ in range(2):
        computes(Serial, name, draw(space, chooser)[1])


@pytest.mark.nightly
@needs_gcc
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", LAYERS)
def test_candidates_compute_the_layer_on_emulated_threads(name: str, seed: int) -> None:
    computes(Emulated, name, draw(layer_space(name), random.Random(seed))[1])


def test_a_trace_holds_the_decisions() -> None:
    chooser = random.Random(3)
    for name in ("wmma", "small", "split", "toom-cook", "tf32"):
        space = layer_space(name)
        for _ in range(5):
            variant, tiling = draw(space, chooser)
            sch = traces.schedule(variant, tiling)
            assert traces.tiling_of(space, sch) == tiling
            text = json.dumps(traces.trace_json(sch))
            assert traces.tiling_of(space, traces.replay(json.loads(text))) == tiling
            assert space.read(json.loads(json.dumps(tiling.to_json()))) == tiling
        rows = traces.features(space, [space.default, draw(space, chooser)[1]])
        assert rows.shape[0] == 2 and np.isfinite(rows).all()
        assert not np.array_equal(rows[0], rows[1])


def test_blocks_share_sums_where_most_would_be_idle() -> None:
    targets_of = architectures(("sm_90",))
    config, shape = LAYERS["shared sums"]
    work = Workload.of(config, shape)
    chosen = rules.decide(work, targets_of)
    assert chosen.form == "gemm" and chosen.sum_blocks > 1
    kernels = lower(work, chosen).kernels()
    assert [one.suffix for one in kernels] == ["conv", "sums"]
    assert kernels[0].grid[2] == chosen.sum_blocks
    outputs = 6 * 6 * 8 * 64
    assert kernels[0].workspace_bytes == chosen.sum_blocks * 4 * outputs
    # The workspace would grow with an open batch; a large one has blocks enough.
    for batch in (None, 256):
        other = Workload.of(config, (batch, *shape[1:]))
        assert rules.decide(other, targets_of).sum_blocks == 1
        assert space_of(other, targets_of).find(chosen) is None


def test_the_nearest_of_another_shape() -> None:
    config, _ = LAYERS["gemm"]
    targets_of = architectures(("sm_80",))
    here = space_of(Workload.of(config, (1, 4, 5, 6, 16)), targets_of)
    there = space_of(Workload.of(config, (1, 8, 8, 8, 16)), targets_of)
    chooser = random.Random(5)
    for _ in range(20):
        tiling = draw(there, chooser)[1]
        found = here.nearest(tiling)
        assert found is None or here.find(found) is not None
    assert here.nearest(there.default) is not None


def machine(architecture: str, multiprocessors: int, mhz: int, memory: tuple[int, int]) -> object:
    major, minor = divmod(ARCHITECTURES[architecture].number, 10)
    hardware = Hardware(
        0, "a device", (major, minor), multiprocessors, 1000 * mhz, 1000 * memory[0], memory[1],
        "13.0",
    )  # fmt: skip
    return cuda_machine.CudaMachine(ARCHITECTURES[architecture], targets.native().triple, hardware)


def test_the_limit_is_what_the_device_multiplies_or_its_memory_brings() -> None:
    large = Workload.of(LayerConfig(256, 3, strides=2, padding="same"), (1, 32, 32, 32, 512))
    one: object = machine("sm_90", 132, 1980, (2619, 5120))
    assert isinstance(one, cuda_machine.CudaMachine)
    assert one.limit_gflops(large) == pytest.approx(66.9e3, rel=0.01)
    half = Workload.of(
        LayerConfig(256, 3, strides=2, padding="same", dtype="float16"), (1, 32, 32, 32, 512)
    )
    assert one.limit_gflops(half) == pytest.approx(1070e3, rel=0.01)
    thin = Workload.of(LayerConfig(1, 2, strides=2), (1, 64, 64, 64, 2))
    # 3352 GB/s for 4 bytes of each of 2 inputs and 8 outputs of a voxel, and 32 operations.
    assert one.limit_gflops(thin) == pytest.approx(3352 * 32 / 40, rel=0.01)
    unknown = cuda_machine.CudaMachine(ARCHITECTURES["sm_87"], "aarch64-linux-gnu")
    assert unknown.limit_gflops(large) is None
    assert unknown.measured_by() == {"cpu_model": "sm_87", "cores": 0}


def test_a_device_elsewhere_is_named_by_its_architecture() -> None:
    found = cuda_machine.elsewhere("cuda:sm_87", "aarch64-linux-gnu")
    assert (found.architecture.name, found.cores) == ("sm_87", 0)
    assert platforms.described(found)["architecture"] == "sm_87"
    with pytest.raises(TargetError, match="cuda:sm_87 for Jetson"):
        cuda_machine.elsewhere("cuda:native", "aarch64-linux-gnu")
