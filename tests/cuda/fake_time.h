/* The fake driver's clock, which kernels alone move on: events that read it, and graphs, which are nothing but time here. */
/* A model of a device: rounds of blocks on its multiprocessors, each as long as its threads; launches cost something, too. FAKE_SLOWNESS
 * makes it as slow as kernels are here, so that nobody calls them thousands of times. */
static double duration(const unsigned *sizes)
{
    const char *slowness = getenv("FAKE_SLOWNESS");
    double blocks = (double)sizes[0] * sizes[1] * sizes[2], threads = (double)sizes[3] * sizes[4] * sizes[5];
    double rounds = (double)(long)((blocks + MULTIPROCESSORS - 1) / MULTIPROCESSORS);
    return (slowness ? atof(slowness) : 1.0) * (2000.0 + rounds * (300.0 + 10.0 * threads));
}

EXPORT int cuEventCreate(void **event, unsigned flags)
{
    BEGIN(cuEventCreate)
    NEEDS_CONTEXT
    (void)flags;
    *event = calloc(1, sizeof(struct event));
    counts[EVENTS]++;
    return leave(OK);
}
EXPORT int cuEventDestroy_v2(void *event)
{
    BEGIN(cuEventDestroy_v2)
    free(event);
    counts[EVENTS]--;
    return leave(OK);
}
EXPORT int cuEventRecord(void *event, void *stream)
{
    (void)stream;
    BEGIN(cuEventRecord)
    ((struct event *)event)->ns = now_ns;
    return leave(OK);
}
EXPORT int cuEventSynchronize(void *event)
{
    (void)event;
    BEGIN(cuEventSynchronize)
    return leave(OK);
}
EXPORT int cuEventElapsedTime(float *ms, void *first, void *last)
{
    BEGIN(cuEventElapsedTime)
    *ms = (float)(1e-6 * (((struct event *)last)->ns - ((struct event *)first)->ns));
    return leave(OK);
}

/* A graph here is the time that it takes: what it would compute was computed before. */
EXPORT int cuGraphInstantiateWithFlags(void **made, void *graph, unsigned long long flags)
{
    struct graph *g = calloc(1, sizeof *g);
    BEGIN(cuGraphInstantiateWithFlags)
    (void)flags;
    g->ns = ((struct stream *)graph)->ns;
    counts[GRAPHS]++;
    *made = g;
    return leave(OK);
}
EXPORT int cuGraphLaunch(void *made, void *stream)
{
    BEGIN(cuGraphLaunch)
    (void)stream;
    now_ns += ((struct graph *)made)->ns;
    return leave(OK);
}
EXPORT int cuGraphDestroy(void *graph)
{
    (void)graph;
    BEGIN(cuGraphDestroy)
    return leave(OK);
}
EXPORT int cuGraphExecDestroy(void *made)
{
    BEGIN(cuGraphExecDestroy)
    free(made);
    counts[GRAPHS]--;
    return leave(OK);
}
