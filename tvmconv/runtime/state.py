"""`LayerState`: a layer's config and weights, with the methods that Keras has for them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np

from tvmconv import geometry
from tvmconv.config import ARGUMENTS, LayerConfig, numpy_dtype
from tvmconv.errors import ConfigError, WeightsError

__all__ = ["LayerState"]

#: Read from the config; the rest of it is under the names below.
_ATTRIBUTES = frozenset(ARGUMENTS) | {"variable_dtype"}


class LayerState:
    """What a layer knows before anything runs: its arguments, its input channels, its weights.

    ``_version`` counts the changes of the weights, so that compiled layers can tell old from new.
    """

    def __init__(self, config: LayerConfig) -> None:
        self._config = config
        self._input_shape: tuple[int | None, ...] | None = None
        self._values: list[np.ndarray] | None = None
        self._version = 0
        self._lock = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        """Keras' attributes of the arguments: ``filters``, ``strides``, ``padding`` and so on."""
        if name in _ATTRIBUTES:
            return getattr(self._config, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_ATTRIBUTES})

    def get_config(self) -> dict[str, Any]:
        """Keras' config of the layer, ready for JSON; `from_config` takes it back."""
        return self._config.get_config()

    @property
    def config(self) -> LayerConfig:
        """The arguments, normalised."""
        return self._config

    @property
    def name(self) -> str:
        """The layer's name."""
        return self._config.name

    @property
    def trainable(self) -> bool:
        """Kept for the config; nothing is trained here."""
        return self._config.trainable

    @property
    def dtype(self) -> str:
        """The dtype of the variables, as in Keras."""
        return self._config.variable_dtype

    @property
    def compute_dtype(self) -> str:
        """The dtype to which input and weights are rounded."""
        return self._config.compute_dtype

    @property
    def built(self) -> bool:
        """Whether the number of input channels is known and the layer has weights."""
        return self._input_shape is not None

    @property
    def kernel(self) -> np.ndarray:
        """The kernel ``(kd, kh, kw, filters, in_channels)``, read-only."""
        return self._variables()[0]

    @property
    def bias(self) -> np.ndarray | None:
        """The bias ``(filters,)``, read-only; None without one."""
        variables = self._variables()
        return variables[1] if len(variables) > 1 else None

    @property
    def weights(self) -> list[np.ndarray]:
        """``[kernel, bias]`` or ``[kernel]``, read-only; empty before the layer is built."""
        return list(self._variables()) if self.built else []

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the weights for ``input_shape``, of which only the channels matter.

        Raises
        ------
        ConfigError
            The channels are unknown or no positive integer, or the layer is already built.
        """
        with self._lock:
            if self.built:
                raise ConfigError(
                    "You cannot add new elements of state (variables or sub-layers) to a layer "
                    "that is already built. All state must be created in the `__init__()` method "
                    "or in the `build()` method."
                )
            self._build(input_shape, draw=True)

    def _build(self, input_shape: Sequence[int | None], *, draw: bool) -> None:
        try:
            shape = tuple(input_shape)
            channels = shape[-1 if self._config.channel_axis == 4 else 1]
        except (TypeError, IndexError) as exc:
            raise ConfigError(
                f"The input shape of layer '{self.name}' must have 5 sizes. "
                f"Received: input_shape={input_shape}"
            ) from exc
        if self._config.kernel_shape(channels)[-1] < 1:
            raise ConfigError(
                f"The input of layer '{self.name}' must have at least one channel. "
                f"Received: input_shape={shape}"
            )
        both = (self._config.kernel_initializer, self._config.bias_initializer)
        # A custom initializer of a stored config is not run; the weights will be set.
        if draw and all(one is None or one.drawable for one in both):
            self._values = _frozen(self._config.initial_weights(channels))
        self._input_shape = shape

    def _shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the variables, none before the layer is built."""
        if self._input_shape is None:
            return []
        axis = -1 if self._config.channel_axis == 4 else 1
        return self._config.weight_shapes(self._input_shape[axis])

    def _variables(self) -> list[np.ndarray]:
        shapes = self._shapes()
        if not shapes:
            raise ConfigError(f"Layer '{self.name}' has no weights: it has not been built yet.")
        with self._lock:
            if self._values is None:
                self._values = _frozen(self._config.initial_weights(shapes[0][-1]))
            return self._values

    def get_build_config(self) -> dict[str, Any] | None:
        """``{"input_shape": ...}`` as given to build, or None before."""
        return None if self._input_shape is None else {"input_shape": self._input_shape}

    def build_from_config(self, config: Mapping[str, Any]) -> None:
        """Build from `get_build_config`'s dict; without an input shape, do nothing."""
        if config and config.get("input_shape") is not None:
            self.build(config["input_shape"])

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> list[int | None]:
        """Keras' static output shape; None stays None, and the activation is not looked at."""
        return geometry.output_shape(self._config, input_shape)

    def count_params(self) -> int:
        """How many numbers the weights hold.

        Raises
        ------
        ConfigError
            The layer has not been built.
        """
        if not self.built:
            raise ConfigError(
                f"You tried to call `count_params` on layer '{self.name}', but the layer isn't "
                "built. You can build it manually via: `layer.build(input_shape)`."
            )
        return sum(int(np.prod(shape, dtype=np.int64)) for shape in self._shapes())

    def get_weights(self) -> list[np.ndarray]:
        """Copies of ``[kernel, bias]`` or ``[kernel]``; empty before the layer is built."""
        return [value.copy() for value in self.weights]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Replace all weights, cast to the variable dtype; shapes must be equal.

        Raises
        ------
        WeightsError
            The count or a shape differs, or an array does not hold real numbers.
        """
        shapes = self._shapes()
        if len(weights) != len(shapes):
            raise WeightsError(
                f"You called `set_weights(weights)` on layer '{self.name}' with a weight list of "
                f"length {len(weights)}, but the layer was expecting {len(shapes)} weights."
            )
        values = [self._real(value) for value in weights]
        for shape, value in zip(shapes, values, strict=True):
            if value.shape != shape:
                raise WeightsError(
                    f"Layer {self.name} weight shape {shape} is not compatible with provided "
                    f"weight shape {value.shape}."
                )
        self._assign(values)

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Put copies of the weights into ``store`` under the keys "0" and "1", as Keras does."""
        for index, value in enumerate(self.get_weights()):
            store[str(index)] = value

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Take the weights from ``store``, where they have the keys "0" and "1".

        Raises
        ------
        WeightsError
            The number or a shape differs, or the layer has not been built.
        ConfigError
            The keys are others.
        """
        shapes, keys = self._shapes(), list(store.keys())
        names = ["kernel", "bias"][: len(shapes)]
        if len(keys) != len(shapes):
            if not shapes:
                raise WeightsError(
                    f"Layer '{self.name}' was never built and thus it doesn't have any variables. "
                    f"However the weights file lists {len(keys)} variables for this layer."
                )
            raise WeightsError(
                f"Layer '{self.name}' expected {len(shapes)} variables, but received {len(keys)} "
                f"variables during loading. Expected: {names}"
            )
        values = []
        for index, (name, shape) in enumerate(zip(names, shapes, strict=True)):
            if str(index) not in keys:
                raise ConfigError(
                    f"The variables of layer '{self.name}' must have the keys '0' and '1'. "
                    f"Received: {keys}"
                )
            value = self._real(store[str(index)])
            if value.shape != shape:
                raise WeightsError(
                    "The shape of the target variable and the shape of the target value in "
                    f"`variable.assign(value)` must match. variable.shape={shape}, Received: "
                    f"value.shape={value.shape}. Target variable: <Variable path={self.name}/"
                    f"{name}, shape={shape}, dtype={self.dtype}>"
                )
            values.append(value)
        self._assign(values)

    def _real(self, value: Any) -> np.ndarray:
        """An array of real numbers in the variable dtype."""
        array = np.asarray(value)
        if not (array.dtype.kind in "fiub" or array.dtype.name == "bfloat16"):
            raise WeightsError(
                f"The weights of layer '{self.name}' must be real numbers. "
                f"Received an array of dtype {array.dtype}."
            )
        with np.errstate(over="ignore"):
            return array.astype(numpy_dtype(self._config.variable_dtype))

    def _assign(self, values: list[np.ndarray]) -> None:
        with self._lock:
            if values:
                self._values = _frozen(values)
                self._version += 1


def _frozen(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Read-only copies: compiled layers would not see a change in place."""
    copies = [np.array(value) for value in values]
    for copy in copies:
        copy.setflags(write=False)
    return copies
