"""From emitted kernels to CUDA C, by TVM's code generator and passes of our own choice.

No driver, no GPU and no compiler of NVIDIA's are needed for it.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

from tvmconv.codegen.lowering import plain
from tvmconv.errors import BuildError

__all__ = ["fits", "source"]

_PRELUDE = """#include <stdint.h>
#include <math_constants.h>
@INCLUDES@
#define uint unsigned int
#define ushort unsigned short
@HELP@
"""
_PACK_HALF2 = """static inline __device__ uint __pack_half2(half x, half y) {
  return (uint)*(ushort*)&y << 16 | *(ushort*)&x;
}
"""
_PACK_BFLOAT162 = """static inline __device__
uint __pack_nv_bfloat162(nv_bfloat16 x, nv_bfloat16 y) {
  return (uint)*(ushort*)&y << 16 | *(ushort*)&x;
}
"""
_HALF4 = """struct __align__(8) half4 { half x, y, z, w; };
static inline __device__ half4 make_half4(half x, half y, half z, half w) {
  half4 v;
  v.x = x, v.y = y, v.z = z, v.w = w;
  return v;
}
"""
_DYNAMIC = r"extern __shared__ __align__\(64\) (\w+) (\w+)\[\];"
_DYNAMIC_SHARED = """#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(kind, name) extern __shared__ __align__(64) kind name[]
#endif
"""
_DEVICE_KERNEL_LAUNCH = 2
"""TVM's CallingConv.DeviceKernelLaunch."""


def _passes() -> list[Any]:
    from tvm import s_tir, tirx

    block, loop = s_tir.transform, tirx.transform
    return [
        block.CanonicalizeLoop(),
        block.LowerInitBlock(),
        block.ConvertBlocksToOpaque(),
        block.LowerMatchBuffer(),
        block.StmtSimplify(),
        block.LowerOpaqueBlock(),
        loop.FlattenBuffer(),
        loop.VectorizeLoop(True),
        loop.UnrollLoop(),
        loop.StmtSimplify(),
        # RemoveNoOp is left out: it takes a load of a fragment for a statement without an effect.
        block.RewriteUnsafeSelect(),
        block.InferFragment(),
    ]


def source(kernels: dict[str, Any], resident: dict[str, int], architecture: str = "sm_80") -> str:
    """The CUDA C text of kernels, by their symbols.

    Parameters
    ----------
    kernels
        Emitted functions.
    resident
        Blocks of a kernel that a multiprocessor should hold at once, which bounds its registers.

    Raises
    ------
    BuildError
        TVM refused the code.
    """
    import tvm
    from tvm import tirx

    if not kernels:  # Outputs without an element.
        return _with_prelude("")
    machine = tvm.target.Target({"kind": "cuda", "arch": architecture})
    lowered = {}
    try:
        passes = tvm.ir.transform.Sequential([tirx.transform.BindTarget(machine), *_passes()])
        # nvcc unrolls; written out here, kernels would be ten times as long.
        options = tvm.transform.PassContext(config={"tirx.UnrollLoop": {"explicit_unroll": False}})
        for symbol, function in kernels.items():
            with options:
                module = passes(tvm.IRModule({symbol: function.with_attr("global_symbol", symbol)}))
            lowered[symbol] = plain(module[symbol], symbol).with_attr(
                "calling_conv", _DEVICE_KERNEL_LAUNCH
            )
        module = tirx.transform.LowerIntrin()(tvm.IRModule(lowered))
        tvm.register_global_func("tvm_callback_cuda_compile", _no_compiler, override=True)
        built = tvm.get_global_func("target.build.cuda")(module, machine)
    except (ValueError, RuntimeError, TypeError) as exc:
        first = str(exc).strip().splitlines()[-1]
        raise BuildError(f"TVM could not generate CUDA code: {first}") from exc
    text = str(built.inspect_source())
    text = text[text.index('extern "C" __global__') :]
    for symbol, blocks in resident.items():
        bounds = rf"__launch_bounds__\((\d+)\) {symbol}\("
        text = re.sub(bounds, rf"__launch_bounds__(\1, {blocks}) {symbol}(", text)
    text = re.sub(_DYNAMIC, r"DYNAMIC_SHARED(\1, \2);", text)
    return _with_prelude(text)


def fits(kernel: Any, limits: dict[str, int], architecture: str = "sm_80") -> bool:
    """Whether a kernel keeps limits that TVM's ``VerifyGPUCode`` knows, in TVM's own count.

    Parameters
    ----------
    kernel
        An emitted function.
    limits
        As ``max_shared_memory_per_block`` or ``max_vector_bytes``.
    """
    import tvm
    from tvm import tirx
    from tvm.s_tir.analysis import verify_gpu_code

    machine = tvm.target.Target({"kind": "cuda", "arch": architecture})
    # The number of blocks has to be a number: that of one sample.
    batch = {p: tirx.IntImm(str(p.ty), 1) for p in kernel.params if str(p.ty).startswith("int")}
    module = tvm.IRModule({"main": kernel.specialize(batch).with_attr("global_symbol", "main")})
    passes = tvm.ir.transform.Sequential([tirx.transform.BindTarget(machine), *_passes()])
    with tvm.transform.PassContext(config={"tirx.UnrollLoop": {"explicit_unroll": False}}):
        return bool(verify_gpu_code(passes(module)["main"], limits))


def _with_prelude(kernels: str) -> str:
    """The kernels behind a prelude of ours: TVM's own includes headers that a wheel may lack."""
    half = "#include <cuda_fp16.h>\n" if "half" in kernels else ""
    half += "#include <cuda_bf16.h>\n" if "bfloat16" in kernels else ""
    extra = _HALF4 if "half4" in kernels else ""
    extra += _PACK_BFLOAT162 if "__pack_nv_bfloat162" in kernels else ""
    extra += _PACK_HALF2 if "__pack_half2" in kernels else ""
    extra += _DYNAMIC_SHARED if "DYNAMIC_SHARED" in kernels else ""
    extra += _tensor_functions() if re.search(r"\b(tensor|copy)_", kernels) else ""
    wmma = "#include <mma.h>\n" if "wmma" in kernels else ""
    return _PRELUDE.replace("@INCLUDES@", half + wmma).replace("@HELP@", extra) + kernels


def _tensor_functions() -> str:
    return (resources.files("tvmconv.codegen.cuda") / "tensor.cuh").read_text(encoding="utf-8")


def _no_compiler(_code: str, *_more: Any) -> bytes:
    """In place of TVM's own call of nvcc: nothing. It would add --use_fast_math."""
    return b"\0" * 64
