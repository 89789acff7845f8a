"""Folders and commands on another machine, against a server on the loopback interface."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import ssh_server
from ssh_server import Server

from tvmconv.errors import ConfigError, DeviceError
from tvmconv.ssh import Ssh

needs_sshd = pytest.mark.skipif(not ssh_server.INSTALLED, reason=ssh_server.MISSING)
HOSTILE = "a b'c\"d; touch pwned & $(touch pwned) `touch pwned` | * ~ #\\"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with ssh_server.serve(tmp_path_factory.mktemp("sshd")) as one:
        yield one


@pytest.fixture
def ssh(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("TVMCONV_SSH", server.command)
    return server


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ssh:board", ("board", None, "")),
        ("ssh:pi@board.local", ("pi@board.local", None, "")),
        ("ssh:pi@10.0.0.7:2222", ("pi@10.0.0.7", 2222, "")),
        ("ssh:[fe80::1%eth0]:22", ("fe80::1%eth0", 22, "")),
        ("ssh:board/data/local/tmp/", ("board", None, "/data/local/tmp")),
        ("ssh:board:22/a b", ("board", 22, "/a b")),
        ("ssh:board/", ("board", None, "")),
    ],
)
def test_names_of_devices(text: str, expected: tuple[str, int | None, str]) -> None:
    found = Ssh.parse(text)
    assert (found.destination, found.port, found.parent) == expected


@pytest.mark.parametrize(
    "text",
    ["", "board", "ssh:", "ssh:-oProxyCommand=touch", "ssh:a b", "ssh:a;b", "ssh:board:0",
     "ssh:board:99999", "ssh:board:x", "ssh:u@-x", "ssh:-u@x", "ssh:$(id)", "ssh:board/a\nb",
     "tracker:host:9190,key", "ssh://board", "ssh:@board", "ssh:board\n"],
)  # fmt: skip
def test_what_is_not_the_name_of_a_device(text: str) -> None:
    with pytest.raises(ConfigError, match="expected ssh:"):
        Ssh.parse(text)


@needs_sshd
def test_files_and_commands(ssh: Server, tmp_path: Path) -> None:
    with Ssh.parse(f"{ssh.device}{tmp_path}").folder() as folder:
        (inside,) = tmp_path.iterdir()
        assert str(inside) == folder.path
        assert inside.stat().st_mode & 0o777 == 0o700
        content = bytes(range(256)) * 1000
        for name in ("x", HOSTILE.replace("/", "")):
            folder.put(name, content)
            assert folder.get(name, len(content)) == content
        folder.put("empty", b"")
        assert folder.get("empty", 0) == b""
        folder.put("show", b'#!/bin/sh\npwd\nprintf "<%s>" "$@"\necho oops >&2\nexit 3\n',
                   executable=True)  # fmt: skip
        done = folder.run(["show", HOSTILE, "", "--x"], timeout=600)
        assert done.stdout.decode() == f"{inside}\n<{HOSTILE}><><--x>"
        assert (done.code, done.stderr.strip()) == (3, "oops")
        with pytest.raises(DeviceError, match="expected 5 bytes in x, found 256000"):
            folder.get("x", 5)
        with pytest.raises(DeviceError, match="No such file"):
            folder.get("nothing", 5)
        with pytest.raises(DeviceError, match=r"could not be written.*(Directory|directory)"):
            folder.put(".", b"x")
    assert list(tmp_path.iterdir()) == []


@needs_sshd
def test_hostile_folders(ssh: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parent = tmp_path / HOSTILE.replace("/", "")
    parent.mkdir()
    with Ssh.parse(f"{ssh.device}{parent}").folder() as folder:
        folder.put("x", b"1")
        assert [path.name for path in next(parent.iterdir()).iterdir()] == ["x"]
    assert list(parent.iterdir()) == []
    assert not list(tmp_path.rglob("pwned"))
    assert not Path("~/pwned").expanduser().exists()


@needs_sshd
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_folder_goes_whatever_happens(
    ssh: Server, tmp_path: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error), Ssh.parse(f"{ssh.device}{tmp_path}").folder() as folder:
        folder.put("x", b"1")
        raise error
    assert list(tmp_path.iterdir()) == []


@needs_sshd
def test_no_place_for_a_folder(ssh: Server, tmp_path: Path) -> None:
    device = Ssh.parse(f"{ssh.device}{tmp_path}/none")
    with pytest.raises(DeviceError, match="no folder for temporary files"), device.folder():
        pass


@needs_sshd
def test_devices_that_cannot_be_reached(
    ssh: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reason(device: str = ssh.device) -> str:
        with pytest.raises(DeviceError) as error, Ssh.parse(device).folder():
            pass
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "refused" in reason("ssh:127.0.0.1:1")
    other = str(ssh.folder / "other")
    monkeypatch.setenv("TVMCONV_SSH", ssh.stranger(IdentityFile=other))
    monkeypatch.setattr("tvmconv.ssh._ADMINISTRATION_S", 120.0)
    (ssh.folder / "authorized").rename(ssh.folder / "away")
    try:
        assert "Permission denied" in reason()
    finally:
        (ssh.folder / "away").rename(ssh.folder / "authorized")
    monkeypatch.setenv("TVMCONV_SSH", ssh.stranger(UserKnownHostsFile="/dev/null"))
    assert "Host key verification failed" in reason()
    monkeypatch.setenv("TVMCONV_SSH", "no-such-ssh")
    assert "no-such-ssh is not installed" in reason()
    monkeypatch.setenv("TVMCONV_SSH", "'")
    assert "is not a command" in reason()


def test_a_device_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "silent"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("TVMCONV_SSH", shlex.quote(str(program)))
    with pytest.raises(DeviceError, match="did not answer within 1 s"):
        Ssh.parse("ssh:board").call("true", timeout=1)


@needs_sshd
def test_what_a_login_prints_is_left_out(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = "ForceCommand sh -c 'echo Welcome; echo $((6*7)); eval \"$SSH_ORIGINAL_COMMAND\"'"
    with ssh_server.serve(tmp_path_factory.mktemp("noisy"), command) as noisy:
        monkeypatch.setenv("TVMCONV_SSH", noisy.command)
        with Ssh.parse(f"{noisy.device}{tmp_path}").folder() as folder:
            folder.put("x", b"\x00\n1")
            assert folder.get("x", 3) == b"\x00\n1"
