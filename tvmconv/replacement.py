"""Files that are replaced as a whole: a failure or a kill leaves what was there before."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["replacement"]


@contextlib.contextmanager
def replacement(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """A new file beside ``path``, which takes its place when the block ends without an error.

    Its permissions are those of any new file.

    Parameters
    ----------
    path
        The file to replace, or to make.
    durable
        Put the bytes on the disk first, so that the file is whole after a power failure too.

    Raises
    ------
    OSError
        It cannot be written.
    """
    partial = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        with partial.open("xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
