/* Times a layer, or runs it once on files; a program that needs nothing else on the device.
 *
 * Generated in front of this: NAME, LAYER(x), the dtypes ('d' float64, 'f' float32, 'h' float16, 'b' bfloat16) INPUT_KIND,
 * OUTPUT_KIND and VARIABLE_KIND, KERNEL_ELEMENTS, BIAS_ELEMENTS, WEIGHTS_INSIDE, and `flops` of one sample for each shape.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MOST_CALLS (1 << 20)
#define WARM_UP_CALLS 3
#define USAGE \
    NAME "-bench: times the layer on each of its input shapes, or runs it once on files.\n\n" \
    "  --seconds S    time of each shape (2)\n" \
    "  --threads N    at most N at once; 0: as many as the process may use (0)\n" \
    "  --shape I      only this input shape, from 0\n" \
    "  --batch N      for an open batch (1)\n" \
    "  --json         print the measurements as JSON\n" \
    "  --input F      values to read instead of random ones: dense, in the layer's dtype and layout\n" \
    "  --output F     call once, write the values there, time nothing\n" \
    "  --kernel F     weights instead of those inside, in Keras' layout and the variables' dtype;\n" \
    "  --bias F       random ones where the library holds none\n" \
    "  --manifest     print what the layer was made from, as JSON\n"

static struct {
    double seconds;
    int64_t threads, shape, batch;
    int json;
    const char *input, *output, *kernel, *bias;
} options = {2, 0, -1, -1, 0, NULL, NULL, NULL, NULL};

static void fail(int code, const char *format, ...)
{
    va_list rest;
    va_start(rest, format);
    fputs(NAME "-bench: ", stderr);
    vfprintf(stderr, format, rest);
    fputc('\n', stderr);
    va_end(rest);
    exit(code);
}

static size_t element(char kind) { return kind == 'd' ? 8 : kind == 'f' ? 4 : 2; }

static const char *dtype(char kind)
{
    return kind == 'd' ? "float64" : kind == 'f' ? "float32" : kind == 'h' ? "float16" : "bfloat16";
}

static size_t product(size_t a, size_t b)
{
    if (b != 0 && a > SIZE_MAX / 2 / b)
        fail(2, "the sizes overflow");
    return a * b;
}

static size_t bytes_of(const int64_t *shape, int64_t batch, char kind)
{
    size_t n = product(element(kind), (size_t)batch);
    int axis;
    for (axis = 1; axis < 5; axis++)
        n = product(n, (size_t)shape[axis]);
    return n;
}

/* Memory on a cache line of its own; never NULL. */
static void *memory(size_t size)
{
    char *p = size < SIZE_MAX / 2 ? malloc(size + 64) : NULL;
    if (p == NULL)
        fail(1, "not enough memory for %zu bytes", size);
    return p + (64 - (uintptr_t)p % 64) % 64;
}

/* Values between -scale and scale; none is zero, infinite or subnormal. */
static void draw(char *p, size_t size, char kind, double scale)
{
    static uint64_t state = 88172645463325252u;
    size_t i;
    for (i = 0; i < size; i += element(kind)) {
        double d;
        float f;
        uint32_t bits;
        uint16_t half;
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        d = ((double)(state >> 40) / 8388608.0 - 1) * scale;
        d = d < 1e-4 && d > -1e-4 ? 1e-4 : d;
        f = (float)d;
        memcpy(&bits, &f, 4);
        half = (uint16_t)(kind == 'b' ? bits >> 16 : (bits >> 16 & 0x8000) | ((bits >> 13 & 0x3ffff) - (112 << 10)));
        memcpy(p + i, kind == 'd' ? (void *)&d : kind == 'f' ? (void *)&f : (void *)&half, element(kind));
    }
}

static void read_file(const char *path, char *p, size_t size)
{
    FILE *file = fopen(path, "rb");
    size_t got;
    if (file == NULL)
        fail(2, "%s: %s", path, strerror(errno));
    got = fread(p, 1, size, file);
    if (got != size || fgetc(file) != EOF)
        fail(2, "%s: expected exactly %zu bytes", path, size);
    fclose(file);
}

