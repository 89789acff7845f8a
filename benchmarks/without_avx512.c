/* Lets a process believe that its processor ends with AVX2: preloaded, it has the kernel trap CPUID
 * (arch_prctl(2), ARCH_CPUID_SET) and answers without AVX-512 and what came after it. Libraries that
 * ask CPUID then take the code that they have for such a processor. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_CPUID_SET 0x1012
#define BIT(n) (1u << (n))

typedef int sigaction_type(int, const struct sigaction *, struct sigaction *);

static sigaction_type *real_sigaction(void) {
    return (sigaction_type *)dlsym(RTLD_NEXT, "sigaction");
}

static long let_cpuid_run(unsigned long allowed) {
    return syscall(SYS_arch_prctl, ARCH_CPUID_SET, allowed);
}

static void mask(unsigned leaf, unsigned part, unsigned answer[4]) {
    if (leaf == 7 && part == 0) {
        /* f, dq, ifma, pf, er, cd, bw, vl */
        answer[1] &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
        /* vbmi, vbmi2, vnni, bitalg, vpopcntdq */
        answer[2] &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));
        /* 4vnniw, 4fmaps, vp2intersect, amx-bf16, fp16, amx-tile, amx-int8 */
        answer[3] &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));
    } else if (leaf == 7 && part == 1) {
        answer[0] &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23)); /* avx-vnni, bf16, amx-fp16, avx-ifma */
        answer[3] &= ~(BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19)); /* more of both, avx10 */
    } else if (leaf == 0xd && part == 0) {
        answer[0] &= ~(BIT(5) | BIT(6) | BIT(7) | BIT(17) | BIT(18)); /* their registers */
    }
}

static void on_fault(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    unsigned leaf = (unsigned)registers[REG_RAX], part = (unsigned)registers[REG_RCX], answer[4];
    struct sigaction fatal;
    (void)info;
    if (code[0] != 0x0f || code[1] != 0xa2) { /* no CPUID: a fault like any other */
        memset(&fatal, 0, sizeof fatal);
        fatal.sa_handler = SIG_DFL;
        real_sigaction()(number, &fatal, NULL);
        return;
    }
    let_cpuid_run(1);
    __cpuid_count(leaf, part, answer[0], answer[1], answer[2], answer[3]);
    let_cpuid_run(0);
    mask(leaf, part, answer);
    registers[REG_RAX] = answer[0];
    registers[REG_RBX] = answer[1];
    registers[REG_RCX] = answer[2];
    registers[REG_RDX] = answer[3];
    registers[REG_RIP] += 2;
}

/* Whoever wants this signal for himself (compilers print a trace) would lose CPUID. */
int sigaction(int number, const struct sigaction *action, struct sigaction *old) {
    if (number != SIGSEGV)
        return real_sigaction()(number, action, old);
    if (old)
        memset(old, 0, sizeof *old);
    return 0;
}

sighandler_t signal(int number, sighandler_t handler) {
    struct sigaction action, old;
    if (number == SIGSEGV)
        return SIG_DFL;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    action.sa_flags = SA_RESTART;
    return real_sigaction()(number, &action, &old) ? SIG_ERR : old.sa_handler;
}

__attribute__((constructor)) static void begin(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    if (real_sigaction()(SIGSEGV, &action, NULL) || let_cpuid_run(0)) {
        fputs("CPUID cannot be trapped on this machine\n", stderr);
        _exit(125);
    }
}
