/* The intrinsics of tensor cores and asynchronous copies of the emulator, with the fragments of the
 * PTX ISA. A copy's data come when its thread waits for them, and NaN is there until then; a matrix
 * is loaded when the warp multiplies, and its registers are NaN until then. */
#pragma once

namespace emulator {

enum { WARP = 32, LOADS = 64, COPIES = 256 };

struct Copy { char *to; const char *from; int exists, group; };
struct Copies { Copy list[COPIES]; int count, group; };
static Copies copies[MOST];

static inline void complete(int newest) {
    Copies *c = &copies[running];
    int kept = 0;
    for (int i = 0; i < c->count; i++) {
        Copy one = c->list[i];
        if (one.group >= c->group - newest) {
            c->list[kept++] = one;
        } else if (one.exists) {
            memcpy(one.to, one.from, 16);
        } else {
            memset(one.to, 0, 16);
        }
    }
    c->count = kept;
}

struct Load { unsigned *to; const char *row; bool rounds; };
struct Warp {
    Load loads[WARP][LOADS];
    int counts[WARP];
    float *sums[WARP];
    const unsigned *left[WARP], *right[WARP];
    void (*function)(Warp *);
    int arrived;
};
static Warp warps[MOST / WARP];

/* What the threads of an earlier block left behind: what counts it, which is enough. */
static void forget(unsigned n) {
    for (unsigned i = 0; i < n; i++) {
        copies[i].count = copies[i].group = 0;
        warps[i / WARP].counts[i % WARP] = warps[i / WARP].arrived = 0;
    }
}

static inline float as_float(unsigned bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* To nearest, ties away from zero. */
static inline unsigned tf32(unsigned bits) {
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return (nan ? bits | 0x400000u : bits + 0x1000u) & ~0x1fffu;
}

static inline void load_matrices(Warp *w) {
    for (int i = 0; i < w->counts[0]; i++)
        for (int lane = 0; lane < WARP; lane++) {
            if (w->counts[lane] != w->counts[0]) abort();
            for (int matrix = 0; matrix < 4; matrix++) {
                const char *row = w->loads[matrix * 8 + lane / 4][i].row;
                if ((uintptr_t)row % 16) abort();
                unsigned word;
                memcpy(&word, row + lane % 4 * 4, 4);
                w->loads[lane][i].to[matrix] = w->loads[lane][i].rounds ? tf32(word) : word;
            }
        }
    memset(w->counts, 0, sizeof w->counts);
}

/* What the numbers in a register are: how many, and their values. */
struct Float16 {
    enum { NUMBERS = 2 };
    static float value(unsigned bits, int i) {
        unsigned short half = bits >> 16 * i;
        _Float16 h;
        memcpy(&h, &half, 2);
        return (float)h;
    }
};
struct Bfloat16 {
    enum { NUMBERS = 2 };
    static float value(unsigned bits, int i) { return as_float(bits >> 16 * i << 16); }
};
struct Tf32 {
    enum { NUMBERS = 1 };
    static float value(unsigned bits, int) {
        /* What was not rounded the device would cut off. */
        return bits & 0x1fff ? (float)NAN : as_float(bits);
    }
};

/* One mma of 16 rows, 8 columns and 8 * NUMBERS products a sum. */
template <class T>
__attribute__((optimize("O3"))) static void step(Warp *w, unsigned sums, unsigned left,
                                                 unsigned right) {
    enum { N = T::NUMBERS, DEPTH = 8 * N };
    float a[16][DEPTH], b[DEPTH][8];
    for (int lane = 0; lane < WARP; lane++)
        for (int e = 0; e < N; e++) {
            int row = lane / 4, k = lane % 4 * N + e;
            for (int r = 0; r < 4; r++)
                a[row + r % 2 * 8][k + r / 2 * 4 * N] = T::value(w->left[lane][left + r], e);
            for (int r = 0; r < 2; r++)
                b[k + r * 4 * N][row] = T::value(w->right[lane][right + r], e);
        }
    for (int lane = 0; lane < WARP; lane++)
        for (int r = 0; r < 4; r++) {
            int row = lane / 4 + r / 2 * 8, column = lane % 4 * 2 + r % 2;
            float *sum = &w->sums[lane][sums + r];
            for (int k = 0; k < DEPTH; k++) *sum += a[row][k] * b[k][column];
        }
}

template <class T, int ROWS, int COLUMNS> static void multiply(Warp *w) {
    load_matrices(w);
    for (int s = 0; s < 2; s++)
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < COLUMNS; j++)
                step<T>(w, (i * COLUMNS + j) * 4, (i * 2 + s) * 4, (j * 2 + s) * 2);
}

/* The last thread of a warp that arrives does the work of all. */
static inline void together(void (*function)(Warp *), float *sums, const unsigned *left,
                            const unsigned *right) {
    unsigned lane = running % WARP, first = running - lane;
    Warp *w = &warps[running / WARP];
    w->sums[lane] = sums, w->left[lane] = left, w->right[lane] = right;
    if (w->arrived && w->function != function) abort();
    w->function = function;
    if (++w->arrived < WARP) return leave(WARP_WAITING);
    function(w);
    w->arrived = 0;
    for (unsigned i = first; i < first + WARP; i++) threads[i].state = READY;
}

} // namespace emulator

static inline void copy_async(void *to, const void *from, int exists) {
    using namespace emulator;
    Copies *c = &copies[running];
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16) abort();
    memset(to, 0xff, 16);
    if (c->count == COPIES) return; /* Nobody waits: it never comes. */
    c->list[c->count++] = {(char *)to, (const char *)from, exists, c->group};
}

static inline void copy_commit() { emulator::copies[emulator::running].group++; }

template <int GROUPS> static inline void copy_wait() { emulator::complete(GROUPS); }

static inline void load_later(unsigned *to, const void *row, bool rounds) {
    using namespace emulator;
    Warp *w = &warps[running / WARP];
    int *count = &w->counts[running % WARP];
    if (*count == LOADS) abort();
    memset(to, 0xff, 16);
    w->loads[running % WARP][(*count)++] = {to, (const char *)row, rounds};
}

static inline void tensor_load(unsigned *to, const void *row) { load_later(to, row, false); }
static inline void tensor_load_tf32(unsigned *to, const void *row) { load_later(to, row, true); }

#define TENSOR_MULTIPLY(name, T)                                                               \
    template <int ROWS, int COLUMNS>                                                           \
    static inline void name(float *sums, const unsigned *left, const unsigned *right) {        \
        emulator::together(emulator::multiply<emulator::T, ROWS, COLUMNS>, sums, left, right); \
    }
TENSOR_MULTIPLY(tensor_multiply_float16, Float16)
TENSOR_MULTIPLY(tensor_multiply_bfloat16, Bfloat16)
TENSOR_MULTIPLY(tensor_multiply_tf32, Tf32)
