"""How a program finds out whether the processor has what LLVM calls a feature.

Bits of x86: Intel's and AMD's manuals, CPUID. Bits of ARM and AArch64: the Linux kernel's
`hwcap.h`; of RISC-V: its `hwprobe.rst`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tvmconv.errors import BuildError
from tvmconv.systems import TRIPLES

_AVX, _AVX512, _APX = 1, 2, 3


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# LLVM's name -> (word, bit, state of the registers); the words are those of c/processor.c.
_X86: Final[dict[str, tuple[int, int, int]]] = {
    "sse3": (0, 0, 0), "ssse3": (0, 9, 0), "fma": (0, 12, _AVX),
    "sse4.1": (0, 19, 0), "sse4.2": (0, 20, 0), "movbe": (0, 22, 0), "popcnt": (0, 23, 0),
    "avx": (0, 28, _AVX), "f16c": (0, 29, _AVX),
    "bmi": (2, 3, 0), "avx2": (2, 5, _AVX), "bmi2": (2, 8, 0),
    "avx512f": (2, 16, _AVX512), "avx512dq": (2, 17, _AVX512), "avx512ifma": (2, 21, _AVX512),
    "avx512cd": (2, 28, _AVX512), "avx512bw": (2, 30, _AVX512), "avx512vl": (2, 31, _AVX512),
    "avx512vbmi": (3, 1, _AVX512), "avx512vbmi2": (3, 6, _AVX512), "gfni": (3, 8, 0),
    "avx512vnni": (3, 11, _AVX512), "avx512bitalg": (3, 12, _AVX512),
    "avx512vpopcntdq": (3, 14, _AVX512),
    "avx512fp16": (4, 23, _AVX512), "avxvnni": (5, 4, _AVX), "avx512bf16": (5, 5, _AVX512),
    "avxifma": (5, 23, _AVX), "avxvnniint8": (6, 4, _AVX), "avxneconvert": (6, 5, _AVX),
    "avxvnniint16": (6, 10, _AVX), "lzcnt": (7, 5, 0), "sse4a": (7, 6, 0), "xop": (7, 11, _AVX),
    "fma4": (7, 16, _AVX), "tbm": (7, 21, 0),
    "avx10.1": (8, 0, _AVX512), "avx10.2": (8, 1, _AVX512),
    **dict.fromkeys(("egpr", "push2pop2", "ppx", "ndd", "ccmp", "nf", "zu"), (6, 21, _APX)),
}  # fmt: skip

# The baseline of x86-64; what only intrinsics and atomics reach; what steers LLVM's choices.
_X86_FREE: Final = _words(
    """
    64bit 64bit-mode cmov cx8 fxsr mmx nopl sse sse2 x87
    adx aes avx512vp2intersect cx16 sahf
    amx-avx512 amx-bf16 amx-complex amx-fp16 amx-fp8 amx-int8 amx-movrs amx-tf32 amx-tile
    cldemote clflushopt clwb clzero cmpccxadd crc32 enqcmd fsgsbase hreset invpcid kl lwp movdir64b
    movdiri movrs mwaitx pclmul pconfig pku prefetchi prfchw ptwrite rdpid rdpru rdrnd rdseed
    serialize sha sha512 shstk sm3 sm4 tsxldtrk uintr usermsr vaes vpclmulqdq waitpkg wbnoinvd
    widekl xsave xsavec xsaveopt xsaves
    allow-light-256-bit branch-hint branchfusion ermsb false-deps-getmant false-deps-lzcnt-tzcnt
    false-deps-mulc false-deps-mullq false-deps-perm false-deps-popcnt false-deps-range
    fast-11bytenop fast-15bytenop fast-7bytenop fast-bextr fast-dpwssd fast-gather fast-hops
    fast-imm16 fast-lzcnt fast-movbe fast-scalar-fsqrt fast-scalar-shift-masks fast-shld-rotate
    fast-variable-crosslane-shuffle fast-variable-perlane-shuffle fast-vector-fsqrt
    fast-vector-shift-masks faster-shift-than-shuffle fsrm idivl-to-divb idivq-to-divl lea-sp
    lea-uses-ag macrofusion no-bypass-delay no-bypass-delay-blend no-bypass-delay-mov
    no-bypass-delay-shuffle pad-short-functions prefer-128-bit prefer-256-bit prefer-mask-registers
    prefer-movmsk-over-vtest sbb-dep-breaking slow-3ops-lea slow-incdec slow-lea slow-pmaddwd
    slow-pmulld slow-pmullq slow-shld slow-two-mem-ops slow-unaligned-mem-16 slow-unaligned-mem-32
    tuning-fast-imm-vector-shift use-glm-div-sqrt-costs use-slm-arith-costs vzeroupper
    """
)

_AARCH64: Final[dict[str, tuple[tuple[int, int, int], ...]]] = {
    "fp-armv8": ((0, 0, 0),), "neon": ((0, 1, 0),),
    "fullfp16": ((0, 9, 0), (0, 10, 0)), "rdm": ((0, 12, 0),),
    "complxnum": ((0, 14, 0),), "sha3": ((0, 17, 0),),
    "dotprod": ((0, 20, 0),), "sve": ((0, 22, 0),), "fp16fml": ((0, 23, 0),),
    "flagm": ((0, 27, 0),),
    "sve2": ((1, 1, 0),), "altnzcv": ((1, 7, 0),),
    "fptoint": ((1, 8, 0),), "i8mm": ((1, 13, 0),), "bf16": ((1, 14, 0),), "cssc": ((1, 34, 0),),
    "sve2p1": ((1, 36, 0),), "mops": ((1, 43, 0),), "sve-b16b16": ((1, 45, 0),),
}  # fmt: skip

_AARCH64_FREE: Final = _words(
    """
    CONTEXTIDREL2 a320 a35 a510 a520 a520ae a53 a55 a57 a64fx a65 a710 a715 a72 a720 a720ae a73 a75
    a76 a77 a78 a78ae a78c ampere1 ampere1a ampere1b ampere1c apple-a10 apple-a11 apple-a12
    apple-a13 apple-a14 apple-a15 apple-a16 apple-a17 apple-a7 apple-m4 apple-m5 c1-nano c1-premium
    c1-pro c1-ultra carmel cortex-a725 cortex-r82 cortex-r82ae cortex-x1 cortex-x2 cortex-x3
    cortex-x4 cortex-x925 exynosm3 exynosm4 falkor fujitsu-monaka kryo neoverse512tvb neoversee1
    neoversen1 neoversen2 neoversen3 neoversev1 neoversev2 neoversev3 neoversev3AE olympus oryon-1
    saphira thunderx thunderx2t99 thunderx3t110 thunderxt81 thunderxt83 thunderxt88 tsv110
    v8.1a v8.2a v8.3a v8.4a v8.5a v8.6a v8.7a v8.8a v8a v8r v9.1a v9.2a v9.3a v9a
    addr-lsl-slow-14 aggressive-fma aggressive-interleaving alternate-sextload-cvt-f32-pattern
    alu-lsl-fast arith-bcc-fusion arith-cbz-fusion avoid-ldapur balance-fp-ops cmp-bcc-fusion
    disable-latency-sched-heuristic disable-maximize-scalable-bandwidth
    disable-unpredicated-ld-st-lower enable-select-opt exynos-cheap-as-move
    force-32bit-jump-tables fuse-address fuse-addsub-2reg-const1 fuse-adrp-add fuse-aes
    fuse-arith-logic fuse-crypto-eor fuse-csel fuse-cset fuse-literals ldp-aligned-only
    max-interleave-factor-4 no-sve-fp-ld1r no-zcz-fpr64 predictable-select-expensive
    slow-strqro-store store-pair-suppress stp-aligned-only strict-align uaops
    use-fixed-over-scalable-if-equal-cost use-postra-scheduler use-wzr-to-vec-move zcm-fpr128
    zcm-gpr64 zcz-fp-workaround zcz-fpr128 zcz-gpr32 zcz-gpr64
    crc jsconv lse rcpc rcpc-immo sve-bitperm
    aes am amvs brbe bti ccdp ccidx ccpp chk clrbhb dit ecv el2vmsa el3 ete fgt fpac hbc hcx lor
    ls64 lse2 mec mpam mte nmi nv pan pan-rwv pauth perfmon predres rand ras rme sb sel2 sha2 sm4
    spe spe-eef specres2 specrestrict ssbs sve-aes sve-sha3 sve-sm4 tlb-rmi tracev8.4 trbe vh wfxt
    xs sme sme-b16b16 sme-f16f16 sme-f64f64 sme-i16i64 sme2 sme2p1
    """
)

# What every processor of Apple's has that runs macOS on ARM; the system is not asked.
_APPLE: Final = _words(
    "altnzcv complxnum dotprod flagm fp-armv8 fp16fml fptoint fullfp16 neon rdm sha3"
)

_ARM: Final[dict[str, tuple[tuple[int, int, int], ...]]] = {
    "neon": ((0, 12, 0),), "vfp3": ((0, 13, 0),), "vfp4": ((0, 16, 0),), "d32": ((0, 19, 0),),
    "hwdiv-arm": ((0, 17, 0),), "hwdiv": ((0, 18, 0),),
}  # fmt: skip

# The baseline, ARMv7-A with a floating-point unit; parts of the features above; tuning.
_ARM_FREE: Final = _words(
    """
    aclass armv7-a db dsp fp64 fpregs fpregs64 mp perfmon thumb2 trustzone v4t v5t v5te v6 v6k v6m
    v6t2 v7 v7clrex v8m vfp2 vfp2sp vfp3d16 vfp3d16sp vfp3sp vfp4d16 vfp4d16sp vfp4sp virtualization
    a12 a15 a17 a5 a7 a8 a9 avoid-movs-shop avoid-partial-cpsr disable-postra-scheduler
    dont-widen-vmovs expand-fp-mlx krait muxed-units neon-fpmovs neonfp nonpipelined-vfp
    prefer-ishst prefer-vmovsr prof-unpr ret-addr-stack slow-fp-brcc slow-load-D-subreg slow-odd-reg
    slow-vdup32 slow-vgetlni32 slowfpvfmx slowfpvmlx splat-vfp-neon swift use-misched vldn-align
    vmlx-forwarding vmlx-hazards wide-stride-vfp
    """
)

_RISCV: Final[dict[str, tuple[tuple[int, int, int], ...]]] = {
    name: ((1, bit, 0),)
    for name, bit in {
        "v": 2, "zba": 3, "zbb": 4, "zbs": 5, "zbc": 7, "zbkb": 8, "zbkc": 9, "zbkx": 10,
        "zvbb": 17, "zvbc": 18, "zvkb": 19, "zfh": 27, "zfhmin": 28, "zvfh": 30, "zvfhmin": 31,
        "zfa": 32, "zacas": 34, "zicond": 35,
    }.items()
}  # fmt: skip

# The baseline, RV64GC; parts of V; what only intrinsics and atomics reach; tuning.
_RISCV_FREE: Final = _words(
    """
    64bit a c d f i m zaamo zalrsc zca zcd zicsr zifencei zmmul zicntr zihpm
    zve32f zve32x zve64d zve64f zve64x zvl128b zvl32b zvl64b
    b zic64b zicbom zicbop zicboz ziccamoa ziccif zicclsm ziccrse zihintntl zihintpause zkt za64rs
    add-load-fusion auipc-addi-fusion auipc-load-fusion conditional-cmv-fusion
    disable-misched-load-clustering disable-postmisched-load-clustering
    disable-postmisched-store-clustering dlen-factor-2 log-vrgather lui-addi-fusion lui-load-fusion
    no-default-unroll no-sink-splat-operands optimized-nf2-segment-load-store
    optimized-nf3-segment-load-store optimized-nf4-segment-load-store
    optimized-nf5-segment-load-store optimized-nf6-segment-load-store
    optimized-nf7-segment-load-store optimized-nf8-segment-load-store optimized-zero-stride-load
    shifted-zextw-fusion sifive7 single-element-vec-fp64 use-postra-scheduler
    vl-dependent-latency vxrm-pipeline-flush zexth-fusion zextw-fusion
    """
)


@dataclass(frozen=True)
class Bit:
    """One bit that must be set: in which word, and which registers the system must keep."""

    feature: str
    word: int
    bit: int
    state: int


def bits(features: Iterable[str], triple: str) -> tuple[Bit, ...]:
    """The bits to check for `features` on the architecture of `triple`, without repetition.

    Nothing is checked in WebAssembly, where the runtime refuses a module, and without an operating
    system, where nobody can be asked.

    Raises
    ------
    BuildError
        For a feature that this version cannot check.
    """
    table, free, architecture = _tables(triple)
    if table is None:
        return ()
    wanted = {feature.removeprefix("+") for feature in features}
    if "vfp4" in wanted:
        free |= {"fp16"}  # conversions only, and a part of it
    found: dict[tuple[int, int, int], Bit] = {}
    for name in sorted(wanted):
        if name in free or name.startswith("-"):
            continue
        if name not in table:
            raise BuildError(
                f"the CPU feature {name!r} cannot be checked when the library runs on "
                f"{architecture}; leave it out of the target with '-{name}'"
            )
        for row in table[name]:
            found.setdefault(row, Bit(name, *row))
    return tuple(found.values())


def _tables(
    triple: str,
) -> tuple[Mapping[str, tuple[tuple[int, int, int], ...]] | None, frozenset[str], str]:
    """Bits, features that need none, and the name of an architecture; None: not checked."""
    kind = TRIPLES[triple].kind if triple in TRIPLES else "linux"
    architecture = triple.partition("-")[0]
    if kind == "macos":
        return {}, _AARCH64_FREE | _APPLE, "macOS"
    if kind != "linux":
        return None, frozenset(), architecture
    if architecture in ("x86_64", "amd64"):
        return {name: (row,) for name, row in _X86.items()}, _X86_FREE, architecture
    if architecture in ("aarch64", "arm64"):
        return _AARCH64, _AARCH64_FREE, architecture
    if architecture == "armv7":
        return _ARM, _ARM_FREE, architecture
    if architecture == "riscv64":
        return _RISCV, _RISCV_FREE, architecture
    return None, frozenset(), architecture
