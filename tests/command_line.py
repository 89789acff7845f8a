"""Calls of the command line that must fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tvmconv import cli

Capture = pytest.CaptureFixture[str]
Refused = Callable[..., tuple[int, str]]


def refused(capsys: Capture, *arguments: object) -> tuple[int, str]:
    """The exit code and the one line that stands on standard error."""
    capsys.readouterr()
    code = cli.main([str(argument) for argument in arguments])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("tvmconv: error: ")
    return code, lines[0]
