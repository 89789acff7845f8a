/* Calls the sample library with arguments made of random bytes, and knows for each call what must come of it.
 *
 * A refused call must leave the output alone; a call that is right must compute. Every buffer is a block of its own with
 * exactly the bytes that the arguments promise, so that the address sanitizer sees one too many.
 *
 *     fuzz CALLS SEED          a seeded loop
 *
 * With -DLIBFUZZER it is the target of libFuzzer instead.
 */
#include "up1.h"
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SAMPLE 1680u /* values of one sample */
#define CHANNELS 8u
#define PACKED (2u * CHANNELS * 4u)
#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "fuzz.c:%d: %s\n", __LINE__, #condition); \
            abort(); \
        } \
    } while (0)
#define PICK(table) (table[take() % (sizeof table / sizeof *table)])

static const unsigned char *bytes;
static size_t left;
#ifndef LIBFUZZER
static long accepted;
#endif

static unsigned take(void) { return left > 0 ? (left--, *bytes++) : 0; }

static uint64_t take_wide(void)
{
    uint64_t value = 0;
    int i;
    for (i = 0; i < 8; i++)
        value = value << 8 | take();
    return value;
}

static void *block(size_t size)
{
    void *p = malloc(size ? size : 1);
    CHECK(p != NULL);
    return p;
}

static void backwards(void *context, int32_t tasks, void (*task)(void *, int32_t), void *data)
{
    CHECK(context == (void *)&left);
    while (tasks-- > 0)
        task(data, tasks);
}

/* A pointer into a block: to its start, or off by one to seven bytes; NULL sometimes. Sets whether it can be used. */
static char *pointer(char *start, size_t element, int *good)
{
    unsigned way = take();
    if (way < 16)
        return *good = 0, NULL;
    if (way < 48) {
        size_t shift = 1 + take() % 7;
        *good = *good && shift % element == 0;
        return start + shift;
    }
    return start;
}

static void fuzz_run(void)
{
    static const size_t sizes[] = {sizeof(up1_args), sizeof(up1_args), sizeof(up1_args), sizeof(up1_args), 0, 8,
                                   sizeof(up1_args) - 1, sizeof(up1_args) + 8, sizeof(up1_args) + 8, 1024, 1025, SIZE_MAX};
    static const int32_t shapes[] = {0, 0, 0, 1, 1, 1, -1, 2, INT32_MIN, INT32_MAX};
    static const int32_t threads[] = {0, 1, 1, 1, 1, 2, 2, 3, -1, INT32_MIN, 1024, INT32_MAX};
    static const int64_t open[] = {0, 1, 1, 1, 2, 3, -1, INT64_MIN, INT64_MAX, (int64_t)1 << 60};
    const size_t size = PICK(sizes);
    const size_t memory = size < 8 ? 8 : size > 1024 ? sizeof(up1_args) : size;
    char *args_block = block(memory);
    up1_args args;
    int good = size >= sizeof args && size <= 1024, usable;
    size_t values, needed, given, i;
    char *input, *output, *packed, *workspace;
    int32_t code;

    memset(&args, 0, sizeof args);
    args.size = size;
    args.shape = PICK(shapes);
    args.threads = PICK(threads);
    args.batch = args.shape == 1 ? PICK(open) : take() < 32 ? (int64_t)take_wide() : 0;
    good = good && (args.shape == 0 || args.shape == 1) && args.threads >= 0;
    good = good && (args.shape == 1 ? args.batch >= 0 && args.batch < 4 : args.batch == 0);
    values = args.shape == 0 ? 2 * SAMPLE : args.shape == 1 && args.batch > 0 && args.batch < 4 ? (size_t)args.batch * SAMPLE : 0;

    input = block(values * 4 + 8);
    output = block(values * 4 + 8);
    packed = block(PACKED + 8);
    for (i = 0; i < values; i++)
        ((float *)(void *)input)[i] = (float)(i % 13);
    memset(output, 0x5a, values * 4 + 8);
    for (i = 0; i < 2 * CHANNELS; i++)
        ((float *)(void *)packed)[i] = i < CHANNELS ? 2 : 1;
    usable = 1;
    args.input = pointer(input, 4, &usable);
    args.output = pointer(output, 4, &usable);
    if (take() & 1) {
        int held = 1;
        args.weights = pointer(packed, 4, &held);
        usable = usable && (held || args.weights == NULL); /* NULL: those inside */
    }
    needed = up1_workspace_size(args.shape, args.threads);
    given = take() < 32 ? take() : take() < 16 && needed > 0 ? needed - 1 : needed + take() % 3;
    workspace = block(given);
    args.workspace = take() < 16 ? NULL : workspace;
    args.workspace_size = given;
    if (args.workspace == NULL || given < needed)
        usable = 0;
    if (take() < 64) {
        args.parallel_for = take() & 1 ? backwards : up1_parallel_for;
        args.context = args.parallel_for == backwards ? (void *)&left : NULL;
    }
    good = good && (usable || (args.shape == 1 && args.batch == 0));

    memset(args_block, 0, memory);
    memcpy(args_block, &args, memory < sizeof args ? memory : sizeof args);
    if (memory > sizeof args && take() & 1) {
        args_block[sizeof args + take() % (memory - sizeof args)] = 1; /* a field that this version does not know */
        good = 0;
    }
    errno = 77;
    code = up1_run((const up1_args *)(void *)args_block);
    CHECK(errno == 77);
    CHECK((code == 0) == good);
    CHECK(up1_error_text(code)[0] != 0);
#ifndef LIBFUZZER
    accepted += code == 0;
#endif
    for (i = 0; i < values * 4 + 8 && !good; i++)
        CHECK(output[i] == 0x5a);
    for (i = 0; i < values && good; i++) {
        float x, y;
        memcpy(&x, (const char *)args.input + 4 * i, 4);
        memcpy(&y, (char *)args.output + 4 * i, 4);
        if (args.weights != NULL && (const char *)args.weights == packed)
            CHECK(y == 2 * x + 1);
    }
    free(args_block);
    free(input);
    free(output);
    free(packed);
    free(workspace);
}

