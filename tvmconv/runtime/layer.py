"""`Conv3DTranspose`: Keras' layer, compiled at the first call for an input shape."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from tvmconv.config import DEFAULT_NAME, LayerConfig, numpy_dtype
from tvmconv.errors import ConfigError, ConfigTypeError, InputError
from tvmconv.runtime import tensors
from tvmconv.runtime.cuda_arrays import on_device
from tvmconv.runtime.state import LayerState

__all__ = ["Conv3DTranspose", "from_live"]

#: How many input shapes a layer keeps compiled.
_KEPT_SHAPES = 8


class _Compiled(Protocol):
    """What `tvmconv.cache.compiled_layer` returns."""

    def set_weights(self, weights: Sequence[np.ndarray]) -> None: ...

    def __call__(self, x: Any) -> Any: ...


class _Handle:
    """A compiled layer and the version of the weights that it has packed."""

    def __init__(self, compiled: _Compiled) -> None:
        self.compiled = compiled
        self.version = -1


class Conv3DTranspose(LayerState):
    """A transposed 3-D convolution with Keras' interface, in NumPy arrays.

    The arguments, their defaults and errors are those of ``keras.layers.Conv3DTranspose`` (Keras
    3.15); ``name``, ``trainable`` and ``dtype`` are keywords. The first call for an input shape
    compiles it, or takes it from the cache on disk; later calls only run it. Changing the weights
    packs them again and compiles nothing. One layer may be called from several threads.

    Parameters
    ----------
    target
        What to compile for, as on the command line.
    threads
        How many threads a call uses; None for as many as the process may use.
    algorithm
        ``"auto"``, ``"direct"``, ``"pairs"`` or ``"toom-cook"``.
    precision
        ``"full"``, or ``"tf32"`` on CUDA devices.

    Raises
    ------
    ConfigError
        An argument is wrong (ConfigTypeError where Keras raises a TypeError).
    """

    _numbers: Iterator[int] = itertools.count()

    def __init__(
        self,
        filters: Any,
        kernel_size: Any,
        strides: Any = (1, 1, 1),
        padding: Any = "valid",
        data_format: Any = None,
        output_padding: Any = None,
        dilation_rate: Any = (1, 1, 1),
        activation: Any = None,
        use_bias: Any = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        *,
        target: str = "native",
        threads: int | None = None,
        algorithm: str = "auto",
        precision: str = "full",
        **kwargs: Any,
    ) -> None:
        config = LayerConfig(
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            output_padding=output_padding,
            dilation_rate=dilation_rate,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            **kwargs,
        )
        unnamed = kwargs.get("name") is None
        self._start(config, unnamed, target, threads, algorithm, precision)

    def _start(
        self,
        config: LayerConfig,
        unnamed: bool,
        target: str,
        threads: int | None,
        algorithm: str,
        precision: str,
    ) -> None:
        if unnamed:
            number = next(Conv3DTranspose._numbers)
            config = replace(config, name=f"{DEFAULT_NAME}_{number}" if number else DEFAULT_NAME)
        LayerState.__init__(self, config)
        self.target, self.threads = target, threads
        self.algorithm, self.precision = algorithm, precision
        self._handles: OrderedDict[tuple[int, ...], _Handle] = OrderedDict()

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any] | LayerConfig,
        *,
        target: str = "native",
        threads: int | None = None,
        algorithm: str = "auto",
        precision: str = "full",
    ) -> Conv3DTranspose:
        """A layer from a ``get_config()`` dict of any Keras version, or from a `LayerConfig`.

        Raises
        ------
        ConfigTypeError
            The config is wrong, in Keras' words for a class that cannot be deserialised.
        """
        if not isinstance(config, LayerConfig):
            unnamed = isinstance(config, Mapping) and config.get("name") is None
            try:
                parsed = LayerConfig.from_keras(config)
            except ConfigError as exc:
                raise ConfigTypeError(
                    f"Error when deserializing class 'Conv3DTranspose' using config={config}.\n\n"
                    f"Exception encountered: {exc}"
                ) from exc
        else:
            parsed, unnamed = config, False
        layer = cls.__new__(cls)
        layer._start(parsed, unnamed, target, threads, algorithm, precision)
        return layer

    def load_weights(self, path: Any, layer: str | None = None) -> None:
        """Read the weights from a file; an unbuilt layer is built for their channels.

        Parameters
        ----------
        path
            A model file or a weights file of Keras, ``.npz`` or ``.safetensors``.
        layer
            The layer's path in the file, where it is not the only one that fits.

        Raises
        ------
        WeightsError
            The file is damaged or unsafe, or has no weights that fit this layer.
        """
        from tvmconv import weights

        found = weights.find_weights(path, self._config, layer)
        with self._lock:
            if not self.built:
                shape: list[int | None] = [None] * 5
                shape[self._config.channel_axis] = int(found[0].shape[-1])
                self._build(shape, draw=False)
            self.set_weights(found)

    def __call__(self, x: Any, training: bool | None = None) -> Any:
        """The layer's output for ``x``; compiles once for each input shape.

        Parameters
        ----------
        x
            Rank 5, any float dtype, in the layer's data format; cast to the compute dtype. With a
            CUDA target also an array on a device, of the compute dtype: the result is there, too.
        training
            Accepted and ignored.

        Raises
        ------
        InputError
            Rank, channels, dtype or sizes of ``x`` do not fit the layer. Nothing was compiled.
        BuildError
            The layer could not be compiled.
        """
        if on_device(x):
            return self._on_device(x)
        array = tensors.checked(x, self._config, self._input_shape)
        with self._lock:
            if not self.built:
                self._build(array.shape, draw=True)
        shape = tensors.output_shape(self._config, array.shape)
        if 0 in shape or 0 in array.shape:
            return tensors.without_input(self._config, self.bias, shape)
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(array, numpy_dtype(self._config.compute_dtype))
        return self._compiled(array.shape)(array)

    def _on_device(self, x: Any) -> Any:
        """The output, on its device, for an array that is on a CUDA device."""
        if not self.target.strip().startswith("cuda"):
            raise InputError(
                f"The layer '{self.name}' is for target={self.target!r}; Received: an array on a "
                "CUDA device. Give the layer target='cuda:native', or copy the array to the host."
            )
        shape = tuple(int(size) for size in x.shape)
        tensors.check_shape(shape, self._config, self._input_shape)
        with self._lock:
            if not self.built:
                self._build(shape, draw=True)
        return self._compiled(shape)(x)

    def _compiled(self, shape: tuple[int, ...]) -> _Compiled:
        """The compiled layer for one input shape, with the present weights."""
        with self._lock:
            handle = self._handles.get(shape)
            if handle is None:
                from tvmconv import cache

                handle = _Handle(
                    cache.compiled_layer(
                        self._config,
                        shape,
                        target=self.target,
                        threads=self.threads,
                        algorithm=self.algorithm,
                        precision=self.precision,
                    )
                )
                self._handles[shape] = handle
            self._handles.move_to_end(shape)
            while len(self._handles) > _KEPT_SHAPES:
                self._handles.popitem(last=False)
            if handle.version != self._version:
                handle.compiled.set_weights(self._variables())
                handle.version = self._version
            return handle.compiled

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the lock and the compiled layers, which are made again when needed."""
        left_out = ("_lock", "_handles")
        return {key: value for key, value in self.__dict__.items() if key not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
        self._handles = OrderedDict()

    def __repr__(self) -> str:
        return f"<Conv3DTranspose name={self.name}, built={self.built}>"


def from_live(layer: Any, **options: Any) -> Conv3DTranspose:
    """A layer like the live Keras layer ``layer``, with its weights if it is built.

    Keras is not imported: the object is asked for its config and weights. ``options`` are
    ``target``, ``threads``, ``algorithm`` and ``precision``.

    Raises
    ------
    ConfigError
        It is no Conv3DTranspose of Keras, or its activation is code of the user's.
    """
    cls = type(layer)
    if cls.__name__ != "Conv3DTranspose" or not cls.__module__.startswith(("keras.", "tf_keras.")):
        raise ConfigError(
            f"Expected a keras.layers.Conv3DTranspose, received {cls.__module__}.{cls.__qualname__}"
        )
    stored = {**layer.get_config(), "activation": layer.activation}
    ours = Conv3DTranspose.from_config(LayerConfig.from_keras(stored), **options)
    values = [np.asarray(value) for value in layer.get_weights()]
    if values:
        built = layer.get_build_config()
        shape = built.get("input_shape") if isinstance(built, Mapping) else None
        if shape is None:
            shape = [None] * 5
            shape[ours.config.channel_axis] = values[0].shape[-1]
        ours._build(shape, draw=False)
        ours.set_weights(values)
    return ours
