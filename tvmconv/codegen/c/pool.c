/* A small thread pool: fork and join of independent tasks.
 *
 * - Started by the first call that has more than one task; grows to what a call asks for. A thread that cannot be
 *   created is done without.
 * - One user at a time. A second caller, and a call from inside a task, runs its tasks itself, one after the other:
 *   nothing ever waits for the pool, so nothing can deadlock.
 * - Task 0 is the caller's. `untaken` counts the others that nobody has begun. Who lowers it from n to n - 1 owns task n,
 *   and only then reads `task` and `data`: they cannot change before that task is finished. A thread that comes late finds
 *   zero, or takes a task of the next call, which is as good.
 * - Workers spin for SPIN_NS after a call, because layers are called back to back, then sleep on a condition variable.
 *   To wake one costs the caller and the call tens of microseconds, on a virtual machine above all. Who spins for longer
 *   than POLITE_NS offers the processor to whatever else could run there; sooner, a busy process would get it for
 *   milliseconds.
 * - After fork the child forgets the workers that it does not have. When the library is unloaded they are joined.
 *
 * NO_THREADS leaves the serial loop only (bare metal).
 */
#ifdef NO_THREADS

#define MAX_THREADS 1
#define FREE_THREADS 1

static int32_t processors(void) { return 1; }

static void run_parallel(int32_t tasks, void (*task)(void *, int32_t), void *data)
{
    int32_t i;
    for (i = 0; i < tasks; i++)
        task(data, i);
}

