"""Random legal layers with random tilings: compiled code against the definition in NumPy.

The reference has its own arithmetic for sizes and crops. Half of the layers get small integers, for
which every sum is exact in every dtype, so that not one bit may differ before the activation.
"""

from __future__ import annotations

import dataclasses
import math
import os
import random
import zlib
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from kernels import Kernel, runs_here, target, variants

from tvmconv import geometry, schedules
from tvmconv.activations import Activation
from tvmconv.compute import finish, pair_voxels, pairs
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.errors import ConfigError
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import column, column_rows, definition, dot, phase, voxel

Arrays = tuple[np.ndarray, np.ndarray, "np.ndarray | None"]

CHUNKS = 16
NIGHTLY_CHUNKS = 20  # so that several processes share the work
EXAMPLES = 6  # of each chunk
MACHINES = [name for name in ("native", "x86-64-v2", "x86-64-v3", "x86-64-v4") if runs_here(name)]
POLICIES = ("float32", "float64", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16")
SMOOTH = (
    "celu", "elu", "exponential", "gelu", "hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu",
    "log_sigmoid", "mish", "relu6", "selu", "sigmoid", "silu", "softplus", "softsign",
    "soft_shrink", "sparse_plus", "sparse_sigmoid", "squareplus", "tanh", "tanh_shrink",
)  # fmt: skip
MIXING = ("softmax", "log_softmax", "glu", "sparsemax")
LAYERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ReLU", {"max_value": 1.5, "negative_slope": 0.1, "threshold": 0.25}),
    ("ReLU", {"max_value": 2.0}),
    ("LeakyReLU", {"negative_slope": 0.3}),
    ("ELU", {"alpha": 0.7}),
    ("Softmax", {"axis": 1}),
    ("Softmax", {"axis": 2}),
    ("Softmax", {"axis": 3}),
    ("Softmax", {"axis": [1, 2, 3]}),
    ("Softmax", {"axis": [2, -1]}),
    ("Softmax", {"axis": [0, 4]}),
    ("Activation", {"activation": "tanh"}),
)
SHOWN = (
    "filters", "kernel_size", "strides", "padding", "data_format", "output_padding",
    "dilation_rate", "activation", "use_bias",
)  # fmt: skip
#: Work of a layer (products) and elements of its tensors, so that one takes a fraction of a second.
MOST_PRODUCTS, MOST_ELEMENTS, MOST_UNROLLED = 3e6, 2e5, 700
#: Long code of these forms, of a minute or two, which no rule takes, is for nightly runs.
NIGHTLY, MOST_OF_DOTS = os.environ.get("HYPOTHESIS_PROFILE") == "nightly", 175


@dataclass(frozen=True, repr=False)
class Example:
    """One layer, its input shape, how it is compiled and what its data are."""

    config: LayerConfig
    shape: tuple[int, ...]
    open_batch: bool
    machine: str
    tiling: Tiling
    integers: bool

    def __repr__(self) -> str:
        config = self.config.get_config()
        shown = {key: config[key] for key in SHOWN}
        return (
            f"Example({shown}, dtype={self.config.dtype}, {self.shape}, {self.open_batch=}, "
            f"{self.machine}, {self.integers=}, {self.tiling})"
        )

    @property
    def work(self) -> Workload:
        return compiled_workload(self.config, self.shape, self.open_batch)

    def seed(self) -> int:
        return zlib.crc32(repr(self).encode())


def compiled_workload(config: LayerConfig, shape: tuple[int, ...], open_batch: bool) -> Workload:
    return Workload.of(config, (-1 if open_batch else shape[0], *shape[1:]))


def layer(rng: random.Random) -> LayerConfig:
    kernel = [rng.choice((1, 1, 2, 2, 3, 3, 3, 4, 5, 6)) for _ in range(3)]
    strides, dilation, extra = [1, 1, 1], [1, 1, 1], None
    if rng.random() < 0.75:
        strides = [rng.choice((1, 2, 2, 2, 3, 4)) for _ in range(3)]
        kind = rng.random()
        if kind < 0.25:
            extra = [rng.randrange(stride) for stride in strides]
        elif kind < 0.33:
            kernel = list(strides)
    else:
        dilation = [rng.choice((1, 2, 3)) for _ in range(3)]
        if rng.random() < 0.25:
            extra = [0, 0, 0]
    filters = rng.choice((rng.randint(1, 9), rng.randint(1, 70), rng.choice((16, 17, 32, 33, 64))))
    return LayerConfig(
        filters,
        kernel,
        strides=strides,
        padding=rng.choice(("same", "valid")),
        data_format=rng.choice(("channels_last", "channels_last", "channels_first")),
        output_padding=extra,
        dilation_rate=dilation,
        activation=activation(rng),
        use_bias=rng.random() < 0.7,
        dtype=rng.choice((*POLICIES, "float32", "float32")),
    )


