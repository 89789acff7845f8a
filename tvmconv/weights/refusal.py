"""How a file is refused: one line that names the file and the reason."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from tvmconv.errors import TvmconvError, WeightsError, one_line

__all__ = ["guard", "refuse"]

# What the zip, deflate and HDF5 readers raise on damaged bytes. MemoryError is
# among them because a declared size can pass every check and still not fit.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    RuntimeError,
    KeyError,
    ValueError,
    TypeError,
    OverflowError,
    MemoryError,
    NotImplementedError,
)


def refuse(file: str, reason: str) -> WeightsError:
    """Make the error for a file that is not read; the caller raises it.

    Parameters
    ----------
    file
        The file as the user named it, with the member inside it where that helps.
    reason
        What was found, and what was expected.
    """
    return WeightsError(f"{one_line(file)}: {one_line(reason)}")


@contextmanager
def guard(file: str, what: str) -> Iterator[None]:
    """Turn what a library raises on damaged bytes into a refusal of ``file``."""
    try:
        yield
    except TvmconvError:
        raise
    except _DAMAGE as error:
        text = str(error) or type(error).__name__
        raise refuse(file, f"{what}: {text}") from error
