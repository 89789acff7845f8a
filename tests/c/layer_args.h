/* The arguments of a call of any layer: what NAME_args is in each header, for programs that open libraries by name. */
#ifndef LAYER_ARGS_H
#define LAYER_ARGS_H
#include <stddef.h>
#include <stdint.h>

typedef struct {
    size_t size;
    const void *input;
    void *output;
    const void *weights;
    void *workspace;
    size_t workspace_size;
    int32_t threads, shape;
    int64_t batch;
    void (*parallel_for)(void *, int32_t, void (*)(void *, int32_t), void *);
    void *context;
} layer_args;
#endif
