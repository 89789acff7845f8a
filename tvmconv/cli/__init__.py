"""The command line: one module a command, and the one place where errors become exit codes.

Exit codes: 0 done; 1 the work failed; 2 the input or the usage is wrong; 130 interrupted. An error
is one line on standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from tvmconv import __version__
from tvmconv.errors import (
    ArtifactError,
    ConfigError,
    InputError,
    TargetError,
    TvmconvError,
    WeightsError,
    one_line,
)
from tvmconv.processors import without_torch

__all__ = ["main"]

#: Modules with ``add_arguments(parser)`` and ``run(args) -> int``; docstrings are the help texts.
COMMANDS = ("compile", "inspect", "verify", "run", "bench", "targets", "cache", "tune", "logs")
_DONE, _FAILED, _WRONG, _INTERRUPTED = 0, 1, 2, 130
_USERS_ERRORS = (ConfigError, TargetError, WeightsError, InputError, ArtifactError)
_USERS_FILES = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


class _Parser(argparse.ArgumentParser):
    """A parser whose usage errors are one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        command = self.prog.partition(" ")[2]
        _complain(f"{command}: {message}" if command else message)
        self.exit(_WRONG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv
        The arguments behind the program's name; None: those of this process.

    Returns
    -------
    int
        The exit code.
    """
    debug = bool(os.environ.get("TVMCONV_DEBUG"))
    if argv is None:
        without_torch()
    try:
        with warnings.catch_warnings(), _quiet_stdout():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            args = _parse(argv)
            debug = debug or args.debug
            _set_up_logging(debug)
            return int(args.run(args))
    except SystemExit as exc:  # argparse: --help, --version, usage errors
        return exc.code if isinstance(exc.code, int) else _DONE
    except (KeyboardInterrupt, Exception) as exc:
        if not _interrupted(exc):
            return _fail(exc, *_judge(exc, debug), debug)
        code = _fail(exc, _INTERRUPTED, "interrupted", debug)
        if argv is None:
            # Where the signal met the exec() of a string, as in the making of a dataclass, CPython
            # notes an interruption that nobody handled, and would end itself by the signal.
            os._exit(code)
        return code


def _interrupted(exc: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: what is raised while it is handled tells nothing."""
    while exc is not None and not isinstance(exc, KeyboardInterrupt):
        exc = exc.__cause__ or exc.__context__
    return exc is not None


def _fail(exc: BaseException, code: int, message: str, debug: bool) -> int:
    if debug:
        traceback.print_exception(type(exc), exc, exc.__traceback__)
    _complain(message)
    return code


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    shared = _Parser(add_help=False)
    shared.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="log each step, and show a traceback with an error",
    )
    parser = _Parser(
        prog="tvmconv",
        description="Compile Keras' Conv3DTranspose ahead of time into a small shared library.",
        parents=[shared],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tvmconv {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    for name in COMMANDS:
        module = import_module(f"tvmconv.cli.{name}")
        about = (module.__doc__ or "").partition("\n")[0]
        one = commands.add_parser(
            name, help=about, description=about, parents=[shared], allow_abbrev=False
        )
        module.add_arguments(one)
        one.set_defaults(run=module.run, parser=one)
    args, unknown = parser.parse_known_args(argv)
    if unknown and not getattr(args, "takes_anything", False):
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    args.debug = getattr(args, "debug", False)
    return args


def _judge(exc: BaseException, debug: bool) -> tuple[int, str]:
    """Exit code and message of an error."""
    if isinstance(exc, _USERS_ERRORS):
        return _WRONG, str(exc)
    if isinstance(exc, TvmconvError):
        return _FAILED, str(exc)
    if isinstance(exc, OSError):
        text = exc.strerror or str(exc)
        message = f"{exc.filename}: {text}" if exc.filename else text
        return _WRONG if isinstance(exc, _USERS_FILES) else _FAILED, message
    if isinstance(exc, MemoryError):
        return _FAILED, f"not enough memory: {exc}" if str(exc) else "not enough memory"
    more = "" if debug else "; --debug shows where"
    return _FAILED, f"{type(exc).__name__}: {exc} (this is a bug of tvmconv{more})"


def _complain(message: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.write(f"tvmconv: error: {one_line(message)}\n")
            sys.stderr.flush()


def _set_up_logging(debug: bool) -> None:
    root = logging.getLogger()
    if debug:
        logging.basicConfig(format="%(relativeCreated)6d ms %(name)s: %(message)s")
        logging.getLogger("tvmconv").setLevel(logging.DEBUG)
    elif not root.handlers:
        # Without any handler Python would write warnings to standard error.
        root.addHandler(logging.NullHandler())


@contextlib.contextmanager
def _quiet_stdout() -> Any:
    """A reader that went away (``| head``) is no error; names that a terminal lacks are escaped."""
    from tvmconv.cli import console

    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        console.flush()
