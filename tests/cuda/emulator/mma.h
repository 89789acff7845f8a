/* nvcuda::wmma of the emulator: every lane holds the whole tile and repeats the work, so no lane
 * needs another's part. Access to a fragment's elements is absent on purpose: which lane holds
 * which is not specified. */
#pragma once
namespace nvcuda {
namespace wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K> struct Size { enum { ROWS = M, COLUMNS = N }; };
template <int M, int N, int K> struct Size<matrix_a, M, N, K> { enum { ROWS = M, COLUMNS = K }; };
template <int M, int N, int K> struct Size<matrix_b, M, N, K> { enum { ROWS = K, COLUMNS = N }; };

template <class Use, int M, int N, int K, class T, class Layout = void> struct fragment {
    enum { ROWS = Size<Use, M, N, K>::ROWS, COLUMNS = Size<Use, M, N, K>::COLUMNS };
    T e[ROWS][COLUMNS];
};

template <class F, class T> void fill_fragment(F &f, T value) {
    for (auto &row : f.e)
        for (auto &x : row) x = value;
}

static inline bool by_rows(row_major *) { return true; }
static inline bool by_rows(col_major *) { return false; }

template <class Use, int M, int N, int K, class T, class L>
void load_matrix_sync(fragment<Use, M, N, K, T, L> &f, const T *p, unsigned stride) {
    /* The hardware wants 32 bytes of alignment, and rows a multiple of 16 bytes apart. */
    if ((uintptr_t)p % 32 || stride * sizeof(T) % 16) abort();
    for (int i = 0; i < f.ROWS; i++)
        for (int j = 0; j < f.COLUMNS; j++)
            f.e[i][j] = by_rows((L *)0) ? p[i * stride + j] : p[j * stride + i];
}

/* Each sum in the order of k. Every lane of a warp does this, so it is written to be fast: operands
 * are widened once, and the innermost loop is over sums that do not depend on each other. */
template <int M, int N, int K>
__attribute__((optimize("O3"))) void multiply(float (&sums)[M][N], const float (&a)[M][K],
                                              const float (&b)[K][N]) {
    for (int i = 0; i < M; i++)
        for (int k = 0; k < K; k++)
            for (int j = 0; j < N; j++) sums[i][j] += a[i][k] * b[k][j];
}

template <int R, int C, class T>
__attribute__((optimize("O3"))) void widen(float (&to)[R][C], const T (&from)[R][C]) {
    for (int i = 0; i < R; i++)
        for (int j = 0; j < C; j++) to[i][j] = (float)from[i][j];
}

template <int M, int N, int K, class A, class B, class LA, class LB, class D>
void mma_sync(fragment<accumulator, M, N, K, D> &d, const fragment<matrix_a, M, N, K, A, LA> &a,
              const fragment<matrix_b, M, N, K, B, LB> &b,
              const fragment<accumulator, M, N, K, D> &c) {
    float left[M][K], right[K][N], sums[M][N];
    widen(left, a.e);
    widen(right, b.e);
    widen(sums, c.e);
    multiply(sums, left, right);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) d.e[i][j] = (D)sums[i][j];
}

template <int M, int N, int K, class T>
void store_matrix_sync(T *p, const fragment<accumulator, M, N, K, T> &f, unsigned stride,
                       layout_t layout) {
    if ((uintptr_t)p % 32 || stride * sizeof(T) % 16) abort();
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++)
            p[layout == mem_row_major ? i * stride + j : j * stride + i] = f.e[i][j];
}

} // namespace wmma
} // namespace nvcuda
