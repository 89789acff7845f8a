/* Calls a compiled layer from C. The Makefile links it twice: with the shared and with the static library.
 *
 *     ./main-shared [input.f32 output.f32]
 *
 * Without files the input is a ramp. The layer here has float32 data and its weights inside.
 */
#include LAYER_HEADER

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GLUE_(a, b) a##_##b
#define GLUE(a, b) GLUE_(a, b)
#define LAYER_(function) GLUE(LAYER, function) /* up1, run -> up1_run */

static size_t voxels(const int64_t *shape)
{
    size_t n = 1;
    int axis;
    for (axis = 0; axis < 5; axis++)
        n *= shape[axis] < 0 ? 1 : (size_t)shape[axis]; /* an open batch: one sample here */
    return n;
}

static void print_shape(const char *what, const int64_t *shape)
{
    printf("%s %" PRId64 " x %" PRId64 " x %" PRId64 " x %" PRId64 " x %" PRId64 "\n", what, shape[0], shape[1], shape[2],
           shape[3], shape[4]);
}

int main(int argc, char **argv)
{
    const int64_t *in = LAYER_(input_shape)(0), *out = LAYER_(output_shape)(0);
    size_t inputs = voxels(in), outputs = voxels(out), i;
    LAYER_(args) args;
    float *x = calloc(inputs, sizeof *x), *y = calloc(outputs, sizeof *y);
    float least, most;
    int32_t code;
    FILE *file;

    memset(&args, 0, sizeof args);
    args.size = sizeof args;
    args.input = x;
    args.output = y;
    args.batch = in[0] < 0 ? 1 : 0;
    args.threads = 0; /* as many as this process may use */
    args.workspace_size = LAYER_(workspace_size)(0, args.threads);
    args.workspace = malloc(args.workspace_size + 1);
    if (!x || !y || !args.workspace)
        return fputs("out of memory\n", stderr), 1;

    if (argc == 3) {
        file = fopen(argv[1], "rb");
        if (!file || fread(x, sizeof *x, inputs, file) != inputs)
            return fprintf(stderr, "%s: expected %zu floats\n", argv[1], inputs), 2;
        fclose(file);
    } else
        for (i = 0; i < inputs; i++)
            x[i] = (float)(i % 101) / 100;

    code = LAYER_(run)(&args);
    if (code != 0)
        return fprintf(stderr, "run: %s\n", LAYER_(error_text)(code)), 1;

    print_shape("input ", in);
    print_shape("output", out);
    least = most = y[0];
    for (i = 0; i < outputs; i++) {
        least = y[i] < least ? y[i] : least;
        most = y[i] > most ? y[i] : most;
    }
    printf("values %g to %g\n", least, most);
    if (argc == 3) {
        file = fopen(argv[2], "wb");
        if (!file || fwrite(y, sizeof *y, outputs, file) != outputs || fclose(file) != 0)
            return fprintf(stderr, "%s: cannot be written\n", argv[2]), 1;
    }
    free(args.workspace);
    free(x);
    free(y);
    return 0;
}
