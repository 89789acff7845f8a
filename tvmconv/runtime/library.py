"""`load` and `CompiledLayer`: a compiled layer called through ctypes, with NumPy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tvmconv import artifact
from tvmconv.errors import ArtifactError, ConfigError, InputError, WeightsError
from tvmconv.policies import numpy_dtype
from tvmconv.runtime import image, tensors
from tvmconv.runtime.call import Arguments, Call, address, checked_threads
from tvmconv.runtime.outputs import Outputs, checked_out

if TYPE_CHECKING:
    from tvmconv.config import LayerConfig
    from tvmconv.manifest import Manifest

__all__ = ["CompiledLayer", "load"]

Shape = tuple["int | None", ...]

#: Codes of the C interface; they never change (docs/artifact.md).
_OVERFLOW: Final = 6
_PROCESSOR: Final = 15
_ALIGNMENT: Final = 64  # of packed weights: a cache line, more than any element


class CompiledLayer:
    """A layer from an artifact: ``y = layer(x)``.

    It may be called from several threads at once, and after a fork. Python's global lock is
    released while it computes. Results are new NumPy arrays, or the caller's own (``out``). A
    pickled or copied layer is loaded again from the same file, with the weights that were set.

    Parameters
    ----------
    found
        The artifact; its library is loaded, which runs its code.
    threads
        How many threads a call uses; None or 0 for what the artifact was compiled with.

    Raises
    ------
    ArtifactError
        The library is missing, damaged, of another version or for another machine, or it does not
        belong to the manifest.
    """

    def __init__(self, found: artifact.Artifact, threads: int | None = None) -> None:
        self.path: Path = found.path
        self.manifest: Manifest = found.manifest
        self.threads = checked_threads(threads)
        name = self.manifest.name
        # For pickles: the working directory may change.
        self._file = str(found.path.absolute() / f"{name}.json")
        self._library = image.open_library(found)
        self._run = self._function("run", ctypes.c_int32, ctypes.c_void_p)
        self._workspace_size = self._function(
            "workspace_size", ctypes.c_size_t, ctypes.c_int32, ctypes.c_int32
        )
        self._pack = self._function("pack_weights", ctypes.c_int32, *[ctypes.c_void_p] * 3)
        self._error_text = self._function("error_text", ctypes.c_char_p, ctypes.c_int32)
        self._check_library()
        self._input_dtype = numpy_dtype(self.manifest.input_dtype)
        self._output_dtype = numpy_dtype(self.manifest.output_dtype)
        self._external = self.manifest.weights["mode"] == "external"
        self._packed: np.ndarray | None = None
        self._outputs = Outputs()
        shapes = self.manifest.input_shapes
        self._fixed = {shape: i for i, shape in enumerate(shapes) if shape[0] is not None}
        self._open = {shape[1:]: i for i, shape in enumerate(shapes) if shape[0] is None}
        # Appending to and taking from a list are atomic: no call waits for another.
        self._idle: tuple[list[Call], ...] = tuple([] for _ in shapes)
        if self._probe() == _PROCESSOR:
            raise image.OtherMachineError(
                f"the artifact {name!r} cannot run here: {self._text(_PROCESSOR)}; compile it for "
                f"this machine"
            )

    @property
    def name(self) -> str:
        """The artifact's name."""
        return self.manifest.name

    @property
    def input_shapes(self) -> tuple[Shape, ...]:
        """Every input shape it was compiled for; None as batch is open."""
        return self.manifest.input_shapes

    @property
    def output_shapes(self) -> tuple[Shape, ...]:
        """The output shape for each input shape."""
        return self.manifest.output_shapes

    @property
    def input_shape(self) -> Shape:
        """The first input shape."""
        return self.manifest.input_shapes[0]

    @property
    def output_shape(self) -> Shape:
        """The output shape for `input_shape`."""
        return self.manifest.output_shapes[0]

    @property
    def processor(self) -> str:
        """The processor whose code runs here: the one chosen of those in the library."""
        return self._text(0).rpartition(" ")[2]

    @property
    def has_weights(self) -> bool:
        """Whether a call would find weights: inside the library, or set."""
        return not self._external or self._packed is not None

    @cached_property
    def config(self) -> LayerConfig:
        """The layer's arguments.

        Raises
        ------
        ArtifactError
            The manifest holds none that this version understands.
        """
        from tvmconv.config import LayerConfig  # a third of the time of a load

        try:
            return LayerConfig.from_keras(self.manifest.layer)
        except ConfigError as exc:
            raise ArtifactError(
                f"the manifest of {self.name!r} holds a layer that this version does not "
                f"understand: {exc}"
            ) from exc

    def with_threads(self, threads: int | None) -> CompiledLayer:
        """The same layer, with the weights that it has now, for calls with other threads.

        Raises
        ------
        ConfigError
            ``threads`` is out of range.
        """
        layer = object.__new__(type(self))
        layer.__dict__.update(self.__dict__)
        layer.threads = checked_threads(threads)
        layer._idle = tuple([] for _ in self._idle)
        return layer

    def __reduce__(self) -> tuple[Any, ...]:
        digest = (self.manifest.files or {}).get(f"lib{self.name}.so")
        packed = None if self._packed is None else self._packed.tobytes()
        return _load_again, (self._file, self.threads, digest, packed)

    def __repr__(self) -> str:
        shapes = ", ".join(str(shape) for shape in self.input_shapes)
        return f"<CompiledLayer {self.name}: {shapes}, {self.manifest.input_dtype}>"

    def __call__(self, x: Any, out: np.ndarray | None = None) -> np.ndarray:
        """The layer's output for ``x``.

        Parameters
        ----------
        x
            An array of one of `input_shapes`. Another float dtype is cast; an array that is not
            dense is copied.
        out
            Where to write: dense, in the output's shape and dtype, not overlapping ``x``. Fastest
            is what an earlier call returned: it begins at a line of the cache.

        Raises
        ------
        InputError
            ``x`` or ``out`` does not fit. Nothing was computed.
        WeightsError
            The weights are external and were not set.
        """
        if type(x) is not np.ndarray or x.dtype != self._input_dtype:
            x = self._cast(x)
        flags = x.flags
        if not (flags.c_contiguous and flags.aligned):
            x = np.require(x, requirements=("C", "A"))
        shape = x.shape
        index, batch = self._fixed.get(shape), 0
        if index is None:
            index = self._open.get(shape[1:])
            if index is None:
                raise self._wrong_shape(x)
            batch = shape[0]
        packed = self._packed
        if packed is None and self._external:
            raise WeightsError(
                f"The weights of {self.name!r} are given at run time: call "
                f"set_weights([kernel, bias]) before the layer."
            )
        y = self._allocate(index, shape[0]) if out is None else self._target(index, x, out)
        try:
            call = self._idle[index].pop()
        except IndexError:
            size = self._workspace_size(index, self.threads)
            call = Call(self._arguments(index), size)
        args = call.args
        args.input = address(x)
        args.output = address(y)
        args.weights = None if packed is None else address(packed)
        args.batch = batch
        code = self._run(call.reference)
        self._idle[index].append(call)
        if code:
            error = InputError if code == _OVERFLOW else ArtifactError
            raise error(f"{self.name}_run failed with code {code}: {self._text(code)}")
        return y

    on_gpu = False
    """Whether a CUDA device computes it."""

    def repeatable(self, x: np.ndarray) -> Callable[[], object]:
        """A function that computes the output for ``x`` once more, into the same memory."""
        y = self(x)
        return lambda: self(x, out=y)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Pack kernel and, with bias, bias, for the calls that follow. Nothing is compiled.

        Parameters
        ----------
        weights
            ``[kernel, bias]`` or ``[kernel]`` in Keras' layout; real numbers, cast to the dtype of
            the variables.

        Raises
        ------
        WeightsError
            The weights are inside the library, or the number, a shape or a dtype is wrong.
        """
        if not self._external:
            raise WeightsError(
                f"The weights of {self.name!r} are inside its library; compile the layer with "
                f"external weights to give others."
            )
        self.replace_weights(weights)

    def replace_weights(self, weights: Sequence[Any]) -> None:
        """`set_weights`, also in the place of weights inside the library: for checks of its code.

        Raises
        ------
        WeightsError
            The number, a shape or a dtype is wrong.
        """
        from tvmconv.runtime.state import LayerState

        state = LayerState(self.config)
        state._build(self.input_shape, draw=False)
        state.set_weights(weights)
        values = [np.ascontiguousarray(value) for value in state.weights]
        packed = self._blob()
        addresses = [address(value) for value in values]
        bias = addresses[1] if len(addresses) > 1 else None
        code = self._pack(addresses[0], bias, address(packed))
        if code:
            raise ArtifactError(f"{self.name}_pack_weights failed, code {code}: {self._text(code)}")
        self._packed = packed

    def _blob(self) -> np.ndarray:
        """Uninitialised memory for packed weights."""
        size = int(self.manifest.weights["packed_bytes"])
        whole = np.empty(size + _ALIGNMENT, np.uint8)
        return whole[-address(whole) % _ALIGNMENT :][:size]

    def _cast(self, x: Any) -> np.ndarray:
        """``x`` in the input dtype, or Keras' error."""
        array = tensors.checked(x, self.config, self.input_shape)
        with np.errstate(over="ignore"):
            return np.asarray(array, self._input_dtype)

    def _wrong_shape(self, x: np.ndarray) -> InputError:
        try:
            tensors.checked(x, self.config, self.input_shape)
        except InputError as exc:
            return exc
        known = " or ".join(tensors.spelt(shape) for shape in self.input_shapes)
        return InputError(
            f"The artifact {self.name!r} was compiled for the input shape {known}. "
            f"Received: x.shape={x.shape}; compile it for this shape, too."
        )

    def _allocate(self, index: int, batch: int) -> np.ndarray:
        shape = (batch, *self.manifest.output_shapes[index][1:])
        try:
            return self._outputs.empty(shape, self._output_dtype)  # type: ignore[arg-type]
        except (MemoryError, ValueError) as exc:
            raise InputError(f"There is no memory for an output of shape {shape}: {exc}") from exc

    def _target(self, index: int, x: np.ndarray, out: Any) -> np.ndarray:
        shape = (x.shape[0], *self.manifest.output_shapes[index][1:])
        return checked_out(out, x, shape, self._output_dtype)

    def _check_library(self) -> None:
        """Hold the library against its manifest."""
        file = self.path / f"lib{self.name}.so"
        version = self._function("abi_version", ctypes.c_int32)()
        if version != artifact.ABI_VERSION:
            raise ArtifactError(
                f"{file} has interface version {version}, this is version "
                f"{artifact.ABI_VERSION}; compile the layer again"
            )
        text = self._function("manifest", ctypes.c_char_p)()
        inside = artifact.Manifest.from_json(text or b"", f"the manifest inside {file}")
        if inside.shared() != self.manifest.shared():
            raise ArtifactError(
                f"{file} does not belong to {self.name}.json: the manifest inside is another one; "
                f"copy the whole folder again, or compile the layer again"
            )

    def _arguments(self, index: int) -> Arguments:
        return Arguments(threads=self.threads, shape=index)

    def _probe(self) -> int:
        """The code of a call without buffers: what is wrong with the processor comes first."""
        return int(self._run(ctypes.byref(Arguments())))

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        try:
            function = getattr(self._library, f"{self.manifest.name}_{name}")
        except AttributeError as exc:
            raise ArtifactError(
                f"{self.path / f'lib{self.name}.so'} is not the library of its manifest: it lacks "
                f"{self.name}_{name}"
            ) from exc
        function.restype, function.argtypes = result, arguments
        return function

    def _text(self, code: int) -> str:
        return str(self._error_text(code).decode(errors="replace"))


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    sha256: str | None = None,
    device: int | None = None,
) -> CompiledLayer:
    """Load an artifact, which runs the code of its library: load only what you would run.

    A library of up to 16 MiB is compared with the SHA-256 in its manifest; `tvmconv.verify` does so
    for every file.

    Parameters
    ----------
    path
        The folder, or the manifest or shared library in it.
    threads
        How many threads a call uses; None or 0 for what the artifact was compiled with, by default
        as many as the process may use.
    sha256
        The SHA-256 that the library must have, in hexadecimal, where it comes from somewhere safer
        than the artifact.
    device
        For an artifact with code for CUDA devices: the index of the device that computes NumPy
        arrays, -1 for its CPU version; None for the first device, or the CPU where there is none.

    Raises
    ------
    ArtifactError
        There is no artifact, or it is damaged, of another version, or for another machine.
    ConfigError
        ``threads`` or ``device`` is out of range.
    """
    checked_threads(threads)
    found = artifact.read(path)
    image.check_machine(found.manifest)
    image.check_file(found, sha256)
    if "cuda" in found.manifest.target:
        from tvmconv.runtime.cuda import CudaLayer

        return CudaLayer(found, threads, device)
    if device not in (None, -1):
        raise ConfigError(
            f"The artifact {found.manifest.name!r} has no code for CUDA devices. "
            f"Received: device={device}"
        )
    return CompiledLayer(found, threads)


def _load_again(
    path: str, threads: int, sha256: str | None, packed: bytes | None, device: int | None = None
) -> CompiledLayer:
    """A layer from its pickle. The hash: packed weights fit the build that packed them only."""
    layer = load(path, threads=threads, sha256=sha256, device=device)
    if packed is not None:
        blob = layer._blob()
        blob[:] = np.frombuffer(packed, np.uint8)
        layer._packed = blob
    return layer