#else

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#define MAX_THREADS 1024
#define FREE_THREADS 64 /* this many are always granted, whatever the machine has */
#define SPIN_NS 200000
#define POLITE_NS 100000
#define STACK_BYTES (1024 * 1024)

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t wake, done;
    int32_t count, sleeping, stop, watching_fork; /* under the mutex */
    pthread_t workers[MAX_THREADS];
    int32_t busy; /* atomic: somebody uses the pool */
    void (*task)(void *, int32_t);
    void *data;
    int32_t untaken __attribute__((aligned(64)));    /* atomic */
    int32_t unfinished __attribute__((aligned(64))); /* atomic */
} pool = {.mutex = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

/* Processors' worth of time that a Linux control group grants, rounded up; 0: no limit known. */
static int32_t group_quota(void)
{
    char text[64];
    long long quota = 0, period = 0;
    ssize_t got = 0;
    int i = 0, file = open("/sys/fs/cgroup/cpu.max", O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    got = read(file, text, sizeof text - 1);
    close(file);
    for (; i < got && text[i] >= '0' && text[i] <= '9'; i++)
        quota = quota * 10 + (text[i] - '0');
    if (i == 0 || i >= got || text[i] != ' ')
        return 0; /* "max 100000" */
    for (i++; i < got && text[i] >= '0' && text[i] <= '9'; i++)
        period = period * 10 + (text[i] - '0');
    if (period <= 0 || quota <= 0)
        return 0;
    quota = (quota + period - 1) / period;
    return quota < MAX_THREADS ? (int32_t)quota : MAX_THREADS;
}

/* How many processors this process may use. Counted once: a workspace must not shrink between two calls. */
static int32_t processors(void)
{
    static int32_t counted;
    int32_t n = __atomic_load_n(&counted, __ATOMIC_RELAXED), quota, none = 0;
    int saved = errno;
    if (n > 0)
        return n;
#ifdef __linux__
    {
        unsigned char mask[1024] = {0}; /* 8192 processors */
        size_t i;
        if (sched_getaffinity(0, sizeof mask, (cpu_set_t *)(void *)mask) == 0)
            for (i = 0; i < sizeof mask; i++)
                for (; mask[i]; mask[i] &= (unsigned char)(mask[i] - 1))
                    n++;
    }
#endif
    if (n < 1)
        n = (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
    quota = group_quota();
    if (quota > 0 && n > quota)
        n = quota;
    n = n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n;
    errno = saved;
    if (!__atomic_compare_exchange_n(&counted, &none, n, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        n = none; /* another thread was first: all use its number */
    return n;
}

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __asm__ volatile("pause");
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Waits a moment for *word to be zero (wanted = 0) or positive (wanted = 1). */
static int spin(const int32_t *word, int wanted)
{
    struct timespec start, now;
    int64_t passed = 0;
    int i;
    if ((__atomic_load_n(word, __ATOMIC_ACQUIRE) > 0) == wanted)
        return 1;
    if (processors() == 1 || clock_gettime(CLOCK_MONOTONIC, &start) != 0)
        return 0;
    do {
        for (i = 0; i < 32; i++) {
            if ((__atomic_load_n(word, __ATOMIC_ACQUIRE) > 0) == wanted)
                return 1;
            relax();
        }
        if (passed > POLITE_NS)
            sched_yield();
        clock_gettime(CLOCK_MONOTONIC, &now);
        passed = (now.tv_sec - start.tv_sec) * (int64_t)1000000000 + (now.tv_nsec - start.tv_nsec);
    } while (passed < SPIN_NS);
    return 0;
}

/* Runs tasks until none is left to take. */
static void drain(void)
{
    int32_t n = __atomic_load_n(&pool.untaken, __ATOMIC_RELAXED);
    while (n > 0) {
        if (!__atomic_compare_exchange_n(&pool.untaken, &n, n - 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            continue;
        pool.task(pool.data, n);
        if (__atomic_fetch_sub(&pool.unfinished, 1, __ATOMIC_ACQ_REL) == 1) {
            pthread_mutex_lock(&pool.mutex);
            pthread_cond_signal(&pool.done);
            pthread_mutex_unlock(&pool.mutex);
        }
        n = __atomic_load_n(&pool.untaken, __ATOMIC_RELAXED);
    }
}

static void *worker(void *unused)
{
    sigset_t all;
    int32_t stop = 0;
    (void)unused;
    sigfillset(&all); /* the program's signal handlers belong on the program's threads */
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    while (!stop) {
        if (!spin(&pool.untaken, 1)) {
            pthread_mutex_lock(&pool.mutex);
            pool.sleeping++;
            while (!pool.stop && __atomic_load_n(&pool.untaken, __ATOMIC_RELAXED) == 0)
                pthread_cond_wait(&pool.wake, &pool.mutex);
            pool.sleeping--;
            stop = pool.stop;
            pthread_mutex_unlock(&pool.mutex);
        }
        drain();
    }
    return NULL;
}

/* In a forked child: the workers are gone, whatever they were doing. */
static void forget(void)
{
    static const pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static const pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
    pool.mutex = mutex;
    pool.wake = pool.done = cond;
    pool.count = pool.sleeping = 0;
    pool.untaken = pool.unfinished = pool.busy = 0;
}

/* Raises the number of workers to `wanted`, as far as that goes; called by the user of the pool. Returns the number. */
static int32_t start(int32_t wanted)
{
    pthread_attr_t attributes;
    int32_t count;
    if (wanted > MAX_THREADS)
        wanted = MAX_THREADS;
    pthread_mutex_lock(&pool.mutex);
    if (!pool.stop && pool.count < wanted && (pool.watching_fork || pthread_atfork(NULL, NULL, forget) == 0)) {
        pool.watching_fork = 1;
        if (pthread_attr_init(&attributes) == 0) {
            pthread_attr_setstacksize(&attributes, STACK_BYTES);
            while (pool.count < wanted && pthread_create(&pool.workers[pool.count], &attributes, worker, NULL) == 0)
                pool.count++;
            pthread_attr_destroy(&attributes);
        }
    }
    count = pool.stop ? 0 : pool.count;
    pthread_mutex_unlock(&pool.mutex);
    return count;
}

__attribute__((destructor)) static void pool_stop(void)
{
    int32_t i, count;
    pthread_mutex_lock(&pool.mutex);
    pool.stop = 1;
    count = pool.count;
    pool.count = 0;
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.mutex);
    for (i = 0; i < count; i++)
        if (!pthread_equal(pool.workers[i], pthread_self()))
            pthread_join(pool.workers[i], NULL);
}

static void run_parallel(int32_t tasks, void (*task)(void *, int32_t), void *data)
{
    int32_t i, idle = 0;
    int saved = errno;
    if (tasks > 1 && __atomic_compare_exchange_n(&pool.busy, &idle, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
        if (start(tasks - 1) > 0) {
            pool.task = task;
            pool.data = data;
            __atomic_store_n(&pool.unfinished, tasks - 1, __ATOMIC_RELAXED);
            __atomic_store_n(&pool.untaken, tasks - 1, __ATOMIC_RELEASE);
            pthread_mutex_lock(&pool.mutex);
            if (pool.sleeping < tasks)
                pthread_cond_broadcast(&pool.wake);
            else
                for (i = 1; i < tasks; i++)
                    pthread_cond_signal(&pool.wake);
            pthread_mutex_unlock(&pool.mutex);
            task(data, 0);
            drain();
            if (!spin(&pool.unfinished, 0)) {
                pthread_mutex_lock(&pool.mutex);
                while (__atomic_load_n(&pool.unfinished, __ATOMIC_ACQUIRE) > 0)
                    pthread_cond_wait(&pool.done, &pool.mutex);
                pthread_mutex_unlock(&pool.mutex);
            }
            tasks = 0;
        }
        __atomic_store_n(&pool.busy, 0, __ATOMIC_RELEASE);
    }
    for (i = 0; i < tasks; i++)
        task(data, i);
    errno = saved;
}

#endif
