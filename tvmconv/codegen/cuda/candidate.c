/*
 * `work` of device.c on a CUDA device: the layer's arrays are on the device, and the driver's events time the calls. Included there with
 * -DCUDA. The driver is opened here as the layer itself does it; what it answers goes into the answer, as the layer's code for it.
 */
#include <dlfcn.h>

enum { DRIVER = 1000, NO_DRIVER = 33, FUNCTIONS = 12, MOST_CALLS = 1000 };

/* Seconds of calls between two events: for a time, and for each of many. */
static const double piece_s = 2e-3, short_s = 2e-4;

static struct {
    int (*init)(unsigned);
    int (*device)(int *, int);
    int (*retain)(void **, int);
    int (*enter)(void *);
    int (*allocate)(uint64_t *, size_t);
    int (*upload)(uint64_t, const void *, size_t);
    int (*download)(void *, uint64_t, size_t);
    int (*wait)(void);
    int (*event)(void **, unsigned);
    int (*record)(void *, void *);
    int (*wait_for)(void *);
    int (*elapsed)(float *, void *, void *);
} cuda;

static int open_driver(void)
{
    static const char *const names[FUNCTIONS] = {
        "cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuMemAlloc_v2", "cuMemcpyHtoD_v2",
        "cuMemcpyDtoH_v2", "cuCtxSynchronize", "cuEventCreate", "cuEventRecord", "cuEventSynchronize", "cuEventElapsedTime"};
    void *library = dlopen("libcuda.so.1", RTLD_NOW), *context = NULL;
    int handle = 0, code = 0;

    for (int i = 0; i < FUNCTIONS; i++) {
        void *found = library ? dlsym(library, names[i]) : NULL;
        if (!found)
            return NO_DRIVER;
        memcpy((char *)&cuda + (size_t)i * sizeof found, &found, sizeof found);
    }
    if (!(code = cuda.init(0)) && !(code = cuda.device(&handle, 0)) && !(code = cuda.retain(&context, handle)))
        code = cuda.enter(context);
    return code ? DRIVER + code : 0;
}

/* Memory of the device with a copy of `from`, unless that is NULL; 0, or a code. */
static int on_device(const void *from, size_t bytes, const void **to)
{
    uint64_t pointer = 0;
    int code = cuda.allocate(&pointer, bytes ? bytes : 1);

    if (!code && from && bytes)
        code = cuda.upload(pointer, from, bytes);
    *to = (const void *)(uintptr_t)pointer;
    return code ? DRIVER + code : 0;
}

/* Seconds of one of `calls` calls between two events. */
static int timed(const OF(args) *args, void *const *events, int64_t calls, double *seconds)
{
    float ms = 0;
    int code = cuda.record(events[0], NULL), run = 0;

    for (int64_t i = 0; !code && !run && i < calls; i++)
        run = OF(run)(args);
    if (run)
        return run;
    if (!code && !(code = cuda.record(events[1], NULL)) && !(code = cuda.wait_for(events[1])))
        code = cuda.elapsed(&ms, events[0], events[1]);
    *seconds = 1e-3 * (double)ms / (double)calls;
    return code ? DRIVER + code : 0;
}

static int measured(const int64_t *spec, const void *input, const void *packed, const int64_t *places, int64_t count,
                    unsigned char *values, double *found)
{
    const size_t width = (size_t)spec[OUTPUT_BYTES], bytes = (size_t)elements(OF(output_shape)(0)) * width;
    unsigned char *output = memory(bytes);
    void *events[2] = {NULL, NULL};
    const void *made = NULL, *workspace = NULL;
    double first = 0.0;
    OF(args) args;
    int code = output ? open_driver() : 38;

    memset(&args, 0, sizeof args);
    args.size = sizeof args;
    args.batch = OF(input_shape)(0)[0] < 0 ? 1 : 0;
    args.workspace_size = OF(workspace_size)(0, 0);
    if (output)
        memset(output, 0xff, bytes); /* NaN: what is not written shows */
    if (code || (code = on_device(input, (size_t)elements(OF(input_shape)(0)) * (size_t)spec[INPUT_BYTES], &args.input)) ||
        (code = on_device(packed, OF(packed_weights_size)(), &args.weights)) || (code = on_device(output, bytes, &made)) ||
        (args.workspace_size && (code = on_device(NULL, args.workspace_size, &workspace))))
        return code;
    args.output = (void *)(uintptr_t)made;
    args.workspace = (void *)(uintptr_t)workspace;
    if ((code = OF(run)(&args))) /* loads the code: not timed */
        return code;
    if ((code = cuda.wait()) || (bytes && (code = cuda.download(output, (uint64_t)(uintptr_t)made, bytes))))
        return DRIVER + code;
    for (int64_t i = 0; i < count; i++)
        memcpy(values + (size_t)i * width, output + (size_t)(places ? places[i] : i) * width, width);
    if ((code = cuda.event(&events[0], 0)) || (code = cuda.event(&events[1], 0)))
        return DRIVER + code;
    if ((code = timed(&args, events, 1, &first)))
        return code;
    const double piece = spec[BUDGET_US] ? piece_s : short_s, budget = 1e-6 * (double)spec[BUDGET_US];
    const double until = now() + 10 * budget, hopeless = 1e-9 * (double)spec[HOPELESS_NS];
    int64_t calls = (int64_t)(piece / (first > 1e-7 ? first : 1e-7));
    double spent = 0.0;
    calls = calls < 1 ? 1 : calls > MOST_CALLS ? MOST_CALLS : calls;
    if (!spec[HOPELESS_NS] || first < 2 * hopeless)
        code = timed(&args, events, calls, &first); /* a device that idled runs slowly */
    for (int64_t i = 0; !code && i < spec[CALLS] && (i < spec[LEAST] || (spent < budget && now() < until)); i++) {
        code = timed(&args, events, calls, &found[FOUND + i]);
        spent += found[FOUND + i] * (double)calls;
        found[COUNT] = (double)(i + 1);
        if (spec[HOPELESS_NS] && found[FOUND] > hopeless)
            break;
    }
    return code;
}

static void work(const int64_t *spec, const void *input, const void *packed, const int64_t *places, int64_t count,
                 unsigned char *values, double *found)
{
    const int code = measured(spec, input, packed, places, count, values, found);

    found[DETAIL] = code;
    found[STATE] = code ? RETURNED : DONE;
}
