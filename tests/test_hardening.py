"""What the bytes of an artifact give an attacker, and what they tell of the builder."""

from __future__ import annotations

import getpass
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import tvmconv
from tvmconv import targets
from tvmconv.artifact import Artifact
from tvmconv.codegen import toolchain
from tvmconv.errors import BuildError

TARGETS = ("native", "aarch64-linux-gnu", "armv7-neon", "riscv64-linux-gnu")


@pytest.fixture(scope="module", params=TARGETS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    layer = tvmconv.Conv3DTranspose(5, 3, 2, padding="same", activation="gelu", name="up1")
    folder, target = tmp_path_factory.mktemp("made"), request.param
    triple = targets.resolve(target)[0].triple
    try:
        toolchain.find_for(triple)
        toolchain.find_static(triple)
    except BuildError as exc:
        pytest.skip(str(exc))
    return tvmconv.compile(layer, (1, 3, 2, 4, 6), target=target, output=folder, runner=True)


def headers(file: Path, what: str) -> str:
    command = ["readelf", what, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


needs_readelf = pytest.mark.skipif(
    shutil.which("readelf") is None, reason="needs readelf (binutils)"
)


@needs_readelf
@pytest.mark.parametrize("name", ["libup1.so", "up1-bench"])
def test_no_memory_is_writable_and_executable(made: Artifact, name: str) -> None:
    text = headers(made.path / name, "-lW")
    flags = re.findall(r"^  (\w+) +0x\w+ 0x\w+ 0x\w+ 0x\w+ 0x\w+ (.{3})", text, re.M)
    assert {kind for kind, _ in flags} >= {"LOAD", "GNU_STACK", "GNU_RELRO"}
    assert [kind for kind, flag in flags if "W" in flag and "E" in flag] == []
    assert [flag for kind, flag in flags if kind == "GNU_STACK"] == ["RW "]


@needs_readelf
def test_the_library_is_relocated_once_and_then_read_only(made: Artifact) -> None:
    text = headers(made.library, "-dW")
    assert "BIND_NOW" in text or re.search(r"FLAGS_1.*NOW", text)
    for unwanted in ("TEXTREL", "RPATH", "RUNPATH", "DEBUG"):
        assert unwanted not in text
    sections = headers(made.library, "-SW")
    assert not re.search(r"\.(debug|symtab|note\.gnu\.build-id)", sections)


@needs_readelf
def test_the_library_needs_the_c_library_alone(made: Artifact) -> None:
    needed = re.findall(r"NEEDED.*\[(.+)\]", headers(made.library, "-dW"))
    allowed = r"(libc|libm|libpthread|libdl)\.so\.\d|ld-linux.*\.so\.\d"
    assert needed
    assert [name for name in needed if not re.fullmatch(allowed, name)] == []


@needs_readelf
def test_the_object_asks_for_no_executable_stack(made: Artifact) -> None:
    text = headers(made.path / "libup1.a", "-SW")
    (line,) = [line for line in text.splitlines() if ".note.GNU-stack" in line]
    assert " X " not in line


def test_nothing_tells_where_and_by_whom_it_was_built(made: Artifact, checkout: Path) -> None:
    told = {
        str(checkout), str(Path.cwd()), str(made.path), tempfile.gettempdir() + "/", sys.prefix,
        "tvmconv-link-", "tvmconv-runner-", "/site-packages/",
    }  # fmt: skip
    told |= {text for text in (str(Path.home()) + "/", socket.gethostname()) if len(text) > 5}
    told |= {f"/{getpass.getuser()}/"}
    for file in made.path.iterdir():
        content = file.read_bytes()
        found = [text for text in told if text.encode() in content]
        if file.name == "up1-bench":  # the C library in it knows the system's folders
            found = [text for text in found if text != "/tmp/"]
        assert found == [], file.name
