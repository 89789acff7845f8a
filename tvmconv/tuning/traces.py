"""Decisions as MetaSchedule's traces, and what its cost model is told about a candidate.

A decision may change the layout of the weights and the loop nests that are written at all, so no
trace over one fixed module could hold it. The trace runs over a small carrier instead: a block with
one ``sample_categorical`` for each free decision, written down as the block's annotations. The
tiling is read back from them, and `tvmconv.compute` and `tvmconv.schedules` make the kernel.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmconv.compute.tiling import Tiling
from tvmconv.schedules.space import Space, Variant, with_choices

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["carrier", "features", "schedule", "tiling_of", "trace_json"]

_BLOCK = "decisions"
_FORMS = ("phase", "voxel", "columns", "toom-cook", "definition")


@lru_cache(maxsize=1)
def carrier() -> Any:
    """The module that carries decisions: one block that does nothing."""
    import tvm
    from tvm import tirx
    from tvm.tirx.script.builder import ir as T

    from tvmconv.compute.frame import buffer, i64, prim_func

    def body() -> None:
        place = buffer("place", (1,), "float32")
        with T.grid(i64(1)) as i, T.sblock(_BLOCK):
            at = T.axis.spatial(i64(1), i)
            T.buffer_store(place, tirx.const(0, "float32"), [at])

    return tvm.IRModule({"main": prim_func("main", body)})


def schedule(variant: Variant | None, tiling: Tiling) -> Any:
    """The carrier with the decisions of a tiling, each drawn from its legal values."""
    from tvm.s_tir import Schedule

    sch = Schedule(carrier())
    block = sch.get_sblock(_BLOCK)
    # What the variant fixes: one text, so that a trace can be read without the space.
    sch.annotate(block, "base", json.dumps((variant.base if variant else tiling).to_json()))
    if variant is not None:
        chosen = variant.values(tiling)
        assert chosen is not None, tiling
        for (name, values), value in zip(variant.choices, chosen, strict=True):
            drawn = sch.sample_categorical(
                list(values), [1 / len(values)] * len(values), decision=values.index(value)
            )
            sch.annotate(block, name, drawn)
    return sch


def tiling_of(sch: Any) -> Tiling:
    """The tiling whose decisions a carrier holds: the inverse of `schedule`."""
    annotations = dict(sch.get(sch.get_sblock(_BLOCK)).annotations)
    base = Tiling.from_json(json.loads(str(annotations.pop("base"))))
    return with_choices(base, {str(name): int(value) for name, value in annotations.items()})


def trace_json(sch: Any) -> Any:
    """The trace as JSON values: MetaSchedule's own form."""
    import tvm

    return json.loads(tvm.ir.save_json(sch.trace.as_json()))


def replay(trace: Any) -> Any:
    """The carrier with the decisions of a trace that `trace_json` gave."""
    import tvm
    from tvm.s_tir import Schedule
    from tvm.s_tir.schedule import Trace

    sch = Schedule(carrier())
    Trace.apply_json_to_schedule(tvm.ir.load_json(json.dumps(trace)), sch)
    return sch


def features(space: Space, tilings: Sequence[Tiling]) -> np.ndarray:
    """What the cost model sees: one row for each tiling, float32.

    The decisions (sizes as logarithms), and the cycles by the model of its rule.
    """
    rows = []
    for tiling in tilings:
        variant = space.find(tiling)
        cycles = math.log2(max(1.0, variant.cycles(tiling))) if variant else 0.0
        sizes = (
            tiling.vector, tiling.registers, tiling.width, tiling.registers * tiling.width,
            tiling.rows, tiling.splits, tiling.planes, *tiling.outputs, *tiling.block,
            math.prod(tiling.outputs), math.prod(tiling.block),
        )  # fmt: skip
        flags = (tiling.fold, tiling.pack, tiling.channels_outer, tiling.stationary)
        rows.append(
            [
                *(float(tiling.form == form) for form in _FORMS),
                cycles,
                float(variant is not None),
                *(math.log2(size) for size in sizes),
                *map(float, flags),
                float(tiling.shared),
                float(tiling.reduced),
            ]
        )
    return np.array(rows, np.float32)
