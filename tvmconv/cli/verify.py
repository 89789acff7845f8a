"""Check an artifact: every file against its manifest, and the library against the reference."""

from __future__ import annotations

import argparse
from pathlib import Path

from tvmconv.cli import console
from tvmconv.errors import BuildError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tvmconv verify``."""
    parser.add_argument("artifact", type=Path, metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Print each finding; 1 if one of them is bad."""
    from tvmconv import verify

    report = verify(args.artifact)
    if args.json:
        findings = [
            {"subject": one.subject, "good": one.good, "detail": one.detail}
            for one in report.findings
        ]
        console.dump({"good": report.good, "findings": findings})
    else:
        rows = [("good" if one.good else "BAD", one.subject, one.detail) for one in report.findings]
        console.table(("", "what", "found"), rows)
    bad = [f"{one.subject}: {one.detail}" for one in report.findings if not one.good]
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise BuildError(f"{args.artifact} is not as it was built: {bad[0]}{more}")
    return 0
