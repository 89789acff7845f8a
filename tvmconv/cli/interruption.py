"""Ctrl-C that cannot get lost.

Python raises KeyboardInterrupt wherever the main thread happens to be. Inside of a destructor or a
callback of a library it is printed, or not even that, and the work goes on.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

__all__ = ["Interruption"]


class Interruption:
    """Remembers that somebody pressed Ctrl-C, for work that asks between its steps.

    In other threads than the main one, and where the signal is ignored or has a handler already, it
    changes nothing.
    """

    def __init__(self) -> None:
        self._asked = self._installed = False

    def __enter__(self) -> Interruption:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
            self._installed = True
        return self

    def __exit__(self, *unused: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.default_int_handler(number, frame)

    def check(self) -> None:
        """Raise once more what was lost.

        Raises
        ------
        KeyboardInterrupt
            Somebody pressed Ctrl-C.
        """
        if self._asked:
            self._asked = False
            raise KeyboardInterrupt
