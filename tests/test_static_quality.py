"""The innermost loop of a layer for each processor, read from its assembly: products and spills."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from tvmconv import schedules, targets
from tvmconv.codegen import lowering
from tvmconv.compute import lower
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig

# The multiplications of each architecture, fused with an addition or, where it has none, not.
PRODUCT = {
    "x86_64": r"vfn?madd|\bmulps", "aarch64": r"\bfml[as]", "armv7": r"\bvmul\.f32|\bvfma|\bvmla",
    "riscv64": r"\bfn?madd\.s",
}  # fmt: skip
STACK = re.compile(r"\bsp\b|%rsp")
LABEL = re.compile(r"\.LBB\w+$")


@dataclass(frozen=True)
class Floor:
    """Products as a share of the instructions, at least; accesses to the stack, at most."""

    products: float
    stack: int = 0


# Without fused multiply-adds (SSE, ARMv7 as LLVM sees a Cortex-A7) a product needs a register of
# its own, and some sums are spilled.
FLOORS = {
    "cortex-a53": Floor(0.5), "cortex-a76": Floor(0.5), "neoverse-v1": Floor(0.5),
    "riscv64-rva22": Floor(0.55), "x86-64-v3": Floor(0.42), "x86-64-v4": Floor(0.5),
    "x86-64-v2": Floor(0.22, 4), "armv7-neon": Floor(0.14, 14),
}  # fmt: skip


def innermost(assembly: str, product: str) -> list[str]:
    """The loop without a loop or a label in it that has most products."""
    lines = [re.split(r"#|//|@ ", line)[0].strip() for line in assembly.splitlines()]
    lines = [line for line in lines if line and (line[0] != "." or line[-1] == ":")]
    places: dict[str, int] = {}
    best: list[str] = []
    for number, line in enumerate(lines):
        if line.endswith(":"):
            places[line[:-1]] = number
            continue
        jump = LABEL.search(line)
        if jump is None or jump[0] not in places:
            continue
        body = [one for one in lines[places[jump[0]] + 1 : number + 1] if not one.endswith(":")]
        if any(LABEL.search(one) for one in body[:-1]):
            continue
        if len(re.findall(product, "\n".join(body))) > len(re.findall(product, "\n".join(best))):
            best = body
    return best


@pytest.mark.parametrize("name", FLOORS)
@pytest.mark.parametrize("algorithm", ["direct", "toom-cook"])
def test_products_and_spills_of_the_innermost_loop(name: str, algorithm: str) -> None:
    (target,) = targets.resolve(name)
    work = Workload.of(LayerConfig(64, 4, strides=2, padding="same"), (1, 8, 8, 8, 128))
    tiling = schedules.decide(work, target, algorithm=algorithm)
    code = lowering.emit({"k": schedules.apply(lower(work, tiling)).kernel}, target)
    product = PRODUCT[target.architecture]
    loop = innermost(code.text("s"), product)
    count = sum(bool(re.search(product, line)) for line in loop)
    stack = sum(bool(STACK.search(line)) for line in loop)
    assert count >= 8
    assert count / len(loop) >= FLOORS[name].products, (count, len(loop))
    assert stack <= FLOORS[name].stack, stack
    assert len(code.object_code()) < 64 << 10
