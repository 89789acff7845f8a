"""The contract between the algorithms and the schedules: names of blocks and of their loops.

An algorithm is an S-TIR function whose interesting loop nests are blocks with these names; a schedule finds them by name
and transforms their loops. A suffix ``_<phase>_<group>`` tells the nests of one kind apart.
"""

__all__ = ["ACCUMULATE", "EDGE", "FILL", "FINISH", "PACK", "STORE"]

#: Copies input rows to scratch. Loops: plane, row, voxel, channel.
PACK = "pack"
#: Sums products into the register tile. Loops: voxel, lane, tap (depth), tap (height), tap (width), channel.
ACCUMULATE = "accumulate"
#: Writes the whole registers of a tile. Loops: voxel, lane.
STORE = "store"
#: Writes the lanes of a last, partly used register. Loops: voxel, lane.
EDGE = "edge"
#: Writes voxels that no tap reaches. Loops: voxel, channel.
FILL = "fill"
#: Writes a finished row from scratch: activation, dtype, layout. Loops: channel, voxel or voxel, channel.
FINISH = "finish"
