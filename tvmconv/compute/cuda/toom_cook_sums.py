"""From inputs to the sums that are multiplied, and from the products to the outputs.

Both are written out for one combination of schemes, in registers of one thread: for a tile of one
channel, or of one filter.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish
from tvmconv.compute.cuda.boxes import Box
from tvmconv.compute.cuda.registers import Registers
from tvmconv.compute.cuda.threads import divide, split
from tvmconv.compute.element import storage
from tvmconv.compute.schemes import KINDS, signed_sum

if TYPE_CHECKING:
    from tvmconv.compute.cuda.toom_cook_block import Block

__all__ = ["add_outputs", "add_sums", "find_sums"]


def find_sums(block: Block, box: Box, thread: Any) -> None:
    """Where a thread's tiles read their first inputs and write their first sums.

    Once, before the loop: ptxas would keep such numbers of every combination in registers.
    """
    t, depth, threads = block.threads, block.tiling.depth, block.tiling.threads
    total = math.prod(box.tiles) * depth
    with T.unroll(t.const(0), t.const(block.sum_tiles)) as i:
        number = i * t.const(threads) + thread
        tile, channel = divide(number, depth)
        along = split(tile, box.tiles)
        first = t.const(0)
        for place, outputs, extent in zip(along, box.outputs, box.reach, strict=True):
            first = first * t.const(extent) + place * t.const(outputs)
        first = first * t.const(depth) + channel
        row = channel * t.const(block.form.row) + box.row(t.const, along)
        exists = number < t.const(total)
        block.sum_place.store(tirx.Select(exists, first, t.const(-1)), thread, i, t.const(0))
        block.sum_place.store(row, thread, i, t.const(1))


def add_sums(block: Block, box: Box, thread: Any, stage: Any) -> None:
    """All sums of a box, of the channels of a slice."""
    t = block.threads
    with T.unroll(t.const(0), t.const(block.sum_tiles)) as i, t.scope("tile"):
        first = t.named(block.sum_place.load(thread, i, t.const(0)))
        with T.If(first >= t.const(0)), T.Then(), t.scope("sums"):
            row = block.sum_place.load(thread, i, t.const(1))
            _sums_of_tile(block, box, stage, first, row)


def _sums_of_tile(block: Block, box: Box, stage: Any, first: Any, row: Any) -> None:
    t, dtype = block.threads, block.dtype
    zero = t.const(0)
    reach = [max(offset + KINDS[kind][-1][0] for kind, offset in p) + 1 for p in box.points]
    inputs = Registers.local(t, tuple(reach), dtype)
    plane = Registers.local(t, tuple(reach[1:]), dtype)
    line = Registers.local(t, (reach[2],), dtype)

    def read(d: int) -> None:
        for h, w in itertools.product(range(reach[1]), range(reach[2])):
            flat = (d * box.reach[1] + h) * box.reach[2] + w
            value = block.inputs.load(stage, first + t.const(flat * block.tiling.depth))
            inputs.store(value, zero, *map(t.const, (d, h, w)))

    here: set[int] = set()
    for p, (kind, d) in enumerate(box.points[0]):
        # A plane is read when it is needed, so that few are in registers, and once: for all nvcc
        # knows, a sum that is written could be one of them.
        needed = {d + step for step, _ in KINDS[kind]}
        for one in sorted(needed - here):
            read(one)
        here |= needed
        for h, w in itertools.product(range(reach[1]), range(reach[2])):
            terms = [
                (inputs.load(zero, *map(t.const, (d + step, h, w))), sign)
                for step, sign in KINDS[kind]
            ]
            plane.store(signed_sum(terms), zero, t.const(h), t.const(w))
        for q, (kind_h, h) in enumerate(box.points[1]):
            for w in range(reach[2]):
                terms = [
                    (plane.load(zero, t.const(h + step), t.const(w)), sign)
                    for step, sign in KINDS[kind_h]
                ]
                line.store(signed_sum(terms), zero, t.const(w))
            for r, (kind_w, w) in enumerate(box.points[2]):
                terms = [(line.load(zero, t.const(w + step)), sign) for step, sign in KINDS[kind_w]]
                at = row + t.const(box.distance((p, q, r)))
                block.sums.store(signed_sum(terms), stage, t.const(0), at)


def add_outputs(block: Block, box: Box, thread: Any, number: Any) -> None:
    """The outputs of a box for the filters whose products are in shared memory."""
    t, columns = block.threads, block.form.columns_together
    threads, tiles = block.tiling.threads, math.prod(box.tiles)
    total = tiles * columns
    with T.serial(t.const(0), t.const(-(-total // threads))) as i, t.scope("tile"):
        item = i * t.const(threads) + thread
        # Neighbouring threads store to neighbouring places.
        if block.plan.channels_first:
            column, tile = divide(item, tiles)
        else:
            tile, column = divide(item, columns)
        filters = t.named(block.column_of(column, number))
        inside = [item < t.const(total)] if total % threads else []
        if block.plan.filters % block.tiling.block_channels:
            inside.append(filters < t.bound(block.plan.filters))
        with t.when(tirx.all(*inside) if inside else None), t.scope("outputs"):
            _outputs_of_tile(block, box, split(tile, box.tiles), column, filters)


def _outputs_of_tile(block: Block, box: Box, tile: list[Any], column: Any, filters: Any) -> None:
    t, work, dtype = block.threads, block.work, block.dtype
    zero = t.const(0)
    schemes = box.results
    sizes = [len(points) for points in box.points]
    outputs = box.outputs
    row = t.named(box.row(t.const, tile))
    plane = Registers.local(t, tuple(sizes[1:]), dtype)
    line = Registers.local(t, (sizes[2],), dtype)
    found = Registers.local(t, outputs, dtype)
    bias = t.named(t.bias[filters])
    for a in range(outputs[0]):
        for h, w in itertools.product(range(sizes[1]), range(sizes[2])):
            terms = [
                (block.products.load(column, row + t.const(box.distance((d, h, w)))), sign)
                for d, sign in enumerate(schemes[0][a])
            ]
            plane.store(signed_sum(terms), zero, t.const(h), t.const(w))
        for b in range(outputs[1]):
            for w in range(sizes[2]):
                terms = [
                    (plane.load(zero, t.const(h), t.const(w)), sign)
                    for h, sign in enumerate(schemes[1][b])
                ]
                line.store(signed_sum(terms), zero, t.const(w))
            for e in range(outputs[2]):
                terms = [
                    (line.load(zero, t.const(w)), sign) for w, sign in enumerate(schemes[2][e])
                ]
                found.store(signed_sum(terms) + bias, zero, *map(t.const, (a, b, e)))
    first = [
        t.named(place.output + one * t.const(m * axis.stride))
        for place, one, m, axis in zip(block.places, tile, outputs, block.plan.axes, strict=True)
    ]
    last = finish.result(work, (1,))
    done = T.sblock_alloc_buffer((t.const(1),), storage(work.output_dtype), scope="local")

    def store(numbers: list[Any], value: Any) -> None:
        where = [
            one + j * t.const(axis.stride)
            for one, j, axis in zip(first, numbers, block.plan.axes, strict=True)
        ]
        inside = [
            one < t.bound(axis.out)
            for one, axis, exact in zip(where, block.plan.axes, box.exact, strict=True)
            if not exact
        ]
        with t.when(tirx.all(*inside) if inside else None):
            T.buffer_store(done, last.at(value, zero), [zero])
            at = t.output_at(block.n, (where[0], where[1], where[2]), filters)
            T.buffer_store(t.y, done[zero], [at])

    if finish.is_long(work) or work.output_dtype == "bfloat16":
        # A long formula would be repeated for every output of a tile.
        with T.serial(zero, t.const(math.prod(outputs))) as k:
            store(split(k, outputs), found.buffer[k])
        return
    for place in itertools.product(*map(range, outputs)):
        store(list(map(t.const, place)), found.load(zero, *map(t.const, place)))
