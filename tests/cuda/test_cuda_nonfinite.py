"""Kernels that are not finite, given at run time, spread as far as each GPU form says."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from cuda_samples import DEFINITION, TARGETS, Serial

from tvmconv.compute.cuda import lower, weights_nonfinite
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules import cuda as rules
from tvmconv.schedules.cuda import small

GEMM = CudaTiling("gemm", 64, 4, 4, 32, 32, 8, 2)
WMMA = CudaTiling("wmma", 128, 16, 16, 32, 32, 16, 2)
SPLIT = CudaTiling("split", 64, 4, 4, 4, 128)
TILINGS = {"definition": DEFINITION, "gemm": GEMM, "wmma": WMMA, "split": SPLIT}
BORDERED = LayerConfig(3, (3, 1, 2), strides=(2, 1, 1), padding="same")
LAYERS = ((1, 8, "float32"), (32, 8, "float32"), (32, 8, "float16"), (32, 2, "float32"))
ALONE = LayerConfig(3, (2, 1, 3), strides=(2, 1, 3), padding="valid")


@pytest.mark.parametrize("config", [BORDERED, ALONE], ids=["bordered", "alone"])
@pytest.mark.parametrize("form", ["definition", "gemm", "wmma", "small", "split"])
def test_it_spreads_as_far_as_the_form_says(form: str, config: LayerConfig) -> None:
    shape = (1, 3, 2, 4, 6)
    if form == "wmma":
        config = dataclasses.replace(config, dtype="mixed_float16")
    work = Workload.of(config, shape)
    tiling = TILINGS.get(form)
    layer = Serial(config, shape, tiling or small.shaped(work, 2, 4))
    said = weights_nonfinite(layer.form)
    rng = np.random.default_rng(7)
    kernel = rng.standard_normal(config.kernel_shape(6)).astype(np.float32)
    bias = np.zeros(3, np.float32)
    x = rng.uniform(0.1, 1.0, shape).astype(numpy_dtype(work.input_dtype))
    spread = False
    for tap in itertools.product(*map(range, config.kernel_size)):
        spoilt = kernel.copy()
        spoilt[(*tap, 1, 0)] = np.inf
        with np.errstate(invalid="ignore"):
            y, expected = layer.run(x, spoilt, bias), conv3d_transpose(config, x, spoilt, bias)
        same = np.isfinite(y) == np.isfinite(expected)
        assert not np.isfinite(y[~np.isfinite(expected)]).any()
        assert np.delete(same, 1, axis=-1).all(), "it reached another filter"
        spread |= not same.all()
    assert spread == (said == "tile")
    assert said == ("tile" if form != "definition" and config.padding == "same" else "exact")


def test_baked_kernels_that_are_not_finite_go_to_the_definition() -> None:
    for filters, size, dtype in LAYERS:
        config = LayerConfig(filters, 3, strides=2, padding="same", dtype=dtype)
        work = Workload.of(config, (1, size, size, size, 64))
        assert weights_nonfinite(lower(work, rules.decide(work, TARGETS))) == "tile"
        tiling = rules.decide(work, TARGETS, exact=True)
        assert weights_nonfinite(lower(work, tiling)) == "exact"
