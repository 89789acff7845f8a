"""Tune the layers of real networks: ``python -m benchmarks.tuning``.

Writes records to the folder of ``--logs``. Started again, it goes on where it was; a layer that has
a winner there already is left out unless ``--again`` is given. ``--at-most`` ends a sitting.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.workloads import Workload, named

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Tune each layer for the same time, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning", description=__doc__)
    parser.add_argument("--logs", type=Path, required=True, metavar="DIR")
    parser.add_argument("--layers", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--nightly", action="store_true", help="the longest layers too")
    parser.add_argument("--time", type=float, default=45.0, metavar="S", help="for each layer")
    parser.add_argument("--at-most", type=float, metavar="S", help="begin no layer after S seconds")
    parser.add_argument("--target", default="native", metavar="NAME", help="default: native")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--algorithm", choices=("auto", "direct", "pairs", "toom-cook"), default="auto"
    )
    parser.add_argument("--cost-model", choices=("xgb", "random"), default="xgb")
    parser.add_argument("--again", action="store_true", help="also layers that have a winner")
    args = parser.parse_args(argv)
    begin = time.monotonic()
    for workload in named(args.layers or None, nightly=args.nightly):
        if args.at_most is not None and time.monotonic() - begin > args.at_most:
            print(f"{workload.name}: for the next sitting", flush=True)
            break
        print(_tune(workload, args), flush=True)
    return 0


def _tune(workload: Workload, args: argparse.Namespace) -> str:
    import tvmconv
    from benchmarks.tvmconv_runner import layer_of
    from tvmconv.errors import TvmconvError
    from tvmconv.tuning import lookup, workloads
    from tvmconv.tuning.run import processor

    layer = layer_of(workload)
    described = workloads.describe(workloads.of_layer(layer.config, workload.input_shape))
    fingerprint = processor(args.target).fingerprint()
    known = lookup.best([args.logs], fingerprint, workloads.key(described), args.algorithm)
    if known is not None and not args.again:
        return f"{workload.name}: has a winner"
    start = time.monotonic()
    try:
        result = tvmconv.tune(
            layer,
            workload.input_shape,
            target=args.target,
            algorithm=args.algorithm,
            seconds=args.time,
            seed=args.seed,
            logs=args.logs,
            cost_model=args.cost_model,
        )
    except TvmconvError as exc:
        return f"{workload.name}: {exc}"
    record, final = result.record, result.record.final
    assert final is not None
    limit = record.limit_gflops
    rate = record.gflop / final.median_s
    share = f" ({rate / limit:.0%} of a matrix product)" if limit else ""
    return (
        f"{workload.name}: {record.decisions['form']} {1e3 * final.median_s:.3f} ms, "
        f"{rate:.1f} GFLOP/s{share}, default {1e3 * final.default_s:.3f} ms, gain "
        f"{final.gain:+.1%} ({final.gain_low:+.1%} to {final.gain_high:+.1%}), {result.trials} "
        f"tried, {result.failed} failed, {time.monotonic() - start:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
