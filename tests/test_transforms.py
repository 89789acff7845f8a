"""The schemes of Toom-Cook, and how an axis is cut into tiles."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from tvmconv.compute.schemes import KINDS, SCHEMES, Scheme, divided, transform
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.toom_cook import ToomCookForm
from tvmconv.compute.transforms import AxisTiles, axis_tiles, outputs_of
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.geometry import Axis, output_length


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda scheme: scheme.name)
def test_schemes_are_exact(scheme: Scheme) -> None:
    rng = np.random.default_rng(1)
    d = rng.integers(-9, 10, scheme.outputs + scheme.taps - 1).astype(np.float64)
    taps = rng.integers(-9, 10, scheme.taps).astype(np.float64)
    g = np.broadcast_to(divided(scheme, transform(scheme, taps, 0), 0), (len(scheme.points),))
    sums = [sum(sign * d[i + step] for step, sign in KINDS[kind]) for kind, i in scheme.points]
    y = np.array(scheme.result) @ (np.array(sums) * g)
    # Tap t meets input q - t: the highest tap the first input.
    direct = [
        sum(d[j + k] * taps[::-1][k] for k in range(scheme.taps)) for j in range(scheme.outputs)
    ]
    # Sums that were divided by 21 are exact to their last digits.
    np.testing.assert_allclose(y, direct, atol=1e-12 if scheme.divisors else 0, rtol=0)


@pytest.mark.parametrize("seed", range(60))
def test_tiles_cover_every_output_once_and_read_what_it_needs(seed: int) -> None:
    rng = random.Random(seed)
    stride = rng.randint(1, 4)
    kernel = rng.randint(stride, 3 * stride)
    size, padding = rng.randint(1, 20), rng.choice(("same", "valid"))
    out, lo = output_length(size, kernel, stride, 1, padding, None)
    axis = Axis(size, kernel, stride, 1, lo, out)
    long = [m for m in (3, 4) if all((m, phase.taps) in SCHEMES for phase in axis.phases)]
    for m in {*outputs_of(axis), *long}:
        tiles = AxisTiles(axis, m, rng.randint(1, 4), shared=rng.random() < 0.7)
        found = []
        for group in tiles.classes:
            for residue, place, start in zip(
                group.residues, group.places, group.starts, strict=True
            ):
                for t, j in itertools.product(range(tiles.tiles), range(m)):
                    o = t * tiles.span + place + stride * j
                    if o >= out:
                        continue
                    found.append(o)
                    assert (o + lo) % stride == residue
                    # d_0 of output j stands j inputs after d_0 of output 0.
                    d0 = tiles.lowest + start + t * m + j
                    assert d0 == (o + lo) // stride - (group.scheme.taps - 1)
                if tiles.shared:
                    for point in group.scheme.points:
                        column, shift = tiles.column(start, point)
                        kind, offset = tiles.columns[column]
                        assert (kind, offset + shift * m) == (point[0], point[1] + start)
                        assert shift <= tiles.halo
        assert sorted(found) == list(range(out))


def test_tilings_that_are_compared_share_what_they_have_in_common() -> None:
    # A rule looks at thousands of them: each time anew took half of the time to compile a layer.
    axis = Axis(16, 4, 2, 1, 1, 32)
    some = axis_tiles(axis, 3, 2, True, False)
    assert some is axis_tiles(Axis(16, 4, 2, 1, 1, 32), 3, 2, True, False)
    other = axis_tiles(axis, 3, 4, True, False)
    assert other != some
    assert other.classes is some.classes
    assert axis_tiles(axis, 2, 2, True, False).classes is not some.classes
    work = Workload.of(LayerConfig(32, 4, 2, "same"), (1, 16, 16, 16, 32))
    tiling = Tiling("toom-cook", 16, 2, 4, 1, outputs=(3, 3, 3), block=(1, 1, 6))
    forms = [ToomCookForm(work, replace(tiling, block=block)) for block in ((1, 1, 6), (1, 2, 6))]
    for mine, theirs in zip(*(form.combinations for form in forms), strict=True):
        assert mine is theirs
    more = ToomCookForm(work, replace(tiling, registers=1))
    assert more.combinations[0].regions != forms[0].combinations[0].regions
