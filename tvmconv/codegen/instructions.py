"""Code that LLVM would not make of a formula by itself: the steps of pair products, above all.

LLVM's scheduler moves all additions of a register tile to its front, where the multipliers wait
for them, and spills some of them. In order, voxel by voxel, both kinds of units are busy: 1.05 to
1.15 times the speed on Zen 4. So a step is one piece of assembly for LLVM, and what is inside of it
stays in order. For processors without its instructions it is the formula.

And what TIR has not: stores of some lanes of a register, stores past the caches, and products of
bfloat16 numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmconv.compute.coupling import PRODUCTS
from tvmconv.compute.frame import LINE_BYTES
from tvmconv.compute.pairing import MINUS, PLUS
from tvmconv.compute.shuffle import STORE
from tvmconv.compute.streaming import BEGINS, FENCE, STREAM

if TYPE_CHECKING:
    from tvmconv.targets import CpuTarget

__all__ = ["import_steps"]

#: A sum, three registers of weights (a, b, alone), the places of three inputs.
_STEP = """
define <{lanes} x float> @{name}(<{lanes} x float> %sum, <{lanes} x float> %a,
    <{lanes} x float> %b, <{lanes} x float> %c, ptr %xa, ptr %xb, ptr %xc) alwaysinline nounwind {{
{body}
  ret <{lanes} x float> %total
}}
"""
#: The registers of sum, additions and weights, and the inputs, are operands 0 to 2, 4 to 6, 7 to 9.
_INSTRUCTIONS = (
    "{add} $7{{1to16}}, $5, $1",
    "{add} $8{{1to16}}, $4, $2",
    "vfmadd231ps $9{{1to16}}, $6, $0",
    "{fma} $1, $2, $0",
)
_ASSEMBLY = """  %found = call {{ <16 x float>, <16 x float>, <16 x float> }} asm "{code}",
    "=&v,=&v,=&v,0,v,v,v,*m,*m,*m"(<16 x float> %sum, <16 x float> %a, <16 x float> %b,
    <16 x float> %c, ptr elementtype(float) %xa, ptr elementtype(float) %xb,
    ptr elementtype(float) %xc) nounwind
  %total = extractvalue {{ <16 x float>, <16 x float>, <16 x float> }} %found, 0"""
_INPUT = """  %l{x} = load float, ptr %x{x}, align 4
  %i{x} = insertelement <{lanes} x float> poison, float %l{x}, i64 0
  %v{x} = shufflevector <{lanes} x float> %i{x}, <{lanes} x float> poison,
    <{lanes} x i32> zeroinitializer"""
_FORMULA = """  %s = {add} <{lanes} x float> %b, %va
  %t = {add} <{lanes} x float> %a, %vb
  %plain = fmul contract <{lanes} x float> %c, %vc
  %before = fadd contract <{lanes} x float> %sum, %plain
  %pair = fmul contract <{lanes} x float> %s, %t
  %total = {add} contract <{lanes} x float> %before, %pair"""

#: A register, its place, and the lanes that are stored, a bit each.
_STORE = """
declare void @llvm.masked.store.v{lanes}{element[0]}.p0(<{lanes} x {element[1]}>, ptr, i32,
    <{lanes} x i1>)
