"""Check an artifact: its files against the manifest, its output against the reference."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from tvmconv.cli import console
from tvmconv.errors import BuildError

__all__ = ["add_arguments", "artifacts", "is_artifact", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tvmconv verify``."""
    parser.add_argument("artifact", type=Path, metavar="DIR")
    parser.add_argument(
        "--device",
        metavar="ssh:HOST",
        help="compute there, with the artifact's runner: ssh:[USER@]HOST[:PORT][/FOLDER]",
    )
    parser.add_argument(
        "--emulate", action="store_true", help="compute in an emulator of the target (QEMU)"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Print each finding; one that is bad is an error.

    Raises
    ------
    BuildError
        A file, or the output, is not as it should be.
    """
    from tvmconv import deploy, emulation, verify
    from tvmconv.errors import ConfigError

    if args.device is not None and args.emulate:
        raise ConfigError("--device and --emulate are two places; give one")
    if args.device is not None:
        deploy.check_name(args.device)
    check = emulation.verify if args.emulate else verify
    reports = [
        check(path) if args.device is None else deploy.verify(path, args.device)
        for path in artifacts(args.artifact)
    ]
    if args.json:
        found = [
            {
                "name": report.manifest.name,
                "good": report.good,
                "findings": [dataclasses.asdict(one) for one in report.findings],
            }
            for report in reports
        ]
        console.dump({"good": all(report.good for report in reports), "artifacts": found})
    else:
        rows = [
            (report.manifest.name, "good" if one.good else "BAD", one.subject, one.detail)
            for report in reports
            for one in report.findings
        ]
        console.table(("artifact", "", "what", "found"), rows)
    bad = [
        f"{one.subject}: {one.detail}"
        for report in reports
        for one in report.findings
        if not one.good
    ]
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise BuildError(f"{args.artifact} is not as it was built: {bad[0]}{more}")
    return 0


def artifacts(path: Path) -> list[Path]:
    """The manifests of a folder that holds several artifacts; else the path as it was given."""
    if not path.is_dir():
        return [path]
    found = sorted(
        file for file in path.glob("*.json") if file.with_name(f"lib{file.stem}.a").exists()
    )
    return found if len(found) > 1 else [path]


def is_artifact(path: Path) -> bool:
    """Whether it looks like an artifact, its manifest or its library, and like no file of Keras."""
    if path.is_dir():
        return any(path.glob("lib*.a"))
    if path.suffix != ".json":
        return path.suffix in (".so", ".dylib", ".wasm", ".o")
    return path.with_name(f"lib{path.stem}.a").exists()
