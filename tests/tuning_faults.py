"""Candidates in C that do what no schedule of ours should: for tests of the child processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from tvmconv.codegen import lowering, toolchain
from tvmconv.compute.tiling import Tiling
from tvmconv.tuning import building
from tvmconv.tuning.records import Failure
from tvmconv.tuning.runners import Built, Task

FAULTS = {
    "crash": "*(volatile int *)8 = 1;",
    "timeout": "for (;;) pause();",
    "memory": "for (int n = 0; n < 640; n++) { char *p = malloc(1 << 24); if (p) "
    "memset(p, 1, 1 << 24); } for (;;) pause();",
    "wrong": "if (begin == 0) *(float *)output = 1e3f;",
}
_SOURCE = """#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
void candidate_pack(void *a, void *b, void *c, void *d) { (void)a; (void)b; (void)c; (void)d; }
void candidate_kernel(const void *x, const void *w, const void *b, void *output, void *scratch,
                      int64_t batch, int64_t begin, int64_t end)
{ (void)x; (void)w; (void)b; (void)output; (void)scratch; (void)batch; (void)begin; (void)end;
  %s }
"""


class FaultyBuilder:
    """Builds candidates of this process: the named ones with C code in the kernel's place."""

    def __init__(self, faults: dict[Tiling, str], place: Path) -> None:
        self._faults, self._place, self._count = faults, place, 0

    def build(self, task: Task, tilings: Sequence[Tiling]) -> list[Built]:
        return [self._one(task, tiling) for tiling in tilings]

    def close(self) -> None:
        pass

    def _one(self, task: Task, tiling: Tiling) -> Built:
        fault = self._faults.get(tiling)
        if fault == "build":
            return Built(tiling, None, Failure("build", "as told"))
        self._count += 1
        folder = self._place / f"candidate{self._count}"
        request = {
            "config": task.config.get_config(),
            "shape": task.shape,
            "target": building.described(task.machine),
            "tiling": tiling.to_json(),
            "folder": str(folder),
            "shared": str(self._place),
        }
        if fault is None:
            building.build(request)
        else:
            code = self._compiled(FAULTS[fault])
            with mock.patch.object(lowering.Code, "object_code", lambda _: code):
                building.build(request)
        return Built(tiling, folder)

    def _compiled(self, statement: str) -> bytes:
        (self._place / "fault.c").write_text(_SOURCE % statement)
        toolchain.find().run(["-O0", "-fPIC", "-c", "fault.c", "-o", "fault.o"], self._place)
        return (self._place / "fault.o").read_bytes()
