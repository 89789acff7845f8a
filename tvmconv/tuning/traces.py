"""Decisions as MetaSchedule's traces, and what its cost model is told about a candidate.

A decision may change the layout of the weights and the loop nests that are written at all, so no
trace over one fixed module could hold it. The trace runs over a small carrier instead: a block with
one ``sample_categorical`` for each free decision, written down as the block's annotations. The
tiling is read back from them, and `tvmconv.compute` and `tvmconv.schedules` make the kernel.
"""

from __future__ import annotations

import dataclasses
import json
import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.compute.tiling import Decisions, Tiling
from tvmconv.schedules.space import Space, Variant, with_choices

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["carrier", "features", "schedule", "tiling_of", "trace_json"]

_BLOCK = "decisions"
_FORMS = ("phase", "voxel", "columns", "dots", "pairs", "toom-cook", "definition", "matrix")


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


def schedule(variant: Variant | None, tiling: Decisions) -> Any:
    """The carrier with the decisions of a tiling, each drawn from its legal values."""
    from tvm.s_tir import Schedule

    sch = Schedule(carrier())
    block = sch.get_sblock(_BLOCK)
    # What the variant fixes: one text, so that a trace can be read without the space.
    sch.annotate(block, "base", json.dumps(_fixed(variant, tiling).to_json()))
    if variant is not None:
        chosen = variant.values(tiling)
        assert chosen is not None, tiling
        for (name, values), value in zip(variant.choices, chosen, strict=True):
            drawn = sch.sample_categorical(
                list(values), [1 / len(values)] * len(values), decision=values.index(value)
            )
            sch.annotate(block, name, drawn)
    return sch


def _fixed(variant: Variant | None, tiling: Decisions) -> Decisions:
    """The tiling with the variant's own values where it has a choice."""
    if variant is None:
        return tiling
    free = {name.partition(".")[0] for name, _ in variant.choices}
    own = {name: getattr(variant.base, name) for name in free}
    return dataclasses.replace(tiling, **own)


def tiling_of(space: Space, sch: Any) -> Decisions:
    """The tiling whose decisions a carrier holds: the inverse of `schedule`."""
    annotations = dict(sch.get(sch.get_sblock(_BLOCK)).annotations)
    base = space.read(json.loads(str(annotations.pop("base"))))
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


def features(space: Space, tilings: Sequence[Decisions]) -> np.ndarray:
    """What the cost model sees: one row for each tiling, float32.

    The decisions (sizes as logarithms), and the cycles by the model of its rule.
    """
    forms = _FORMS if isinstance(space.default, Tiling) else space.forms
    rows = []
    for tiling in tilings:
        variant = space.find(tiling)
        cycles = math.log2(max(1.0, variant.cycles(tiling))) if variant else 0.0
        rows.append(
            [
                *(float(tiling.form == form) for form in forms),
                cycles,
                float(variant is not None),
                *_numbers(tiling),
            ]
        )
    return np.array(rows, np.float32)


def _numbers(tiling: Decisions) -> list[float]:
    """Sizes as logarithms, then what is no size."""
    if isinstance(tiling, Tiling):
        sizes = (
            tiling.vector, tiling.registers, tiling.width, tiling.registers * tiling.width,
            tiling.rows, tiling.splits, tiling.planes, *tiling.outputs, *tiling.block,
            math.prod(tiling.outputs), math.prod(tiling.block),
        )  # fmt: skip
        flags = (tiling.fold, tiling.pack, tiling.channels_outer, tiling.stationary)
        return [
            *map(math.log2, sizes),
            *map(float, flags),
            float(tiling.shared),
            float(tiling.reduced),
            float(tiling.dots),
            math.log2(1 + tiling.stretch),
        ]
    # Every number of a GPU's tiling is a size, or 0 for what is left to others.
    found: list[float] = []
    for value in tiling.to_json().values():
        if not isinstance(value, str):
            found += value if isinstance(value, tuple) else [value]
    if isinstance(tiling, CudaTiling):
        found += [tiling.voxels * tiling.lanes, tiling.block_voxels * tiling.block_channels]
    return [math.log2(1 + value) for value in found]
