/* Which variant of the code this processor can run.
 *
 * The generated tables `features` (rows of word, bit, state, text) and `variants` (names, ranges of rows) say what each
 * variant needs. Words on x86: see `word()`; on ARM: 0 is AT_HWCAP, 1 is AT_HWCAP2; on RISC-V: 1 is the
 * first word of extensions of the system call riscv_hwprobe. Elsewhere the tables are empty.
 */
#ifndef NO_SYSTEM
#include <stdlib.h>
#include <string.h>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

static uint32_t cpuid(uint32_t leaf, uint32_t subleaf, int which)
{
    uint32_t r[4] = {0, 0, 0, 0};
    if ((uint32_t)__get_cpuid_max(leaf & 0x80000000u, NULL) < leaf) /* clang: an int */
        return 0;
    __cpuid_count(leaf, subleaf, r[0], r[1], r[2], r[3]);
    return r[which];
}

static uint64_t word(int index)
{
    switch (index) {
    case 0: return cpuid(1, 0, 2);
    case 1: return cpuid(1, 0, 3);
    case 2: return cpuid(7, 0, 1);
    case 3: return cpuid(7, 0, 2);
    case 4: return cpuid(7, 0, 3);
    case 5: return cpuid(7, 0, 0) >= 1 ? cpuid(7, 1, 0) : 0;
    case 6: return cpuid(7, 0, 0) >= 1 ? cpuid(7, 1, 3) : 0;
    case 7: return cpuid(0x80000001u, 0, 2);
    case 8: { /* AVX10: bit n - 1 for every version n up to the one there */
        uint32_t version = cpuid(0x24, 0, 1) & 0xff;
        return version >= 32 ? ~0u : (1u << version) - 1;
    }
    default: return 0;
    }
}

/* Whether the operating system keeps the registers: 0 always; 1 AVX; 2 AVX-512; 3 APX. */
static int state_kept(int state)
{
    static const uint32_t needed[] = {0, 0x6, 0xe6, 0x80000};
    uint32_t low, high;
    if (state == 0)
        return 1;
    if (!(cpuid(1, 0, 2) >> 27 & 1)) /* OSXSAVE */
        return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & needed[state]) == needed[state];
}
#elif (defined(__aarch64__) || defined(__arm__)) && defined(__linux__)
#include <sys/auxv.h>
static uint64_t word(int index) { return getauxval(index == 0 ? 16 : 26); }
static int state_kept(int state) { return state == 0; }
#elif defined(__riscv) && defined(__linux__)
#include <sys/auxv.h>
#include <unistd.h>

static uint64_t word(int index)
{
    struct { int64_t key; uint64_t value; } pair = {4, 0};
    int saved = errno;
    uint64_t found = getauxval(16);
    if (index == 1) {
        if (syscall(258, &pair, (size_t)1, (size_t)0, NULL, 0u) == 0 && pair.key == 4)
            found = pair.value;
        else /* Linux before 6.4 tells of V only, in the bit of its letter */
            found = (found >> ('V' - 'A') & 1) << 2;
    }
    errno = saved;
    return found;
}

static int state_kept(int state) { return state == 0; }
#else
static uint64_t word(int index) { return (void)index, 0; }
static int state_kept(int state) { return state == 0; }
#endif

/* The row of `features` that the processor lacks for a variant, or -1. */
static int32_t missing_feature(const struct variant *v)
{
    uint64_t words[16];
    uint32_t asked = 0, kept = 1; /* each question once: a virtual machine takes tens of microseconds for an answer */
    int32_t i;
    for (i = v->first_feature; i < v->last_feature; i++) {
        const struct feature *f = &features[i];
        if (!(asked >> f->word & 1))
            words[f->word] = word(f->word);
        asked |= 1u << f->word;
        if (!(words[f->word] >> f->bit & 1) || (!(kept >> f->state & 1) && !state_kept(f->state)))
            return i;
        kept |= 1u << f->state;
    }
    return -1;
}

/* The variant that the user asks for: TVMCONV_CPU=NAME, checked as ever, or TVMCONV_CPU=NAME!, taken on the user's word
 * (for systems that do not tell what the processor has). -1: none of ours. */
static int32_t asked_variant(int *trusted)
{
#ifndef NO_SYSTEM
    const char *asked = getenv("TVMCONV_CPU");
    int32_t i;
    for (i = 0; asked != NULL && i < VARIANTS; i++) {
        size_t length = strlen(variants[i].name);
        if (strncmp(asked, variants[i].name, length) != 0)
            continue;
        *trusted = strcmp(asked + length, "!") == 0;
        if (*trusted || asked[length] == 0)
            return i;
    }
#endif
    *trusted = 0;
    return -1;
}

/* The variant to use, or NULL if none runs here; asked once, then remembered. Threads that race find the same. */
static const struct variant *select_variant(void)
{
    static int32_t selected; /* 0 not asked yet, i + 1, -1 none */
    int32_t i = __atomic_load_n(&selected, __ATOMIC_RELAXED);
    if (i == 0) {
        int trusted;
        int32_t end = VARIANTS;
        i = asked_variant(&trusted);
        if (i >= 0)
            end = i + 1; /* this one or none */
        else
            i = 0;
        while (i < end && !trusted && missing_feature(&variants[i]) >= 0)
            i++;
        i = i < end ? i + 1 : -1;
        __atomic_store_n(&selected, i, __ATOMIC_RELAXED);
    }
    return i > 0 ? &variants[i - 1] : NULL;
}
