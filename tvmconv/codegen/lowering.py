"""From scheduled S-TIR to a relocatable object.

Our own pass pipeline, plain C functions, no TVM runtime.

Differs from TVM's stock pipeline in five things. Indices stay 64-bit where pointers are (narrowed
ones cost an address computation a load, 20 to 60 % of the speed). Functions keep plain C
signatures: buffers become pointers, nothing is packed, checked or allocated by TVM. There is no
parallel loop: the C run time hands out ranges of tiles. Vectors have a fixed length, on RISC-V too.
And common parts of 64-bit indices are left to LLVM: named in TIR they take longer to compile and
give more code.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tvmconv.errors import BuildError

if TYPE_CHECKING:
    from tvmconv.targets import CpuTarget

__all__ = ["Code", "effort", "emit", "plain"]

_FFI_VERSION = "0.1.14"
#: LLVM would make one masked vector of a loop of a few iterations, and it writes a masked one of
#: 16-bit numbers with a single lane as 32 bits: past the end of the output (LLVM 22, AVX-512).
#: Without this limit such a loop has a scalar rest. A test of row ends shows when it can go.
_X86_OPTIONS = ("-vectorizer-min-trip-count:uint=0",)
#: Where a pointer has 32 bits, counters of 64 take two of the few registers each.
_SHORT_POINTERS = ("armv", "thumb", "wasm32")
#: LLVM's effort. The third level unrolls longer loops. The loops of the direct forms gain up to 6 %
#: by it; those of Toom-Cook nothing, for up to three times the code and the time to compile it. Nor
#: do dots; with their channels unrolled it may keep the sums on the stack, for up to half the time.
#: Of 45 layers of the other forms on Zen 4 the second took 0.98 to 1.05 times as long as the third:
#: six of them over a hundredth longer, four less.
_MOST, _ENOUGH = 3, 2
_NOT_UNROLLED = {"toom-cook", "dots"}


class Code:
    """Generated machine code, printable at each stage."""

    def __init__(self, module: Any, lowered: Any) -> None:
        self._module = module
        self._lowered = lowered

    @property
    def tir(self) -> str:
        """The lowered functions."""
        return str(self._lowered)

    def text(self, kind: str) -> str:
        """The LLVM IR (``"ll"``) or the assembly (``"s"``)."""
        return str(self._module.inspect_source(kind))

    def object_code(self) -> bytes:
        """The relocatable object."""
        import tempfile
        from pathlib import Path

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.o"
            self._module.write_to_file(str(path))
            return path.read_bytes()


def plain(function: Any, symbol: str) -> Any:
    """A lowered function whose buffer parameters are pointers, under the global name ``symbol``."""
    import tvm
    from tvm import tirx

    params, bindings = [], []
    for param in function.params:
        if tirx.buffer.is_buffer_var(param):
            pointer = tvm.ir.Var(param.name, tvm.ir.PointerType(param.ty.dtype, "global"))
            params.append(pointer)
            bindings.append(tirx.DeclBuffer(param, data=pointer))
        else:
            params.append(param)
    body = tirx.SeqStmt([*bindings, function.body]) if bindings else function.body
    result = tirx.PrimFunc(params, body, attrs=function.attrs)
    return result.with_attr("global_symbol", symbol)


def _passes(target: CpuTarget) -> list[Any]:
    from tvm import s_tir, tirx

    block, loop = s_tir.transform, tirx.transform
    short = target.architecture.startswith(_SHORT_POINTERS)
    narrow = [loop.NarrowDataType(32), loop.CommonSubexprElim()] if short else []
    return [
        block.CanonicalizeLoop(),
        block.LowerInitBlock(),
        block.ConvertBlocksToOpaque(),
        block.LowerMatchBuffer(),
        block.StmtSimplify(),
        block.LowerOpaqueBlock(),
        # Of an index (5 - v) // 2 TVM 0.27 makes v // -2 + 2 here (iter_map_simplify), which is
        # another number for each second v. So no loop's variable may be negative in the quotient or
        # remainder of an index.
        loop.FlattenBuffer(),
        loop.VectorizeLoop(True),
        loop.StorageRewrite(),
        block.HoistIfThenElse(),
        loop.UnrollLoop(),
        block.RenormalizeSplitPattern(),
        loop.StmtSimplify(),
        loop.RemoveNoOp(),
        block.RewriteUnsafeSelect(),
        *narrow,
    ]


def effort(forms: Iterable[str], *, ships: bool = True) -> int:
    """How hard LLVM shall try for kernels of these forms; ``ships``: they are not only compared."""
    return _ENOUGH if not ships or set(forms) <= _NOT_UNROLLED else _MOST


def emit(functions: dict[str, Any], target: CpuTarget, level: int = _MOST) -> Code:
    """Compile scheduled functions (by the symbols they get) for a CPU.

    ``level`` is LLVM's effort, 0 to 3.

    Raises
    ------
    BuildError
        TVM or LLVM refused the code.
    """
    import tvm
    import tvm_ffi
    from tvm import tirx

    from tvmconv.codegen.instructions import import_steps

    if not tvm_ffi.__version__.startswith(_FFI_VERSION):
        raise BuildError(
            f"apache-tvm-ffi {tvm_ffi.__version__} is installed; {_FFI_VERSION}.post1 is "
            "needed, since others crash this TVM. Install tvmconv[compile] again."
        )
    options: dict[str, Any] = {"opt-level": level}
    if target.architecture == "x86_64":
        options["cl-opt"] = list(_X86_OPTIONS)
    machine = tvm.target.Target({**target.llvm_target_dict(), **options})
    lowered = {}
    try:
        # For vectors of unknown length TVM would make loops of masked ones, with sums in memory.
        fixed = tvm.target.Target(target.llvm_target_dict(scalable=False))
        bound = tirx.transform.BindTarget(fixed)
        passes = tvm.ir.transform.Sequential([bound, *_passes(target)])
        for symbol, function in functions.items():
            module = passes(tvm.IRModule({symbol: function.with_attr("global_symbol", symbol)}))
            lowered[symbol] = import_steps(plain(module[symbol], symbol), target)
        module = tirx.transform.LowerIntrin()(tvm.IRModule(lowered))
        built = tvm.get_global_func("target.build.llvm")(module, machine)
    except (ValueError, RuntimeError, TypeError) as exc:
        first = str(exc).strip().splitlines()[-1]
        raise BuildError(f"TVM could not compile the kernel: {first}") from exc
    return Code(built, module)
