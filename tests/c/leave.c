/* Ends the process in awkward places; it must end, with status 7.
 *
 *     leave task    exit() inside a task
 *     leave thread  exit() in main while another thread uses the pool
 *     leave late    a parallel call in a destructor, after the pool was stopped
 */
#include "up1.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int32_t late, done;

static void leave(void *data, int32_t index)
{
    (void)data;
    if (index == 1)
        exit(7);
    usleep(1000);
}

static void work(void *data, int32_t index)
{
    (void)data;
    (void)index;
    usleep(100);
    __atomic_fetch_add(&done, 1, __ATOMIC_RELAXED);
}

static void *busy(void *unused)
{
    for (;;)
        up1_parallel_for(NULL, 4, work, NULL);
    return unused;
}

static void at_the_end(void)
{
    done = 0;
    up1_parallel_for(NULL, 4, work, NULL);
    if (late && done != 4)
        _exit(8);
}

__attribute__((destructor(101))) static void last(void) { at_the_end(); }

int main(int argc, char **argv)
{
    pthread_t thread;
    if (argc != 2)
        return 2;
    alarm(20);
    if (strcmp(argv[1], "task") == 0)
        up1_parallel_for(NULL, 4, leave, NULL);
    if (strcmp(argv[1], "thread") == 0) {
        pthread_create(&thread, NULL, busy, NULL);
        usleep(20000);
    }
    if (strcmp(argv[1], "late") == 0) {
        late = 1;
        atexit(at_the_end);
        up1_parallel_for(NULL, 4, work, NULL);
    }
    exit(7);
}
