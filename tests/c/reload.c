/* Loads a library, calls it with several threads, unloads it; again and again. No thread may stay behind.
 *
 *     reload LIBRARY NAME TIMES
 */
#include <dirent.h>
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int32_t done;

static void count(void *data, int32_t index)
{
    (void)data;
    (void)index;
    __atomic_fetch_add(&done, 1, __ATOMIC_RELAXED);
    usleep(200);
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

int main(int argc, char **argv)
{
    char symbol[256];
    int i, wait;
    if (argc != 4 || threads() != 1)
        return 2;
    snprintf(symbol, sizeof symbol, "%s_parallel_for", argv[2]);
    for (i = 0; i < atoi(argv[3]); i++) {
        void (*parallel_for)(void *, int32_t, void (*)(void *, int32_t), void *);
        void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
        if (!library)
            return puts(dlerror()), 3;
        *(void **)&parallel_for = dlsym(library, symbol);
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
    }
    puts("good");
    return 0;
}
