"""The rule for task tiles that keep weights which would come late, on processors measured."""

from __future__ import annotations

import dataclasses

import pytest
from kernels import target

from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.schedules.cpu import phase


def decided(config: LayerConfig, shape: tuple[int, ...], name: str, cores: int = 2) -> Tiling:
    machine = dataclasses.replace(target(name), cores=cores, l2_bytes=512 << 10)
    tiling = phase.decide(Workload.of(config, shape), machine)
    assert tiling is not None
    return tiling


FOUR = {"kernel_size": 4, "strides": 2, "padding": "same"}


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (LayerConfig(240, **FOUR), (1, 4, 32, 32, 240)),
        (LayerConfig(192, **FOUR), (1, 12, 14, 16, 192)),
        (LayerConfig(512, 2, strides=2), (1, 8, 9, 8, 640)),
    ],
)
def test_a_task_tile_keeps_weights_that_would_come_late(
    config: LayerConfig, shape: tuple[int, ...]
) -> None:
    tiling = decided(config, shape, "znver3")
    assert tiling.stationary
    assert tiling.stretch == 0
    assert not decided(config, shape, "x86-64-v3").stationary


def test_cores_get_task_tiles_enough_and_no_more_copies_of_the_input() -> None:
    config, shape = LayerConfig(240, **FOUR), (1, 4, 32, 32, 240)
    assert decided(config, shape, "znver3").splits == 1
    assert decided(config, shape, "znver3", cores=16).splits == 10
    # Phases of one, two and four taps are not alike: more task tiles even them out.
    odd = LayerConfig(264, 3, strides=2, padding="same")
    assert decided(odd, (1, 10, 14, 16, 320), "znver3").splits > 1


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        # Kernels of 4 MB, which the shared cache brings in time.
        (LayerConfig(256, 2, strides=2), (1, 8, 9, 8, 512)),
        # One phase of 27 taps: the second-level cache holds one register of its weights at most.
        (LayerConfig(320, 3, padding="same"), (1, 8, 18, 18, 320)),
        # An input of 33 MB.
        (LayerConfig(240, **FOUR), (1, 4, 92, 92, 240)),
    ],
)
def test_the_others_do_not(config: LayerConfig, shape: tuple[int, ...]) -> None:
    assert not decided(config, shape, "znver3").stationary
