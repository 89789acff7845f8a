"""Strict JSON from strangers: bounded in size, depth and count before it is parsed."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

import numpy as np

from tvmconv.weights.refusal import refuse

__all__ = ["MAX_BYTES", "parse", "parse_object"]

MAX_BYTES = 8 << 20
# One object in Python takes up to 40 times its text ("{}," -> 72 bytes and more).
_MAX_VALUES = 1_000_000
# 32 nested models of 4 levels each, and room for the deepest layer config.
_MAX_DEPTH = 200
_LONGEST_INT = 32


def parse(data: bytes, file: str) -> Any:
    """Parse UTF-8 JSON and refuse what strict readers could disagree about.

    Parameters
    ----------
    data
        The text; at most 8 MB, at most 1e6 values, at most 200 levels deep.
    file
        Where it comes from, for the message.

    Raises
    ------
    WeightsError
        Not UTF-8, not JSON, ``NaN`` or an infinity, a key twice, or over a limit.
    """
    if len(data) > MAX_BYTES:
        raise refuse(file, f"the JSON text has {len(data)} bytes, at most {MAX_BYTES} are read")
    if data.count(b",") + data.count(b"[") + data.count(b"{") > _MAX_VALUES:
        raise refuse(file, f"the JSON text has more than {_MAX_VALUES} values")
    depth = _depth(data)
    if depth > _MAX_DEPTH:
        raise refuse(file, f"the JSON text is nested {depth} deep, at most {_MAX_DEPTH} are read")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refuse(file, f"not UTF-8 text ({error.reason} at byte {error.start})") from error

    def constant(word: str) -> NoReturn:
        raise refuse(file, f"the JSON text holds {word}, which is no JSON number")

    def integer(digits: str) -> int:
        if len(digits) > _LONGEST_INT:
            raise refuse(file, f"the JSON text holds an integer of {len(digits)} digits")
        return int(digits)

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise refuse(file, f"the JSON text holds {digits[:40]}, which is not finite")
        return value

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            names = [key for key, _ in items]
            twice = next(key for key in names if names.count(key) > 1)
            raise refuse(file, f"the JSON text has the key {twice!r} twice in one object")
        return found

    try:
        value = json.loads(
            text,
            parse_constant=constant,
            parse_int=integer,
            parse_float=number,
            object_pairs_hook=pairs,
        )
    except (json.JSONDecodeError, RecursionError) as error:
        raise refuse(file, f"not JSON ({error})") from error
    if b"\\ud" in data.lower():
        _check_surrogates(value, file)
    return value


def parse_object(data: bytes, file: str) -> dict[str, Any]:
    """Parse JSON that must be an object; see `parse`."""
    value = parse(data, file)
    if not isinstance(value, dict):
        raise refuse(file, f"expected a JSON object, found {type(value).__name__}")
    return value


def _depth(data: bytes) -> int:
    """Deepest nesting of brackets outside strings, without recursion."""
    bare = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = np.frombuffer(b"".join(bare.split(b'"')[::2]), dtype=np.uint8)
    opening = (outside == ord("[")) | (outside == ord("{"))
    closing = (outside == ord("]")) | (outside == ord("}"))
    steps = opening.astype(np.int8) - closing.astype(np.int8)
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))


def _check_surrogates(value: object, file: str) -> None:
    """Refuse half a character (one of a surrogate pair): it cannot be printed or looked up."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting.extend(item)
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, str) and any("\ud800" <= c <= "\udfff" for c in item):
            raise refuse(file, "the JSON text holds a lone surrogate")
