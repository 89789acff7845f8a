"""Workloads, lanes and tilings, and what a lowered algorithm says of itself."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from kernels import Kernel, same_values, target, variants

from tvmconv import schedules
from tvmconv.activations import Activation
from tvmconv.compute import blocks, lower
from tvmconv.compute.lanes import groups, packed_size, tap_order
from tvmconv.compute.tiling import Tiling, cut
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.errors import ConfigError
from tvmconv.geometry import Axis
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import column, definition, dot, phase, voxel

UP = LayerConfig(20, 3, strides=2, padding="same", activation="relu")
SHAPE = (2, 4, 5, 6, 3)
#: Registers of channels need four.
SHAPES = {"dots": (2, 4, 5, 6, 4)}
RULES = {"columns": column, "definition": definition, "dots": dot, "phase": phase, "voxel": voxel}


def lowered(
    form: str, config: LayerConfig = UP, shape: tuple[int, ...] | None = None, **more: Any
) -> Any:
    work = Workload.of(config, shape or SHAPES.get(form, SHAPE))
    forced = {"always": True} if form in ("columns", "dots") else {}
    tiling = RULES[form].decide(work, target(), **forced)  # type: ignore[attr-defined]
    assert tiling is not None
    return lower(work, variants(tiling, **more))


FEW = LayerConfig(3, 3, strides=2, padding="same")
LAYERS = {"columns": FEW, "definition": UP, "dots": FEW, "phase": UP, "voxel": FEW}


@pytest.mark.parametrize("form", RULES)
def test_tiles_and_sizes(form: str) -> None:
    found = lowered(form, LAYERS[form])
    assert found.tiling.form == form
    assert found.tiles_per_sample >= 1
    plan = found.work.plan
    assert found.packed_size >= np.prod(plan.kernel_shape)
    assert found.bias_size >= plan.filters
    packed = found.pack(np.ones(plan.kernel_shape, np.float32), np.ones(plan.filters, np.float32))
    assert packed.dtype == np.float32
    assert packed.size == found.packed_size + found.bias_size
    # Every weight once, lanes past the last channel are zeros.
    assert packed[: found.packed_size].sum() == np.prod(plan.kernel_shape)
    assert packed[found.packed_size :].sum() == plan.filters
    assert found.finish is None


@pytest.mark.parametrize("form", RULES)
def test_parameters_are_those_of_the_interface(form: str) -> None:
    found = lowered(form, LAYERS[form])
    kernel = [param.name for param in found.kernel.params]
    assert kernel == [
        "input", "weights", "bias", "output", "scratch", "batch", "begin", "end",
    ]  # fmt: skip
    assert [param.name for param in found.packer.params] == [
        "kernel", "bias", "packed", "packed_bias",
    ]  # fmt: skip
    assert {str(param.ty) for param in found.kernel.params[5:]} == {"int64"}


def test_blocks_have_the_names_of_the_contract() -> None:
    text = str(lowered("phase").kernel)
    names = [line.split('"')[1].split("_")[0] for line in text.splitlines() if "sblock(" in line]
    assert blocks.ACCUMULATE in names
    assert blocks.PACK in names
    assert str(lowered("definition").kernel).count(f'"{blocks.ACCUMULATE}_') >= 1


def test_no_scratch_where_the_input_can_be_read_as_it_lies() -> None:
    folded = LayerConfig(16, 2, strides=2)
    assert lowered("phase", folded, pack=False).scratch_size == 0
    assert lowered("phase", folded, pack=True).scratch_size > 0
    assert lowered("definition").scratch_size == 0


def test_a_mixing_activation_over_more_than_a_row_finishes_afterwards() -> None:
    def made(axis: Any) -> Any:
        layer = LayerConfig(4, 2, activation=Activation("softmax", (("axis", axis),)))
        return lowered("phase", layer)

    assert made(-1).finish is None
    assert made(3).finish is None
    for axis in (0, 1, 2, (3, 4), (1, 2, 3), (-5,)):
        found = made(axis)
        assert [param.name for param in found.finish.params] == ["output", "batch"]


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16"]
)
@pytest.mark.parametrize("form", RULES)
def test_the_packers_of_numpy_and_of_the_library_agree(form: str, dtype: str) -> None:
    layer = LayerConfig.from_keras({**LAYERS[form].get_config(), "dtype": dtype})
    shape = SHAPES.get(form, SHAPE)
    forced = {"always": True} if form in ("columns", "dots") else {}
    work = Workload.of(layer, shape)
    tiling = RULES[form].decide(work, target(), **forced)  # type: ignore[attr-defined]
    built = Kernel(layer, shape, tiling=tiling)
    rng = np.random.default_rng(3)
    kernel = rng.standard_normal(layer.kernel_shape(shape[4])) * 10.0 ** rng.integers(
        -9, 9, layer.kernel_shape(shape[4])
    )
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1 + 2**-8, 1 + 2**-11, 65519.9, 65520.0]
    kernel.ravel()[: len(special)] = special
    with np.errstate(over="ignore"):
        kernel = kernel.astype(np.float32)
        kernel[abs(kernel) < 1e-30] = 0  # Subnormals may be flushed.
        bias = rng.standard_normal(layer.filters)
        variable = numpy_dtype(layer.variable_dtype)
        kernel, bias = kernel.astype(variable), bias.astype(variable)
    assert same_values(built.lowered.pack(kernel, bias), built.packed(kernel, bias))


def test_a_layer_without_bias_packs_zeros() -> None:
    layer = LayerConfig(5, 2, use_bias=False)
    built = Kernel(layer, (1, 2, 2, 2, 3))
    kernel = np.ones(layer.kernel_shape(3), np.float32)
    packed = built.packed(kernel, None)
    assert (packed[built.lowered.packed_size :] == 0).all()
    assert same_values(packed, built.lowered.pack(kernel, None))


def test_folding() -> None:
    def folded(config: LayerConfig, shape: tuple[int, ...] = (1, 2, 3, 4, 5)) -> Workload:
        work = Workload.of(config, shape)
        return work if work.folded() is work else work.folded()

    work = folded(LayerConfig(6, (3, 2, 4), strides=(2, 2, 4)))
    assert work.plan.filters == 24
    assert work.plan.axes[2] == Axis(4, 1, 1, 1, 0, 4)
    assert work.plan.kernel_shape == (3, 2, 1, 24, 5)
    assert np.prod(work.plan.output_shape) == 1 * 5 * 6 * 16 * 6
    for kept in (
        LayerConfig(6, 2, strides=2, data_format="channels_first"),
        LayerConfig(6, 3, strides=2),
        LayerConfig(6, 1),
        LayerConfig(6, 2, strides=2, activation="softmax"),
        LayerConfig(6, 2, strides=2, output_padding=1),
    ):
        plain = Workload.of(kept, (1, 2, 3, 4, 5))
        assert plain.folded() is plain


def test_workloads_know_their_dtypes_and_axes() -> None:
    work = Workload.of(LayerConfig(4, 2, dtype="mixed_bfloat16"), (None, 2, 2, 2, 3))
    assert (work.input_dtype, work.variable_dtype, work.accumulate_dtype) == (
        "bfloat16", "float32", "float32",
    )  # fmt: skip
    assert work.output_shape == (-1, 3, 3, 3, 4)
    wide = Workload.of(LayerConfig(4, 2, dtype="float64", activation="glu"), (1, 2, 2, 2, 3))
    assert wide.accumulate_dtype == "float64"
    assert wide.output_shape == (1, 3, 3, 3, 2)
    assert wide.row_axis == 4
    assert not wide.finishes_whole
    empty = Workload.of(LayerConfig(2, 2, padding="same", output_padding=0), (1, 1, 2, 2, 3))
    assert empty.empty


@pytest.mark.parametrize(
    ("activation", "match"),
    [
        (Activation("glu"), r"axis size must be divisible by 2\. Received"),
        (Activation("glu", (("axis", 1),)), "glu can be compiled along the channels or the width"),
    ],
)
def test_activations_that_do_not_fit(activation: Activation, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Workload.of(LayerConfig(3, 2, activation=activation), (1, 3, 3, 3, 2))


@pytest.mark.parametrize("registers", [1, 2, 3, 4])
@pytest.mark.parametrize("vector", [1, 4, 8, 16])
def test_groups_hold_every_channel_once(vector: int, registers: int) -> None:
    for filters in (1, 3, 4, 15, 16, 17, 63, 64, 65, 130):
        work = Workload.of(LayerConfig(filters, (2, 1, 3)), (1, 2, 2, 2, 5))
        found = groups(work, vector, registers)
        channels, offset, lanes = [], 0, 0
        for group in found:
            assert group.lanes % vector == 0
            assert 0 < group.valid <= group.lanes <= vector * registers
            assert group.lanes - group.valid < vector
            assert (group.offset, group.lane_offset) == (offset, lanes)
            for block in range(group.blocks):
                start = group.first + block * group.lanes
                channels += range(start, start + group.valid)
            lanes += group.blocks * group.lanes
            offset += group.blocks * group.lanes * 6 * 5
        assert channels == list(range(filters))
        assert packed_size(work, found) == offset


@pytest.mark.parametrize("vector", [4, 8, 16])
def test_the_last_filters_may_be_a_group_of_their_own(vector: int) -> None:
    for filters, dots in ((33, 1), (67, 3), (50, 2), (3, 2)):
        work = Workload.of(LayerConfig(filters, (2, 1, 3)), (1, 2, 2, 2, 5))
        *before, last = groups(work, vector, 2, dots=dots)
        assert (last.first, last.blocks, last.lanes, last.valid) == (filters - dots, dots, 1, 1)
        assert last.dots
        assert not any(group.dots for group in before)
        assert last.lane_offset == last.first
        fewer = Workload.of(LayerConfig(filters - dots, (2, 1, 3)), (1, 2, 2, 2, 5))
        assert before == groups(fewer, vector, 2)


def test_the_taps_of_a_width_stand_phase_by_phase() -> None:
    assert tap_order(Axis(4, 5, 2, 1, 0, 11)) == [0, 2, 4, 1, 3]
    assert tap_order(Axis(4, 2, 3, 1, 0, 12)) == [0, 1]
    assert tap_order(Axis(4, 3, 1, 2, 0, 8)) == [0, 1, 2]


STATIONARY = {
    "a border": LayerConfig(32, 4, strides=2, padding="same", data_format="channels_first"),
    "crops": LayerConfig(
        16, (3, 2, 5), strides=(2, 3, 2), padding="same", output_padding=(1, 0, 0),
        activation="gelu", data_format="channels_first",
    ),
    "no border": LayerConfig(32, 2, strides=2, data_format="channels_first"),
    "phases without taps": LayerConfig(
        32, (1, 2, 1), strides=(2, 3, 2), activation="relu", data_format="channels_first"
    ),
    "channels last": LayerConfig(32, 4, strides=2, padding="same"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "float32") for name in STATIONARY),
        *(("no border", dtype) for dtype in ("float64", "float16", "bfloat16")),
        ("a border", "float16"),
        ("channels last", "float16"),
    ],
)
def test_stationary_tiles_share_one_copy_of_the_input(name: str, dtype: str) -> None:
    layer = LayerConfig.from_keras({**STATIONARY[name].get_config(), "dtype": dtype})
    shape = (2, 17, 3, 5, 4) if layer.data_format == "channels_first" else (2, 3, 5, 4, 17)
    work = Workload.of(layer, (-1, *shape[1:]))
    default = phase.decide(work, target())
    assert default is not None
    rng = np.random.default_rng(5)
    x, kernel, bias = (
        rng.integers(-2, 3, size).astype(np.float32)
        for size in (shape, layer.kernel_shape(17), (layer.filters,))
    )
    x.ravel()[[7, 411]] = np.inf, np.nan
    expected = conv3d_transpose(layer, x, kernel, bias)
    outputs = []
    for splits in (2, layer.filters // 4):
        tiling = variants(default, vector=4, registers=1, width=3, stationary=True, splits=splits)
        built = Kernel(layer, work.plan.input_shape, tiling=tiling)
        assert built.lowered.tiles_per_sample % splits == 0
        # Any range of tiles, from the middle of a sample into the next, finds or makes its copy.
        outputs.append(built(x, kernel, bias, rng))
    assert all(y.tobytes() == outputs[0].tobytes() for y in outputs)
    with np.errstate(invalid="ignore"):
        rounded = expected.astype(outputs[0].dtype).astype(float)
    tolerance = 1e-5 if layer.activation.name == "gelu" else 0.0
    tolerance = {"float16": 2e-3, "bfloat16": 1e-2}.get(dtype, tolerance) if tolerance else 0.0
    np.testing.assert_allclose(
        outputs[0].astype(float), rounded, rtol=tolerance, atol=tolerance, equal_nan=True
    )


def test_rows_are_cut_into_equal_tiles() -> None:
    for count, most in itertools.product(range(60), range(1, 15)):
        parts = cut(count, most)
        assert sum(tiles * voxels for tiles, voxels in parts) == count
        assert sum(tiles for tiles, _ in parts) == -(-count // most)
        sizes = [voxels for _, voxels in parts]
        assert all(0 < size <= most for size in sizes)
        assert len(sizes) <= 2
        assert max(sizes, default=1) - min(sizes, default=1) <= 1


def test_decisions_are_plain_numbers() -> None:
    tiling = schedules.decide(Workload.of(UP, SHAPE), target())
    assert Tiling.from_json(json.loads(json.dumps(tiling.to_json()))) == tiling
    with pytest.raises(TypeError, match="unexpected"):
        Tiling.from_json({**tiling.to_json(), "unexpected": 1})


def test_scratch_is_small_beside_the_tensors() -> None:
    # The largest layer of a 3-D U-Net: 128 to 64 channels, 32 to 64 voxels a side.
    work = Workload.of(LayerConfig(64, 2, strides=2), (1, 32, 32, 32, 128))
    found = lower(work, schedules.decide(work, target()))
    tensors = np.prod(work.plan.input_shape) + np.prod(work.output_shape) + found.packed_size
    assert found.scratch_size * 4 <= max(0.05 * tensors * 4, 4 << 20)
