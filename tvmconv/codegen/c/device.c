/*
 * A layer with what times it where it stands and says what it computed: a function that TVM's RPC server can call, or with -DPROGRAM a
 * program that reads files.
 *
 * Compiled with -include NAME.h and -DLAYER=NAME, and linked with libNAME.a, for candidates of the tuner. Needs libc alone (a layer for CUDA devices the driver, too): the few types of
 * TVM's calling convention are repeated here, and a library that calls nothing of TVM's loads wherever TVM does.
 *
 * The layer runs in a child process: an RPC server whose session crashes serves nobody any more, and a crash is an answer like others.
 */
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define OF(name) JOIN(LAYER, name)

/* What `spec` holds, in this order; tvmconv/tuning/device.py writes it. */
enum { THREADS, LEAST, CALLS, BUDGET_US, HOPELESS_NS, TIMEOUT_MS, MEMORY, OUTPUT_BYTES, INPUT_BYTES, SPEC };

/* What `found` begins with; the seconds of each call follow. */
enum { STATE, DETAIL, COUNT, FOUND };
enum { DONE, RETURNED, TIMEOUT, SIGNAL, NO_MEMORY, ENDED };

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int64_t elements(const int64_t *shape)
{
    int64_t total = shape[0] < 0 ? 1 : shape[0];

    for (int i = 1; i < 5; i++)
        total *= shape[i];
    return total;
}

static void *memory(size_t bytes)
{
    void *found = NULL;

    return posix_memalign(&found, 64, bytes ? bytes : 1) ? NULL : found;
}

#ifdef CUDA

#include "candidate.c"

/* The driver reserves far more addresses than it uses memory. */
static void limit(int64_t bytes)
{
    (void)bytes;
}

#else

/* Runs in the child: times the calls and copies the output at `places`, or all of it. `found` is shared with the parent. */
static void work(const int64_t *spec, const void *input, const void *packed, const int64_t *places, int64_t count,
                 unsigned char *values, double *found)
{
    const size_t width = (size_t)spec[OUTPUT_BYTES], bytes = (size_t)elements(OF(output_shape)(0)) * width;
    unsigned char *output = memory(bytes);
    OF(args) args;

    memset(&args, 0, sizeof args);
    args.size = sizeof args;
    args.threads = (int32_t)spec[THREADS];
    args.batch = OF(input_shape)(0)[0] < 0 ? 1 : 0;
    args.workspace_size = OF(workspace_size)(0, args.threads);
    args.workspace = memory(args.workspace_size);
    args.input = input;
    args.output = output;
    args.weights = packed;
    if (!output || !args.workspace) {
        found[STATE] = NO_MEMORY;
        return;
    }
    memset(output, 0xff, bytes); /* NaN: what is not written shows */
    int32_t code = OF(run)(&args); /* starts the threads and touches the memory: not timed */
    for (int64_t i = 0; i < count; i++)
        memcpy(values + (size_t)i * width, output + (size_t)(places ? places[i] : i) * width, width);
    const double until = now() + 1e-6 * (double)spec[BUDGET_US], hopeless = 1e-9 * (double)spec[HOPELESS_NS];
    for (int64_t i = 0; !code && i < spec[CALLS] && (i < spec[LEAST] || now() < until); i++) {
        const double begin = now();
        code = OF(run)(&args);
        found[FOUND + i] = now() - begin;
        found[COUNT] = (double)(i + 1);
        if (spec[HOPELESS_NS] && found[FOUND] > hopeless)
            break;
    }
    found[DETAIL] = code;
    found[STATE] = code ? RETURNED : DONE;
}

/* No more memory than now and `bytes`. */
static void limit(int64_t bytes)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");

    if (!file)
        return;
    if (fscanf(file, "%ld", &pages) == 1) {
        struct rlimit most;
        most.rlim_cur = most.rlim_max = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + (rlim_t)bytes;
        setrlimit(RLIMIT_AS, &most);
    }
    fclose(file);
}

#endif

/* Waits for the child; time in which this process itself was stopped does not count. */
static void wait_for(pid_t child, double most, double *found)
{
    int status = 0;
    double spent = 0.0, last = now();

    for (;;) {
        pid_t ended = waitpid(child, &status, WNOHANG);
        if (ended == child || (ended < 0 && errno != EINTR))
            break;
        spent += now() - last < 0.1 ? now() - last : 0.1;
        last = now();
        if (spent > most) {
            kill(child, SIGKILL);
            waitpid(child, &status, 0);
            found[STATE] = TIMEOUT;
            return;
        }
        struct timespec pause = {0, 2000000};
        nanosleep(&pause, NULL);
    }
    if (WIFSIGNALED(status)) {
        found[STATE] = SIGNAL;
        found[DETAIL] = WTERMSIG(status);
    }
}