static void fuzz_pack(void)
{
    char *kernel = block(CHANNELS * CHANNELS * 4 + 8), *bias = block(CHANNELS * 4 + 8), *packed = block(PACKED + 8);
    int good = 1;
    const char *k, *b;
    char *p;
    size_t i;
    memset(kernel, 1, CHANNELS * CHANNELS * 4 + 8);
    memset(bias, 1, CHANNELS * 4 + 8);
    memset(packed, 0x5a, PACKED + 8);
    k = pointer(kernel, 4, &good);
    b = pointer(bias, 4, &good);
    p = pointer(packed, 4, &good);
    CHECK((up1_pack_weights(k, b, p) == 0) == good);
    for (i = 0; i < PACKED + 8 && !good; i++)
        CHECK(packed[i] == 0x5a);
    free(kernel);
    free(bias);
    free(packed);
}

static void fuzz_rest(void)
{
    const int32_t shape = (int32_t)take_wide(), threads = (int32_t)take_wide(), code = (int32_t)take_wide();
    CHECK((up1_input_shape(shape) == NULL) == (shape < 0 || shape > 1));
    CHECK((up1_input_shape(shape % 3) == NULL) == (shape % 3 < 0 || shape % 3 > 1));
    CHECK((up1_output_shape(shape % 3) == NULL) == (shape % 3 < 0 || shape % 3 > 1));
    CHECK((up1_workspace_size(shape % 3, threads) == 0) == (shape % 3 < 0 || shape % 3 > 1 || threads < 0));
    CHECK(up1_error_text(code)[0] != 0);
    CHECK(up1_run(NULL) == up1_ERROR_NULL_ARGS);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bytes = data;
    left = size;
    switch (take() % 16) {
    case 0: fuzz_pack(); break;
    case 1: fuzz_rest(); break;
    default: fuzz_run();
    }
    return 0;
}

#ifndef LIBFUZZER
int main(int argc, char **argv)
{
    unsigned char data[64];
    uint64_t state = argc > 2 ? strtoull(argv[2], NULL, 10) * 2654435761u + 1 : 1;
    long calls = argc > 1 ? strtol(argv[1], NULL, 10) : 1000, call;
    for (call = 0; call < calls; call++) {
        size_t i;
        for (i = 0; i < sizeof data; i++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            data[i] = (unsigned char)(state >> 32);
        }
        LLVMFuzzerTestOneInput(data, sizeof data);
    }
    CHECK(accepted > calls / 20); /* or nothing would be tried behind the checks */
    printf("good: %ld calls, %ld of them computed\n", calls, accepted);
    return 0;
}
#endif