define i32 @{name}(<{lanes} x {element[1]}> %value, ptr %place, i32 %bits)
    alwaysinline nounwind {{
{hidden}  %few = trunc i32 %{few} to i{lanes}
  %mask = bitcast i{lanes} %few to <{lanes} x i1>
  call void @llvm.masked.store.v{lanes}{element[0]}.p0(<{lanes} x {element[1]}> %value,
      ptr %place, i32 {element[2]}, <{lanes} x i1> %mask)
  ret i32 0
}}
"""
#: Where LLVM knows that it is one lane, of integers that were just narrowed, it stores 32 bits.
_HIDDEN = """  %hidden = call i32 asm "", "=r,0"(i32 %bits) nounwind
"""
#: A sum, inputs and weights; a lane of either is two bfloat16 numbers.
_PRODUCTS = """
define <{lanes} x float> @{name}(<{lanes} x float> %sum, <{twice} x i16> %inputs,
    <{lanes} x float> %weights) alwaysinline nounwind {{
{body}
  ret <{lanes} x float> %total
}}
"""
_INSTRUCTION = """  %x = bitcast <{twice} x i16> %inputs to <{twice} x bfloat>
  %w = bitcast <{lanes} x float> %weights to <{twice} x bfloat>
  %total = call <{lanes} x float> @llvm.x86.avx512bf16.dpbf16ps.{bits}(<{lanes} x float> %sum,
      <{twice} x bfloat> %x, <{twice} x bfloat> %w)"""
_DECLARED = """
declare <{lanes} x float> @llvm.x86.avx512bf16.dpbf16ps.{bits}(<{lanes} x float>,
    <{twice} x bfloat>, <{twice} x bfloat>)"""
_WIDENED = """  %x = bitcast <{twice} x i16> %inputs to <{lanes} x i32>
  %w = bitcast <{lanes} x float> %weights to <{lanes} x i32>"""
_HALF = """  %x.{half} = {operation} <{lanes} x i32> %x, splat (i32 {by})
  %w.{half} = {operation} <{lanes} x i32> %w, splat (i32 {by})
  %xf.{half} = bitcast <{lanes} x i32> %x.{half} to <{lanes} x float>
  %wf.{half} = bitcast <{lanes} x i32> %w.{half} to <{lanes} x float>
  %product.{half} = fmul contract <{lanes} x float> %xf.{half}, %wf.{half}
  %{total} = fadd contract <{lanes} x float> %{sum}, %product.{half}"""
#: A register and its place, a multiple of its bytes.
_STREAM = """
define i32 @{name}(<{lanes} x {element[1]}> %value, ptr %place) alwaysinline nounwind {{
  store <{lanes} x {element[1]}> %value, ptr %place, align {bytes}, !nontemporal !{{i32 1}}
  ret i32 0
}}
"""
_BEGINS = """
define i32 @{name}(ptr %place) alwaysinline nounwind {{
  %address = ptrtoint ptr %place to i64
  %low = and i64 %address, {rest}
  %begins = icmp eq i64 %low, 0
  %found = zext i1 %begins to i32
  ret i32 %found
}}
"""
#: LLVM makes no instruction of x86 of a fence: there only stores past the caches need one.
_X86_FENCE = """
declare void @llvm.x86.sse.sfence()
define i32 @{name}() alwaysinline nounwind {{
  call void @llvm.x86.sse.sfence()
  ret i32 0
}}
"""
_FENCE = """
define i32 @{name}() alwaysinline nounwind {{
  fence release
  ret i32 0
}}
"""
#: LLVM's names of what is stored, and its bytes.
_ELEMENTS = {
    "float32": ("f32", "float", 4),
    "float64": ("f64", "double", 8),
    "float16": ("f16", "half", 2),
    "uint16": ("i16", "i16", 2),
}


def import_steps(function: Any, target: CpuTarget) -> Any:
    """The function with the code of what it calls, if any."""
    import tvm
    import tvm_ffi
    from tvm import tirx

    found: dict[str, Any] = {}

    def find(call: Any) -> None:
        name = getattr(call.args[0], "value", None) if call.args else None
        if name in (PLUS, MINUS, STORE, PRODUCTS):
            found[name] = call.args[1].ty
        elif isinstance(name, str) and (name in (BEGINS, FENCE) or name.startswith(STREAM)):
            found[name] = None

    tvm_ffi.structural_walk(function.body, (tvm.ir.Call, find))
    if not found:
        return function
    parts = []
    for name, kind in sorted(found.items()):
        if kind is None:
            parts.append(_past(name, target))
            continue
        element, _, lanes = str(kind).rpartition("x")
        if name == STORE:
            parts.append(_store(name, lanes, element))
        elif name == PRODUCTS:
            parts.append(_products(name, int(lanes), target))
        else:
            parts.append(_step(name, int(lanes), target))
    code = tvm.ir.StringImm("".join(parts))
    body = tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", code, function.body)
    return tirx.PrimFunc(function.params, body, attrs=function.attrs)


def _store(name: str, lanes: str, element: str) -> str:
    """LLVM's text of a store."""
    hides = element == "uint16"
    return _STORE.format(
        name=name, lanes=lanes, element=_ELEMENTS[element],
        hidden=_HIDDEN if hides else "", few="hidden" if hides else "bits",
    )  # fmt: skip


def _products(name: str, lanes: int, target: CpuTarget) -> str:
    """LLVM's text of the products of bfloat16 numbers."""
    sizes = {"lanes": lanes, "twice": 2 * lanes, "bits": 32 * lanes}
    text = _PRODUCTS
    if "avx512bf16" in target.required_features():
        text, body = _DECLARED.format(**sizes) + text, _INSTRUCTION.format(**sizes)
    else:
        high, low = (
            _HALF.format(half=half, operation=operation, by=by, sum=before, total=after, **sizes)
            for half, operation, by, before, after in (
                ("high", "and", -65536, "sum", "between"), ("low", "shl", 16, "between", "total")
            )
        )  # fmt: skip
        body = "\n".join([_WIDENED.format(**sizes), high, low])
    return text.format(name=name, body=body, **sizes)


def _past(name: str, target: CpuTarget) -> str:
    """LLVM's text of what stores past the caches, or belongs to it."""
    if name == BEGINS:
        return _BEGINS.format(name=name, rest=LINE_BYTES - 1)
    if name == FENCE:
        return (_X86_FENCE if target.architecture == "x86_64" else _FENCE).format(name=name)
    kind, _, lanes = name.removeprefix(STREAM).rpartition("x")
    element = _ELEMENTS[kind]
    size = int(lanes) * element[2]
    return _STREAM.format(name=name, lanes=lanes, element=element, bytes=size)


def _step(name: str, lanes: int, target: CpuTarget) -> str:
    """LLVM's text of a step."""
    if target.architecture == "x86_64" and target.vector_bits == 512 and lanes == 16:
        add, fma = ("vaddps", "vfmadd231ps") if name == PLUS else ("vsubps", "vfnmadd231ps")
        code = "\\0A".join(_INSTRUCTIONS).format(add=add, fma=fma)
        body = _ASSEMBLY.format(code=code)
    else:
        inputs = [_INPUT.format(x=x, lanes=lanes) for x in "abc"]
        add = "fadd" if name == PLUS else "fsub"
        body = "\n".join([*inputs, _FORMULA.format(lanes=lanes, add=add)])
    return _STEP.format(name=name, lanes=lanes, body=body)
