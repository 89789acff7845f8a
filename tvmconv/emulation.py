"""An artifact for another processor, run here by an emulator of it (QEMU's user mode)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Final

from tvmconv import artifact, deploy, verification
from tvmconv.artifact import Artifact, Report
from tvmconv.deploy import RemoteLayer
from tvmconv.errors import BuildError, DeviceError
from tvmconv.ssh import Finished

__all__ = ["Emulator", "emulated", "riscv_cpu", "verify"]

_QEMU: Final = {
    "x86_64": ("qemu-x86_64", "-cpu", "max"),
    "aarch64": ("qemu-aarch64", "-cpu", "max"),
    "armv7": ("qemu-arm", "-cpu", "max"),
    "riscv64": ("qemu-riscv64", "-cpu"),
}


class Emulator:
    """A folder of this machine whose programs an emulator runs; a `tvmconv.deploy.Place`.

    Parameters
    ----------
    found
        The artifact, which says of which processor.
    folder
        Where its files go.
    vector_bits
        Length of the vectors of SVE or of RISC-V's V, where the processor has them.

    Raises
    ------
    BuildError
        There is no emulator; names the package.
    DeviceError
        None is known for the architecture or the system.
    """

    def __init__(self, found: Artifact, folder: Path, vector_bits: int = 128) -> None:
        target = found.manifest.target
        triple = str(target.get("triple", ""))
        architecture = triple.partition("-")[0]
        if architecture not in _QEMU or "linux" not in triple:
            raise DeviceError(f"no emulator runs programs for {triple or 'an unknown machine'}")
        self._folder = folder
        self._command = list(_QEMU[architecture])
        self._environment = {**os.environ}
        features = [str(one) for one in target.get("features", ())]
        if architecture == "riscv64":
            self._command.append(riscv_cpu(vector_bits if "+v" in features else 0))
            # QEMU before 8.1 does not tell programs what its processor has.
            self._environment["TVMCONV_CPU"] = f"{target.get('cpu')}{''.join(features)}!"
        if architecture == "aarch64":
            lengths = [bits for bits in (128, 256, 512) if bits <= vector_bits]
            self._command[-1] += "".join(f",sve{bits}=on" for bits in lengths)
        if shutil.which(self._command[0]) is None:
            raise BuildError(
                f"the emulator {self._command[0]} was not found: install qemu-user (Debian, "
                "Ubuntu: 'apt install qemu-user')"
            )

    @property
    def name(self) -> str:
        """The emulator's."""
        return self._command[0]

    def put(self, name: str, content: bytes, *, executable: bool = False) -> None:
        """Write a file."""
        (self._folder / name).write_bytes(content)
        if executable:
            (self._folder / name).chmod(0o700)

    def get(self, name: str, size: int) -> bytes:
        """Read a file of `size` bytes.

        Raises
        ------
        DeviceError
            It has another size, or is not there.
        """
        try:
            content = (self._folder / name).read_bytes()
        except OSError as exc:
            raise DeviceError(f"{self.name}: {name} cannot be read: {exc.strerror}") from exc
        if len(content) != size:
            raise DeviceError(f"{self.name}: {name} has {len(content)} bytes, expected {size}")
        return content

    def run(self, arguments: Sequence[str], *, timeout: float) -> Finished:
        """Run a program of the folder, in it.

        Raises
        ------
        DeviceError
            It does not end in time.
        """
        program = str(self._folder / arguments[0])
        try:
            done = subprocess.run(
                [*self._command, program, *arguments[1:]],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise DeviceError(f"{self.name}: no end after {timeout:g} seconds") from exc
        return Finished(done.returncode, done.stdout, done.stderr.decode(errors="replace"))


@lru_cache(maxsize=2)
def riscv_cpu(vector_bits: int) -> str:
    """QEMU's description of a RISC-V processor (RVA22), with vectors of so many bits or without."""
    version = ""
    with suppress(OSError):
        done = subprocess.run(
            ["qemu-riscv64", "--version"], capture_output=True, text=True, check=False, timeout=600
        )
        version = done.stdout
    found = re.search(r"version (\d+)", version)
    half = "Zfhmin" if found and int(found[1]) < 8 else "zfhmin"
    vector = f",v=true,vlen={vector_bits},elen=64,vext_spec=v1.0" if vector_bits else ""
    return f"rv64,zba=true,zbb=true,zbs=true,{half}=true{vector}"


@contextmanager
def emulated(found: Artifact, *, threads: int = 0, vector_bits: int = 128) -> Iterator[RemoteLayer]:
    """An artifact in an emulator, for as long as the block lasts.

    Raises
    ------
    BuildError
        The emulator, or a linker for the runner, is missing; names the package.
    DeviceError
        It does not run there.
    """
    with tempfile.TemporaryDirectory(prefix="tvmconv-emulated-") as folder:
        place = Emulator(found, Path(folder), vector_bits)
        yield deploy.RemoteLayer(found, place, threads=threads)


def verify(path: str | Path) -> Report:
    """Verify the files of an artifact, and what its code computes in an emulator.

    Raises
    ------
    ArtifactError
        There is no artifact, or its manifest cannot be read.
    BuildError, DeviceError
        As `emulated`.
    """
    report = artifact.verify(path)
    if not report.good:
        return report
    found = Artifact(report.path, report.manifest)
    with emulated(found) as layer:
        finding = verification.recomputed(found, lambda: layer, "an emulator")
    return replace(report, findings=(*report.findings, finding))
