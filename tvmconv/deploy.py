"""An artifact on another machine: its runner goes there, figures and outputs come back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from tvmconv import artifact, verification
from tvmconv.artifact import Artifact, Report
from tvmconv.codegen import runner
from tvmconv.config import numpy_dtype
from tvmconv.errors import ConfigError, DeviceError, InputError
from tvmconv.measure import Measurement
from tvmconv.ssh import Finished, Ssh

__all__ = ["Place", "RemoteLayer", "bench", "check_name", "connect", "verify"]

_PATIENCE_S: Final = 600.0


class Place(Protocol):
    """A folder where programs run: on a device, under an emulator, or here."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def put(self, name: str, content: bytes, *, executable: bool = False) -> None:
        """Write a file."""

    def get(self, name: str, size: int) -> bytes:
        """Read a file of `size` bytes."""

    def run(self, arguments: Sequence[str], *, timeout: float) -> Finished:
        """Run a program of the folder, in it."""


class RemoteLayer:
    """An artifact whose runner lies in another place, with the face of a loaded layer.

    Parameters
    ----------
    found
        The artifact.
    place
        Gets the runner, and the files of each call.
    program
        The runner's bytes; by default the artifact's own, or one that is built now.
    threads
        Of a call; 0 for as many as a process there may use.

    Raises
    ------
    DeviceError
        The runner does not run there.
    """

    def __init__(
        self, found: Artifact, place: Place, *, program: bytes | None = None, threads: int = 0
    ) -> None:
        self.manifest = found.manifest
        self._place = place
        self._threads = threads
        self._program = runner.file_name(found.manifest.name)
        self._weights: list[str] = []
        place.put(self._program, runner.of(found) if program is None else program, executable=True)
        text = self._run("--manifest").stdout
        if text != replace(found.manifest, files=None).to_json().encode():
            raise DeviceError(f"{place.name}: {self._program} holds another manifest")

    def replace_weights(self, weights: Sequence[Any]) -> None:
        """Compute with ``[kernel, bias]``, or ``[kernel]``, of the variable dtype from now on."""
        dtype = numpy_dtype(self.manifest.variable_dtype)
        self._weights = []
        for name, value in zip(("kernel", "bias"), weights, strict=False):
            self._place.put(name, np.ascontiguousarray(value, dtype).tobytes())
            self._weights += [f"--{name}", name]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Compute the layer there.

        Raises
        ------
        InputError
            The array fits no input shape.
        DeviceError
            The runner fails.
        """
        manifest = self.manifest
        index = self._shape(x.shape)
        self._place.put("x", np.ascontiguousarray(x, numpy_dtype(manifest.input_dtype)).tobytes())
        options = ["--shape", str(index), "--input", "x", "--output", "y", *self._weights]
        if manifest.input_shapes[index][0] is None:
            options += ["--batch", str(x.shape[0])]
        self._run(*options)
        shape = (x.shape[0], *(size or 0 for size in manifest.output_shapes[index][1:]))
        dtype = numpy_dtype(manifest.output_dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return np.frombuffer(self._place.get("y", size), dtype).reshape(shape)

    def bench(self, seconds: float) -> list[Measurement]:
        """The time of a call on each input shape."""
        timeout = seconds * len(self.manifest.input_shapes) + _PATIENCE_S
        done = self._run(
            "--json", "--seconds", f"{seconds:g}", *self._weights, timeout=timeout
        )  # fmt: skip
        try:
            return [self._measurement(one) for one in json.loads(done.stdout)]
        except (ValueError, TypeError, KeyError) as exc:
            raise DeviceError(
                f"{self._place.name}: {self._program} printed no measurements: "
                f"{done.stdout[:200]!r}"
            ) from exc

    def _measurement(self, values: dict[str, Any]) -> Measurement:
        # No matrix product is measured there.
        values = {**values, "gemm_gflops": None, "gemm_dtype": "", "share": None}
        values["input_shape"] = tuple(values["input_shape"])
        names = [field.name for field in fields(Measurement)]
        return Measurement(**{name: values[name] for name in names if name != "processor"})

    def _shape(self, shape: tuple[int, ...]) -> int:
        for index, known in enumerate(self.manifest.input_shapes):
            if len(shape) == 5 and all(k in (None, n) for k, n in zip(known, shape, strict=True)):
                return index
        raise InputError(
            f"the layer {self.manifest.name!r} was compiled for {list(self.manifest.input_shapes)}"
            f". Received: an input of shape {shape}"
        )

    def _run(self, *options: str, timeout: float = _PATIENCE_S) -> Finished:
        words = [self._program, *options, "--threads", str(self._threads)]
        done = self._place.run(words, timeout=timeout)
        if done.code:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            reason = lines[-1] if lines else f"it ended with {done.code}"
            raise DeviceError(f"{self._place.name}: {reason}")
        return done


def check_name(device: str) -> None:
    """Refuse what is not the name of a device, before any work is done for it.

    Raises
    ------
    ConfigError
        It is not ``ssh:[USER@]HOST[:PORT][/FOLDER]``.
    """
    Ssh.parse(device)


@contextmanager
def connect(found: Artifact, device: str, *, threads: int = 0) -> Iterator[RemoteLayer]:
    """An artifact on a device, for as long as the block lasts; then nothing is left there.

    Parameters
    ----------
    found
        The artifact.
    device
        ``ssh:[USER@]HOST[:PORT][/FOLDER]``.
    threads
        Of a call; 0 for as many as a process there may use.

    Raises
    ------
    ConfigError
        The device is not named like that.
    DeviceError
        It cannot be reached, is of another architecture, or fails.
    BuildError
        The artifact has no runner, and none can be built here.
    """
    machine = Ssh.parse(device)
    program = runner.of(found)
    architecture = str(found.manifest.target.get("triple", "")).partition("-")[0]
    with machine.folder() as folder:
        if not folder.runs(architecture):
            raise DeviceError(
                f"{device} is {folder.machine}, the artifact {found.manifest.name!r} is for "
                f"{architecture or 'an unknown architecture'}"
            )
        yield RemoteLayer(found, folder, program=program, threads=threads)


def bench(
    path: str | Path, device: str, *, threads: int | None = None, seconds: float = 2.0
) -> list[Measurement]:
    """Time an artifact on a device, on each of its input shapes; no Python is needed there.

    Raises
    ------
    ArtifactError
        There is no artifact, or it was changed.
    ConfigError, DeviceError, BuildError
        As `connect`.
    """
    if not 0 < seconds < 1e5:
        raise ConfigError(f"Expected seconds above 0. Received: seconds={seconds}")
    with connect(artifact.read(path), device, threads=threads or 0) as layer:
        return layer.bench(seconds)


def verify(path: str | Path, device: str) -> Report:
    """Verify the files of an artifact here, and what its code computes on a device.

    Raises
    ------
    ArtifactError
        There is no artifact, or its manifest cannot be read.
    ConfigError, DeviceError, BuildError
        As `connect`.
    """
    report = artifact.verify(path)
    if not report.good:
        return report
    found = Artifact(report.path, report.manifest)
    with connect(found, device) as layer:
        finding = verification.recomputed(found, lambda: layer, device)
    return replace(report, findings=(*report.findings, finding))
