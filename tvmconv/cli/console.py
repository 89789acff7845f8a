"""What the commands print: lines, tables, JSON, progress.

On a terminal the rich package draws them, where it is installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from tvmconv.errors import one_line

__all__ = ["Progress", "dump", "flush", "is_terminal", "say", "sizes", "table"]

_WIDEST = 400


def say(text: str = "") -> None:
    """Print a line at once. Where nobody reads any more, the work goes on without it."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _discard()


def dump(value: Any) -> None:
    """Print a value as JSON."""
    say(json.dumps(value, indent=2, default=str))


def flush() -> None:
    """Bring out what was printed; a closed pipe is no error."""
    if sys.stdout is None or sys.stdout.closed:
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard()
    except OSError:
        _discard()  # or the interpreter would try again when it ends
        raise


def _discard() -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def sizes(values: Iterable[int | None] | None, mark: str = ",") -> str:
    """``1,32,32,32,128`` for a shape, ``?`` for an open size, ``-`` for no shape."""
    if values is None:
        return "-"
    return mark.join("?" if value is None or value < 0 else str(value) for value in values)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows below a header; integers stand to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    right = [
        bool(rows) and all(isinstance(row[at], int) or row[at] is None for row in rows)
        for at in range(len(header))
    ]
    if _rich():
        _rich_table(header, cells, right)
        return
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    for row in (header, *cells):
        parts = [
            text.rjust(width) if at_right else text.ljust(width)
            for text, width, at_right in zip(row, widths, right, strict=True)
        ]
        say("  ".join(parts).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    # Names come from files; they must not write to the terminal.
    return one_line(str(value))


def _rich_table(header: Sequence[str], cells: list[list[str]], right: list[bool]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    for name, at_right in zip(header, right, strict=True):
        made.add_column(Text(name), justify="right" if at_right else "left", no_wrap=True)
    for row in cells:
        made.add_row(*(Text(text) for text in row))
    # A narrow terminal breaks the lines; columns of three letters would say less.
    Console(highlight=False, width=_WIDEST).print(made)


def is_terminal() -> bool:
    """Whether somebody watches: a terminal, and rich to draw on it."""
    return _rich()


def _rich() -> bool:
    return (
        sys.stdout is not None
        and sys.stdout.isatty()
        and importlib.util.find_spec("rich") is not None
    )


class Progress:
    """Shows what is being done: a status line on a terminal, else one line for each task.

    Parameters
    ----------
    shown
        False shows nothing, for machines.
    """

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._task = ""
        self._status: Any = None

    def __enter__(self) -> Progress:
        if self._shown and _rich():
            from rich.console import Console

            self._status = Console(highlight=False).status("starting")
            self._status.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self._status is not None:
            self._status.stop()

    def task(self, text: str) -> None:
        """Begin a task: what a reader without a terminal sees."""
        self._task = text
        self._show(text)
        if self._shown and self._status is None:
            say(f"{text} ...")

    def step(self, text: str) -> None:
        """Begin a step of the task."""
        self._show(f"{self._task}: {text}")

    def _show(self, text: str) -> None:
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text(one_line(text)))