/*
 * Measures in a child process. The answer, which the caller unmaps, is memory of `size` bytes: what was found, and behind its times `wanted`
 * output elements of the first call. NULL where there is no memory for it.
 */
static double *measure(const int64_t *spec, const void *input, const void *packed, const int64_t *places, int64_t wanted, size_t *size)
{
    const size_t times = (size_t)(FOUND + spec[CALLS]) * sizeof(double);

    *size = times + (size_t)wanted * (size_t)spec[OUTPUT_BYTES];
    double *found = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (found == MAP_FAILED)
        return NULL;
    memset(found, 0, times);
    found[STATE] = ENDED;
    const pid_t child = fork();
    if (child == 0) {
        for (int number = 1; number < 32; number++)
            signal(number, SIG_DFL);
        limit(spec[MEMORY]);
        work(spec, input, packed, places, wanted, (unsigned char *)found + times, found);
        _exit(0);
    }
    if (child > 0)
        wait_for(child, 1e-3 * (double)spec[TIMEOUT_MS], found);
    return found;
}

#ifdef PROGRAM

/* A whole file, or NULL. */
static void *file(const char *name, size_t *size)
{
    FILE *from = fopen(name, "rb");
    long end = -1;
    void *found = NULL;

    if (from && !fseek(from, 0, SEEK_END) && (end = ftell(from)) >= 0 && !fseek(from, 0, SEEK_SET))
        found = memory((size_t)end);
    *size = (size_t)end;
    if (found && fread(found, 1, *size, from) != *size)
        found = NULL;
    if (from)
        fclose(from);
    if (!found)
        fprintf(stderr, "%s cannot be read: %s\n", name, strerror(errno));
    return found;
}

/* The numbers of `spec`, then the files of input, packed weights and places (- for all). Writes the answer to standard output. */
int main(int count, char **arguments)
{
    int64_t spec[SPEC];
    size_t size = 0, bytes = 0;

    if (count != 1 + SPEC + 3) {
        fprintf(stderr, "expected %d arguments\n", SPEC + 3);
        return 2;
    }
    for (int i = 0; i < SPEC; i++)
        spec[i] = strtoll(arguments[1 + i], NULL, 10);
    char **names = arguments + 1 + SPEC;
    const int all = !strcmp(names[2], "-");
    const void *input = file(names[0], &size), *packed = input ? file(names[1], &size) : NULL;
    const int64_t *places = packed && !all ? file(names[2], &size) : NULL;
    if (!input || !packed || (!all && !places))
        return 1;
    const int64_t wanted = all ? elements(OF(output_shape)(0)) : (int64_t)(size / sizeof *places);
    const double *found = measure(spec, input, packed, places, wanted, &bytes);
    if (!found || fwrite(found, 1, bytes, stdout) != bytes || fflush(stdout)) {
        fprintf(stderr, "no memory or no place for the answer: %s\n", strerror(errno));
        return 1;
    }
    return 0;
}

#else

/* DLPack's tensor and TVM's any, as far as they are used. */
typedef struct {
    void *data;
    struct { int32_t type, id; } device;
    int32_t ndim;
    struct { uint8_t code, bits; uint16_t lanes; } dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} tensor;

typedef struct {
    int32_t type, padding;
    union { int64_t integer; double number; tensor *tensor; } value;
} any;

enum { ANY_INT = 1, ANY_TENSOR = 7 };

static unsigned char *data(const any *of)
{
    return (unsigned char *)of->value.tensor->data + of->value.tensor->byte_offset;
}

/*
 * measure(spec, input, packed weights, places, values, found): tensors all. 0, or -1 for arguments that are not.
 *
 * `values` gets the output elements at `places`, those of the first call.
 */
__attribute__((visibility("default"))) int __tvm_ffi_measure(void *self, const any *arguments, int32_t count, any *result)
{
    (void)self;
    memset(result, 0, sizeof *result);
    result->type = ANY_INT;
    result->value.integer = -1;
    for (int i = 0; i < count; i++)
        if (arguments[i].type != ANY_TENSOR)
            return 0;
    if (count != 6 || arguments[0].value.tensor->shape[0] != SPEC)
        return 0;
    const int64_t *spec = (const int64_t *)(void *)data(arguments), *places = (const int64_t *)(void *)data(arguments + 3);
    const int64_t wanted = arguments[3].value.tensor->shape[0];
    const size_t times = (size_t)(FOUND + spec[CALLS]) * sizeof(double);
    size_t bytes = 0;
    double *found = measure(spec, data(arguments + 1), data(arguments + 2), places, wanted, &bytes);

    result->value.integer = 0;
    if (!found) {
        ((double *)(void *)data(arguments + 5))[STATE] = NO_MEMORY;
        return 0;
    }
    memcpy(data(arguments + 5), found, times);
    memcpy(data(arguments + 4), (unsigned char *)found + times, bytes - times);
    munmap(found, bytes);
    return 0;
}

#endif
