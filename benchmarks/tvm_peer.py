"""TVM's own operator through Relax and TVM's default pipeline, for the record.

`topi.nn.conv3d_transpose` inserts zeros and convolves, in ``(n, c, d, h, w)`` order, and TVM has no
schedule for it on CPUs: one thread runs plain loops.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax

from benchmarks.data import Data
from benchmarks.runners import Prepared

__all__ = ["StockTvm"]


class StockTvm:
    """A Relax function with one ``conv3d_transpose``."""

    version = tvm.__version__

    def __init__(self, threads: int) -> None:
        self._target = tvm.target.Target.from_device("cpu")
        del threads

    def prepare(self, data: Data, artifact: Path | None) -> Prepared:
        """Build and load the function."""
        del artifact
        work = data.work
        if any(axis.lo < 0 or axis.hi < 0 for axis in work.axes):
            raise ValueError("the operator cannot extend its output")
        if work.dtype != "float32":
            raise ValueError("only float32 is asked of it")
        x = np.ascontiguousarray(data.x.transpose(0, 4, 1, 2, 3))
        weight = np.ascontiguousarray(data.kernel.transpose(4, 3, 0, 1, 2))
        bias = data.bias.reshape(1, -1, 1, 1, 1)
        builder = relax.BlockBuilder()
        variables = [
            relax.Var(name, relax.TensorType(array.shape, "float32"))
            for name, array in (("x", x), ("weight", weight), ("bias", bias))
        ]
        with builder.function("main", variables):
            y = relax.op.nn.conv3d_transpose(
                variables[0],
                variables[1],
                strides=list(work.strides),
                padding=[axis.lo for axis in work.axes] + [axis.hi for axis in work.axes],
            )
            y = relax.op.add(y, variables[2])
            if work.activation == "relu":
                y = relax.op.nn.relu(y)
            builder.emit_func_output(builder.emit(y))
        machine = relax.VirtualMachine(tvm.compile(builder.get(), self._target), tvm.cpu())
        arrays = [tvm.runtime.tensor(array) for array in (x, weight, bias)]
        last: list[Any] = []

        def call() -> None:
            last.clear()
            last.append(machine["main"](*arrays))

        return Prepared(call, lambda: last[0].numpy().transpose(0, 2, 3, 4, 1))
