"""Keras on TensorFlow, as a compiled function; with and without XLA."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.data import Array, Data
from benchmarks.runners import Prepared

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

__all__ = ["Keras", "KerasXla"]


class Keras:
    """The layer inside ``tf.function``."""

    xla = False

    def __init__(self, threads: int) -> None:
        self.version = f"{keras.__version__} on TensorFlow {tf.__version__}"
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)

    def prepare(self, data: Data, artifact: Path | None) -> Prepared:
        """A concrete function for the shape."""
        del artifact
        work = data.work
        layer = keras.layers.Conv3DTranspose(
            work.filters,
            work.kernel,
            strides=work.strides,
            padding=work.padding,
            activation=work.activation,
            dtype=work.dtype,
        )
        layer.build(work.input_shape)
        layer.set_weights([data.kernel, data.bias])
        x = tf.cast(tf.constant(data.x), work.dtype)
        function = tf.function(layer, jit_compile=self.xla).get_concrete_function(x)
        last: list[Any] = []

        def call() -> None:
            last.clear()
            last.append(function(x))

        def output() -> Array:
            found: Array = last[0].numpy()
            return found

        return Prepared(call, output)


class KerasXla(Keras):
    """The same, compiled by XLA."""

    xla = True
