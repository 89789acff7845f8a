/* What it takes to begin with a library: time, memory, threads. Prints one line of JSON.
 *
 *     startup LIBRARY NAME INPUT_BYTES OUTPUT_BYTES
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "layer_args.h"

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static long status(const char *field)
{
    char line[256];
    long value = -1;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, field, strlen(field)) == 0)
            value = strtol(line + strlen(field), NULL, 10);
    if (file)
        fclose(file);
    return value;
}

static void *library;
static const char *name;

static void *function(const char *what)
{
    char symbol[300];
    void *found;
    snprintf(symbol, sizeof symbol, "%s_%s", name, what);
    found = dlsym(library, symbol);
    if (found == NULL) {
        fprintf(stderr, "startup: no %s\n", symbol);
        exit(1);
    }
    return found;
}

int main(int argc, char **argv)
{
    int32_t (*run)(const layer_args *);
    size_t (*workspace_size)(int32_t, int32_t), inputs, outputs;
    layer_args args = {sizeof args, NULL, NULL, NULL, NULL, 0, 1, 0, 0, NULL, NULL};
    double start, opened, first;
    long before, after, threads[3];
    int32_t code;
    if (argc != 5)
        return 2;
    name = argv[2];
    inputs = strtoull(argv[3], NULL, 10);
    outputs = strtoull(argv[4], NULL, 10);
    args.input = calloc(1, inputs + 1);
    args.output = malloc(outputs + 1);
    memset(args.output, 1, outputs);
    before = status("VmRSS:");
    start = now();
    library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    opened = now();
    if (library == NULL)
        return fprintf(stderr, "startup: %s\n", dlerror()), 1;
    after = status("VmRSS:");
    threads[0] = status("Threads:");
    run = (int32_t (*)(const layer_args *))(uintptr_t)function("run");
    workspace_size = (size_t (*)(int32_t, int32_t))(uintptr_t)function("workspace_size");
    first = now();
    args.workspace_size = workspace_size(0, 1);
    args.workspace = malloc(args.workspace_size + 1);
    code = run(&args);
    first = now() - first + (opened - start);
    threads[1] = status("Threads:");
    args.threads = 2;
    args.workspace_size = workspace_size(0, 2);
    args.workspace = malloc(args.workspace_size + 1);
    code = code ? code : run(&args);
    threads[2] = status("Threads:");
    printf("{\"code\": %d, \"open_ms\": %.4f, \"first_ms\": %.4f, \"rss_kib\": %ld, \"threads\": [%ld, %ld, %ld]}\n", (int)code,
           opened - start, first, after - before, threads[0], threads[1], threads[2]);
    return code != 0;
}
