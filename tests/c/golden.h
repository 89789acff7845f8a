/* A golden case in a program that holds many. cases.h, which the test writes, has the table of all. */
#include "layer_args.h"

typedef struct {
    const char *name;
    int32_t (*run)(const layer_args *);
    size_t (*workspace_size)(int32_t, int32_t);
    const char *(*error_text)(int32_t);
    size_t input_bytes, output_bytes;
} golden_case;

#define GOLDEN(NAME)                                                                                                   \
    int32_t NAME##_run(const layer_args *);                                                                           \
    size_t NAME##_workspace_size(int32_t, int32_t);                                                                    \
    const char *NAME##_error_text(int32_t);
#define GOLDEN_CASE(NAME, INPUT, OUTPUT)                                                                               \
    {#NAME, NAME##_run, NAME##_workspace_size, NAME##_error_text, INPUT, OUTPUT}
