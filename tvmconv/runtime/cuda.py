"""`CudaLayer`: a compiled layer on CUDA devices, for arrays that are there and for NumPy's."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from tvmconv.artifact import Artifact
from tvmconv.errors import ArtifactError, ConfigError, InputError, WeightsError
from tvmconv.runtime import cuda_driver, image, tensors
from tvmconv.runtime.call import Arguments, address
from tvmconv.runtime.cuda_arrays import (
    DeviceArray,
    View,
    device_of,
    on_device,
    stream_of,
    view,
)
from tvmconv.runtime.cuda_driver import PER_THREAD_STREAM, Device, DriverError, Memory
from tvmconv.runtime.library import CompiledLayer

__all__ = ["CPU", "CudaLayer"]

CPU: Final = -1
"""``device`` of the CPU version."""

#: Bytes; of inputs and outputs on a device, as the kernels load and store them.
ALIGNMENT: Final = 16
#: Codes of the C interface that the caller's arrays are to blame for (docs/cuda.md).
_INPUT_CODES: Final = (6, 10, 11, 38, 39, 40, 41, 42)
#: Sizes and streams for which memory is kept.
_MOST_KINDS: Final = 32


class CudaArguments(Arguments):
    """NAME_args of a library with code for CUDA devices."""

    _fields_ = [("stream", ctypes.c_void_p), ("device", ctypes.c_int32)]  # noqa: RUF012
    #: Somebody has to hold the weights until the call is queued.
    weights_memory: Memory | None = None


class CudaLayer(CompiledLayer):
    """A layer from an artifact for CUDA devices: ``y = layer(x)``.

    Arrays on a device (torch, cupy, jax and whatever else has ``__dlpack__`` or
    ``__cuda_array_interface__``) are used where they are, on the caller's stream; the result is a
    `DeviceArray`, which they take without a copy, or the caller's ``out``. The call returns when
    the work is queued. NumPy arrays are copied to the device and back. Threads may call at once.

    Parameters
    ----------
    found
        The artifact; its library is loaded, which runs its code.
    threads
        Of the CPU version, where there is one.
    device
        Index of the CUDA device for NumPy arrays; -1 for the CPU version. None: the first device,
        or where none can be used, the CPU version.

    Raises
    ------
    ArtifactError
        As `CompiledLayer`, or no CUDA device can be used, or the device has another architecture.
    ConfigError
        There is no such device, or no CPU version.
    """

    def __init__(
        self, found: Artifact, threads: int | None = None, device: int | None = None
    ) -> None:
        about = found.manifest.target["cuda"]
        self.device = _chosen(found, about, device)
        super().__init__(found, threads)
        self._blocks: dict[tuple[int, int, int, int], list[Memory]] = {}
        self._captured: list[Memory] = []
        self._uploaded: dict[int, tuple[np.ndarray, Memory]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        again, (file, threads, digest, packed) = super().__reduce__()
        return again, (file, threads, digest, packed, self.device)

    def __repr__(self) -> str:
        where = "the CPU" if self.device == CPU else f"cuda:{self.device}"
        return f"{super().__repr__()[:-1]}, {where}>"

    def _arguments(self, index: int) -> CudaArguments:
        return CudaArguments(threads=self.threads, shape=index, device=CPU)

    def __call__(  # type: ignore[override]
        self, x: Any, out: Any = None, *, stream: Any = None
    ) -> np.ndarray | DeviceArray | Any:
        """The layer's output for ``x``.

        Parameters
        ----------
        x
            An array of one of `input_shapes`. On a CUDA device: dense, in the input dtype, aligned
            to 16 bytes. In host memory: as for any artifact.
        out
            Where to write: of the same kind as ``x``, on the same device, dense, in the output's
            shape and dtype, not overlapping ``x``.
        stream
            The CUDA stream of an array on a device: a stream of torch or cupy, or its handle. None:
            torch's or cupy's current one for their arrays, else the default stream.

        Returns
        -------
        numpy.ndarray or DeviceArray
            Of the kind of ``x``; ``out`` itself where it was given.

        Raises
        ------
        InputError
            ``x``, ``out`` or ``stream`` does not fit. Nothing was computed.
        WeightsError
            The weights are external and were not set.
        """
        if on_device(x):
            return self._on_device(x, out, stream)
        if stream is not None:
            raise InputError("Expected x on a CUDA device with stream=. Received another array.")
        if out is not None and not isinstance(out, np.ndarray):
            raise InputError(f"Expected out to be a NumPy array as x is. Received: {type(out)}")
        if self.device == CPU:
            return super().__call__(x, out)
        return self._copied(x, out)

    @property
    def on_gpu(self) -> bool:  # type: ignore[override]
        """Whether a CUDA device computes NumPy arrays."""
        return self.device != CPU

    def repeatable(self, x: np.ndarray) -> Callable[[], object]:
        """A function that computes the output on the device once more, and waits for it."""
        if not self.on_gpu:
            return super().repeatable(x)
        device = cuda_driver.device(self.device)
        given = DeviceArray(device.allocate(x.nbytes), x.shape, x.dtype, 0)
        device.upload(given.pointer, address(np.ascontiguousarray(x)), x.nbytes, 0)
        y = self(given)

        def call() -> None:
            self(given, out=y)
            device.synchronize(0)

        return call

    def prepared(self, x: DeviceArray, y: DeviceArray, stream: int) -> Callable[[], None]:
        """A function that queues a call on a stream, over and over for the same arrays.

        It looks at nothing but what the library answers: for measurements.
        """
        device = cuda_driver.device(self.device)
        index, batch = self._index(x.shape, x)
        args = self._filled(index, batch, x.pointer, y.pointer, device, stream)
        kept: list[object] = [x, y]
        size = self.manifest.target["cuda"]["workspace_bytes"][index]
        if size:
            size = self._workspace_size(index, 0)
            kept.append(workspace := device.allocate(size))
            args.workspace, args.workspace_size = workspace.pointer, size
        reference = ctypes.byref(args)

        def call() -> None:
            self._finish(self._run(reference))

        call.__dict__["kept"] = kept  # as long as somebody may call

        return call

    def _copied(self, x: Any, out: np.ndarray | None) -> np.ndarray:
        """The output for an array in host memory, through copies on the device."""
        if type(x) is not np.ndarray or x.dtype != self._input_dtype:
            x = self._cast(x)
        x = np.require(x, requirements=("C", "A"))
        index, batch = self._index(x.shape, x)
        y = self._allocate(index, x.shape[0]) if out is None else self._target(index, x, out)
        device = cuda_driver.device(self.device)
        stream = PER_THREAD_STREAM
        sizes = (x.nbytes, y.nbytes)
        free = [self._idle_blocks(device, stream, size) for size in sizes]
        given, made = (self._block(device, *pair) for pair in zip(free, sizes, strict=True))
        if x.nbytes:
            device.upload(given.pointer, address(x), x.nbytes, stream)
        self._launch(index, batch, given.pointer, made.pointer, device, stream)
        if y.nbytes:
            device.download(address(y), made.pointer, y.nbytes, stream)
        for blocks, memory in zip(free, (given, made), strict=True):
            if len(blocks) < 2:
                blocks.append(memory)
        return y

    def _on_device(self, x: Any, out: Any, stream: Any) -> Any:
        home = device_of(x)
        device = cuda_driver.device(home)
        handle = stream_of(stream, x, home)
        given = self._view(x, "x", self.manifest.input_dtype, device, handle)
        index, batch = self._index(given.shape, x)
        inner = [size or 0 for size in self.manifest.output_shapes[index][1:]]
        shape = (given.shape[0], *inner)
        if out is None:
            y = self._new(device, handle, shape)
            self._launch(index, batch, given.pointer, y.pointer, device, handle)
            return y
        if not on_device(out):
            raise InputError(
                f"Expected out to be on the CUDA device of x, cuda:{home}. Received: {type(out)}"
            )
        target = self._view(out, "out", self.manifest.output_dtype, device, handle)
        if target.shape != shape or target.read_only:
            raise InputError(
                f"Expected out to be writeable and of shape {shape}. "
                f"Received: shape={target.shape}, writeable={not target.read_only}"
            )
        first, last = sorted((given, target), key=lambda one: one.pointer)
        if first.nbytes and last.nbytes and first.pointer + first.nbytes > last.pointer:
            raise InputError("Expected out not to overlap the input. Received an array that does.")
        self._launch(index, batch, given.pointer, target.pointer, device, handle)
        return out

    def _view(self, x: Any, what: str, dtype: str, device: Device, stream: int) -> View:
        """Somebody's array, if the kernels can use it as it is."""
        array = view(x, stream)
        home = device_of(x)
        if home != device.index:
            raise InputError(
                f"Expected {what} on cuda:{device.index}. Received: an array on cuda:{home}."
            )
        if array.dtype != dtype:
            raise InputError(
                f"Expected {what} of dtype {dtype} on the device. Received: {array.dtype}; "
                "cast it there first."
            )
        if not array.dense:
            raise InputError(
                f"Expected {what} dense in C order. Received: strides that are not; "
                f"{what}.contiguous() of torch or ascontiguousarray of cupy makes a copy that is."
            )
        if array.pointer % ALIGNMENT and array.nbytes:
            raise InputError(
                f"Expected {what} aligned to {ALIGNMENT} bytes on the device. Received: an address "
                f"that is not; {what}.clone() of torch or {what}.copy() of cupy is."
            )
        if array.stream is not None:
            device.order(array.stream, stream)
        return array

    def _index(self, shape: tuple[int, ...], x: Any) -> tuple[int, int]:
        """The input shape that fits, and the batch to pass on."""
        index = self._fixed.get(shape)
        if index is not None:
            return index, 0
        index = self._open.get(shape[1:])
        if index is None:
            if isinstance(x, np.ndarray):
                raise self._wrong_shape(x)
            known = " or ".join(map(tensors.spelt, self.input_shapes))
            raise InputError(
                f"The artifact {self.name!r} was compiled for the input shape {known}. "
                f"Received: x.shape={shape}; compile it for this shape, too."
            )
        return index, shape[0]

    def _new(self, device: Device, stream: int, shape: tuple[int, ...]) -> DeviceArray:
        if device.is_captured(stream):
            raise InputError(
                "Expected out= during the capture of a CUDA graph: a new output could be gone when "
                "the graph runs. Received none."
            )
        size = self._output_dtype.itemsize
        for extent in shape:
            size *= extent
        blocks = self._idle_blocks(device, stream, size)
        memory = self._block(device, blocks, size)
        return DeviceArray(memory, shape, self._output_dtype, stream, blocks)

    def _idle_blocks(self, device: Device, stream: int, size: int) -> list[Memory]:
        """Memory of this size that only work of this stream, queued before, may still use."""
        thread = threading.get_ident() if stream == PER_THREAD_STREAM else 0
        if len(self._blocks) > _MOST_KINDS:
            self._blocks.clear()
        return self._blocks.setdefault((device.index, max(stream, 1), thread, size), [])

    @staticmethod
    def _block(device: Device, idle: list[Memory], size: int) -> Memory:
        try:
            return idle.pop()
        except IndexError:
            return device.allocate(size)

    def _launch(self, index: int, batch: int, x: int, y: int, device: Device, stream: int) -> None:
        """Queue one call. All arrays are on the device."""
        args = self._filled(index, batch, x, y, device, stream)
        if not self.manifest.target["cuda"]["workspace_bytes"][index]:
            self._finish(self._run(ctypes.byref(args)))
            return
        size = self._workspace_size(index, 0)
        idle = self._idle_blocks(device, stream, size)
        workspace = self._block(device, idle, size)
        args.workspace, args.workspace_size = workspace.pointer, size
        code = self._run(ctypes.byref(args))
        if device.is_captured(stream):
            self._captured.append(workspace)  # the graph uses it whenever it runs
        else:
            idle.append(workspace)
        self._finish(code)

    def _filled(
        self, index: int, batch: int, x: int, y: int, device: Device, stream: int
    ) -> CudaArguments:
        """The arguments of a call, but for its workspace."""
        packed = self._packed
        if packed is None and self._external:
            raise self._no_weights()
        args = CudaArguments(shape=index, batch=batch, device=device.index)
        args.input, args.output, args.stream = x, y, stream
        if packed is not None:
            args.weights_memory = self._weights_on(device, packed)
            args.weights = args.weights_memory.pointer
        return args

    def _weights_on(self, device: Device, packed: np.ndarray) -> Memory:
        """The packed weights on a device, uploaded once."""
        kept = self._uploaded.get(device.index)
        if kept is not None and kept[0] is packed:
            return kept[1]
        memory = device.allocate(packed.nbytes)
        device.upload(memory.pointer, address(packed), packed.nbytes, PER_THREAD_STREAM)
        self._uploaded[device.index] = (packed, memory)
        return memory

    def _finish(self, code: int) -> None:
        if code:
            text = f"{self.name}_run failed with code {code}: {self._text(code)}"
            if code >= cuda_driver.FIRST_CODE:
                raise DriverError(text, code - cuda_driver.FIRST_CODE)
            raise (InputError if code in _INPUT_CODES else ArtifactError)(text)

    def _no_weights(self) -> WeightsError:
        return WeightsError(
            f"The weights of {self.name!r} are given at run time: call "
            f"set_weights([kernel, bias]) before the layer."
        )