static void write_file(const char *path, const char *p, size_t size)
{
    FILE *file = fopen(path, "wb");
    size_t put = file == NULL ? 0 : fwrite(p, 1, size, file);
    if (file == NULL || fclose(file) != 0 || put != size)
        fail(1, "%s cannot be written: %s", path, strerror(errno));
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void call(const LAYER(args) * args)
{
    int32_t code = LAYER(run)(args);
    if (code != 0)
        fail(1, "run: %s", LAYER(error_text)(code));
}

/* The library's pool, and how many threads a call hands it. */
static void counted(void *tasks_seen, int32_t tasks, void (*task)(void *, int32_t), void *data)
{
    *(int32_t *)tasks_seen = tasks;
    LAYER(parallel_for)(NULL, tasks, task, data);
}

/* Packed weights that were given or drawn; NULL for those inside. */
static const void *weights(void)
{
    size_t size = element(VARIABLE_KIND);
    char *kernel, *bias, *packed;
    int32_t code;
    if (options.kernel == NULL && options.bias != NULL)
        fail(2, "--bias needs --kernel");
    if (options.kernel != NULL && options.bias == NULL && BIAS_ELEMENTS > 0)
        fail(2, "the layer has a bias: --kernel needs --bias");
    if (options.bias != NULL && BIAS_ELEMENTS == 0)
        fail(2, "the layer has no bias");
    if (options.kernel == NULL && WEIGHTS_INSIDE)
        return NULL;
    kernel = memory(product(KERNEL_ELEMENTS, size));
    bias = memory(product(BIAS_ELEMENTS, size));
    packed = memory(LAYER(packed_weights_size)());
    if (options.kernel != NULL) {
        read_file(options.kernel, kernel, KERNEL_ELEMENTS * size);
        if (options.bias != NULL)
            read_file(options.bias, bias, BIAS_ELEMENTS * size);
    } else {
        draw(kernel, KERNEL_ELEMENTS * size, VARIABLE_KIND, 0.125);
        draw(bias, BIAS_ELEMENTS * size, VARIABLE_KIND, 0.125);
    }
    code = LAYER(pack_weights)(kernel, BIAS_ELEMENTS > 0 ? bias : NULL, packed);
    if (code != 0)
        fail(1, "pack_weights: %s", LAYER(error_text)(code));
    return packed;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Between the two values beside the place, as NumPy's quantile. */
static double quantile(const double *sorted, size_t count, double q)
{
    double place = q * (double)(count - 1);
    size_t below = (size_t)place;
    double above = below + 1 < count ? sorted[below + 1] : sorted[below];
    return sorted[below] + (place - (double)below) * (above - sorted[below]);
}

static void print_sizes(const int64_t *shape, int64_t batch, const char *mark)
{
    int axis;
    printf("%" PRId64, batch);
    for (axis = 1; axis < 5; axis++)
        printf("%s%" PRId64, mark, shape[axis]);
}

static void report(int32_t shape, int64_t batch, int32_t threads, double load, double *times, size_t count)
{
    const int64_t *in = LAYER(input_shape)(shape), *out = LAYER(output_shape)(shape);
    double median, p10, p90, rate;
    qsort(times, count, sizeof *times, ascending);
    median = quantile(times, count, 0.5);
    p10 = quantile(times, count, 0.1);
    p90 = quantile(times, count, 0.9);
    rate = median > 0 ? flops[shape] * (double)batch / median / 1e9 : 0;
    if (options.json) {
        printf("{\"name\": \"" NAME "\", \"shape\": %" PRId32 ", \"input_shape\": [", shape);
        print_sizes(in, batch, ", ");
        printf("], \"output_shape\": [");
        print_sizes(out, batch, ", ");
        printf("], \"dtype\": \"%s\", \"threads\": %" PRId32 ", \"calls\": %zu, \"median_s\": %.9g, \"fastest_s\": %.9g, "
               "\"slowest_s\": %.9g, \"p10_s\": %.9g, \"p90_s\": %.9g, \"spread\": %.6g, \"gflops\": %.6g, \"load\": %.2f}",
               dtype(INPUT_KIND), threads, count, median, times[0], times[count - 1], p10, p90,
               median > 0 ? (p90 - p10) / median : 0, rate, load);
        return;
    }
    printf(NAME " ");
    print_sizes(in, batch, "x");
    printf(" -> ");
    print_sizes(out, batch, "x");
    printf(" %s, %" PRId32 " thread%s, %zu calls\n", dtype(INPUT_KIND), threads, threads == 1 ? "" : "s", count);
    printf("  median %.4f ms, fastest %.4f ms, 10%% to 90%%: %.4f to %.4f ms, spread %.1f%%, %.2f GFLOP/s\n", median * 1e3,
           times[0] * 1e3, p10 * 1e3, p90 * 1e3, median > 0 ? (p90 - p10) / median * 100 : 0, rate);
}

static void measure(int32_t shape, const void *packed)
{
    const int64_t *in = LAYER(input_shape)(shape), *out = LAYER(output_shape)(shape);
    int64_t batch = in[0] >= 0 ? in[0] : options.batch >= 0 ? options.batch : 1;
    size_t inputs = bytes_of(in, batch, INPUT_KIND), outputs = bytes_of(out, batch, OUTPUT_KIND), count = 0;
    LAYER(args) args;
    double *times, start, begin, end, load = 0;
    char *x = memory(inputs), *y = memory(outputs);
    int32_t tasks = 1, i;
    memset(&args, 0, sizeof args);
    args.size = sizeof args;
    args.input = x;
    args.output = y;
    args.weights = packed;
    args.threads = (int32_t)options.threads;
    args.shape = shape;
    args.batch = in[0] < 0 ? batch : 0;
    args.workspace_size = LAYER(workspace_size)(shape, args.threads);
    args.workspace = memory(args.workspace_size);
#if BESIDE_CUDA
    args.device = -1; /* a static program opens no driver: the CPU version */
#endif
    if (in[0] >= 0 && options.batch >= 0 && options.batch != in[0])
        fail(2, "--batch %" PRId64 ": the batch of this layer is %" PRId64, options.batch, in[0]);
    if (options.input != NULL)
        read_file(options.input, x, inputs);
    else
        draw(x, inputs, INPUT_KIND, 1);
    memset(y, 0, outputs);
    if (options.output != NULL) {
        call(&args);
        write_file(options.output, y, outputs);
        return;
    }
    if (getloadavg(&load, 1) != 1)
        load = 0;
    args.parallel_for = counted;
    args.context = &tasks;
    for (i = 0; i < WARM_UP_CALLS; i++)
        call(&args);
    args.parallel_for = NULL;
    times = memory(MOST_CALLS * sizeof *times);
    start = begin = now();
    do {
        call(&args);
        end = now();
        times[count++] = end - begin;
        begin = end;
    } while (count < MOST_CALLS && end - start < options.seconds);
    report(shape, batch, tasks, load, times, count);
}

static int64_t whole(const char *option, const char *text, int64_t most)
{
    char *end;
    long long value;
    errno = 0;
    value = strtoll(text, &end, 10);
    if (*text == 0 || *end != 0 || errno != 0 || value < 0 || value > most)
        fail(2, "%s: expected an integer from 0 to %" PRId64 ", found '%s'", option, most, text);
    return value;
}

static double positive(const char *option, const char *text)
{
    char *end;
    double value = strtod(text, &end);
    if (*text == 0 || *end != 0 || !(value > 0 && value < 1e5))
        fail(2, "%s: expected seconds above 0, found '%s'", option, text);
    return value;
}

static void read_options(int argc, char **argv)
{
    int i;
    for (i = 1; i < argc; i++) {
        const char *option = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(option, "--help") == 0 || strcmp(option, "-h") == 0) {
            fputs(USAGE, stdout);
            exit(0);
        }
        if (strcmp(option, "--manifest") == 0) {
            fputs(LAYER(manifest)(), stdout);
            exit(0);
        }
        if (strcmp(option, "--json") == 0) {
            options.json = 1;
            continue;
        }
        i++;
        if (strncmp(option, "--", 2) != 0 || (value == NULL && strlen(option) == 2))
            fail(2, "unexpected argument '%s'; --help lists the options", option);
        if (value == NULL)
            fail(2, "unknown option or no value behind it: %s; --help lists the options", option);
        if (strcmp(option, "--seconds") == 0)
            options.seconds = positive(option, value);
        else if (strcmp(option, "--threads") == 0)
            options.threads = whole(option, value, 1024);
        else if (strcmp(option, "--shape") == 0)
            options.shape = whole(option, value, LAYER(shapes)() - 1);
        else if (strcmp(option, "--batch") == 0)
            options.batch = whole(option, value, INT32_MAX);
        else if (strcmp(option, "--input") == 0)
            options.input = value;
        else if (strcmp(option, "--output") == 0)
            options.output = value;
        else if (strcmp(option, "--kernel") == 0)
            options.kernel = value;
        else if (strcmp(option, "--bias") == 0)
            options.bias = value;
        else
            fail(2, "unknown option %s; --help lists the options", option);
    }
}

int main(int argc, char **argv)
{
    int32_t shape, shapes = LAYER(shapes)(), first, last;
    const void *packed;
    read_options(argc, argv);
    if (options.shape < 0 && shapes > 1 && (options.input != NULL || options.output != NULL))
        fail(2, "the layer has %" PRId32 " input shapes: say which with --shape", shapes);
    first = options.shape < 0 ? 0 : (int32_t)options.shape;
    last = options.shape < 0 ? shapes - 1 : first;
    packed = weights();
    if (options.json && options.output == NULL)
        printf("[");
    for (shape = first; shape <= last; shape++) {
        if (options.json && shape > first)
            printf(",\n");
        measure(shape, packed);
    }
    if (options.json && options.output == NULL)
        printf("]\n");
    if (fflush(stdout) != 0)
        fail(1, "the output cannot be written: %s", strerror(errno));
    return 0;
}
