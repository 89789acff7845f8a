/* Calls a generated library in every way that could break it. Generic: NAME, HEADER and the element sizes are macros.
 *
 *     driver MODE SECONDS THREADS [PACKED_WEIGHTS_FILE]
 *
 * guard: buffers between unreadable pages, at both ends, at the lowest alignment; 1, 0 and THREADS threads and a foreign
 *        parallel_for must give the same bits and leave the inputs alone
 * state: errno, signal mask, affinity and rounding are as before, in the caller and in tasks of a foreign parallel_for
 * storm: THREADS callers at once for SECONDS, some with one thread, some with several, some with a shared pool
 * fork:  children, made before, after and during parallel calls, compute the same
 * nest:  a run from inside a task of the pool ends, and is right
 */
#include HEADER
#include <errno.h>
#include <fenv.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define GLUE_(a, b) a##_##b
#define GLUE(a, b) GLUE_(a, b)
#define F(x) GLUE(NAME, x)
#define PAGE 65536
#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", "driver.c", __LINE__, #condition); \
            exit(1); \
        } \
    } while (0)

static const void *weights;
static int32_t many;

static size_t bytes_of(const int64_t *shape, size_t element)
{
    int i;
    size_t n = element * (size_t)(shape[0] < 0 ? 3 : shape[0]);
    for (i = 1; i < 5; i++)
        n *= (size_t)shape[i];
    return n;
}

