"""Manage what tuning has learnt (not in this version)."""

from __future__ import annotations

import argparse
from typing import NoReturn

from tvmconv.errors import ConfigError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take whatever is given: the answer is the same."""
    parser.add_argument("anything", nargs="*", help=argparse.SUPPRESS)
    parser.set_defaults(takes_anything=True)


def run(args: argparse.Namespace) -> NoReturn:
    """Refuse.

    Raises
    ------
    ConfigError
        Always.
    """
    raise ConfigError("tuning is not in this version: schedules come from rules")
