"""The main job from end to end: a layer out of a Keras file, a library, NumPy, and Keras' answer.

`make demo` runs this file. Nothing of Keras is installed for it: `decoder.keras` was saved by Keras
(`make_decoder.py`), and `decoder_io.npz` holds what Keras computed from stored inputs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import tvmconv
from tvmconv.errors import TvmconvError

EXAMPLES = Path(__file__).resolve().parent
MODEL = EXAMPLES / "decoder.keras"
STORED = EXAMPLES / "decoder_io.npz"
SECONDS = 1.0  # how long the calls are timed


def shown(path: Path) -> str:
    """Spell a path the short way."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def describe(name: str, layer: tvmconv.Conv3DTranspose) -> str:
    """One line about a layer."""
    config = layer.get_config()
    kernel, strides = (" ".join(str(n) for n in config[key]) for key in ("kernel_size", "strides"))
    channels = layer.get_weights()[0].shape[-1]
    return (
        f"  {name:<6}{channels:>4} -> {config['filters']:<4}channels, kernel {kernel}, "
        f"strides {strides}, {config['padding']}, {layer.count_params()} parameters"
    )


def run(folder: Path, name: str) -> None:
    """Load an artifact where neither TVM nor Keras can be imported, and print what it did."""
    for package in ("tvm", "tvm_ffi", "keras", "tensorflow"):
        sys.modules[package] = None  # type: ignore[assignment]  # an import of it fails
    start = time.perf_counter()
    layer = tvmconv.load(folder)
    load_ms = 1e3 * (time.perf_counter() - start)
    with np.load(STORED) as stored:
        x, expected = stored[f"{name}/x"], stored[f"{name}/y"]
    y = layer(x)
    times = []
    start = time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        before = time.perf_counter()
        layer(x, out=y)
        times.append(time.perf_counter() - before)
    error = float(np.max(np.abs(y - expected)))
    result = {"load_ms": load_ms, "call_s": statistics.median(times), "calls": len(times)}
    result |= {"error": error, "largest": float(np.max(np.abs(expected)))}
    result["close"] = bool(np.allclose(y, expected, rtol=1e-4, atol=2e-5))
    print(json.dumps(result))


def operations(manifest: dict[str, Any], batch: int) -> float:
    """Floating-point operations of a call: two for each product of an input and a kernel value."""
    return float(manifest["flops"][0]) * batch


def main() -> int:
    """List, compile, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layer", default="up1", help="the layer to compile (default: up1)")
    parser.add_argument("--output", type=Path, default=Path("build/demo"), metavar="DIR")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)  # the child's half
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.run, arguments.layer)
        return 0

    layers = tvmconv.from_keras(MODEL)
    print(f"{shown(MODEL)} holds {len(layers)} Conv3DTranspose layers:")
    for name, layer in layers.items():
        print(describe(name, layer))
    if arguments.layer not in layers:
        print(f"demo.py: no layer {arguments.layer!r} there", file=sys.stderr)
        return 2

    with np.load(STORED) as stored:
        shape = stored[f"{arguments.layer}/x"].shape
    print(f"\ncompiling {arguments.layer} for this machine, input {shape} ...")
    start = time.perf_counter()
    try:
        artifact = tvmconv.compile(
            layers[arguments.layer], shape, output=arguments.output / arguments.layer
        )
    except TvmconvError as exc:
        print(f"demo.py: {exc}", file=sys.stderr)
        return 1
    manifest: dict[str, Any] = json.loads(
        (Path(artifact.path) / f"{arguments.layer}.json").read_text(encoding="utf-8")
    )
    target, check = manifest["target"], manifest["check"]
    print(f"  {time.perf_counter() - start:.1f} s, for {target['fingerprint']}")
    print(f"  checked against the definition of the layer: largest error {check['max_error']:.1e}")

    print("\nrunning it in a Python with NumPy, without TVM and Keras ...")
    command = [sys.executable, __file__, "--layer", arguments.layer, "--run", str(artifact.path)]
    child = subprocess.run(command, check=False, capture_output=True, text=True)
    if child.returncode:
        print(f"demo.py: the child failed:\n{child.stderr}", file=sys.stderr)
        return 1
    result = json.loads(child.stdout)
    speed = operations(manifest, shape[0]) / result["call_s"] / 1e9
    print(f"  loaded in {result['load_ms']:.1f} ms")
    print(f"  {1e3 * result['call_s']:.3f} ms a call (median of {result['calls']}),", end=" ")
    print(f"{speed:.1f} GFLOP/s")
    print(
        f"  largest difference from Keras' output: {result['error']:.1e}"
        f" (largest value: {result['largest']:.2f})"
    )
    print(f"\nthe files, in {shown(Path(artifact.path))}:")
    for path in sorted(p for p in Path(artifact.path).rglob("*") if p.is_file()):
        name = str(path.relative_to(artifact.path))
        print(f"  {name:<28}{path.stat().st_size:>9,} bytes")
    if not result["close"]:
        print("\nDIFFERENT FROM KERAS")
        return 1
    print("\nequal to Keras within float32's rounding")
    return 0


if __name__ == "__main__":
    sys.exit(main())
