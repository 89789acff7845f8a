/* A golden case in a program that holds many. cases.h, which the test writes, has the table of all. */
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
    void *parallel_for, *context;
} golden_args;

typedef struct {
    const char *name;
    int32_t (*run)(const golden_args *);
    size_t (*workspace_size)(int32_t, int32_t);
    const char *(*error_text)(int32_t);
    size_t input_bytes, output_bytes;
} golden_case;

#define GOLDEN(NAME)                                                                                                   \
    int32_t NAME##_run(const golden_args *);                                                                           \
    size_t NAME##_workspace_size(int32_t, int32_t);                                                                    \
    const char *NAME##_error_text(int32_t);
#define GOLDEN_CASE(NAME, INPUT, OUTPUT)                                                                               \
    {#NAME, NAME##_run, NAME##_workspace_size, NAME##_error_text, INPUT, OUTPUT}
