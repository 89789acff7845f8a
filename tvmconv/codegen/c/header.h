/* @NAME@: one Conv3DTranspose layer, compiled by tvmconv. Interface version @ABI@.
 *
@SHAPES@
 * Values are @INPUT@ in, @OUTPUT@ out; variables are @VARIABLE@. Arrays are dense, in C order, aligned to their element.@CUDA_ABOUT@
 * Link with the C library, libm@CUDA_LIBRARIES@ and pthread only. See `@NAME@_run` for a call. This file may be copied freely.
 */
#ifndef @NAME@_H_
#define @NAME@_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct @NAME@_args {
    size_t size;           /* sizeof(@NAME@_args); fields that later versions add at the end must be zero here */
    const void *input;     /* the voxels to read, see @NAME@_input_shape */
    void *output;          /* where to write, see @NAME@_output_shape; may overlap no other buffer */
    const void *weights;   /* what @NAME@_pack_weights wrote@WEIGHTS@ */
    void *workspace;       /* scratch memory of this call, any alignment; NULL if none is needed */
    size_t workspace_size; /* its bytes, at least @NAME@_workspace_size(shape, threads) */
    int32_t threads;       /* at most this many at once; 0: @THREADS@ */
    int32_t shape;         /* index of the input shape, from 0 */
    int64_t batch;         /* for an open batch; else 0 */
    /* Runs task(data, i) for every i below tasks, in any order, at once or not, and returns when all are done. NULL: a
     * pool of threads in this library. Pass one artifact's @NAME@_parallel_for to others to share its pool. */
    void (*parallel_for)(void *context, int32_t tasks, void (*task)(void *, int32_t), void *data);
    void *context;         /* first argument of parallel_for */@CUDA_ARGS@
} @NAME@_args;

enum @NAME@_error {
@ERRORS@
};

/* For buffers that are there when a program is built: elements of the largest input and output (one sample, where the batch is
 * open), and bytes of workspace with which one thread can compute every input shape. */
#define @NAME@_INPUT_ELEMENTS @INPUT_ELEMENTS@
#define @NAME@_OUTPUT_ELEMENTS @OUTPUT_ELEMENTS@
#define @NAME@_WORKSPACE_SIZE @WORKSPACE_SIZE@

/* Computes the layer. Returns 0, or an error code, and then nothing was written. It neither allocates (but for the start of the
 * pool) nor aborts, and leaves errno, signals, affinity and floating-point modes alone. Many threads may call it at
 * once, each with a workspace of its own.
 *
 *     @NAME@_args args = {.size = sizeof args};
 *     args.input = x;
 *     args.output = y;
 *     args.workspace_size = @NAME@_workspace_size(0, 0);
 *     args.workspace = malloc(args.workspace_size);
 *     if (@NAME@_run(&args) != 0) ...
 */
int32_t @NAME@_run(const @NAME@_args *args);

/* Bytes of workspace for an input shape and a number of threads; the same for every batch. 0 for arguments out of range. */
size_t @NAME@_workspace_size(int32_t shape, int32_t threads);

/* Bytes of the packed weights, the bias included. They must be aligned to @ALIGNMENT@ bytes. */
size_t @NAME@_packed_weights_size(void);

/* Packs a kernel of shape @KERNEL@ and @BIAS@, both @VARIABLE@ in Keras' layout. */
int32_t @NAME@_pack_weights(const void *kernel, const void *bias, void *packed);

/* How many input shapes there are. */
int32_t @NAME@_shapes(void);

/* Five sizes, -1 for an open batch; NULL for an index out of range. */
const int64_t *@NAME@_input_shape(int32_t shape);
const int64_t *@NAME@_output_shape(int32_t shape);

/* The version of this interface: @ABI@. */
int32_t @NAME@_abi_version(void);

/* What the library was made from and for, as JSON. */
const char *@NAME@_manifest(void);

/* An English sentence for an error code; names the feature that the processor lacks. */
const char *@NAME@_error_text(int32_t code);

/* The pool of this library, to share with others through `args.parallel_for`; context is not used. A call from inside
 * a task, or while another thread uses the pool, runs its tasks one after the other. */
void @NAME@_parallel_for(void *context, int32_t tasks, void (*task)(void *, int32_t), void *data);

#ifdef __cplusplus
}
#endif

#endif
