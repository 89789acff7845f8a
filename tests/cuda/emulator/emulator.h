/* Runs CUDA C on a CPU: one coroutine for each thread, blocks one after another; threads switch at
 * barriers, and where a warp works together. Shows wrong indices, missing and divergent barriers, wrong launch sizes; says
 * nothing about speed. */
#pragma once
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
/* Blocks run one after another, so one static array serves all; it is filled anew for each block. */
#define __shared__ static __attribute__((section("shared_memory")))

struct dim3 { unsigned x, y, z; };
#define VECTORS(T, E)                                                                      \
    struct T##2 { E x, y; } __align__(2 * sizeof(E));                                      \
    struct T##4 { E x, y, z, w; } __align__(4 * sizeof(E));                                \
    static inline T##2 make_##T##2(E x, E y) { return {x, y}; }                            \
    static inline T##4 make_##T##4(E x, E y, E z, E w) { return {x, y, z, w}; }
VECTORS(float, float)
VECTORS(int, int)
VECTORS(uint, unsigned)
VECTORS(ushort, unsigned short)
VECTORS(longlong, long long)
struct double2 { double x, y; } __align__(16);
static inline double2 make_double2(double x, double y) { return {x, y}; }

template <class T> static inline T min(T a, T b) { return a < b ? a : b; }
template <class T> static inline T max(T a, T b) { return a > b ? a : b; }

static dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

enum { MOST = 1024, STACK = 128 << 10, READY = 0, WAITING = 1, DONE = 2, WARP_WAITING = 3 };
struct Thread {
    jmp_buf context;
    char *stack;
    dim3 id;
    int state;
    bool begun;
};
static Thread threads[MOST];
static jmp_buf home;
static unsigned running;
static void (*function)(void **);
static void **arguments;

/* Contexts only begin threads: swapping them is two calls of the system each time, for the mask of
 * signals. A jump keeps that. */
static inline void leave(int state) {
    threads[running].state = state;
    if (!_setjmp(threads[running].context)) _longjmp(home, 1);
}

static void enter() {
    function(arguments);
    leave(DONE);
}

/* Let a thread run until it leaves. */
static __attribute__((noinline)) void resume(Thread *t) {
    if (_setjmp(home)) return;
    threadIdx = t->id;
    if (t->begun) _longjmp(t->context, 1);
    t->begun = true;
    ucontext_t first;
    getcontext(&first);
    first.uc_stack.ss_sp = t->stack;
    first.uc_stack.ss_size = STACK;
    first.uc_link = NULL;
    makecontext(&first, enter, 0);
    setcontext(&first);
}

static inline unsigned random_below(uint64_t *state, unsigned n) {
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)((*state >> 33) % n);
}

/* The order of threads between two barriers: 0 ascending, 1 descending, else a new shuffle each
 * time. */
static void arrange(unsigned *order, unsigned n, unsigned kind, uint64_t *state) {
    for (unsigned i = 0; i < n; i++) order[i] = kind == 1 ? n - 1 - i : i;
    if (kind < 2) return;
    for (unsigned i = n - 1; i > 0; i--) {
        unsigned j = random_below(state, i + 1), t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
}

extern "C" char __start_shared_memory[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_shared_memory[] __attribute__((weak, visibility("hidden")));

static void forget(unsigned n);

/* Shared memory whose size the launch gives. */
enum { MOST_DYNAMIC = 227 << 10 };
__shared__ char dynamic_memory[MOST_DYNAMIC] __attribute__((aligned(64)));

/* Whether all bytes from one on are as they were. */
static bool untouched(unsigned first) {
    const char *rest = dynamic_memory + first;
    unsigned n = MOST_DYNAMIC - first;
    return !n || (*rest == (char)0xff && !memcmp(rest, rest + 1, n - 1));
}

static int run_block(unsigned n, unsigned kind, uint64_t *state) {
    unsigned order[MOST];
    /* What an earlier block left there, no block may read: every byte is a NaN's. */
    if (__start_shared_memory)
        memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
    for (unsigned i = 0; i < n; i++) {
        threads[i].state = READY;
        threads[i].begun = false;
    }
    forget(n);
    for (;;) {
        unsigned states[4] = {0};
        arrange(order, n, kind, state);
        for (unsigned i = 0; i < n; i++) {
            running = order[i];
            if (threads[running].state == READY) resume(&threads[running]);
        }
        for (unsigned i = 0; i < n; i++) states[threads[i].state]++;
        if (states[READY]) continue;
        if (states[DONE] == n) return 0;
        if (states[WARP_WAITING]) return 3;
        if (states[DONE]) return 2; /* some wait at a barrier that others never reach */
        for (unsigned i = 0; i < n; i++) threads[i].state = READY;
    }
}

/* 0, or 1 for too many threads, 2 for a barrier that only some threads of a block reach, 3 for what
 * a warp does together and only some of its threads reach, 4 for shared memory that was not asked for. */
static int launch(void (*f)(void **), void **args, const unsigned *dims, unsigned kind) {
    unsigned n = dims[3] * dims[4] * dims[5];
    uint64_t state = kind;
    if (!n || n > MOST || dims[6] > MOST_DYNAMIC) return 1;
    function = f;
    arguments = args;
    gridDim = {dims[0], dims[1], dims[2]};
    blockDim = {dims[3], dims[4], dims[5]};
    for (unsigned i = 0; i < n; i++) {
        if (!threads[i].stack) threads[i].stack = (char *)malloc(STACK);
        threads[i].id = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
    }
    for (unsigned z = 0; z < gridDim.z; z++)
        for (unsigned y = 0; y < gridDim.y; y++)
            for (unsigned x = 0; x < gridDim.x; x++) {
                blockIdx = {x, y, z};
                int code = run_block(n, kind, &state);
                if (code) return code;
                if (!untouched(dims[6])) return 4;
            }
    return 0;
}

} // namespace emulator

static inline void __syncthreads() { emulator::leave(emulator::WAITING); }

#define DYNAMIC_SHARED(kind, name) kind *name = (kind *)emulator::dynamic_memory

#include "tensor.h"

#define EMULATED(symbol)                                                                   \
    extern "C" int emulate_##symbol(void **args, const unsigned *dims, unsigned order) {   \
        return emulator::launch(call_##symbol, args, dims, order);                         \
    }
/* g++ refuses "static alignas(64) float x[1]", which nvcc takes. */
#define alignas(n) __attribute__((aligned(n)))
