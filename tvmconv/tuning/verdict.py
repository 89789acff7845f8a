"""The end of a run: the best few against the default once more, and what is stored.

The fastest of many noisy times is partly luck. So the best few are measured again in turns with the
default on fresh inputs; the one that wins there meets the default alone in a second such duel, on
other inputs, and its gain is the one of that duel. Where its 95 % interval touches zero the next
one is asked, and where none is left the default has won.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvmconv.errors import TuningError
from tvmconv.tuning.processes import ChildError
from tvmconv.tuning.records import Final

if TYPE_CHECKING:
    from tvmconv.compute.tiling import Decisions
    from tvmconv.tuning.runners import Runner

__all__ = ["Finalist", "Verdict", "decide", "gains"]


@dataclass(frozen=True)
class Finalist:
    """A candidate whose artifact lies in ``folder``."""

    tiling: Decisions
    folder: Path


@dataclass(frozen=True)
class Verdict:
    """The winner, and the candidates that turned out wrong on the whole layer, with their error."""

    winner: Decisions
    final: Final
    wrong: dict[Decisions, str]


def decide(
    runner: Runner,
    default: Finalist,
    others: Sequence[Finalist],
    default_s: float,
    tolerance: float,
    step: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """Who wins, and by how much.

    Parameters
    ----------
    runner
        Prepared for the layer.
    default, others
        The default, and the fastest candidates of the search.
    default_s
        Seconds of a call of the default, for the length of a duel.
    tolerance
        Largest error against the reference.
    step
        Called with the name of each step.

    Raises
    ------
    TuningError
        The runner failed, or the default itself is wrong.
    """
    try:
        step("checking the whole layer")
        entrants = [default, *others]
        errors = runner.check([one.folder for one in entrants])
        wrong = {
            one.tiling: "not finite" if error is None else f"off by {error:.1e}"
            for one, error in zip(entrants, errors, strict=True)
            if error is None or not error <= tolerance
        }
        if default.tiling in wrong:
            raise TuningError(
                f"the default itself is {wrong[default.tiling]} against the reference: this is a "
                "bug of tvmconv"
            )
        error_of = {one.tiling: error for one, error in zip(entrants, errors, strict=True)}
        rivals = [one for one in others if one.tiling not in wrong]
        step("measuring the best again")
        rows = runner.duel([default.folder, *(one.folder for one in rivals)], default_s)
        order = sorted(
            range(len(rivals)), key=lambda at: -gains([(r[0], r[at + 1]) for r in rows])[0]
        )
        for at in order:
            middle, low, _ = gains([(row[0], row[at + 1]) for row in rows])
            if low <= 0:
                continue
            again = runner.duel([default.folder, rivals[at].folder], default_s)
            pairs = [(row[0], row[1]) for row in again]
            middle, low, high = gains(pairs)
            if low > 0:
                error = error_of[rivals[at].tiling]
                final = Final(
                    statistics.median(b for _, b in pairs),
                    statistics.median(a for a, _ in pairs),
                    round(middle, 5),
                    round(low, 5),
                    round(high, 5),
                    len(pairs),
                    float(error or 0.0),
                    default.tiling.to_json(),
                )
                return Verdict(rivals[at].tiling, final, wrong)
    except ChildError as exc:
        raise TuningError(
            f"the second measurement failed ({exc}); the records are kept, and the same command "
            "goes on from them"
        ) from exc
    own = statistics.median(row[0] for row in rows)
    error = error_of[default.tiling]
    decisions = default.tiling.to_json()
    final = Final(own, own, 0.0, 0.0, 0.0, len(rows), float(error or 0.0), decisions)
    return Verdict(default.tiling, final, wrong)


def gains(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Median of ``default / candidate - 1`` over rounds, and its 95 % interval from the ranks."""
    values = sorted(default / candidate - 1 for default, candidate in pairs)
    reach = 0.98 * math.sqrt(len(values))
    low = max(0, math.floor(len(values) / 2 - reach))
    high = min(len(values) - 1, math.ceil(len(values) / 2 + reach) - 1)
    return statistics.median(values), values[low], values[high]
