/* Loads a library, calls it with several threads, unloads it; again and again. No thread may stay behind, no memory, no
 * mapping.
 *
 *     reload LIBRARY NAME TIMES INPUT_BYTES OUTPUT_BYTES
 */
#include <dirent.h>
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "layer_args.h"

#define MANY 3
#define MOST_KIB 512
#define MOST_MAPPINGS 8

static int32_t done;

static void count(void *data, int32_t index)
{
    (void)data;
    (void)index;
    __atomic_fetch_add(&done, 1, __ATOMIC_RELAXED);
    usleep(100);
}

static int threads(void)
{
    DIR *tasks = opendir("/proc/self/task");
    int n = 0;
    while (readdir(tasks))
        n++;
    closedir(tasks);
    return n - 2;
}

/* KiB in memory. */
static long resident(void)
{
    long all = 0, found = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%ld %ld", &all, &found) != 2)
        exit(2);
    fclose(file);
    return found * (sysconf(_SC_PAGESIZE) / 1024);
}

static long mappings(void)
{
    long lines = 0;
    int c;
    FILE *file = fopen("/proc/self/maps", "r");
    while (file && (c = getc(file)) != EOF)
        lines += c == '\n';
    if (file)
        fclose(file);
    return lines;
}

static void *function(void *library, const char *name, const char *what)
{
    char symbol[256];
    void *found;
    snprintf(symbol, sizeof symbol, "%s_%s", name, what);
    found = dlsym(library, symbol);
    if (!found)
        exit(3);
    return found;
}

static int call(void *library, const char *name, const void *input, void *output)
{
    layer_args args = {sizeof args, input, output, NULL, NULL, 0, MANY, 0, 0, NULL, NULL};
    size_t (*workspace_size)(int32_t, int32_t);
    int32_t (*run)(const layer_args *), code;
    *(void **)&workspace_size = function(library, name, "workspace_size");
    *(void **)&run = function(library, name, "run");
    args.workspace_size = workspace_size(0, MANY);
    args.workspace = malloc(args.workspace_size + 1);
    code = run(&args);
    free(args.workspace);
    return code;
}

int main(int argc, char **argv)
{
    int i, wait, times;
    long memory = 0, maps = 0;
    char *input, *output;
    if (argc != 6 || threads() != 1)
        return 2;
    times = atoi(argv[3]);
    input = calloc(1, strtoull(argv[4], NULL, 10) + 1);
    output = calloc(1, strtoull(argv[5], NULL, 10) + 1);
    for (i = 0; i < times; i++) {
        void (*parallel_for)(void *, int32_t, void (*)(void *, int32_t), void *);
        void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
        if (!library)
            return puts(dlerror()), 3;
        if (call(library, argv[2], input, output) != 0)
            return puts("run"), 7;
        *(void **)&parallel_for = function(library, argv[2], "parallel_for");
        done = 0;
        parallel_for(NULL, 6, count, NULL);
        if (done != 6 || threads() != 6)
            return printf("%d tasks, %d threads\n", done, threads()), 4;
        if (dlclose(library) != 0)
            return 5;
        /* A thread that was joined is still listed for a moment, until the kernel has cleared it away. */
        for (wait = 0; threads() != 1 && wait < 1000; wait++)
            usleep(1000);
        if (threads() != 1 || dlopen(argv[1], RTLD_NOW | RTLD_NOLOAD))
            return printf("%d threads left\n", threads()), 6;
        /* What the C library keeps for later is there after some rounds. */
        if (i == times / 10) {
            memory = resident();
            maps = mappings();
        }
    }
    if (resident() - memory > MOST_KIB || mappings() - maps > MOST_MAPPINGS)
        return printf("grown by %ld KiB, %ld mappings\n", resident() - memory, mappings() - maps), 8;
    free(input);
    free(output);
    puts("good");
    return 0;
}
