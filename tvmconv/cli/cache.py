"""List or clear the layers that Python calls compiled."""

from __future__ import annotations

import argparse
import dataclasses
import time

from tvmconv.cli import console

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tvmconv cache``."""
    parser.add_argument("action", choices=("list", "clear"))
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(args: argparse.Namespace) -> int:
    """List or clear."""
    from tvmconv import cache

    place = cache.folder()
    if args.action == "clear":
        removed = cache.clear()
        if args.json:
            console.dump({"folder": str(place), "removed": removed})
        else:
            console.say(f"removed {_layers(removed)} from {place}")
        return 0
    entries = cache.entries()
    if args.json:
        found = [dataclasses.asdict(entry) for entry in entries]
        console.dump({"folder": str(place), "entries": found})
        return 0
    if entries:
        rows = [
            (
                entry.key[:12],
                entry.bytes,
                time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)),
                entry.name,
            )
            for entry in entries
        ]
        console.table(("key", "bytes", "last used", "layer"), rows)
    console.say(f"{_layers(len(entries))}, {sum(e.bytes for e in entries):,} bytes in {place}")
    return 0


def _layers(count: int) -> str:
    return f"{count} layer" if count == 1 else f"{count} layers"
