/* Linked into a program: a system that refuses to make more than one thread. */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *data)
{
    static int made;
    int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    const char *allowed = getenv("ALLOWED_THREADS");
    if (__atomic_fetch_add(&made, 1, __ATOMIC_RELAXED) >= (allowed ? atoi(allowed) : 0))
        return EAGAIN;
    *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
    return real(thread, attributes, start, data);
}
