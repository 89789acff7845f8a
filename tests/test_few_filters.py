"""The form for few filters, where it was measured what each takes beside its model."""

from __future__ import annotations

import pytest
from kernels import target

from tvmconv import schedules
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.schedules.cpu import direct, dot, few_filters


def work(
    channels: int, filters: int, kernel: int, strides: int, size: tuple[int, int, int],
    *, first: bool = False, dtype: str = "float32",
) -> Workload:  # fmt: skip
    config = LayerConfig(
        filters, kernel, strides=strides, padding="same", dtype=dtype,
        data_format="channels_first" if first else "channels_last",
    )  # fmt: skip
    return Workload.of(config, (1, channels, *size) if first else (1, *size, channels))


@pytest.mark.parametrize(
    ("some", "expected", "otherwise"),
    [
        (work(32, 6, 3, 2, (23, 37, 40)), "voxel", "phase"),
        (work(16, 2, 3, 2, (26, 27, 24)), "voxel", "dots"),
        (work(96, 5, 4, 2, (22, 6, 40)), "voxel", "columns"),
        (work(96, 3, 3, 2, (39, 31, 40)), "columns", "dots"),  # its input comes from memory
        (work(8, 7, 2, 2, (38, 19, 25)), "phase", "phase"),
        (work(24, 6, 3, 2, (24, 19, 20), first=True), "voxel", "phase"),
        (work(128, 7, 4, 3, (17, 16, 37), first=True), "columns", "phase"),
        (work(32, 4, 3, 1, (12, 26, 5), first=True), "dots", "voxel"),
        (work(32, 4, 3, 1, (24, 60, 5), first=True), "voxel", "voxel"),  # more than the cache holds
    ],
)
def test_zen_3_takes_what_was_faster_there(some: Workload, expected: str, otherwise: str) -> None:
    assert schedules.decide(some, target("znver3"), algorithm="direct").form == expected
    assert schedules.decide(some, target("haswell"), algorithm="direct").form == otherwise


def test_others_and_doubles_have_no_shares() -> None:
    some = work(32, 6, 3, 2, (23, 37, 40))
    for form in ("columns", "dots", "phase"):
        assert few_filters.share(some, target("znver3"), form) is not None
        assert few_filters.share(some, target("znver4"), form) is None
    double = work(32, 6, 3, 2, (23, 37, 40), dtype="float64")
    assert few_filters.share(double, target("znver3"), "phase") is None


@pytest.mark.parametrize("first", [False, True])
def test_forms_are_compared_by_what_they_are_chosen_by(first: bool) -> None:
    """`several` and `shapes` sum over shapes what the rules of one shape compare."""
    some, machine = work(32, 6, 3, 2, (9, 11, 13), first=first), target("znver3")
    chosen = schedules.decide(some, machine, algorithm="direct")
    assert chosen.form == "voxel"
    dots = dot.decide(some, machine, always=True)
    assert dots is not None
    assert direct.compared(some, machine, dots) >= direct.compared(some, machine, chosen)


def test_dots_of_half_width_widen_where_they_are_used() -> None:
    half = work(32, 1, 3, 2, (9, 12, 40), dtype="float16")
    tiling = dot.decide(half, target("znver3"), always=True)
    assert tiling is not None and not tiling.pack
