"""An ssh server on the loopback interface, with keys of its own, for as long as a test needs it."""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd") or shutil.which("/usr/sbin/sshd")
MISSING = "sshd, ssh and ssh-keygen are needed (Debian: openssh-server, openssh-client)"
INSTALLED = bool(SSHD and shutil.which("ssh") and shutil.which("ssh-keygen"))


@dataclass(frozen=True)
class Server:
    """A server that runs: the device's name, and what goes into ``TVMCONV_SSH``."""

    port: int
    command: str
    folder: Path

    @property
    def device(self) -> str:
        """As ``--device`` takes it."""
        return f"ssh:127.0.0.1:{self.port}"

    def stranger(self, **options: str) -> str:
        """Another ``TVMCONV_SSH``, with options of ssh that come first."""
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return f"{self.command} {shlex.join(words)}"


@contextmanager
def serve(folder: Path, *settings: str) -> Iterator[Server]:
    """Start a server with the settings of ``sshd_config``; it ends with the block."""
    for key in ("host", "user", "other"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True
        )
    shutil.copy(folder / "user.pub", folder / "authorized")
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            Path("/run/sshd").mkdir(mode=0o755)  # sshd wants it when root starts it
    for _ in range(3):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        process = _started(folder, port, settings)
        try:
            if _answers(process, port):
                yield _configured(folder, port)
                return
        finally:
            process.terminate()
            process.wait()
    raise AssertionError((folder / "log").read_text())


def _started(folder: Path, port: int, settings: tuple[str, ...]) -> subprocess.Popen[bytes]:
    lines = [
        f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {folder / 'host'}", "PidFile none",
        f"AuthorizedKeysFile {folder / 'authorized'}", "StrictModes no",
        "PasswordAuthentication no", "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password", *settings,
    ]  # fmt: skip
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    assert SSHD
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [SSHD, "-D", "-e", "-f", folder / "sshd_config"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    for _ in range(1200):
        if process.poll() is not None:
            return False
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return True
        except OSError:
            time.sleep(0.1)
    return False


def _configured(folder: Path, port: int) -> Server:
    known = (folder / "host.pub").read_text().split()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {known[0]} {known[1]}\n")
    lines = [
        f"User {getpass.getuser()}", f"IdentityFile {folder / 'user'}", "IdentitiesOnly yes",
        f"UserKnownHostsFile {folder / 'known'}", "GlobalKnownHostsFile /dev/null",
        "StrictHostKeyChecking yes",
    ]  # fmt: skip
    (folder / "ssh_config").write_text("\n".join(lines) + "\n")
    return Server(port, shlex.join(["ssh", "-F", str(folder / "ssh_config")]), folder)
