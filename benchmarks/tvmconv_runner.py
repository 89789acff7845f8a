"""tvmconv itself, through Python: the way its users call it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import tvmconv
from benchmarks.data import Array, Data, aligned
from benchmarks.runners import Prepared
from benchmarks.workloads import Workload

__all__ = ["Into", "New", "layer_of"]


def layer_of(
    work: Workload,
    data: Data | None = None,
    *,
    data_format: str = "channels_last",
    dtype: str | None = None,
) -> tvmconv.Conv3DTranspose:
    """The layer of a workload; with ``data``, with its weights."""
    layer = tvmconv.Conv3DTranspose(
        work.filters,
        work.kernel,
        strides=work.strides,
        padding=work.padding,
        activation=work.activation,
        data_format=data_format,
        dtype=dtype or work.dtype,
        name=work.name,
    )
    if data is not None:
        batch, *sizes, channels = work.input_shape
        first = data_format == "channels_first"
        layer.build((batch, channels, *sizes) if first else work.input_shape)
        layer.set_weights([data.kernel, data.bias])
    return layer


class Into:
    """Calls with ``out``: the result goes into an array that the caller keeps."""

    version = tvmconv.__version__

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def prepare(self, data: Data, artifact: Path | None) -> Prepared:
        """Load the artifact."""
        assert artifact is not None
        layer = tvmconv.load(artifact, threads=self._threads)
        x = data.stored
        # Not a result of the layer: the first call, and what it takes, is still to be measured.
        out = aligned(np.zeros(data.work.output_shape, data.dtype))
        return Prepared(lambda: layer(x, out), lambda: out)


class New:
    """Calls without ``out``: every result is a new array."""

    version = tvmconv.__version__

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def prepare(self, data: Data, artifact: Path | None) -> Prepared:
        """Load the artifact."""
        assert artifact is not None
        layer = tvmconv.load(artifact, threads=self._threads)
        x = data.stored
        last: list[Array] = []

        def call() -> None:
            # The result before goes first, as in a program that uses one result at a time.
            last.clear()
            last.append(layer(x))

        return Prepared(call, lambda: last[0])
