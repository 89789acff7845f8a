"""How large an artifact is beside the run times of others: ``python -m benchmarks.sizes``.

Ours: one layer without weights for every target that can be built here. Others: the shared
libraries inside their wheels for aarch64, which pip downloads and nothing runs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from benchmarks.child import ROOT
from benchmarks.data import Data
from benchmarks.report import table, update
from benchmarks.tvmconv_runner import layer_of
from benchmarks.workloads import named
from tvmconv import compile as compile_layer
from tvmconv.devices import DEVICES
from tvmconv.errors import TvmconvError

__all__ = ["main"]

_DOCS = ROOT / "docs" / "edge.md"
# Package -> the library in its wheel that a program without Python would link.
_PEERS = {
    "apache-tvm": "libtvm_runtime.so",
    "onnxruntime": "libonnxruntime.so",
    "ai-edge-litert": "libLiteRt.so",
}
_PLATFORMS = [
    f"manylinux{tag}_aarch64" for tag in ("2014", "_2_17", "_2_27", "_2_28", "_2_31", "_2_34")
]


def ours(layer: str, targets: list[str]) -> str:
    """A table with a row for each target that can be built, and a line with the others."""
    (work,) = named([layer])
    rows, refused = [], []
    for target in targets:
        with tempfile.TemporaryDirectory(prefix="tvmconv-sizes-") as folder:
            try:
                made = compile_layer(
                    layer_of(work, Data(work)), work.input_shape,
                    target=target, weights="external", name=layer, output=folder,
                )  # fmt: skip
            except TvmconvError as exc:
                print(f"{target}: {exc}", file=sys.stderr)
                refused.append(target)
                continue
            size = {file.suffix: file.stat().st_size for file in made.path.iterdir()}
            shared = [size[kind] for kind in (".so", ".dylib", ".wasm") if kind in size]
            static = [size[kind] for kind in (".a",) if kind in size]
            sizes = [f"{sum(found) / 1e3:.0f}" if found else "-" for found in (shared, static)]
            rows.append([target, *sizes, made.manifest.algorithm])
    text = table(["target", "shared library, kB", "static library, kB", "algorithm"], rows)
    return f"{text}\n\nNot built on that machine: {', '.join(refused)}." if refused else text


def peers() -> list[list[str]]:
    """A row for each wheel: its largest library, and what all libraries in it take."""
    rows = []
    for package, mark in _PEERS.items():
        with tempfile.TemporaryDirectory(prefix="tvmconv-wheel-") as folder:
            command = [
                sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--python-version",
                "3.11", "--only-binary=:all:", "--dest", folder,
            ]  # fmt: skip
            for platform in _PLATFORMS:
                command += ["--platform", platform]
            done = subprocess.run([*command, package], capture_output=True, text=True, check=False)
            wheels = list(Path(folder).glob("*.whl"))
            if done.returncode or not wheels:
                rows.append([package, "not downloaded", ""])
                continue
            with zipfile.ZipFile(wheels[0]) as archive:
                libraries = {
                    one.filename: one.file_size
                    for one in archive.infolist()
                    if ".so" in one.filename
                }
        version = wheels[0].name.split("-")[1]
        own = [size for name, size in libraries.items() if mark in name]
        rows.append(
            [f"{package} {version}", f"{mark}: {sum(own) / 1e3:,.0f}",
             f"{sum(libraries.values()) / 1e3:,.0f}"]
        )  # fmt: skip
    return rows


def main() -> int:
    """Measure, print, and with ``--docs`` write into the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizes")
    parser.add_argument("--layer", default="gan_g4")
    parser.add_argument("--targets", default=",".join(DEVICES), help="names, with commas")
    parser.add_argument("--no-peers", action="store_true", help="download no wheels")
    parser.add_argument("--docs", nargs="?", type=Path, const=_DOCS)
    args = parser.parse_args()
    parts = {"sizes": ours(args.layer, [name for name in args.targets.split(",") if name])}
    if not args.no_peers:
        header = ["wheel for aarch64", "its run time, kB", "all its libraries, kB"]
        parts["peer-sizes"] = table(header, peers())
    print("\n\n".join(parts.values()))
    if args.docs:
        absent = update(args.docs, parts)
        if absent:
            print(f"{args.docs} has no place for: {', '.join(absent)}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