def _chosen(found: Artifact, about: Any, device: int | None) -> int:
    """The device that a layer runs on, of those that it was compiled for."""
    name, built = found.manifest.name, ", ".join(about["architectures"])
    if device == CPU or (device is None and about["cpu"] and cuda_driver.unavailable()):
        if not about["cpu"]:
            raise ConfigError(
                f"The artifact {name!r} has no CPU version: compile it for 'cuda:...|native'. "
                f"Received: device={device}"
            )
        return CPU
    reason = cuda_driver.unavailable()
    if reason:
        raise image.OtherMachineError(
            f"the artifact {name!r} is for CUDA devices ({built}) and cannot run here: {reason}"
        )
    index = 0 if device is None else device
    try:
        chosen = cuda_driver.device(index)
    except InputError as exc:
        raise ConfigError(str(exc)) from exc
    major, minor = chosen.capability
    numbers = [divmod(int(one.removeprefix("sm_")), 10) for one in about["architectures"]]
    if not any(
        (major == of and minor >= least) or (major, minor) >= max(numbers) for of, least in numbers
    ):
        raise image.OtherMachineError(
            f"the artifact {name!r} is for CUDA devices {built} or later; {chosen.name} "
            f"(cuda:{index}) is sm_{major}{minor}: compile it for this device"
        )
    return index