/* Memory that ends (end = 1) or starts (end = 0) at an unreadable page. */
static char *guarded(size_t size, int end)
{
    size_t body = (size + PAGE + PAGE - 1) / PAGE * PAGE;
    char *p = mmap(NULL, body + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    CHECK(mprotect(p + PAGE, body, PROT_READ | PROT_WRITE) == 0);
    memset(p + PAGE, 0x5a, body);
    return end ? p + PAGE + body - size : p + PAGE;
}

static void fill(char *p, size_t size, size_t element, unsigned seed)
{
    size_t i;
    for (i = 0; i + element <= size; i += element) {
        unsigned r = (seed = seed * 1664525u + 1013904223u) >> 16;
        double d = r / 32768.0 - 1;
        float f = (float)d;
        uint16_t h = (uint16_t)(0x3c00 | (r & 0x83ff));
        memcpy(p + i, element == 8 ? (void *)&d : element == 4 ? (void *)&f : (void *)&h, element);
    }
}

static void backwards(void *context, int32_t tasks, void (*task)(void *, int32_t), void *data)
{
    ++*(int *)context;
    while (tasks-- > 0)
        task(data, tasks);
}

struct problem {
    int32_t shape;
    size_t in, out;
    char *x, *y, *expected;
};

static struct problem make(int32_t shape)
{
    struct problem p = {0};
    p.shape = shape;
    p.in = bytes_of(F(input_shape)(shape), INPUT_ELEMENT);
    p.out = bytes_of(F(output_shape)(shape), OUTPUT_ELEMENT);
    p.x = malloc(p.in + 1);
    p.y = malloc(p.out + 1);
    p.expected = malloc(p.out + 1);
    fill(p.x, p.in, INPUT_ELEMENT, 7);
    return p;
}

static F(args) args_of(const struct problem *p, int32_t threads, void *workspace)
{
    F(args) a;
    memset(&a, 0, sizeof a);
    a.size = sizeof a;
    a.input = p->x;
    a.output = p->y;
    a.weights = weights;
    a.threads = threads;
    a.shape = p->shape;
    a.batch = F(input_shape)(p->shape)[0] < 0 ? 3 : 0;
    a.workspace = workspace;
    a.workspace_size = F(workspace_size)(p->shape, threads);
    return a;
}

static void call(struct problem *p, int32_t threads)
{
    void *workspace = malloc(F(workspace_size)(p->shape, threads) + 1);
    F(args) a = args_of(p, threads, workspace);
    int32_t code = F(run)(&a);
    if (code != 0) {
        fprintf(stderr, "run: %d %s\n", code, F(error_text)(code));
        exit(1);
    }
    free(workspace);
}

static void solve(struct problem *p)
{
    call(p, 1);
    memcpy(p->expected, p->y, p->out);
}

static void same(struct problem *p, int32_t threads)
{
    memset(p->y, 0x5a, p->out);
    call(p, threads);
    CHECK(memcmp(p->y, p->expected, p->out) == 0);
}

static void drop(struct problem *p)
{
    free(p->x);
    free(p->y);
    free(p->expected);
}

static void guard(int32_t shape)
{
    struct problem p = make(shape);
    size_t packed = F(packed_weights_size)();
    const void *kept = weights;
    int end, way;
    solve(&p);
    for (end = 0; end < 2; end++)
        for (way = 0; way < 4; way++) {
            int32_t threads = way == 0 ? 1 : way == 1 ? 0 : many;
            size_t scratch = F(workspace_size)(shape, threads);
            struct problem q = p;
            F(args) a;
            int used = 0;
            size_t i;
            char *w = NULL;
            q.x = guarded(p.in, end);
            q.y = guarded(p.out, end);
            memcpy(q.x, p.x, p.in);
            if (kept) {
                w = guarded(packed, end);
                memcpy(w, kept, packed);
            }
            a = args_of(&q, threads, scratch ? guarded(scratch, end) : NULL);
            a.weights = w;
            if (way == 3) {
                a.parallel_for = backwards;
                a.context = &used;
            }
            CHECK(F(run)(&a) == 0);
            CHECK(memcmp(q.y, p.expected, p.out) == 0);
            CHECK(memcmp(q.x, p.x, p.in) == 0);
            if (end)
                for (i = 1; i < 4096; i++)
                    CHECK(q.y[-(long)i] == 0x5a && (scratch == 0 || ((char *)a.workspace)[-(long)i] == 0x5a));
            else
                for (i = 0; i < 4096; i++)
                    CHECK(q.y[p.out + i] == 0x5a && (scratch == 0 || ((char *)a.workspace)[scratch + i] == 0x5a));
        }
    drop(&p);
}

static int disturbed;

static void watchful(void *context, int32_t tasks, void (*task)(void *, int32_t), void *data)
{
    (void)context;
    while (tasks-- > 0) {
        errno = 12345;
        task(data, tasks);
        disturbed |= errno != 12345;
    }
}

static void state(int32_t shape)
{
    struct problem p = make(shape);
    static const int modes[] = {FE_TONEAREST, FE_UPWARD};
    int i, way;
    solve(&p);
    for (i = 0; i < 2; i++)
        for (way = 0; way < 3; way++) {
            sigset_t before, after, some;
            int number;
            cpu_set_t cpus, cpus_after;
            void *workspace = malloc(F(workspace_size)(shape, many) + 1);
            F(args) a = args_of(&p, way == 0 ? 1 : many, workspace);
            if (way == 2)
                a.parallel_for = watchful;
            sigemptyset(&some);
            sigaddset(&some, SIGUSR1);
            pthread_sigmask(SIG_BLOCK, &some, &before);
            pthread_sigmask(SIG_BLOCK, NULL, &before);
            CHECK(sched_getaffinity(0, sizeof cpus, &cpus) == 0);
            fesetround(modes[i]);
            errno = 54321;
            CHECK(F(run)(&a) == 0);
            CHECK(way == 2 || errno == 54321);
            CHECK(fegetround() == modes[i]);
            fesetround(FE_TONEAREST);
            CHECK(sched_getaffinity(0, sizeof cpus, &cpus_after) == 0);
            CHECK(CPU_EQUAL(&cpus, &cpus_after));
            pthread_sigmask(SIG_BLOCK, NULL, &after);
            for (number = 1; number < 65; number++)
                CHECK(sigismember(&before, number) == sigismember(&after, number));
            free(workspace);
        }
    CHECK(!disturbed);
    drop(&p);
}

static struct timespec deadline;

static int over(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec > deadline.tv_sec || (now.tv_sec == deadline.tv_sec && now.tv_nsec > deadline.tv_nsec);
}

static void *caller(void *number)
{
    int32_t n = (int32_t)(intptr_t)number, shape = n % F(shapes)();
    struct problem p = make(shape);
    long calls = 0;
    solve(&p);
    do
        same(&p, n % 3 == 0 ? 1 : n % 3 == 1 ? 2 : many);
    while (++calls && !over());
    drop(&p);
    return (void *)(intptr_t)calls;
}

static void storm(int callers)
{
    pthread_t threads[64];
    intptr_t i, total = 0;
    for (i = 0; i < callers; i++)
        CHECK(pthread_create(&threads[i], NULL, caller, (void *)i) == 0);
    for (i = 0; i < callers; i++) {
        void *calls;
        pthread_join(threads[i], &calls);
        CHECK((intptr_t)calls > 0);
        total += (intptr_t)calls;
    }
    printf("%ld calls\n", (long)total);
}

static void child_computes(struct problem *p)
{
    int status = -1;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(60);
        same(p, many);
        same(p, many);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
}

static void forks(int32_t shape)
{
    struct problem p = make(shape);
    pthread_t other;
    int i;
    solve(&p); /* one thread: no pool yet */
    child_computes(&p);
    same(&p, many);
    child_computes(&p);
    same(&p, many);
    CHECK(pthread_create(&other, NULL, caller, (void *)2) == 0);
    for (i = 0; i < 20; i++)
        child_computes(&p);
    pthread_join(other, NULL);
    drop(&p);
}

static void nested(void *data, int32_t index)
{
    struct problem *p = data;
    same(&p[index], many);
}

static void nest(int32_t shape)
{
    struct problem p[4];
    int i;
    for (i = 0; i < 4; i++) {
        p[i] = make(shape);
        solve(&p[i]);
    }
    F(parallel_for)(NULL, 4, nested, p);
    F(parallel_for)(NULL, 0, nested, p);
    F(parallel_for)(NULL, -3, nested, p);
    for (i = 0; i < 4; i++)
        drop(&p[i]);
}

int main(int argc, char **argv)
{
    int32_t shape;
    CHECK(argc >= 4);
    many = atoi(argv[3]);
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += atoi(argv[2]);
    if (argc > 4) {
        FILE *file = fopen(argv[4], "rb");
        size_t size = F(packed_weights_size)();
        char *p = malloc(size);
        CHECK(file && fread(p, 1, size, file) == size);
        fclose(file);
        weights = p;
    }
    if (strcmp(argv[1], "storm") == 0)
        storm(8);
    for (shape = 0; shape < F(shapes)(); shape++) {
        if (strcmp(argv[1], "guard") == 0)
            guard(shape);
        if (strcmp(argv[1], "state") == 0)
            state(shape);
        if (strcmp(argv[1], "fork") == 0)
            forks(shape);
        if (strcmp(argv[1], "nest") == 0)
            nest(shape);
    }
    free((void *)weights);
    puts("good");
    return 0;
}
