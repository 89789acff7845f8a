"""Signing an artifact: the manifest is signed, and it has the hash of every other file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import sample_library as sample

import tvmconv
from tvmconv.codegen import link


@pytest.mark.skipif(shutil.which("minisign") is None, reason="minisign is not installed")
def test_a_signed_manifest_answers_for_the_folder(tmp_path: Path) -> None:
    made = link(sample.parts(tmp_path), tmp_path / "out")
    manifest = made.path / "up1.json"

    def minisign(*arguments: str | Path) -> int:
        command = ["minisign", *arguments]
        return subprocess.run(command, capture_output=True, check=False, cwd=tmp_path).returncode

    assert minisign("-G", "-W", "-p", "layers.pub", "-s", "layers.key") == 0
    assert minisign("-S", "-s", "layers.key", "-m", manifest) == 0
    assert minisign("-V", "-p", "layers.pub", "-m", manifest) == 0
    # A signature beside the files is none of them.
    assert tvmconv.verify(made.path, run=False).good
    # Whoever changes a file has to change its hash in the manifest, and with that the signature.
    header = made.path / "up1.h"
    header.write_text(header.read_text() + "\n")
    assert not tvmconv.verify(made.path, run=False).good
    link(sample.parts(tmp_path, baked=False), made.path)
    assert tvmconv.verify(made.path, run=False).good
    assert minisign("-V", "-p", "layers.pub", "-m", manifest) != 0
