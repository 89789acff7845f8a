"""How long the threads of a call take where its tasks are few and not alike.

They divide the tasks as `codegen/c/layer.c` does: an equal share each, of which half of what is
left is taken from the front, again and again; who is done takes half of the fullest share's rest
from its back.
"""

from __future__ import annotations

import heapq
import itertools
from functools import cache

__all__ = ["MOST_TASKS", "uneven"]

#: Tasks beyond which one more or less for a core is a hundredth or two.
MOST_TASKS = 64


@cache
def uneven(costs: tuple[float, ...], cores: int) -> float:
    """How many times as long ``cores`` threads take as if nobody waited for another."""
    bounds = [len(costs) * core // cores for core in range(cores + 1)]
    left = [list(some) for some in itertools.pairwise(bounds)]
    threads = [(0.0, core) for core in range(cores)]
    end = 0.0
    while threads:
        now, core = heapq.heappop(threads)
        end = max(end, now)
        share = core
        if left[core][0] == left[core][1]:
            share = max(range(cores), key=lambda one: left[one][1] - left[one][0])
        begin, behind = left[share]
        count = behind - begin
        if count == 0:
            continue
        if count > 1 and cores > 1:
            count //= 2
        first = begin if share == core else behind - count
        left[share] = [begin + count, behind] if share == core else [begin, behind - count]
        heapq.heappush(threads, (now + sum(costs[first : first + count]), core))
    return end * cores / sum(costs)
