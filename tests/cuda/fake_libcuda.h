/* The state of the fake driver, and what a test may ask of it (fake_*). */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MULTIPROCESSORS = 8, LAUNCH_FAULTS = 700 };
enum { GUARD = 256, MOST = 4096, NAMES = 64, DEPTH = 16, DEVICES = 8 };
enum { OK, INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED, NO_DEVICE = 100, INVALID_DEVICE, INVALID_IMAGE = 200,
       INVALID_CONTEXT, NO_BINARY = 209, UNSUPPORTED_PTX = 222, INVALID_HANDLE = 400, NOT_FOUND = 500, LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900,
       CAPTURE_IMPLICIT = 906 };
enum { ALLOCATIONS, CONTEXTS, MODULES, STREAMS, EVENTS, CORRUPT, STACK, LAUNCHES, CAPTURED, MISTAKES, GRAPHS, KINDS };

struct context { int device, retained; };
struct event { double ns; };
struct memory { char *start; size_t bytes; int device, kind; }; /* kind: 1 pinned, 2 device, 3 managed, 4 pinned, not mapped */
struct stream { struct context *context; int capturing, global, alive; double ns; };
struct graph { double ns; };
struct module { struct context *context; void *libraries[8]; int alive; };
struct function { struct module *module; int (*launch)(void **, const unsigned *, unsigned); int shared; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct context contexts[DEVICES];
static struct memory memories[MOST];
static struct { char name[48]; int calls, fail_at, result; } names[NAMES];
static int64_t counts[KINDS];
static size_t capacity = (size_t)1 << 33;
static double now_ns; /* a clock that kernels alone move on */
static int model, old_driver; /* which device all are, 90 for 9.0, where not 0; whether PTX is refused */
static int process, capturing, broken; /* broken: a kernel's fault, which stays */ /* capturing: streams that are captured in global mode */
static __thread struct context *stack[DEPTH];
static __thread int depth, relaxed;

static int device_count(void)
{
    const char *text = getenv("FAKE_DEVICES");
    int n = text ? atoi(text) : 2;
    return n < DEVICES ? n : DEVICES;
}

static int row(const char *name)
{
    int i = 0;
    while (i < NAMES - 1 && names[i].name[0] && strcmp(names[i].name, name) != 0)
        i++;
    if (!names[i].name[0])
        snprintf(names[i].name, sizeof names[i].name, "%s", name);
    return i;
}

/* Takes the lock, counts the call; the result that was asked for. */
static int enter(const char *name, int needs_process)
{
    int i, result;
    pthread_mutex_lock(&lock);
    i = row(name);
    names[i].calls++;
    result = names[i].fail_at == names[i].calls || names[i].fail_at == -1 ? names[i].result : OK;
    if (result == OK && needs_process && process != (int)getpid())
        result = NOT_INITIALIZED;
    if (result == OK && needs_process && broken)
        result = broken;
    return result;
}

static int leave(int result)
{
    pthread_mutex_unlock(&lock);
    return result;
}

static int mistake(int result)
{
    counts[MISTAKES]++;
    return result;
}

#define BEGIN(name) \
    int result = enter(#name, 1); \
    if (result != OK) \
        return leave(result);
#define NEEDS_CONTEXT \
    if (depth == 0 || stack[depth - 1]->retained == 0) \
        return leave(mistake(INVALID_CONTEXT));
/* What the real driver refuses while any thread captures in global mode, unless this one is relaxed. */
#define UNSAFE \
    if (capturing > 0 && !relaxed) \
        return leave(mistake(CAPTURE_UNSUPPORTED));
#define EXPORT __attribute__((visibility("default")))

EXPORT void fake_fail(const char *name, int nth, int result) /* from now: 1 the next call, -1 all; 0 none */
{
    int i;
    pthread_mutex_lock(&lock);
    i = row(name);
    names[i].fail_at = nth > 0 ? names[i].calls + nth : nth;
    names[i].result = result;
    pthread_mutex_unlock(&lock);
}
EXPORT int fake_calls(const char *name)
{
    int n;
    pthread_mutex_lock(&lock);
    n = names[row(name)].calls;
    pthread_mutex_unlock(&lock);
    return n;
}
EXPORT int64_t fake_count(int kind) { return kind == STACK ? depth : counts[kind]; }
EXPORT void fake_model(int number, int refuses_ptx) { model = number, old_driver = refuses_ptx; }
EXPORT void fake_capacity(size_t bytes) { capacity = bytes; }
EXPORT void *fake_context(int device) { return &contexts[device]; }
EXPORT void fake_register(void *start, size_t bytes, int kind) /* kind 0: no longer */
{
    int i;
    pthread_mutex_lock(&lock);
    for (i = 0; i < MOST && memories[i].start != (kind ? NULL : (char *)start); i++)
        ;
    memories[i].start = kind ? start : NULL;
    memories[i].bytes = bytes;
    memories[i].kind = kind;
    memories[i].device = 0;
    pthread_mutex_unlock(&lock);
}
