"""Random legal layers with random tilings: compiled code against the definition in NumPy.

The reference has its own arithmetic for sizes and crops. Half of the layers get small integers, for
which every sum is exact in every dtype, so that not one bit may differ before the activation.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from kernels import Kernel, runs_here, target, variants

from tvmconv import geometry, schedules
from tvmconv.activations import Activation
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.errors import ConfigError
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import definition

CHUNKS = 16
EXAMPLES = 20  # of each chunk
MACHINES = [name for name in ("native", "x86-64-v2", "x86-64-v3", "x86-64-v4") if runs_here(name)]
POLICIES = ("float32", "float64", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16")
SMOOTH = (
    "celu", "elu", "exponential", "gelu", "hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu",
    "log_sigmoid", "mish", "relu6", "selu", "sigmoid", "silu", "softplus", "softsign",
    "soft_shrink", "sparse_plus", "sparse_sigmoid", "squareplus", "tanh", "tanh_shrink",
)  # fmt: skip
MIXING = ("softmax", "log_softmax", "glu")
SHOWN = (
    "filters", "kernel_size", "strides", "padding", "data_format", "output_padding",
    "dilation_rate", "activation", "use_bias",
)  # fmt: skip
#: Work of a layer (products) and elements of its tensors, so that one takes a fraction of a second.
MOST_PRODUCTS, MOST_ELEMENTS = 3e6, 2e5


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


SMALL = st.sampled_from((1, 1, 2, 2, 3, 3, 3, 4, 5, 6))
SIZE = st.sampled_from((1, 2, 3, 4, 5, 6, 7, 8, 9))
CHANNELS = st.one_of(st.integers(1, 9), st.integers(1, 37))
FILTERS = st.one_of(
    st.integers(1, 9), st.integers(1, 70), st.sampled_from((16, 17, 31, 32, 33, 48, 64))
)


@st.composite
def activations(draw: st.DrawFn) -> Activation | dict[str, Any] | str:
    """Names, activation layers with arguments and policies, and axes of every kind."""
    kind = draw(st.integers(0, 9))
    if kind < 3:
        return draw(st.sampled_from(("linear", "relu")))
    if kind < 6:
        return draw(st.sampled_from(SMOOTH))
    if kind < 8:
        return draw(st.sampled_from(MIXING))
    name, config = draw(
        st.sampled_from(
            (
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
        )
    )
    policy = draw(st.sampled_from(("float32", "float32", "float64", "float16", "bfloat16")))
    return {
        "module": "keras.layers",
        "class_name": name,
        "config": {"name": "act", "dtype": policy, **config},
        "registered_name": None,
    }


@st.composite
def configs(draw: st.DrawFn) -> LayerConfig:
    kernel = [draw(SMALL) for _ in range(3)]
    strides, dilation, extra = [1, 1, 1], [1, 1, 1], None
    if draw(st.integers(0, 4)):
        strides = [draw(st.sampled_from((1, 2, 2, 2, 3, 4))) for _ in range(3)]
        if draw(st.integers(0, 3)) == 0:
            extra = [draw(st.integers(0, stride - 1)) for stride in strides]
    else:
        dilation = [draw(st.sampled_from((1, 2, 3))) for _ in range(3)]
        if draw(st.integers(0, 3)) == 0:
            extra = [0, 0, 0]
    return LayerConfig(
        draw(FILTERS),
        kernel,
        strides=strides,
        padding=draw(st.sampled_from(("same", "valid"))),
        data_format=draw(st.sampled_from(("channels_last", "channels_last", "channels_first"))),
        output_padding=extra,
        dilation_rate=dilation,
        activation=draw(activations()),
        use_bias=draw(st.booleans()),
        dtype=draw(st.sampled_from((*POLICIES, "float32", "float32"))),
    )


@st.composite
def tilings(draw: st.DrawFn, work: Workload, machine: str) -> Tiling:
    """The default of the rules, or any other legal one."""
    on = target(machine)
    default = schedules.decide(work, on)
    if draw(st.integers(0, 2)) == 0:
        return default
    if default.form == "definition" or draw(st.integers(0, 5)) == 0:
        base = definition.decide(work, on)
        return variants(
            base,
            vector=draw(st.sampled_from((1, 2, 4, 8, 16))),
            registers=draw(st.integers(1, 4)),
            rows=draw(st.integers(1, 4)),
        )
    fold = draw(st.booleans()) and work.folded() is not work
    folded = work.folded() if fold else work
    vector = draw(st.sampled_from((4, 8, 16)))
    registers = draw(st.integers(1, 4))
    blocks, rest = divmod(folded.plan.filters, vector * registers)
    line = work.plan.channels_first or bool(work.mixed_axes)
    legal = [n for n in range(1, blocks + 1) if blocks % n == 0] if not rest and not line else [1]
    return variants(
        default,
        vector=vector,
        registers=registers,
        width=draw(st.integers(1, max(1, min(12, 24 // registers)))),
        rows=draw(st.integers(1, 9)),
        splits=draw(st.sampled_from(legal)),
        fold=fold,
        pack=draw(st.booleans()),
        channels_outer=draw(st.booleans()),
    )


@st.composite
def examples(draw: st.DrawFn) -> Example:
    config = draw(configs())
    channels, spatial = draw(CHANNELS), [draw(SIZE) for _ in range(3)]
    batch = draw(st.sampled_from((0, 1, 1, 1, 2, 3)))
    first = config.data_format == "channels_first"
    shape = (batch, channels, *spatial) if first else (batch, *spatial, channels)
    try:
        plan = geometry.plan(config, shape)
        open_batch = draw(st.booleans())
        work = compiled_workload(config, shape, open_batch)
    except ConfigError:  # glu over an odd axis, or no output at all.
        assume(False)
        raise
    assume(plan.flops * batch <= 2 * MOST_PRODUCTS)
    assume(math.prod(plan.kernel_shape) <= MOST_ELEMENTS)
    assume(math.prod(plan.output_shape) <= MOST_ELEMENTS)
    machine = draw(st.sampled_from(MACHINES))
    tiling = draw(tilings(work, machine))
    return Example(config, shape, open_batch, machine, tiling, draw(st.booleans()))


def data(example: Example) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
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
        slope = 2.0 if name != "glu" else 1.0 + float(magnitude.max(initial=0.0))
        worst = float(np.max(sums, initial=0.0)) + 24 * unit * (1.0 + magnitude.max(initial=0.0))
        return slope * worst + 2 * rounding(config.output_dtype) * np.abs(y) + 1e-40
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
    batch = -1 if example.open_batch else example.shape[0]
    built = Kernel(
        example.config, (batch, *example.shape[1:]), tiling=example.tiling, machine=example.machine
    )
    y = built(x, kernel, bias, np.random.default_rng(example.seed()))
    expected = conv3d_transpose(example.config, x, kernel, bias)
    assert y.shape == expected.shape
    assert y.dtype == numpy_dtype(example.config.output_dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs(y.astype(np.float64) - expected)
        limit = allowed(example, x, kernel, bias, expected)
        rounded = expected.astype(y.dtype)
        wrong = (error > limit) | np.isnan(y)
        wrong &= y != rounded  # An overflow to infinity is right.
    assert not wrong.any(), (
        f"{wrong.sum()} of {wrong.size} differ, first at {np.argwhere(wrong)[0]}: "
        f"{y[wrong][0]} instead of {expected[wrong][0]}, allowed {limit[wrong][0]:.3g}"
    )


@pytest.mark.parametrize("chunk", range(CHUNKS))
@settings(max_examples=EXAMPLES, phases=[Phase.explicit, Phase.generate])
@given(example=examples())
def test_compiled_layers_equal_the_definition(chunk: int, example: Example) -> None:
    # Hypothesis seeds each chunk with the test's id.
    check(example)


@pytest.mark.nightly
@given(example=examples())
def test_thousands_of_compiled_layers(example: Example) -> None:
    check(example)
