"""The contract between the algorithms and the schedules: names of blocks and of their loops.

An algorithm is an S-TIR function whose loop nests with a choice in them are blocks with these
names; a schedule finds them by name and transforms their loops. A suffix
``_<phase>_<group>_<part>`` tells the nests of one kind apart.
"""

__all__ = ["ACCUMULATE", "PACK"]

#: Copies input rows to scratch. Loops: plane, row, voxel, channel.
PACK = "pack"
#: Sums products into the register tile. Loops: voxel, lane, tap (depth), tap (height), tap (width),
#: channel.
ACCUMULATE = "accumulate"
