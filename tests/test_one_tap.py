"""Layers with one tap along some axes: their voxels are one long row, whatever their shape."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from kernels import Kernel, target

from tvmconv import schedules
from tvmconv.activations import Activation
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import toom_cook
from tvmconv.schedules.several import decide_several
from tvmconv.schedules.space import Space
from tvmconv.tuning import use

FIRST = {"data_format": "channels_first"}
FLAT: dict[str, Any] = {"filters": 20, "kernel_size": 1}
LAYERS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "all axes": (FLAT, (1, 5, 7, 6, 19)),
    "dilated": ({**FLAT, "filters": 33, "dilation_rate": 3, "padding": "same"}, (3, 3, 5, 13, 6)),
    "open batch": (FLAT, (-1, 4, 3, 17, 5)),
    "double": ({**FLAT, "dtype": "float64"}, (2, 9, 7, 3, 5)),
    "half": ({**FLAT, "dtype": "float16"}, (1, 5, 5, 11, 7)),
    "brain": ({**FLAT, "filters": 37, "dtype": "mixed_bfloat16"}, (3, 3, 4, 9, 18)),
    "channels first": ({**FLAT, **FIRST}, (2, 19, 5, 7, 6)),
    "channels first, half": ({**FLAT, **FIRST, "dtype": "float16"}, (1, 5, 3, 5, 13)),
    "few filters": ({**FLAT, "filters": 2}, (1, 6, 5, 11, 24)),
    "few filters, first": ({**FLAT, **FIRST, "filters": 3}, (2, 9, 4, 3, 9)),
    "prime sizes": (FLAT, (1, 1, 1, 67, 3)),
    "many channels": ({**FLAT, "filters": 260}, (1, 2, 3, 1, 700)),
    "not the depth": ({"filters": 18, "kernel_size": (3, 1, 1), "strides": (2, 1, 1)},
                      (2, 3, 5, 7, 9)),
    "not the depth, first": ({"filters": 5, "kernel_size": (2, 1, 1), "padding": "same", **FIRST},
                             (1, 6, 3, 5, 7)),
    "not the width": ({"filters": 18, "kernel_size": (1, 1, 3), "strides": (1, 1, 2)},
                      (1, 3, 4, 6, 5)),
    "not the height": ({"filters": 6, "kernel_size": (1, 3, 1)}, (2, 4, 3, 7, 5)),
    "behind the last tap": ({**FLAT, "output_padding": 0, "strides": 1}, (1, 3, 4, 5, 6)),
}  # fmt: skip


def whole_numbers(config: LayerConfig, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Input, kernel and bias: small whole numbers, exact in every dtype."""
    rng = np.random.default_rng(3)
    channels = shape[1] if config.data_format == "channels_first" else shape[-1]
    shapes = (shape, config.kernel_shape(channels), (config.filters,))
    x, kernel, bias = (rng.integers(-1, 2, sizes).astype(np.float64) for sizes in shapes)
    return x, kernel, bias


@pytest.mark.parametrize("name", LAYERS)
def test_it_computes_the_layer(name: str) -> None:
    arguments, shape = LAYERS[name]
    config = LayerConfig(**arguments, activation="relu")
    batch = 3 if shape[0] == -1 else shape[0]
    x, kernel, bias = whole_numbers(config, (batch, *shape[1:]))
    expected = conv3d_transpose(config, x, kernel, bias)
    tilings: list[Tiling | None] = [None]
    if config.filters > 3:
        # Any tiling, one of a record of another version too: wider than the row, more rows.
        tilings.append(Tiling("phase", 4, 2, 5, 3))
        tilings.append(Tiling("phase", 8, 1, 9, 2, pack=False, channels_outer=False))
    for tiling in tilings:
        y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, np.random.default_rng(5))
        np.testing.assert_array_equal(y.astype(np.float64), expected)


@pytest.mark.parametrize(
    ("name", "axis"),
    [*(("softmax", axis) for axis in (-1, 3, 2, (3, 4))), *(("glu", axis) for axis in (-1, 3))],
)
def test_activations_that_mix_keep_their_axes(name: str, axis: Any) -> None:
    config = LayerConfig(6, 1, activation=Activation(name, (("axis", axis),)))
    shape = (2, 3, 4, 8, 5)
    x, kernel, bias = whole_numbers(config, shape)
    y = Kernel(config, shape)(x, kernel, bias, np.random.default_rng(5))
    np.testing.assert_allclose(y, conv3d_transpose(config, x, kernel, bias), rtol=1e-5, atol=1e-6)


def test_only_axes_of_one_tap_are_joined() -> None:
    def sizes(shape: tuple[int, ...] = (1, 4, 8, 16, 8), **arguments: Any) -> list[int]:
        joined = Workload.of(LayerConfig(filters=4, **arguments), shape).joined()
        assert joined.joined() == joined
        assert math.prod(joined.plan.output_shape) == math.prod(
            Workload.of(LayerConfig(filters=4, **arguments), shape).plan.output_shape
        )
        return [axis.size for axis in joined.plan.axes]

    assert sizes(kernel_size=1) == [1, 8, 64]
    assert sizes(kernel_size=1, shape=(1, 29, 29, 29, 300)) == [1, 841, 29]
    assert sizes(kernel_size=(2, 1, 1)) == [4, 2, 64]
    assert sizes(kernel_size=(1, 1, 2)) == [4, 8, 16]
    assert sizes(kernel_size=1, strides=(1, 1, 2)) == [4, 8, 16]
    assert sizes(kernel_size=1, strides=(1, 2, 1)) == [4, 8, 16]
    longer = {"strides": (2, 2, 1), "output_padding": (0, 0, 0)}
    assert sizes(kernel_size=1, **longer) == [4, 8, 16]


def test_rules_and_search_see_the_same_rows() -> None:
    work = Workload.of(LayerConfig(64, 1), (1, 9, 9, 9, 64))
    machine = target()
    assert schedules.decide(work, machine) == schedules.decide(work.joined(), machine)
    found = Space.of(work, machine)
    assert found.default == schedules.decide(work, machine, algorithm="auto")
    assert found.find(found.default) is not None
    wide = dataclasses.replace(found.default, width=1000)
    assert found.find(wide) is None
    assert decide_several([work], [machine], algorithm="auto") == [[found.default]]


def test_a_second_shape_with_toom_cook_has_the_joined_axes_too() -> None:
    # As where a record gives the first shape Toom-Cook, and the second one follows it.
    config = LayerConfig(24, (2, 1, 1), padding="same", **FIRST)
    first, second = (Workload.of(config, (1, 16, d, 7, 1)) for d in (6, 9))
    on = target()
    lead = use.Choice(toom_cook.require(first.joined(), on))
    own = use.Choice(schedules.decide(second, on, algorithm="direct"))
    chosen = use._alike(lead, own, second, on)
    assert chosen is not None
    assert chosen.tiling.form == "toom-cook"
    x, kernel, bias = whole_numbers(config, (1, 16, 9, 7, 1))
    y = Kernel(config, (1, 16, 9, 7, 1), tiling=chosen.tiling)(x, kernel, bias)
    np.testing.assert_array_equal(y, conv3d_transpose(config, x, kernel, bias))
