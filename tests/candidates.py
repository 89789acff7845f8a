"""Candidates as a builder makes them, and some with faults, for tests of devices."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from tvmconv import schedules, targets
from tvmconv.codegen import elf, toolchain
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.tuning import building
from tvmconv.tuning.runners import Task

CONFIG = LayerConfig(16, 3, strides=2, padding="same", activation="relu", name="up")
SHAPE = (None, 4, 4, 8, 16)

FAULTY = """
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static const int64_t input[] = {-1, 4, 4, 8, 16}, output[] = {-1, 8, 8, 16, 16};
const int64_t *candidate_input_shape(int32_t i) { (void)i; return input; }
const int64_t *candidate_output_shape(int32_t i) { (void)i; return output; }
size_t candidate_workspace_size(int32_t i, int32_t t) { (void)i; (void)t; return 0; }
int32_t candidate_run(const candidate_args *a) { FAULT; return 0; }
"""
#: Name -> what the layer does, the reason that a record gives, and words of its detail.
FAULTS = {
    "crash": ("raise(SIGSEGV)", "crash", "SIGSEGV"),
    "exit": ("exit(0)", "crash", "ended without an answer"),
    "hang": ("for (;;) pause()", "timeout", "no answer after 5 s"),
    "memory": ("while (malloc(1 << 24)) {} return 77", "run", "answered 77"),
    "error": ("return 15", "run", "answered 15"),
    "wrong": ("memset(a->output, 0, 8 * 8 * 16 * 16 * 4)", "wrong", "off by"),
    "nothing": ("(void)a", "wrong", "not finite"),
}


def small_task() -> Task:
    """A layer for this machine."""
    return Task("up", CONFIG, SHAPE, Workload.of(CONFIG, SHAPE), targets.native())


def built(place: Path, task: Task) -> list[Path]:
    """Artifacts of three candidates, the default first."""
    (place / "shared").mkdir()
    (base,) = schedules.decide_all([task.work], task.machine, exact=False, algorithm="direct")
    made = []
    for rows in (base.rows, 1, 2):
        request = {
            "config": CONFIG.get_config(),
            "shape": SHAPE,
            "target": building.described(task.machine),
            "tiling": dataclasses.replace(base, rows=rows).to_json(),
            "folder": str(place / str(len(made))),
            "shared": str(place / "shared"),
        }
        building.build(json.loads(json.dumps(request)))
        made.append(place / str(len(made)))
    return made


def faulty(folder: Path, good: Path, fault: str) -> Path:
    """A candidate with a fault, in the place of a good one."""
    folder.mkdir()
    (folder / "candidate.h").write_bytes((good / "candidate.h").read_bytes())
    (folder / building.PACKED).symlink_to((good / building.PACKED).resolve())
    (folder / "fault.c").write_text(FAULTY)
    options = ["-std=gnu99", "-fPIC", "-include", "candidate.h", f"-DFAULT={fault}"]
    toolchain.find().run([*options, "-c", "fault.c", "-o", "fault.o"], folder)
    archive = elf.archive("candidate.o", (folder / "fault.o").read_bytes())
    (folder / "libcandidate.a").write_bytes(archive)
    return folder
