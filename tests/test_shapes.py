"""Several shapes of one layer: one form, one layout of packed weights, the fewest cycles."""

from __future__ import annotations

import pytest
from kernels import target

from tvmconv import schedules
from tvmconv.compute import lower
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.errors import ConfigError
from tvmconv.schedules.cpu import column

TINY, LARGE = (1, 2, 3, 2), (1, 32, 31, 33)


def works_of(config: LayerConfig, channels: int, *sizes: tuple[int, ...]) -> list[Workload]:
    return [Workload.of(config, (*size, channels)) for size in sizes]


def layouts(works: list[Workload], tilings: list[Tiling]) -> set[str]:
    pairs = zip(works, tilings, strict=True)
    return {str(lower(work, tiling).layout) for work, tiling in pairs}


@pytest.mark.parametrize("machine", ["x86-64-v3", "x86-64-v4", "cortex-a72"])
def test_a_large_volume_does_not_lose_toom_cook_to_a_tiny_one(machine: str) -> None:
    config = LayerConfig(64, 4, strides=2, padding="same")
    works = works_of(config, 128, TINY, LARGE)
    alone = [schedules.decide(work, target(machine), algorithm="auto") for work in works]
    assert [tiling.form for tiling in alone] == ["phase", "toom-cook"]
    tilings = schedules.decide_all(works, target(machine), algorithm="auto")
    assert {tiling.form for tiling in tilings} == {"toom-cook"}
    # The scheme is the one that the large volume takes, wherever it stands in the list.
    assert {tiling.outputs for tiling in tilings} == {alone[1].outputs}
    assert len(layouts(works, tilings)) == 1


def test_toom_cook_is_left_where_a_shape_cannot_take_it() -> None:
    config = LayerConfig(64, 4, strides=2, padding="same")
    works = works_of(config, 128, LARGE, (1, 1, 1, 1), (1, 2, 1, 1))
    tilings = schedules.decide_all(works, target("x86-64-v4"), algorithm="auto")
    assert {tiling.form for tiling in tilings} == {"phase"}
    with pytest.raises(ConfigError, match="has over two inputs"):
        schedules.decide_all(works, target("x86-64-v4"), algorithm="toom-cook")


def test_few_filters_keep_a_form_of_their_own() -> None:
    config = LayerConfig(1, 3, strides=2, padding="same")
    machine = target("cortex-a72")
    # Channels that fill no register: whole registers of them would be dots.
    works = works_of(config, 34, (1, 13, 11, 9), (1, 32, 32, 32))
    alone = {schedules.decide(work, machine).form for work in works}
    assert alone == {"voxel", "columns"}
    tilings = schedules.decide_all(works, machine)
    assert {tiling.form for tiling in tilings} == {"columns"}
    assert len(layouts(works, tilings)) == 1
    # Without the columns, the voxel form: the phase form would multiply padding.
    rows = schedules.decide_all(works, machine, columns=False)
    assert {tiling.form for tiling in rows} == {"voxel"}
    assert len(layouts(works, rows)) == 1


def test_a_form_that_refuses_one_of_the_shapes_is_not_taken() -> None:
    config = LayerConfig(4, 2, strides=2, padding="same", data_format="channels_first")
    works = [Workload.of(config, (1, 16, 30, 50, width)) for width in (101, 3)]
    machine = target("x86-64-v4")
    assert schedules.decide(works[0], machine).form == "columns"
    assert column.refused(works[1])
    tilings = schedules.decide_all(works, machine)
    assert {tiling.form for tiling in tilings} == {"voxel"}
    assert len(layouts(works, tilings)) == 1
