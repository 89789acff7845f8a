/* The three layers of a decoder in one program, on one pool of threads: the first layer's. */
#include "up1.h"
#include "up2.h"
#include "up3.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int threads_of_this_process(void)
{
    char line[128];
    int count = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status))
        if (sscanf(line, "Threads: %d", &count) == 1)
            break;
    if (status)
        fclose(status);
    return count;
}

/* Runs NAME on a ramp. A decoder would hand the output of one to the next. */
#define STEP(NAME) \
    do { \
        NAME##_args args = {.size = sizeof args, .threads = 2, .batch = NAME##_input_shape(0)[0] < 0}; \
        float *x = malloc(sizeof(float) * NAME##_INPUT_ELEMENTS), *y = malloc(sizeof(float) * NAME##_OUTPUT_ELEMENTS); \
        size_t i; \
        int32_t code; \
        for (i = 0; i < NAME##_INPUT_ELEMENTS; i++) \
            x[i] = (float)(i % 101) / 100; \
        args.input = x; \
        args.output = y; \
        args.workspace_size = NAME##_workspace_size(0, 2); \
        args.workspace = malloc(args.workspace_size + 1); \
        args.parallel_for = up1_parallel_for; \
        code = NAME##_run(&args); \
        printf(#NAME ": code %d, y[0] is %g\n", (int)code, y[0]); \
        free(args.workspace); \
        free(x); \
        free(y); \
        if (code != 0) \
            return 1; \
    } while (0)

int main(void)
{
    STEP(up1);
    STEP(up2);
    STEP(up3);
    printf("%d threads\n", threads_of_this_process());
    return 0;
}
