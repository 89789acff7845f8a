"""Ctrl-C: one line, exit code 130, everything as it was before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import Capture, refused

from tvmconv import cli
from tvmconv.cli import source

#: A shell's background jobs ignore Ctrl-C, and so would their children.
START = """
import signal, sys
from tvmconv.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_error_while_an_interruption_is_handled(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(args: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise ValueError("half done")

    monkeypatch.setattr(source, "jobs", fail)
    code, line = refused(capsys, "compile", "m.keras", "-o", "o")
    assert (code, line) == (130, "tvmconv: error: interrupted")


def test_ctrl_c_before_numpy_is_there(tmp_path: Path) -> None:
    """An import that was cut short cannot be repeated: the message must not need one."""
    (tmp_path / "numpy.py").write_text("raise KeyboardInterrupt\n")
    found = subprocess.run(
        [sys.executable, "-m", "tvmconv", "inspect", "m.keras"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert (found.returncode, found.stderr) == (130, "tvmconv: error: interrupted\n")


@pytest.mark.parametrize("moment", ["compiling", "linking"])
def test_ctrl_c_in_a_build(golden: Path, tmp_path: Path, moment: str) -> None:
    """The folder stays as it was, and nothing is left among the temporary files."""
    model, folder = golden / "models" / "unet3d" / "model.keras", tmp_path / "folder"
    options = ["--layer", "up1", "--input-shape", "1,2,2,2,8"]
    assert cli.main(["compile", str(model), *options, "-o", str(folder)]) == 0
    before = contents(folder)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    began = tmp_path / "began"
    script = tmp_path / "slow-cc"
    script.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && { echo slow 1; exit; }\n'
        f"touch '{began}'\nexec sleep 600\n"
    )
    script.chmod(0o755)
    environment = {**os.environ, "CC": str(script), "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        [sys.executable, "-c", START, "compile", str(model), "-o", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "compiling up1 (1 of 2) ...\n"
    deadline = time.monotonic() + 300
    while moment == "linking" and not began.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (130, "tvmconv: error: interrupted\n")
    assert contents(folder) == before
    assert list(temporary.iterdir()) == []
