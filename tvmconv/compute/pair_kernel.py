"""The statements of the pair form's kernel: scale some voxels, multiply them with all panels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish, streaming
from tvmconv.compute.element import widen
from tvmconv.compute.elementary import Formula
from tvmconv.compute.frame import LINE_BYTES, Frame, Region, divide, i64
from tvmconv.compute.pairing import scale
from tvmconv.compute.pairs import HEAD
from tvmconv.compute.shuffle import lanes, totals
from tvmconv.policies import numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmconv.compute.pairs import PairForm

__all__ = ["PairKernel", "Panels"]

#: Cycles from asking memory for a line to having it.
_LATENCY = 700
_ZERO = tirx.const(0, "float32")


@dataclass(frozen=True)
class Panels:
    """What the kernels of both layouts share: scaled voxels in scratch, and the walk of panels."""

    form: PairForm
    frame: Frame

    @property
    def rows(self) -> Region:
        """The scaled inputs."""
        return Region(self.frame.scratch, 0, self.form.rows_shape)

    @property
    def terms(self) -> Region:
        """What belongs to each voxel."""
        return Region(self.frame.scratch, self.rows.size, self.form.terms_shape)

    def groups(self, split: Any) -> Any:
        """A loop: its variable, and panels that all voxels of a task take before the next ones.

        The first of the group and how many, of the share of ``split``.
        """
        tiling = self.form.tiling
        share = -(-self.form.panels // tiling.splits)
        start = split * i64(share)
        end = tirx.min(start + i64(share), i64(self.form.panels))
        groups = tirx.floordiv(end - start + i64(tiling.stretch - 1), i64(tiling.stretch))

        def panels(group: Any) -> tuple[Any, Any]:
            first = start + group * i64(tiling.stretch)
            return first, tirx.min(i64(tiling.stretch), end - first)

        return T.serial(i64(0), groups), panels


@dataclass(frozen=True)
class PairKernel(Panels):
    """Emits the statements of a pair kernel."""

    @property
    def _line(self) -> Region:
        tiling = self.form.tiling
        start = self.rows.size + self.terms.size
        return Region(self.frame.scratch, start, (tiling.width, tiling.vector))

    @property
    def _weights(self) -> Region:
        return Region(self.frame.weights, 0, self.form.panels_shape)

    def task(self, n: Any, chunk: Any, split: Any) -> None:
        """The voxels of a task: copied and scaled, then multiplied by its share of the panels."""
        tiling, first = self.form.tiling, chunk * i64(self.form.tiling.rows)
        done = begin = 0
        spans = []
        for tiles, width in self.form.runs:
            low = tirx.max(first, i64(begin))
            high = tirx.min(first + i64(tiling.rows), i64(begin + tiles))
            spans.append((low, tirx.max(high - low, i64(0)), i64(begin), i64(done), width))
            begin += tiles
            done += tiles * width
        for low, count, before, voxels, width in spans:
            with T.serial(i64(0), count) as step:
                tile = low + step
                self._scale(n, tile - first, voxels + (tile - before) * i64(width), width)
        groups, panels = self.groups(split)
        with groups as group:
            some = panels(group)
            for low, count, before, voxels, width in spans:
                with T.serial(i64(0), count) as step:
                    tile = low + step
                    voxel = voxels + (tile - before) * i64(width)
                    multiply = partial(self._panels, n, (tile - first, voxel), width, some)
                    streaming.either(
                        self.frame, partial(multiply, past=True), partial(multiply, past=False)
                    )

    def _panels(
        self, n: Any, place: tuple[Any, Any], width: int, panels: tuple[Any, Any], past: bool
    ) -> None:
        """A register tile of voxels times some panels: the first, how many.

        ``place`` is the number of the tile and its first voxel. Outputs leave ``past`` the caches
        or are asked for before.
        """
        (tile, voxel), (first, count) = place, panels
        # What is behind the last voxel is only asked for.
        places, later = (self._places(start, width) for start in (voxel, voxel + i64(width)))
        with T.serial(i64(0), count) as k:
            if self.form.tiling.fetch:
                self._fetch(n, voxel, width, first + k)
            after = k + i64(self._ahead(width))
            begin = self._begin(first + tirx.floormod(after, count))[2]

            def ask(w: Any) -> None:
                if not past:
                    place = tirx.if_then_else(after >= count, later[w], places[w])
                    self._claim(n, place + begin)

            self._tile(n, tile, places, width, first + k, ask, past)

    def _fetch(self, n: Any, voxel: Any, width: int, panel: Any) -> None:
        """Ask for a share of the inputs of the next task: of the tile at this one's place in it.

        What is behind the last one is only asked for.
        """
        line = LINE_BYTES // numpy_dtype(self.form.work.input_dtype).itemsize
        share = -(-width * self.form.work.plan.in_channels // (line * self.form.panels))
        later, zero = voxel + i64(width * self.form.tiling.rows), i64(0)
        for i in range(share):
            c = (panel * i64(share) + i64(i)) * i64(line)
            address = tirx.address_of(self.frame.input(n, zero, zero, later, c))
            T.evaluate(tirx.call_intrin("void", "tirx.prefetch", address, 0, 2, 1))

    def _scale(self, n: Any, tile: Any, voxel: Any, width: int) -> None:
        """Copy the voxels of a register tile, each scaled to a mean magnitude of about 1."""
        channels, vector = self.form.work.plan.in_channels, self.form.tiling.vector
        found, total = self._local(width, vector), self._local(1, vector)
        whole = lanes(i64(0), vector)

        def each(body: Callable[[Any], None]) -> None:
            """``body`` adds up numbers of a voxel, lane by lane."""
            with T.serial(i64(0), i64(width)) as w:
                T.buffer_store(total, tirx.Broadcast(_ZERO, vector), [i64(0), whole])
                body(w)
                T.buffer_store(found, total[i64(0), whole], [w, whole])

        def keep(which: int, finished: Callable[[Any], Any]) -> None:
            """Add the lanes up as well, for all voxels, and keep what is made of the sums."""
            held = [found[i64(min(w, width - 1)), whole] for w in range(vector)]
            at = self.terms.at(tile, i64(which), i64(0))
            value = finished(totals(vector, "float32", held))
            T.buffer_store(self.frame.scratch, value, [lanes(at, vector)])

        def copied(body: Callable[[Any, int, Any], None], w: Any) -> None:
            for start, vectors, size in finish.chunks(channels, vector):
                with T.serial(i64(0), i64(vectors)) as o:
                    c = i64(start) + o * i64(size)
                    body(c, size, self._input(n, voxel + w, c, size))

        def magnitude(c: Any, size: int, value: Any) -> None:
            del c
            at = [i64(0), _some(i64(0), size)]
            T.buffer_store(total, total[tuple(at)] + tirx.abs(value), at)

        each(lambda w: copied(magnitude, w))
        powers = Formula(lambda mean: scale(mean, vector), f"float32x{vector}", (1,))
        mean = tirx.Broadcast(tirx.const(1 / channels, "float32"), vector)
        factors = self._local(1, vector)

        def both(sums: Any) -> Any:
            factor, inverse = powers.at(sums * mean, i64(0))
            T.buffer_store(factors, factor, [i64(0), whole])
            return inverse

        keep(1, both)
        with T.serial(i64(0), i64(width)) as w:

            def scaled(c: Any, size: int, value: Any, w: Any = w) -> None:
                factor = factors[i64(0), w]
                value = value * (tirx.Broadcast(factor, size) if size > 1 else factor)
                at = self.rows.at(tile, w, c)
                T.buffer_store(self.frame.scratch, value, [_some(at, size)])

            copied(scaled, w)
        # Not with the copy: a load across two stores waits until both have left the core.
        each(lambda w: self._excess(tile, w, total))
        keep(0, lambda sums: sums)

    def _input(self, n: Any, voxel: Any, c: Any, size: int) -> Any:
        """Channels of a voxel, widened."""
        zero = i64(0)
        if size > 1:
            return self.frame.input_register(n, zero, zero, voxel, c, size)
        stored = self.frame.input(n, zero, zero, voxel, c)
        return widen(stored, self.form.work.input_dtype, "float32")

    def _excess(self, tile: Any, w: Any, total: Any) -> None:
        """Take from ``total`` what the pairs of a scaled voxel add too much."""
        vector = self.form.tiling.vector
        whole = lanes(i64(0), vector)
        for a, b, count, sign in self.form.pairing.pairs:
            for start in range(0, count, vector):
                one, other = (
                    self.frame.scratch[lanes(self.rows.at(tile, w, i64(first + start)), vector)]
                    for first in (a, b)
                )
                product = one * other
                if count - start < vector:
                    # Lanes past the last pair are of other channels, or of what lies behind.
                    inside = whole < tirx.Broadcast(i64(count - start), vector)
                    product = tirx.Select(inside, product, tirx.Broadcast(_ZERO, vector))
                before = total[i64(0), whole]
                value = before - product if sign > 0 else before + product
                T.buffer_store(total, value, [i64(0), whole])

    def _places(self, voxel: Any, width: int) -> Any:
        """Where the outputs of some voxels begin in their sample, for the first tap."""
        plan = self.form.folded.plan
        depth, height, across = plan.axes
        places = T.sblock_alloc_buffer((i64(width),), "int64", scope="local")
        with T.serial(i64(0), i64(width)) as w:
            rest, x = divide(voxel + w, across.size)
            z, y = divide(rest, height.size)
            row = z * i64(depth.stride * height.out) + y * i64(height.stride)
            T.buffer_store(places, (row * i64(across.out) + x) * i64(plan.filters), [w])
        return places

    def _begin(self, panel: Any) -> tuple[Any, Any, Any]:
        """Tap and register of filters of a panel, and where its outputs are beside the first."""
        plan, vector = self.form.folded.plan, self.form.tiling.vector
        height, across = plan.axes[1:]
        tap, block = divide(panel, self.form.panels_shape[1])
        a, b = divide(tap, height.kernel)
        row = (a * i64(height.out) + b) * i64(across.out * plan.filters)
        return tap, block, row + block * i64(vector)

    def _ahead(self, width: int) -> int:
        """Panels from a register tile to the one whose outputs are asked for."""
        cycles = max(1, self.form.work.plan.in_channels * width * 2 // 3)
        return -(-_LATENCY // cycles)

    def _tile(
        self, n: Any, tile: Any, places: Any, width: int, panel: Any, ask: Callable[[Any], None],
        past: bool,
    ) -> None:  # fmt: skip
        """A register tile: some voxels x one register of filters."""
        form, vector = self.form, self.form.tiling.vector
        sums = self._local(width, vector)
        tap, block, begin = self._begin(panel)
        steps = form.pairing.steps
        share = -(-width // max(1, steps))

        def claim(step: Any) -> None:
            for k in range(share):
                ask(tirx.min(step * i64(share) + i64(k), i64(width - 1)))

        with T.unroll(i64(0), i64(width)) as w, T.vectorized(i64(0), i64(vector)) as v:
            start = self._weights.load(tap, block, i64(0), v)
            T.buffer_store(sums, start + self.terms.load(tile, i64(0), w), [w, v])
        form.pairing.emit(
            width,
            vector,
            sums,
            lambda w, c: self.rows.load(tile, w, c),
            lambda slot, v: self._weights.load(tap, block, i64(HEAD) + slot, v),
            claim,
        )
        leave = partial(self._leave, n, tile, places, width, (tap, block, begin), sums, past)
        rest = form.folded.plan.filters % vector
        if not rest:
            leave(vector)
            return
        last = i64(form.panels_shape[1] - 1)
        with T.If(block < last):
            with T.Then():
                leave(vector)
            with T.Else():
                leave(rest)

    def _leave(
        self, n: Any, tile: Any, places: Any, width: int, panel: tuple[Any, Any, Any], sums: Any,
        past: bool, valid: int,
    ) -> None:  # fmt: skip
        """Scale the sums back, add the bias, and store them through the activation."""
        tap, block, begin = panel
        vector, work = self.form.tiling.vector, self.form.work

        def value(w: Any, v: Any) -> Any:
            scaled = sums[w, v] * self._weights.load(tap, block, i64(1), v)
            bias = self.frame.bias[block * i64(vector) + v]
            return scaled * self.terms.load(tile, i64(1), w) + bias

        summed: Callable[..., Any] = value
        loop = T.unroll
        if self.form.has_line:
            with T.unroll(i64(0), i64(width)) as w, T.vectorized(i64(0), i64(valid)) as v:
                self._line.store(value(w, v), w, v)
            summed, loop = self._line.load, T.serial

        last, zero = finish.result(work, (valid,)), i64(0)
        with loop(zero, i64(width)) as w:
            at = places[w] + begin
            if past:
                index = (n, zero, zero, zero, at)
                streaming.store(self.frame, index, valid, lambda v: last.at(summed(w, v), v))
            else:
                with T.vectorized(zero, i64(valid)) as v:
                    stored = last.at(summed(w, v), v)
                    self.frame.output(stored, n, (zero, zero, zero), at + v)

    def _claim(self, n: Any, place: Any) -> None:
        """Bring the lines of a register of outputs into the cache."""
        zero = i64(0)
        line = LINE_BYTES // numpy_dtype(self.form.work.output_dtype).itemsize
        vector = self.form.tiling.vector
        # The last one too: outputs need not begin with a line.
        for start in sorted({*range(0, vector, line), vector - 1}):
            self.frame.claim(n, (zero, zero, zero), place + i64(start))

    def _local(self, count: int, size: int) -> Any:
        return T.sblock_alloc_buffer((i64(count), i64(size)), "float32", scope="local")


def _some(first: Any, size: int) -> Any:
    """The indices of ``size`` elements side by side."""
    return first if size == 1 else lanes(first, size)