def activation(rng: random.Random) -> Any:
    """Names, activation layers with arguments and policies, and axes of every kind."""
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(("linear", "relu"))
    if kind < 0.6:
        return rng.choice(SMOOTH)
    if kind < 0.75:
        return rng.choice(MIXING)
    name, config = rng.choice(LAYERS)
    policy = rng.choice(("float32", "float32", "float64", "float16", "bfloat16"))
    return {
        "module": "keras.layers",
        "class_name": name,
        "config": {"name": "act", "dtype": policy, **config},
        "registered_name": None,
    }


def any_tiling(rng: random.Random, work: Workload, machine: str) -> Tiling:
    """The default of the rules, or any other legal one of each form."""
    on = target(machine)
    default = schedules.decide(work, on)
    kind = rng.random()
    if kind < 0.3 or work.empty:
        return default
    if kind < 0.45:
        return variants(
            definition.decide(work, on),
            vector=rng.choice((1, 2, 4, 8, 16)),
            registers=rng.randint(1, 4),
            rows=rng.randint(1, 4),
        )
    # Of a few channels their errors are those of the largest, not of each.
    if pairs.serves(work.joined()) and work.plan.in_channels >= 8 and rng.random() < 0.5:
        found = by_pairs(rng, work.joined())
        if found is not None:
            return found
    by_phase = phase.decide(work, on)
    by_voxel = voxel.decide(work, on)
    if by_voxel is not None and kind < 0.6:
        return variants(
            by_voxel,
            vector=rng.choice((4, 8, 16)),
            registers=rng.randint(1, 8),
            width=rng.randint(1, 3),
            rows=rng.randint(1, 9),
            planes=rng.randint(1, 9),
        )
    unrolled = math.prod(work.plan.kernel_shape[:4])
    if kind < 0.75 and not column.refused(work) and (NIGHTLY or unrolled <= MOST_UNROLLED):
        vector = rng.choice((4, 8, 16))
        if work.plan.channels_first:  # a register is no wider than a row
            vector = min(vector, column_rows.lanes_of(work.plan.axes[2].size, vector))
        return Tiling(
            "columns",
            vector,
            rng.randint(1, 4),
            rng.randint(1, 9),
            rng.randint(1, 9),
            planes=rng.randint(1, 9),
            reduced=rng.choice(list(column.reducible(work))),
        )
    if kind < 0.85 and not dot.refused(work) and (NIGHTLY or unrolled <= MOST_OF_DOTS):
        return Tiling(
            "dots",
            dot.lanes_of(work.plan.in_channels, rng.choice((4, 8, 16))),
            1,
            rng.randint(1, 6),
            rng.randint(1, 9),
            pack=rng.random() < 0.3,
            planes=rng.randint(1, 9),
        )
    if by_phase is None:
        return default
    fold = rng.random() < 0.5 and work.folded() is not work
    filters = work.folded().plan.filters if fold else work.plan.filters
    vector, registers = rng.choice((4, 8, 16)), rng.randint(1, 4)
    blocks, rest = divmod(filters, vector * registers)
    stationary = not work.mixed_axes and rng.random() < 0.3
    whole = bool(work.mixed_axes) or (work.plan.channels_first and not stationary)
    legal = [n for n in range(1, blocks + 1) if blocks % n == 0] if not rest and not whole else [1]
    stretch = rng.choice((0, 1, work.plan.in_channels)) if stationary else 0
    if rest and blocks and stretch and not finish.needs_line(work):
        legal.append(blocks + 1)
    return variants(
        by_phase,
        vector=vector,
        registers=registers,
        width=rng.randint(1, max(1, min(12, 24 // registers))),
        rows=rng.randint(1, 9),
        splits=rng.choice(legal),
        fold=fold,
        pack=rng.random() < 0.7,
        channels_outer=rng.random() < 0.5,
        stationary=stationary,
        stretch=stretch,
    )


def by_pairs(rng: random.Random, work: Workload) -> Tiling | None:
    """Any tiling of the pair form; None where a sample has fewer voxels than lanes."""
    vector = rng.choice((4, 8, 16))
    base = Tiling("pairs", vector, 1, rng.randint(1, vector), rng.randint(1, 9))
    if work.plan.channels_first:
        if math.prod(axis.size for axis in work.plan.axes) < vector:
            return None
        base = dataclasses.replace(base, registers=rng.randint(1, 9))
    panels = pair_voxels.pair_form(work, base).panels
    share = rng.randint(1, panels)
    return dataclasses.replace(base, splits=-(-panels // share), stretch=rng.randint(1, share))


def draw(rng: random.Random) -> Example:
    """A legal layer, as a hypothesis strategy cannot draw it without repeating itself."""
    while True:
        config = layer(rng)
        channels = rng.choice((rng.randint(1, 9), rng.randint(1, 37)))
        spatial = [rng.randint(1, 9) for _ in range(3)]
        batch = rng.choice((0, 1, 1, 1, 1, 2, 2, 3, 3))
        first = config.data_format == "channels_first"
        shape = (batch, channels, *spatial) if first else (batch, *spatial, channels)
        open_batch = rng.random() < 0.5
        try:
            plan = geometry.plan(config, shape)
            work = compiled_workload(config, shape, open_batch)
        except ConfigError:  # glu over an odd axis, or no output at all.
            continue
        code = math.prod(plan.kernel_shape[:4]) if plan.filters < 16 else 0
        if (
            plan.flops * batch <= 2 * MOST_PRODUCTS
            and math.prod(plan.kernel_shape) <= MOST_ELEMENTS
            and math.prod(plan.output_shape) <= MOST_ELEMENTS
            and code <= MOST_UNROLLED
        ):
            break
    machine = rng.choice(MACHINES)
    tiling = any_tiling(rng, work, machine)
    # A sparsemax jumps where an entry enters its support: its sums must be exact.
    integers = rng.random() < 0.5 or config.activation.name == "sparsemax"
    return Example(config, shape, open_batch, machine, tiling, integers)


EXAMPLE = st.randoms(use_true_random=True).map(draw)


def data(example: Example) -> Arrays:
    """Input, kernel and bias; integers whose sums every dtype holds, or normal numbers."""
    rng = np.random.default_rng(example.seed())
    config, plan = example.config, example.work.plan
    compute, variable = numpy_dtype(config.compute_dtype), numpy_dtype(config.variable_dtype)
    if example.integers:
        x = rng.integers(-2, 3, example.shape)
        kernel, bias = rng.integers(-1, 2, plan.kernel_shape), rng.integers(-3, 4, config.filters)
    else:
        fan = math.prod(axis.max_taps for axis in plan.axes) * plan.in_channels
        x = rng.standard_normal(example.shape)
        kernel = rng.standard_normal(plan.kernel_shape) / math.sqrt(fan)
        bias = rng.standard_normal(config.filters)
    start = bias.astype(variable) if config.use_bias else None
    return x.astype(compute), kernel.astype(variable), start


def rounding(dtype: str) -> float:
    """Half the distance of 1 to the next number."""
    return float(ml_dtypes.finfo(numpy_dtype(dtype)).eps) / 2


def allowed(
    example: Example, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None, y: np.ndarray
) -> np.ndarray:
    """The largest error of each output: of the sums, of the activation, of one rounding."""
    config, plan = example.config, example.work.plan
    linear = plain(config)
    magnitude = conv3d_transpose(
        linear, np.abs(x), np.abs(kernel), None if bias is None else np.abs(bias)
    )
    products = math.prod(axis.max_taps for axis in plan.axes) * plan.in_channels + 2
    unit = rounding(example.work.accumulate_dtype)
    sums = 0.0 if example.integers else products * unit * magnitude
    name = config.activation.name
    by_default = config.activation.args == Activation(name).args
    if name in ("linear", "relu", "relu6", "hard_tanh") and by_default:
        bound = np.broadcast_to(sums, magnitude.shape)
    elif name in MIXING:
        # Each output depends on all sums of its vector: with a slope of 2 at most, or glu's values.
        largest = float(magnitude.max(initial=0.0))
        if name == "sparsemax":
            largest *= magnitude.shape[-1] ** 2  # It sums sums of sums.
        slope = 2.0 if name != "glu" else 1.0 + largest
        worst = float(np.max(sums, initial=0.0)) + 24 * unit * (1.0 + largest)
        if example.work.finishes_whole:  # The sums wait in the output.
            worst += rounding(config.output_dtype) * largest
        bound = slope * worst + np.zeros_like(y)
        return bound + 2 * rounding(config.output_dtype) * np.abs(y) + smallest(config)
    else:
        # The steepest is 1.76 (selu), but for the exponential, which is as steep as it is high.
        slope = np.maximum(2.0, np.abs(y)) if name == "exponential" else 2.0
        own = (magnitude if name == "exponential" else 1.0) * np.abs(y) + 1.0 + magnitude
        bound = slope * sums + 8 * unit * own
    return bound + rounding(config.output_dtype) * (np.abs(y) + bound) + smallest(config)


def smallest(config: LayerConfig) -> float:
    """Half the distance of subnormal numbers, or the smallest normal one where they are flushed."""
    if config.output_dtype == "float16":
        return 2.0**-25
    return 1.2e-38


def plain(config: LayerConfig) -> LayerConfig:
    return LayerConfig.from_keras({**config.get_config(), "activation": "linear"})


def check(example: Example) -> None:
    x, kernel, bias = data(example)
    shape = (-1 if example.open_batch else example.shape[0], *example.shape[1:])
    tiling, machine = example.tiling, example.machine
    built = Kernel(example.config, shape, tiling=tiling, machine=machine, ships=True)
    y = built(x, kernel, bias, np.random.default_rng(example.seed()))
    compare(example, y, (x, kernel, bias))


def compare(example: Example, y: np.ndarray, arrays: Arrays, more: float = 0.0) -> None:
    """Fail unless an output is the reference's but for what rounding explains, and ``more``."""
    x, kernel, bias = arrays
    expected = conv3d_transpose(example.config, x, kernel, bias)
    assert y.shape == expected.shape
    assert y.dtype == numpy_dtype(example.config.output_dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs(y.astype(np.float64) - expected)
        limit = allowed(example, x, kernel, bias, expected) + more
        rounded = expected.astype(y.dtype)
        wrong = (error > limit) | np.isnan(y)
        wrong &= y != rounded  # An overflow to infinity is right.
    assert not wrong.any(), (
        f"{wrong.sum()} of {wrong.size} differ, first at {np.argwhere(wrong)[0]}: "
        f"{y[wrong][0]} instead of {expected[wrong][0]}, allowed {limit[wrong][0]:.3g}"
    )


@pytest.mark.parametrize("chunk", range(CHUNKS))
@settings(max_examples=EXAMPLES, phases=[Phase.explicit, Phase.generate])
@given(example=EXAMPLE)
def test_compiled_layers_equal_the_definition(chunk: int, example: Example) -> None:
    # Hypothesis seeds each chunk with the test's id.
    check(example)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("width", [5, 9, 15])
def test_half_width_rows_end_where_they_end(machine: str, dtype: str, width: int) -> None:
    # A rest of one 16-bit element must not be written as 32 bits; `Kernel` guards its output.
    shape, kernel_shape = (1, 5, 1, 1, width), (1, 2, 1, 16, 5)
    config = LayerConfig(16, (1, 2, 1), data_format="channels_first", dtype=dtype, use_bias=False)
    rng = np.random.default_rng(width)
    x = rng.integers(-2, 3, shape).astype(numpy_dtype(dtype))
    kernel = rng.integers(-1, 2, kernel_shape).astype(numpy_dtype(dtype))
    built = Kernel(config, shape, machine=machine, ships=True)
    y = built(x, kernel, None, rng)
    np.testing.assert_array_equal(y.astype(float), conv3d_transpose(config, x, kernel, None))


@pytest.mark.nightly
@pytest.mark.parametrize("chunk", range(NIGHTLY_CHUNKS))
@settings(max_examples=-(-settings.default.max_examples // NIGHTLY_CHUNKS))
@given(example=EXAMPLE)
def test_thousands_of_compiled_layers(chunk: int, example: Example) -> None:
    check(example)
