"""Weights as Keras casts them: rounded to the compute dtype, then widened for the products."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.element import narrow, storage, widen
from tvmconv.compute.elementary import Formula
from tvmconv.compute.frame import buffer, i64, prim_func
from tvmconv.policies import numpy_dtype

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload

__all__ = ["cast", "cast_arrays", "packer"]


def cast(work: Workload, element: Any) -> Any:
    """A stored weight (variable dtype) as a value of the accumulation dtype."""
    wide = widen(element, work.variable_dtype, work.accumulate_dtype)
    if work.input_dtype in {work.variable_dtype, work.accumulate_dtype}:
        return wide
    return widen(narrow(wide, work.input_dtype), work.input_dtype, work.accumulate_dtype)


def cast_arrays(
    work: Workload, kernel: np.ndarray, bias: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The same in NumPy, of the kernel and of a bias of all filters: zeros where there is none."""
    compute, dtype = numpy_dtype(work.input_dtype), np.dtype(work.accumulate_dtype)
    start = np.zeros(work.plan.filters) if bias is None else bias
    with np.errstate(over="ignore"):
        return kernel.astype(compute).astype(dtype), start.astype(compute).astype(dtype)


def packer(work: Workload, size: int, pack_kernel: Callable[[Any, Any, Formula], None]) -> Any:
    """The function that packs Keras' kernel and bias (variable dtype), the bias as it lies.

    ``pack_kernel`` emits the statements that fill the packed kernel, of ``size`` elements, from
    Keras' kernel and the formula of an element.
    """
    filters, dtype = work.plan.filters, work.accumulate_dtype

    def body() -> None:
        kernel = buffer("kernel", work.plan.kernel_shape, storage(work.variable_dtype))
        bias = buffer("bias", (filters,), storage(work.variable_dtype))
        packed = buffer("packed", (size,), dtype)
        packed_bias = buffer("packed_bias", (filters,), dtype)
        rounded = Formula(lambda one: cast(work, one), storage(work.variable_dtype), (1,))
        pack_kernel(kernel, packed, rounded)
        with T.serial(i64(0), i64(filters)) as f:
            element = rounded.at(bias[f], i64(0)) if work.use_bias else tirx.const(0, dtype)
            T.buffer_store(packed_bias, element, [f])

    return prim_func("pack", body)
