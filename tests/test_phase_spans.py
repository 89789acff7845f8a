"""Channels first where kernel = stride: outputs that leave scratch span by span."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
from kernels import Kernel, target, variants

from benchmarks import static
from tvmconv import schedules
from tvmconv.codegen import lowering
from tvmconv.compute import lower
from tvmconv.compute.phase import PhaseForm
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.policies import numpy_dtype
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import phase

FIRST: dict[str, Any] = {"data_format": "channels_first"}
SPLIT = functools.partial(LayerConfig, kernel_size=2, strides=2, **FIRST)
#: Layers and the sizes of their input: channels, planes, rows, voxels.
LAYERS: dict[str, tuple[LayerConfig, tuple[int, ...]]] = {
    "whole spans": (SPLIT(24), (5, 2, 3, 16)),
    "spans and a rest": (SPLIT(33, activation="relu"), (6, 2, 3, 21)),
    "less than a span": (SPLIT(16), (7, 3, 2, 5)),
    "one voxel": (SPLIT(9), (4, 2, 2, 1)),
    "two groups of channels": (SPLIT(40), (5, 1, 3, 11)),
    "a long activation": (SPLIT(20, activation="gelu"), (5, 2, 3, 19)),
    "stride 4": (LayerConfig(8, (1, 2, 4), strides=(1, 2, 4), **FIRST), (6, 2, 3, 9)),
    "more filters than steps": (SPLIT(96), (3, 2, 1, 17)),
}


@pytest.mark.parametrize(("width", "vector", "together"), [(3, 4, 0), (8, 8, 4)])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "float32") for name in LAYERS),
        *(("spans and a rest", dtype) for dtype in ("float64", "float16", "mixed_bfloat16")),
    ],
)
def test_a_span_holds_what_the_layer_is(
    name: str, dtype: str, width: int, vector: int, together: int
) -> None:
    layer, sample = LAYERS[name]
    layer = LayerConfig.from_keras({**layer.get_config(), "dtype": dtype})
    work = Workload.of(layer, (-1, *sample))
    tiling = phase.decide(work, target())
    assert tiling is not None
    tiling = variants(tiling, vector=vector, registers=2, width=width, stretch=together)
    assert PhaseForm(work, tiling).span % width == 0
    rng = np.random.default_rng(7)
    inputs, weights = numpy_dtype(work.input_dtype), numpy_dtype(work.variable_dtype)
    x = rng.standard_normal((2, *sample)).astype(inputs)
    kernel = rng.standard_normal(layer.kernel_shape(sample[0])).astype(weights)
    bias = rng.standard_normal(layer.filters).astype(weights)
    x.ravel()[[3, 25]] = np.inf, np.nan
    y = Kernel(layer, work.plan.input_shape, tiling=tiling)(x, kernel, bias, rng)
    with np.errstate(invalid="ignore"):
        wanted = conv3d_transpose(layer, x, kernel, bias)
    tolerance = {"float64": 1e-9, "float32": 1e-5}.get(dtype, 0.05)
    np.testing.assert_allclose(
        y.astype(np.float64), wanted, rtol=tolerance, atol=tolerance, equal_nan=True
    )


def test_which_layers_have_spans() -> None:
    def span(config: LayerConfig, **decisions: Any) -> int:
        shape = (1, 6, 3, 4, 16) if config.data_format == "channels_first" else (1, 3, 4, 16, 6)
        work = Workload.of(config, shape)
        tiling = phase.decide(work, target())
        assert tiling is not None
        return PhaseForm(work, variants(tiling, **decisions)).span

    # A line of 16 outputs: eight voxels, or as many as whole tiles have.
    assert [span(SPLIT(8), width=width) for width in (1, 3, 8, 16)] == [8, 6, 8, 16]
    assert span(LayerConfig(8, 4, strides=4, **FIRST), width=1) == 4
    half = LayerConfig.from_keras({**SPLIT(8).get_config(), "dtype": "float16"})
    assert span(half, width=4) == 16
    # Channels last, lines that no number of voxels fills, several taps, outputs without input,
    # activations that need a whole row.
    assert span(LayerConfig(8, 2, strides=2)) == 0
    assert span(LayerConfig(8, 3, strides=3, **FIRST)) == 0
    assert span(LayerConfig(8, 1, **FIRST)) == 0
    assert span(LayerConfig(8, 3, strides=2, **FIRST)) == 0
    assert span(LayerConfig(8, 2, strides=2, output_padding=1, **FIRST)) == 0
    assert span(SPLIT(8, activation="softmax")) == 0
    assert span(SPLIT(8), stationary=True) == 0


@pytest.mark.parametrize("name", ["x86-64-v4", "x86-64-v3"])
def test_the_rule_fills_lines(name: str) -> None:
    for filters, size in ((64, 32), (33, 21), (128, 17), (48, 48)):
        work = Workload.of(SPLIT(filters), (1, 96, 8, 8, size))
        tiling = phase.decide(work, target(name))
        assert tiling is not None
        assert PhaseForm(work, tiling).span in (8, 16)
        assert tiling.width % 8 == 0 or 8 % tiling.width == 0


def test_few_channels_leave_together_where_that_was_measured() -> None:
    work = Workload.of(SPLIT(48), (1, 96, 8, 8, 32))
    for name, channels in (("znver3", 4), ("znver4", 0), ("x86-64-v3", 0)):
        tiling = phase.decide(work, target(name))
        assert tiling is not None
        assert tiling.stretch == PhaseForm(work, tiling).together == channels
    rows = Workload.of(LayerConfig(48, 3, **FIRST), (1, 96, 8, 8, 32))
    tiling = phase.decide(rows, target("znver3"))
    assert tiling is not None
    assert tiling.stretch == 0


def test_an_input_that_is_copied_for_stationary_tiles_may_be_larger_on_zen_3() -> None:
    # Beside a kernel of 3 MB, that each row would read again.
    for name, channels, stationary in (
        ("znver3", 768, True),
        ("znver3", 1024, False),
        ("x86-64-v3", 768, False),
    ):
        machine = dataclasses.replace(target(name), l2_bytes=512 << 10)
        tiling = phase.decide(Workload.of(SPLIT(128), (1, channels, 6, 6, 6)), machine)
        assert tiling is not None
        assert tiling.stationary == stationary


@pytest.mark.parametrize("name", ["x86-64-v4", "x86-64-v3"])
def test_the_loop_holds_its_sums_in_registers(name: str) -> None:
    machine = target(name)
    work = Workload.of(SPLIT(64), (1, 128, 32, 32, 32))
    tiling = schedules.decide(work, machine, algorithm="direct")
    code = lowering.emit({"k": schedules.apply(lower(work, tiling)).kernel}, machine)
    loop = static.hottest(code.text("s"), machine.triple)
    assert loop.products >= 8
    assert loop.stack == 0
