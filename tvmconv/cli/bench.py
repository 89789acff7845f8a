"""Time an artifact, or a layer that is compiled for it, beside this machine's own matrix product."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from tvmconv.cli import compile as compile_command
from tvmconv.cli import console, source

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tvmconv bench``."""
    parser.add_argument("source", type=Path, metavar="DIR|SOURCE", help="an artifact, or a source")
    source.add_arguments(parser)
    parser.add_argument("--threads", type=source.threads, metavar="N")
    parser.add_argument("--time", type=float, default=2.0, metavar="S", help="seconds a shape")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    return 2
