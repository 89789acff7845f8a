"""Which candidates to try next.

The first are what the rules' own models of the core think cheapest, and some at random. From then
on a cost model that was trained on everything measured so far looks at a pool: the neighbours of
the best (one decision changed), and others drawn from the whole space. Each batch takes the most
promising of the pool and a few at random. A small space is its own pool, so that it ends with
every candidate measured.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvmconv.compute.tiling import Decisions
    from tvmconv.schedules.space import Space, Variant
    from tvmconv.tuning.models import Model

__all__ = ["Search"]

_SMALL = 256
_DRAWN = 100
_PARENTS = 4
#: Share of a batch that is drawn without asking anybody.
_CURIOUS = 0.25


class Search:
    """The candidates of one layer, in the order in which they should be tried.

    Parameters
    ----------
    space
        What may be tried.
    model
        What ranks the pool.
    seed
        Of everything that is drawn.
    """

    def __init__(self, space: Space, model: Model, seed: int) -> None:
        self._space = space
        self._model = model
        self._random = random.Random(seed)
        self._tried: dict[Decisions, float | None] = {}
        self._forms = sorted({variant.base.form for variant in space.variants})
        self._all = [*space.all()] if space.size <= _SMALL else None

    def tell(self, results: Mapping[Decisions, float | None]) -> None:
        """Seconds of candidates that were tried; None for those that failed."""
        new = {tiling: s for tiling, s in results.items() if tiling not in self._tried}
        self._tried.update(new)
        self._model.learn(list(new), list(new.values()))

    def propose(self, count: int) -> list[Decisions]:
        """Up to ``count`` candidates that were not tried; none when all were."""
        if self._space.default not in self._tried:
            return [self._space.default]
        pool = self._pool()
        if not pool:
            return []
        curious = max(1, round(count * _CURIOUS))
        chosen = self._ranked(pool)[: count - curious]
        rest = [tiling for tiling in pool if tiling not in chosen]
        return chosen + self._random.sample(rest, min(len(rest), count - len(chosen)))

    def _ranked(self, pool: list[Decisions]) -> list[Decisions]:
        if not self._model.guided:
            return self._random.sample(pool, len(pool))
        scores = self._model.scores(pool)
        if scores is not None:
            order = sorted(range(len(pool)), key=lambda at: -float(scores[at]))
            return [pool[at] for at in order]
        # Too little was measured yet: the rules' models, form by form, since they differ in scale.
        by_form = [
            sorted((t for t in pool if t.form == form), key=self._cycles) for form in self._forms
        ]
        mixed = itertools.chain(*itertools.zip_longest(*by_form))
        return [tiling for tiling in mixed if tiling is not None]

    def _cycles(self, tiling: Decisions) -> float:
        variant = self._space.find(tiling)
        return variant.cycles(tiling) if variant else float("inf")

    def _pool(self) -> list[Decisions]:
        """Legal candidates that were not tried, in an order that the seed decides alone."""
        if self._all is not None:
            return [tiling for tiling in self._all if tiling not in self._tried]
        best = sorted((s, i) for i, s in enumerate(self._tried.values()) if s is not None)
        tried = list(self._tried)
        parents = [self._space.default, *(tried[i] for _, i in best[:_PARENTS])]
        guided = dict.fromkeys(parents) if self._model.guided else ()
        near = itertools.chain(*map(self._neighbours, guided))
        pool = dict.fromkeys(tiling for tiling in near if tiling not in self._tried)
        for _ in range(20 * _DRAWN):
            if len(pool) >= _DRAWN + _PARENTS * 15:
                break
            tiling = self._draw()
            if tiling is not None and tiling not in self._tried:
                pool[tiling] = None
        if pool:
            return list(pool)
        return [tiling for tiling in self._space.all() if tiling not in self._tried]

    def _draw(self) -> Decisions | None:
        """A candidate from anywhere, each form as often; None for one that is illegal."""
        if not self._forms:
            return None
        form = self._random.choice(self._forms)
        variant = self._random.choice([v for v in self._space.variants if v.base.form == form])
        tiling = variant.tiling(tuple(self._random.choice(values) for _, values in variant.choices))
        return tiling if variant.fits(tiling) else None

    def _neighbours(self, tiling: Decisions) -> Iterator[Decisions]:
        """One free decision changed; or the same free decisions in another structure."""
        home = self._space.find(tiling)
        if home is None:
            return
        chosen = home.values(tiling)
        assert chosen is not None
        for at, (_, values) in enumerate(home.choices):
            place = values.index(chosen[at])
            for value in values[max(0, place - 2) : place + 3]:
                other = home.tiling((*chosen[:at], value, *chosen[at + 1 :]))
                if value != chosen[at] and home.fits(other):
                    yield other
        wanted = dict(zip((name for name, _ in home.choices), chosen, strict=True))
        for variant in self._space.variants:
            if variant is not home and variant.base.form == tiling.form:
                other = _nearest(variant, wanted)
                if variant.fits(other):
                    yield other


def _nearest(variant: Variant, wanted: Mapping[str, int]) -> Decisions:
    """The variant's candidate whose decisions are closest to others."""
    return variant.tiling(
        tuple(
            min(values, key=lambda value: abs(value - wanted.get(name, values[0])))
            for name, values in variant.choices
        )
    )
