"""Compile layers of a Keras file into shared libraries.

Everything is built beside and checked before the output folder changes: it gets all layers or stays
as it was.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmconv.cli import console, source
from tvmconv.errors import ArtifactError

if TYPE_CHECKING:
    from tvmconv.artifact import Artifact

__all__ = ["add_arguments", "build", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tvmconv compile``."""
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help=".keras or .h5 model, or a layer's config .json"
    )
    source.add_arguments(parser)
    parser.add_argument(
        "--threads",
        type=source.threads,
        metavar="N",
        help="what 0 threads means at run time; default: all that the process may use",
    )
    parser.add_argument(
        "--runner",
        action="store_true",
        help="also build NAME-bench, a static program that times the layer on a device",
    )
    parser.add_argument(
        "--cc",
        metavar="COMMAND",
        help="C compiler and linker for the target; default: this machine's own, else ziglang",
    )
    parser.add_argument("-o", "--output", type=_folder, required=True, metavar="DIR")
    parser.add_argument(
        "--debug-dump", type=Path, metavar="DIR", help="write each stage of the compiler as text"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Compile every layer that was asked for."""
    from tvmconv import cuda_target, targets
    from tvmconv.codegen import toolchain

    start = time.perf_counter()
    jobs = source.jobs(args)
    _check_folder(args.output)
    processors, _ = cuda_target.separate(args.target)
    machine = processors[0] if processors else targets.native()
    toolchain.find_for(machine.triple, args.cc)
    with tempfile.TemporaryDirectory(prefix="tvmconv-") as stage:
        with console.Progress(not args.json) as progress:
            made = build(args, jobs, Path(stage), progress)
        done = _publish(made, args.output)
    if args.json:
        seconds = round(time.perf_counter() - start, 3)
        found = [_described(job, artifact) for job, artifact in zip(jobs, done, strict=True)]
        console.dump({"artifacts": found, "seconds": seconds})
        return 0
    for artifact in done:
        manifest = artifact.manifest
        size = artifact.library.stat().st_size
        console.say(
            f"{artifact.library}: {size:,} bytes, for {manifest.target['fingerprint']}, "
            f"largest error {manifest.check['max_error']:.1e}"
        )
    return 0


def build(
    args: argparse.Namespace,
    jobs: Sequence[source.Job],
    stage: Path,
    progress: console.Progress,
) -> list[Artifact]:
    """Compile the jobs, each into a folder of its own below `stage`.

    Raises
    ------
    TvmconvError
        As `tvmconv.compile`.
    """
    from tvmconv import compile as compile_layer
    from tvmconv import cuda_target

    cuda_target.separate(args.target)
    made = []
    for number, job in enumerate(jobs):
        count = f" ({number + 1} of {len(jobs)})" if len(jobs) > 1 else ""
        progress.task(f"compiling {job.path}{count}")
        dump = getattr(args, "debug_dump", None)
        made.append(
            compile_layer(
                job.layer,
                job.shapes,
                target=args.target,
                threads=getattr(args, "threads", None),
                algorithm=args.algorithm,
                precision=args.precision,
                weights="external" if args.external_weights else "baked",
                name=job.name,
                cc=getattr(args, "cc", None),
                runner=getattr(args, "runner", False),
                output=stage / job.name,
                logs=args.logs,
                debug_dump=dump / job.name if dump is not None and len(jobs) > 1 else dump,
                progress=progress.step,
            )
        )
    return made


def _folder(text: str) -> Path:
    """A folder's path; an empty one is a script's unset variable, not the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the name of the folder is empty")
    return Path(text)


def _described(job: source.Job, artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "layer": job.path,
        "name": manifest.name,
        "path": str(artifact.path),
        "library": str(artifact.library),
        "input_shapes": manifest.input_shapes,
        "output_shapes": manifest.output_shapes,
        "target": manifest.target,
        "check": manifest.check,
    }


def _check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written before anything is compiled for it."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ArtifactError(f"the output {folder} is no folder ({nearest} is a file)")
    try:
        tempfile.TemporaryDirectory(prefix=".tvmconv-", dir=nearest).cleanup()
    except OSError as exc:
        raise ArtifactError(
            f"the folder {nearest} cannot be written: {exc.strerror}; give another one with -o"
        ) from exc


def _publish(made: Sequence[Artifact], folder: Path) -> list[Artifact]:
    """Move the artifacts into the folder; put back what was there if one of them cannot be."""
    from tvmconv import artifact

    new = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    done = []
    with tempfile.TemporaryDirectory(prefix="tvmconv-") as kept, contextlib.ExitStack() as undo:
        for one in made:
            files = {file.name: file.read_bytes() for file in one.path.iterdir()}
            names = [*files, *artifact.outdated(folder, one.manifest.name, files)]
            for name in names:
                if (folder / name).is_file():
                    shutil.copy2(folder / name, Path(kept) / name)
            del files[f"{one.manifest.name}.json"]
            text = replace(one.manifest, files=None).to_json()
            done.append(artifact.write(folder, text, files))
            if one is not made[-1]:
                undo.callback(_restore, folder, Path(kept), names, new)
        undo.pop_all()
    return done


def _restore(folder: Path, kept: Path, names: list[str], new: list[Path]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
        if (kept / name).exists():
            shutil.copy2(kept / name, folder / name)
    for path in new:
        with contextlib.suppress(OSError):  # not empty: something else came meanwhile
            path.rmdir()
