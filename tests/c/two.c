/* Two artifacts in one program, the second with the pool of the first. Both compute the same layer. */
#include "first.h"
#include "second.h"
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int threads(void)
{
    DIR *tasks = opendir("/proc/self/task");
    int n = 0;
    while (readdir(tasks))
        n++;
    closedir(tasks);
    return n - 2;
}

int main(void)
{
    static float x[2 * 5 * 7 * 6 * 8], y[2][2 * 5 * 7 * 6 * 8];
    static char workspace[4096];
    first_args a = {.size = sizeof a};
    second_args b = {.size = sizeof b};
    int i;
    for (i = 0; i < 2 * 5 * 7 * 6 * 8; i++)
        x[i] = (float)i;
    a.input = b.input = x;
    a.output = y[0];
    b.output = y[1];
    a.workspace = b.workspace = workspace;
    a.workspace_size = b.workspace_size = sizeof workspace;
    a.threads = b.threads = 4;
    b.parallel_for = first_parallel_for;
    if (first_run(&a) != first_OK || second_run(&b) != second_OK)
        return 1;
    if (memcmp(y[0], y[1], sizeof y[0]) != 0 || y[0][1000] == 0)
        return 2;
    if (threads() != 4) /* one pool of three, and this one */
        return printf("%d threads\n", threads()), 3;
    puts("good");
    return 0;
}
