/* Tensor cores and copies to shared memory, in the words of the PTX ISA. A row of operands is 64 bytes: the channels of two
 * steps, 16 bytes for each half of a step.
 */
#define INLINE static __device__ __forceinline__

/* 16 bytes from registers to shared memory. */
INLINE void tensor_put(void *to, const void *from)
{
    uint4 v;
    memcpy(&v, from, 16);
    *(uint4 *)to = v;
}

#ifdef __CUDACC__

/* Four matrices of 8 rows of 16 bytes from shared memory, for a warp: thread i gives the address of row i % 8 of matrix
 * i / 8, and gets word i % 4 of row i / 4 of each of them. */
INLINE void tensor_load(unsigned *to, const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}

/* The same, each word rounded to TF32. */
INLINE void tensor_load_tf32(unsigned *to, const void *row)
{
    tensor_load(to, row);
    _Pragma("unroll") for (int i = 0; i < 4; i++)
        asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(to[i]) : "f"(__uint_as_float(to[i])));
}

/* Begins to copy 16 bytes, or writes zeros. */
INLINE void copy_async(void *to, const void *from, int exists)
{
    unsigned shared = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(exists ? 16 : 0) : "memory");
}

/* Ends a group of copies. */
INLINE void copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits for all groups of this thread but the newest GROUPS. */
template <int GROUPS> INLINE void copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

#define TENSOR_STEP(name, shape, kinds) \
    INLINE void name(float *d, const unsigned *a, const unsigned *b) \
    { \
        asm("mma.sync.aligned." shape ".row.col.f32." kinds ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " \
            "{%0, %1, %2, %3};" \
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); \
    }
TENSOR_STEP(tensor_step_float16, "m16n8k16", "f16.f16")
TENSOR_STEP(tensor_step_bfloat16, "m16n8k16", "bf16.bf16")
TENSOR_STEP(tensor_step_tf32, "m16n8k8", "tf32.tf32")

/* sums[ROWS][COLUMNS][4] += left[ROWS][2][4] * right[COLUMNS][2][2]: a warp's tiles of 16 voxels and 8 columns, in two
 * steps. */
#define TENSOR_MULTIPLY(name, step) \
    template <int ROWS, int COLUMNS> INLINE void name(float *sums, const unsigned *left, const unsigned *right) \
    { \
        _Pragma("unroll") for (int s = 0; s < 2; s++) \
            _Pragma("unroll") for (int i = 0; i < ROWS; i++) \
                _Pragma("unroll") for (int j = 0; j < COLUMNS; j++) \
                    step(sums + (i * COLUMNS + j) * 4, left + (i * 2 + s) * 4, right + (j * 2 + s) * 2); \
    }
TENSOR_MULTIPLY(tensor_multiply_float16, tensor_step_float16)
TENSOR_MULTIPLY(tensor_multiply_bfloat16, tensor_step_bfloat16)
TENSOR_MULTIPLY(tensor_multiply_tf32, tensor_step_tf32)

#endif
#undef INLINE
