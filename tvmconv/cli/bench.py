"""Time an artifact, or a layer compiled for it, beside a matrix product on one core."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

from tvmconv.cli import console, source
from tvmconv.cli.compile import build
from tvmconv.cli.verify import artifacts, is_artifact
from tvmconv.errors import ConfigError

__all__ = ["add_arguments", "run"]

_HEADER = (
    "layer", "input", "threads", "calls", "median ms", "spread", "GFLOP/s", "gemm GFLOP/s", "share",
    "load",
)  # fmt: skip
#: Options of `source.add_arguments`.
_COMPILING = (
    "layer", "weights", "input_shape", "target", "algorithm", "dtype", "external_weights", "name",
    "logs",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tvmconv bench``."""
    parser.add_argument(
        "source",
        type=Path,
        metavar="DIR|SOURCE",
        help="an artifact, or what `tvmconv compile` takes",
    )
    source.add_arguments(parser)
    parser.add_argument("--threads", type=source.threads, metavar="N")
    parser.add_argument(
        "--time", type=_seconds, default=2.0, metavar="S", help="seconds for each input shape"
    )
    parser.add_argument(
        "--device",
        metavar="ssh:HOST",
        help="time it there, with the artifact's runner: ssh:[USER@]HOST[:PORT][/FOLDER]",
    )
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON")


def run(args: argparse.Namespace) -> int:
    """Compile if need be, time, print one row for each layer and input shape."""
    from tvmconv import bench, deploy

    if args.device is not None:
        deploy.check_name(args.device)
    with tempfile.TemporaryDirectory(prefix="tvmconv-") as stage:
        if _is_source(args.source):
            with console.Progress(not args.json) as progress:
                made = build(args, source.jobs(args), Path(stage), progress)
            paths = [one.path for one in made]
        else:
            _refuse_options(args)
            paths = artifacts(args.source)
        found = []
        for path in paths:
            # A line, also on a terminal: what moves there would take time from what is timed.
            if not args.json:
                console.say(f"timing {path.stem} ...")
            if args.device is None:
                found += bench(path, threads=args.threads, seconds=args.time)
            else:
                found += deploy.bench(path, args.device, threads=args.threads, seconds=args.time)
    if args.json:
        console.dump([dataclasses.asdict(one) for one in found])
        return 0
    console.table(
        _HEADER,
        [
            (
                one.name,
                console.sizes(one.input_shape),
                one.threads,
                one.calls,
                f"{1e3 * one.median_s:.3f}",
                f"{one.spread:.1%}",
                f"{one.gflops:.1f}",
                None if one.gemm_gflops is None else f"{one.gemm_gflops:.1f} {one.gemm_dtype}",
                None if one.share is None else f"{one.share:.0%}",
                f"{one.load:.1f}",
            )
            for one in found
        ],
    )
    for name, processor in dict.fromkeys((one.name, one.processor) for one in found):
        if processor:
            console.say(f"{name}: timed the code for {processor}")
    return 0


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e5:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, found {text!r}")
    return value


def _refuse_options(args: argparse.Namespace) -> None:
    """An artifact is what it is: options of the compiler would change nothing."""
    for option in _COMPILING:
        if getattr(args, option) != args.parser.get_default(option):
            raise ConfigError(
                f"{args.source} is compiled already; --{option.replace('_', '-')} is for sources"
            )


def _is_source(path: Path) -> bool:
    """Whether it is a file or folder of Keras, not an artifact."""
    return not is_artifact(path) and (not path.is_dir() or (path / "config.json").is_file())
