"""A device behind ssh: candidates go there as static programs; it needs a POSIX shell alone.

`Board` is what the tuner holds; `BoardDevice` is the process that sends and runs.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvmconv.config import numpy_dtype
from tvmconv.errors import DeviceError
from tvmconv.ssh import Folder, Ssh
from tvmconv.tuning import building, device
from tvmconv.tuning.processes import ChildError

__all__ = ["Board", "BoardDevice", "main"]

#: Seconds that sending and answering may take, besides what a candidate takes.
_PATIENCE_S = 180.0
_ABOUT_S = 60.0
#: Programs that stay on the device: more than meet in a duel.
_PROGRAMS = 8
_ABOUT = (
    "{ nproc || getconf _NPROCESSORS_ONLN || echo 0; } 2>/dev/null; "
    "cat /proc/cpuinfo 2>/dev/null || true"
)


class Board:
    """A device behind ssh, and the temporary folder there.

    Parameters
    ----------
    text
        ``ssh:[USER@]HOST[:PORT][/FOLDER]``.
    triple
        What it has to be.
    static
        Whether candidates are static programs: all but those that open a CUDA driver.

    Raises
    ------
    ConfigError
        It is named otherwise.
    BuildError
        No linker for it is here.
    """

    module = "tvmconv.tuning.board"
    patience_s = _PATIENCE_S

    def __init__(self, text: str, triple: str, *, static: bool = True) -> None:
        from tvmconv.codegen import toolchain

        self._device, self._triple = Ssh.parse(text), triple
        (toolchain.find_static if static else toolchain.find_for)(triple)
        self._stack = contextlib.ExitStack()
        self._fresh: Folder | None = None
        self._lock = threading.Lock()
        self._about: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """For messages."""
        return self._device.text

    def devices(self) -> int:
        """Reach it: 1.

        Raises
        ------
        DeviceError
            It cannot be reached, is of another architecture, or has no place for files.
        """
        from tvmconv.tuning.machine import model_of

        done = self._device.call(_ABOUT, timeout=_ABOUT_S)
        count, _, told = done.stdout.decode(errors="replace").partition("\n")
        self._about = {
            "cpu_model": model_of(told) or self._triple.partition("-")[0],
            "cores": int(count) if count.strip().isdecimal() else 0,
        }
        self._open()
        return 1

    def about(self, cores: int) -> dict[str, Any]:
        """What it says of its processor; ``cores`` where it does not count them."""
        return {**self._about, "cores": self._about["cores"] or cores}

    def connection(self, seconds: float) -> dict[str, Any]:
        """What the process needs to reach the folder; a new one after a loss.

        Raises
        ------
        ChildError
            The device cannot be reached any more.
        """
        del seconds  # of ssh
        try:
            with self._lock:
                if self._fresh is None:
                    self._stack.close()
                    self._open()
                folder, self._fresh = self._fresh, None
                assert folder is not None
        except DeviceError as exc:
            raise ChildError("device", str(exc)) from exc
        return {
            "device": folder.name,
            "machine": folder.machine,
            "path": folder.path,
            "patience": self.patience_s,
        }

    def gone(self, reason: str) -> str:
        """The message when it is lost."""
        return f"{self.name} is lost ({reason})"

    def close(self) -> None:
        """Remove the folder."""
        self._stack.close()

    def _open(self) -> None:
        folder = self._stack.enter_context(self._device.folder())
        if not folder.runs(self._triple):
            self._stack.close()
            raise DeviceError(
                f"{self.name} is {folder.machine}, the target is {self._triple.partition('-')[0]}; "
                "name the device's processor with --target"
            )
        self._fresh = folder


class BoardDevice(device.Device):
    """The folder on the device, and what lies in it."""

    def __init__(self) -> None:
        super().__init__()
        self._folder: Folder
        self._patience_s = _PATIENCE_S
        self._files: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._programs: dict[str, str] = {}
        self._made = 0

    def connect(self, request: dict[str, Any]) -> dict[str, Any]:
        """Use a folder on the device."""
        ssh = Ssh.parse(request["device"])
        self._folder = Folder(ssh, request["machine"], request["path"])
        self._patience_s = request["patience"]
        self._files, self._counts, self._programs = {}, {}, {}
        return {"device": ssh.text}

    def _forget(self) -> None:
        self._folder.remove([*self._files.values(), *self._programs.values()])
        self._files, self._counts, self._programs = {}, {}, {}

    def _send(self, name: str, array: np.ndarray) -> None:
        if name not in self._files:
            self._files[name] = self._new("data")
        self._folder.put(self._files[name], np.ascontiguousarray(array).tobytes())
        self._counts[name] = array.size

    def _send_everywhere(self, size: int) -> None:
        self._counts["everywhere"] = size  # the program knows them

    def _new(self, kind: str) -> str:
        self._made += 1
        return f"{kind}-{self._made}"

    def _program(self, folder: str) -> str:
        """The program of a candidate, sent at its first use."""
        from tvmconv.codegen import device as candidates

        if folder not in self._programs:
            header, archive = (
                (Path(folder) / name.format(building.NAME)).read_bytes()
                for name in ("{}.h", "lib{}.a")
            )
            made = candidates.program(building.NAME, header, archive, self._triple)
            if len(self._programs) >= _PROGRAMS:
                oldest = next(iter(self._programs))
                self._folder.remove([self._programs.pop(oldest)])
            name = self._new("candidate")
            self._folder.put(name, made, executable=True)
            self._programs[folder] = name
        return self._programs[folder]

    def _packed(self, folder: str) -> str:
        """The packed weights of a candidate, which many have in common."""
        path = (Path(folder) / building.PACKED).resolve()
        if str(path) not in self._files:
            self._send(str(path), np.load(path))
        return self._files[str(path)]

    def _measured(
        self, folders: Sequence[str], x: str, places: str, **asked: int
    ) -> list[dict[str, Any]]:
        spec = [str(number) for number in self._spec(asked)]
        where = self._files.get(places, "-")
        words = {
            folder: [self._program(folder), *spec, self._files[x], self._packed(folder), where]
            for folder in dict.fromkeys(folders)
        }
        times = 8 * (device.FOUND + asked["calls"])
        size = times + self._counts[places] * numpy_dtype(self._work.output_dtype).itemsize
        # A candidate's own time is limited there; what many take together is the tuner's business.
        timeout = self._timeout_s * len(folders) + self._patience_s / 2
        done = self._folder.run_all([words[folder] for folder in folders], timeout=timeout)
        if done.code or len(done.stdout) != size * len(folders):
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            reason = lines[-1] if lines else f"it ended with {done.code}"
            raise DeviceError(f"{self._folder.name}: {reason}")
        answers: list[dict[str, Any]] = []
        for at in range(0, len(done.stdout), size):
            one = done.stdout[at : at + size]
            found, values = np.frombuffer(one[:times]), np.frombuffer(one[times:], np.uint8)
            answers.append(self._answer(found, values))
            if "failure" in answers[-1]:
                break
        return answers


def main() -> int:
    """Serve the requests of the device."""
    return device.serve(BoardDevice())


if __name__ == "__main__":
    sys.exit(main())
