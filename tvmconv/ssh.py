"""A temporary folder on another machine, and commands in it, through the system's ssh.

The other machine needs a POSIX shell, mktemp, cat, wc and rm; neither scp nor sftp, which small
systems lack. Whatever is sent as part of a command is quoted for that shell. ssh is never asked to
ask: a password or an unknown host key is a failure.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tvmconv.errors import ConfigError, DeviceError

__all__ = ["Finished", "Folder", "Ssh"]

_LOG = logging.getLogger(__name__)
_OPTIONS: Final = (
    "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15",
    "-o", "ServerAliveCountMax=4", "-o", "ForwardX11=no", "-o", "ForwardAgent=no",
)  # fmt: skip
_PLACE: Final = re.compile(
    r"ssh:(?P<destination>(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?"
    r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?\]))"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<folder>/.*)?\Z"
)
#: ``uname -m`` -> the architectures of LLVM's triples that run there.
_RUNS: Final = {
    "x86_64": ("x86_64",),
    "aarch64": ("aarch64", "armv7"),
    "arm64": ("aarch64",),
    "armv7l": ("armv7",),
    "armv8l": ("armv7",),
    "riscv64": ("riscv64",),
}
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_ADMINISTRATION_S: Final = 300.0
_SLOWEST_BYTES_A_SECOND: Final = 50_000
_SSH_FAILED: Final = 255


@dataclass(frozen=True)
class Finished:
    """A command that ended: its exit code and what it wrote."""

    code: int
    stdout: bytes
    stderr: str


@dataclass(frozen=True)
class Ssh:
    """Another machine.

    Parameters
    ----------
    text
        As it was named, for messages.
    destination
        ``[USER@]HOST``, or a name of the user's ssh configuration.
    port
        None for what that configuration says.
    parent
        The folder in which temporary ones are made; empty for ``$TMPDIR`` there, or ``/tmp``.
    """

    text: str
    destination: str
    port: int | None = None
    parent: str = ""

    @classmethod
    def parse(cls, text: str) -> Ssh:
        """Read ``ssh:[USER@]HOST[:PORT][/FOLDER]``.

        Raises
        ------
        ConfigError
            It is not of that form.
        """
        match = _PLACE.match(text)
        port = int(match["port"]) if match and match["port"] else None
        if not match or _CONTROL.search(text) or (port is not None and not 0 < port < 65536):
            raise ConfigError(
                f"device {text!r}: expected ssh:[USER@]HOST[:PORT][/FOLDER], with a host or a name "
                "of your ssh configuration"
            )
        destination = match["destination"].replace("[", "").replace("]", "")
        return cls(text, destination, port, (match["folder"] or "").rstrip("/"))

    @contextmanager
    def folder(self) -> Iterator[Folder]:
        """A new folder that only its owner can read; removed in the end, whatever happens.

        Raises
        ------
        DeviceError
            The machine cannot be reached, or has no place for it.
        """
        parent = shlex.quote(self.parent) if self.parent else '"${TMPDIR:-/tmp}"'
        made = self.call(
            f"umask 077; uname -m && mktemp -d {parent}/tvmconv-XXXXXXXXXX",
            timeout=_ADMINISTRATION_S,
        )
        lines = made.stdout.decode(errors="replace").splitlines()
        if made.code or len(lines) != 2 or not lines[1].startswith("/"):
            raise DeviceError(f"{self.text} has no folder for temporary files: {_reason(made)}")
        machine, path = lines
        try:
            yield Folder(self, machine, path)
        finally:
            try:
                self.call(f"rm -rf -- {shlex.quote(path)}", timeout=_ADMINISTRATION_S)
            except DeviceError as exc:
                _LOG.warning("%s: the folder %s stays there: %s", self.text, path, exc)

    def call(self, script: str, *, given: bytes = b"", timeout: float) -> Finished:
        """Run a line of shell there.

        Parameters
        ----------
        script
            One line for a POSIX shell, quoted by the caller.
        given
            Its standard input.
        timeout
            Seconds until it is given up.

        Raises
        ------
        DeviceError
            ssh is not there, cannot connect, loses the connection, or needs too long.
        """
        # What a login script prints comes before the mark.
        mark = f"tvmconv-{secrets.token_hex(8)}"
        text = f"printf '%s\\n' {mark}; {script}"
        remote = f"exec sh -c {shlex.quote(text)}"
        port = ["-p", str(self.port)] if self.port is not None else []
        command = [*_program(), *_OPTIONS, *port, "--", self.destination, remote]
        _LOG.debug("%s: %s", self.text, script)
        try:
            done = subprocess.run(
                command, input=given, capture_output=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as exc:
            raise DeviceError(f"{self.text} did not answer within {timeout:g} s") from exc
        except OSError as exc:
            raise DeviceError(f"{command[0]} cannot be started: {exc.strerror or exc}") from exc
        stderr = done.stderr.decode(errors="replace")
        _, there, stdout = done.stdout.partition(f"{mark}\n".encode())
        if done.returncode == _SSH_FAILED or not there:
            reason = _last_line(stderr) or f"ssh ended with {done.returncode}"
            what = "was lost" if there else "cannot be reached"
            hint = "" if there else f"; 'ssh {self.destination} true' must work without a question"
            raise DeviceError(f"{self.text} {what}: {reason}{hint}")
        return Finished(done.returncode, stdout, stderr)


@dataclass(frozen=True)
class Folder:
    """A temporary folder on another machine.

    Parameters
    ----------
    device
        The machine.
    machine
        Its architecture, as ``uname -m`` says it.
    path
        The folder there.
    """

    device: Ssh
    machine: str
    path: str

    @property
    def name(self) -> str:
        """The device, for messages."""
        return self.device.text

    def runs(self, triple: str) -> bool:
        """Whether programs for a triple run there, as far as the architecture tells."""
        return triple.partition("-")[0] in _RUNS.get(self.machine, (self.machine,))

    def put(self, name: str, content: bytes, *, executable: bool = False) -> None:
        """Write a file.

        Raises
        ------
        DeviceError
            It does not arrive whole.
        """
        file = self._quoted(name)
        mode = "700" if executable else "600"
        script = f"cat > {file} && chmod {mode} {file} && wc -c < {file}"
        done = self.device.call(script, given=content, timeout=_transfer_s(len(content)))
        if done.code or done.stdout.split() != [str(len(content)).encode()]:
            raise DeviceError(
                f"{self.name}: {name} ({len(content):,} bytes) could not be written to "
                f"{self.path}: {_reason(done)}"
            )

    def get(self, name: str, size: int) -> bytes:
        """Read a file of `size` bytes.

        Raises
        ------
        DeviceError
            It cannot be read, or has another size.
        """
        done = self.device.call(f"cat {self._quoted(name)}", timeout=_transfer_s(size))
        if done.code or len(done.stdout) != size:
            raise DeviceError(
                f"{self.name}: expected {size} bytes in {name}, found {len(done.stdout)} "
                f"({_reason(done)})"
            )
        return done.stdout

    def run(self, arguments: Sequence[str], *, timeout: float) -> Finished:
        """Run a program of the folder in it.

        Parameters
        ----------
        arguments
            The program's name in the folder, and its arguments.
        timeout
            Seconds.
        """
        return self.run_all([arguments], timeout=timeout)

    def run_all(self, commands: Sequence[Sequence[str]], *, timeout: float) -> Finished:
        """Run programs of the folder in it, one after the other, until one fails.

        Parameters
        ----------
        commands
            As of `run`. All of them together are one line, for which a system has a limit.
        timeout
            Seconds for all.
        """
        lines = [
            " ".join(shlex.quote(word) for word in (f"./{program}", *rest))
            for program, *rest in commands
        ]
        lines[-1] = f"exec {lines[-1]}"
        script = " && ".join([f"cd {shlex.quote(self.path)}", *lines])
        return self.device.call(script, timeout=timeout)

    def remove(self, names: Sequence[str]) -> None:
        """Remove files.

        Raises
        ------
        DeviceError
            The machine cannot be reached.
        """
        if names:
            files = " ".join(self._quoted(name) for name in names)
            self.device.call(f"rm -f -- {files}", timeout=_ADMINISTRATION_S)

    def _quoted(self, name: str) -> str:
        return shlex.quote(f"{self.path}/{name}")


def _program() -> list[str]:
    """The command that is ssh: ``$TVMCONV_SSH`` may name another, with options."""
    asked = os.environ.get("TVMCONV_SSH", "").strip() or "ssh"
    try:
        command = shlex.split(asked)
    except ValueError as exc:
        raise DeviceError(f"TVMCONV_SSH={asked!r} is not a command: {exc}") from exc
    if shutil.which(command[0]) is None:
        raise DeviceError(
            f"{command[0]} is not installed (Debian, Ubuntu: 'apt install openssh-client')"
        )
    return command


def _transfer_s(size: int) -> float:
    return _ADMINISTRATION_S + size / _SLOWEST_BYTES_A_SECOND


def _reason(done: Finished) -> str:
    return _last_line(done.stderr) or f"exit code {done.code}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
