"""What the rules know of single processors, by measurement: one description a processor.

A processor that is not in the table has the defaults: what holds of most, or the cautious answer.
To add one, measure what a field says, and write what was found beside it. The rules ask the
functions below; no other file names a processor.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = [
    "Traits",
    "adders_apart",
    "asks",
    "brings_late",
    "compacts",
    "couples",
    "late_weights",
    "most_copied",
    "multiplies_voxels",
    "packed_rows",
    "stores_lanes",
    "tall",
    "together",
    "traits",
    "widens_apart",
]


@dataclass(frozen=True)
class Shares:
    """What forms take beside their models, with fewer filters than lanes; the voxel form takes 1.

    Attributes
    ----------
    phase, split : float
        The phase form; and where kernel = stride along the width.
    columns : float
        The column form.
    dots, more_dots : float
        The dot form; and from three filters on.
    """

    phase: float
    split: float
    columns: float
    dots: float
    more_dots: float


@dataclass(frozen=True)
class Traits:
    """One processor.

    Attributes
    ----------
    unit_bits : int
        Of the units that multiply, where registers may be wider; 0 where none is.
    few_last, few_far, few_first : Shares, optional
        Of the forms for few filters: channels last, where the caches hold the input and where not,
        and channels first; None: not measured.
    adders : bool
        Whether pipes for additions stand beside those for products.
    adders_apart : int
        Bits of the registers of which as many are added a cycle as multiplied, beside these, as one
        instruction for a sum has an input of memory in all lanes; 0: none.
    stores_lanes : int
        Bits of the registers of which some lanes are stored in the time of all; 0: not measured.
    couples : bool
        Whether two products of bfloat16 numbers a lane were measured in the time of one.
    voxels_fitted : bool
        Whether the model of Toom-Cook with tiles as lanes was fitted on it.
    streams : bool
        Whether stores past the caches gain beside products, in the direct forms and pairs.
    streams_toom_cook : bool
        The same of rows of Toom-Cook that leave scratch.
    brings_late : bool
        Whether the second-level cache is small beside the scratch of Toom-Cook, and cores wait for
        the cache that they share.
    late_weights : int
        Bytes of weights that the cores' shared cache no longer brings in time for each task tile of
        some rows; 0: not measured.
    together : int
        Channels whose lines are written together, where these are first; 0: a register of them.
    copied_first : float
        Second-level caches that the copy of an input may fill, channels first.
    multiplies_voxels : bool
        Whether the matrix form was measured: voxels as lanes where kernel = stride.
    widens_apart : bool
        Whether to widen half-width numbers among the products gained: the column form.
    tall : bool
        Whether the column form's register tiles may have more registers of columns than voxels, as
        many as the registers hold.
    packed_rows : int
        Input rows that the voxel form packs together where channels are first and rows short.
    asks : bool
        Whether the phase form's first tiles of a row should ask for its later inputs, where
        kernel = stride.
    columns_first : float
        Share of the other forms' cycles below which the column form is taken, where channels are
        first and few and their rows whole registers.
    """

    unit_bits: int = 0
    few_last: Shares | None = None
    few_far: Shares | None = None
    few_first: Shares | None = None
    adders: bool = False
    adders_apart: int = 0
    stores_lanes: int = 0
    couples: bool = False
    voxels_fitted: bool = False
    streams: bool = False
    streams_toom_cook: bool = False
    brings_late: bool = False
    late_weights: int = 0
    together: int = 0
    copied_first: float = 1.0
    multiplies_voxels: bool = False
    widens_apart: bool = False
    tall: bool = False
    packed_rows: int = 1
    asks: bool = False
    columns_first: float = 0.9


_ZEN = Traits(adders=True)

#: By LLVM's names.
_MEASURED = {
    "znver1": _ZEN,
    "znver2": _ZEN,
    "znver3": dataclasses.replace(
        _ZEN,
        # Of 26 random layers of float32 and 18 of float16, with 1 to 7 filters, the choice takes
        # 1.02 and 1.06 times as long as the best form; without, 1.07 and 1.11. Of nine further ones
        # of float32, which were drawn afterwards, 1.02.
        few_last=Shares(phase=1.4, split=1.15, columns=1.3, dots=1.4, more_dots=1.6),
        # The voxel form, which transposes them, gains nothing on inputs from memory.
        few_far=Shares(phase=1.4, split=1.15, columns=1.0, dots=1.1, more_dots=1.35),
        # Of 18 random layers 1.00 times; without, 1.20, one layer 2.5. Of nine further ones 1.05,
        # one layer 1.4, of 8 channels. Dots only where the second-level cache holds the input: of
        # 8 to 30 MB they took 1.5 to 3.3 times as long.
        few_first=Shares(phase=1.65, split=1.1, columns=1.025, dots=1.0, more_dots=1.0),
        # Layers with products took 0.58 to 0.98 of the time.
        streams=True,
        brings_late=True,
        # A quarter of that cache. See `schedules.cpu.phase_stationary`.
        late_weights=8 << 20,
        # Registers are half a line: the halves of each follow sooner than those of as many channels
        # as lanes. 32 to 128 filters with kernel = stride = 2 took 0.95 to 1.00 of the time, one
        # layer of 537 MB of outputs 1.02.
        together=4,
        # 768 to 128 filters with kernel = stride = 2 on 6^3 took 0.64 to 0.71 of the time.
        copied_first=1.5,
        multiplies_voxels=True,
        # 240 to 3 and 64 to 1 channels with kernel 4 took 0.94 to 0.96 of the time, 96 to 1 with
        # kernel 3 0.98.
        widens_apart=True,
        # 25 to 54 columns took 0.94 to 1.01 of the time, of half-width inputs 0.83 to 1.00, since
        # fewer tiles widen them; rows of 8 voxels 0.7.
        tall=True,
        # Row by row, asking for a line or two of each channel took a fifth of the time of 64
        # channels of 32^3, which lie 128 KiB apart: 5.8 ms for 4.9. Of eight rows 5.0.
        packed_rows=4,
        # 0.91 to 0.97 of the time.
        streams_toom_cook=True,
        # 128 to 160 channels took 0.70 to 0.96 of the time, the more filters the less is gained; 64
        # to 256 channels with many filters 0.98 to 1.02.
        asks=True,
        # 16 to 32 channels, 1 to 4 filters, kernel 3, stride 2: 0.70 to 0.95 of what the model says
        # beside the voxel form.
        columns_first=1.15,
    ),
    "znver4": dataclasses.replace(
        _ZEN,
        unit_bits=256,
        # With 256 bits each broadcast is a load of its own, and a core has too few of them.
        adders_apart=512,
        stores_lanes=512,
        # Intel's processors from Cooper Lake on have the instruction, too; not measured.
        couples=True,
        voxels_fitted=True,
        # Layers with products took 0.71 to 1.00 of the time, in Toom-Cook 0.92 to 1.01.
        streams=True,
        streams_toom_cook=True,
    ),
    # Has units for sums, and the instruction for bfloat16, too; whether it loads enough for the
    # units has not been measured.
    "znver5": _ZEN,
}
_OTHERS = Traits()


def traits(target: CpuTarget) -> Traits:
    """Those of a processor."""
    return _MEASURED.get(target.cpu, _OTHERS)


def adders_apart(target: CpuTarget) -> bool:
    """Whether a core adds as many registers a cycle as it multiplies, beside these."""
    return traits(target).adders_apart == target.vector_bits


def asks(target: CpuTarget) -> bool:
    """Whether no prefetcher brings the inputs of some voxels in time that are read together."""
    return traits(target).asks and target.vector_bits == 256


def brings_late(target: CpuTarget) -> bool:
    """Whether lines from the cache that cores share come later than the products need them."""
    return traits(target).brings_late


def late_weights(target: CpuTarget) -> int:
    """Bytes of weights that come too late where each task tile reads them; 0: none do."""
    return traits(target).late_weights


def compacts(target: CpuTarget) -> bool:
    """Whether Toom-Cook's sums of inputs are loops, not written out (`Tiling.compact`).

    On Zen 3 channels last took 0.96 to 1.02 of the time with up to a tenth less code; channels
    first 0.91 to 0.96 with stride 1, 1.00 to 1.03 with stride 2 or 3.
    """
    return adders_apart(target) or brings_late(target)


def couples(target: CpuTarget) -> bool:
    """Whether two products of bfloat16 numbers a lane take the time of one of float32."""
    return traits(target).couples and "avx512bf16" in target.required_features()


def multiplies_voxels(target: CpuTarget) -> bool:
    """Whether voxels are the lanes where kernel = stride and channels are first (`matrix`)."""
    return traits(target).multiplies_voxels and target.vector_bits == 256


def stores_lanes(target: CpuTarget) -> bool:
    """Whether some lanes of a register are stored in the time of all of them."""
    return traits(target).stores_lanes == target.vector_bits


def packed_rows(target: CpuTarget) -> int:
    """Short input rows, channels first, that the voxel form packs together."""
    return traits(target).packed_rows if target.vector_bits == 256 else 1


def tall(target: CpuTarget) -> bool:
    """Whether register tiles of columns may be taller than wide, as `columns` multiplies them."""
    return traits(target).tall and target.vector_bits == 256


def together(target: CpuTarget) -> int:
    """Channels, where these are first, that leave scratch together; 0: a register of them."""
    return traits(target).together


def most_copied(work: Workload, target: CpuTarget) -> float:
    """Bytes of an input that is copied once for tasks that each keep some of the weights."""
    return target.l2_bytes * (traits(target).copied_first if work.plan.channels_first else 1.0)


def widens_apart(target: CpuTarget) -> bool:
    """Whether half-width numbers are best widened among the products, by other units."""
    return traits(target).widens_apart and target.vector_bits == 256
