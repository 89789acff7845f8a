/* A libcuda.so.1 for tests: devices whose memory is the host's, and kernels that are functions of the shared libraries
 * named in FAKE_KERNELS (separated by colons), there called
 * emulate_<kernel>(void **parameters, const unsigned sizes[6], unsigned order).
 *
 * It is stricter than the driver: memory has guard bytes; what is used after it was freed, in the wrong context, in a forked
 * child or during a capture is an error; everything alive is counted; every call can be made to fail (fake_libcuda.h).
 * FAKE_DEVICES says how many devices there are. Events tell the time of a clock that a model of kernels moves on.
 */
#include "fake_libcuda.h"
#include "fake_time.h"

EXPORT int cuInit(unsigned flags)
{
    int result = enter("cuInit", 0);
    (void)flags;
    if (result == OK && device_count() == 0)
        result = NO_DEVICE;
    if (result == OK && process != 0 && process != (int)getpid())
        result = NOT_INITIALIZED;
    if (result == OK)
        process = (int)getpid();
    return leave(result);
}
EXPORT int cuDriverGetVersion(int *v) { return *v = 13000, 0; }
EXPORT int cuGetErrorString(int code, const char **text)
{
    if (leave(enter("cuGetErrorString", 0)) != OK || code == 998)
        return *text = NULL, INVALID_VALUE;
    *text = code == LAUNCH_FAILED ? "unspecified launch failure" : code == 701 ? "too many resources requested for launch" : "a fake error";
    return OK;
}
EXPORT int cuDeviceGetCount(int *n)
{
    BEGIN(cuDeviceGetCount)
    *n = device_count();
    return leave(OK);
}
EXPORT int cuDeviceGet(int *device, int ordinal)
{
    BEGIN(cuDeviceGet)
    *device = 100 + ordinal; /* a handle is no index */
    return leave(ordinal >= 0 && ordinal < device_count() ? OK : INVALID_DEVICE);
}
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    BEGIN(cuDeviceGetAttribute)
    switch (attribute) {
    case 75: *value = 8; break; /* 8.0 and 8.6 */
    case 76: *value = device == 100 ? 0 : 6; break;
    case 16: *value = MULTIPROCESSORS; break;
    case 13: *value = 1000000; break; /* kHz */
    case 36: *value = 2000000; break;
    case 37: *value = 256; break; /* bits */
    default: *value = 1024;
    }
    return leave(OK);
}
EXPORT int cuDeviceGetName(char *name, int size, int device)
{
    BEGIN(cuDeviceGetName)
    snprintf(name, (size_t)size, "Fake GPU %d", device - 100);
    return leave(OK);
}
EXPORT int cuDevicePrimaryCtxRetain(void **context, int device)
{
    BEGIN(cuDevicePrimaryCtxRetain)
    UNSAFE
    contexts[device - 100].device = device - 100;
    contexts[device - 100].retained++;
    counts[CONTEXTS]++;
    *context = &contexts[device - 100];
    return leave(OK);
}
EXPORT int cuDevicePrimaryCtxRelease_v2(int device)
{
    BEGIN(cuDevicePrimaryCtxRelease_v2)
    if (contexts[device - 100].retained <= 0)
        return leave(mistake(INVALID_CONTEXT));
    contexts[device - 100].retained--;
    counts[CONTEXTS]--;
    return leave(OK);
}
EXPORT int cuCtxPushCurrent_v2(void *context)
{
    BEGIN(cuCtxPushCurrent_v2)
    if (depth == DEPTH || ((struct context *)context)->retained == 0)
        return leave(mistake(INVALID_CONTEXT));
    stack[depth++] = context;
    return leave(OK);
}
EXPORT int cuCtxPopCurrent_v2(void **context)
{
    int result = enter("cuCtxPopCurrent_v2", 1);
    if (depth == 0)
        return leave(mistake(INVALID_CONTEXT));
    *context = stack[--depth]; /* also when it is to fail: the stack is looked at afterwards */
    return leave(result);
}
EXPORT int cuCtxSetCurrent(void *context)
{
    BEGIN(cuCtxSetCurrent)
    depth = depth ? depth : 1;
    stack[depth - 1] = context;
    return leave(OK);
}
EXPORT int cuCtxGetCurrent(void **context)
{
    BEGIN(cuCtxGetCurrent)
    *context = depth ? stack[depth - 1] : NULL;
    return leave(OK);
}
EXPORT int cuCtxSynchronize(void)
{
    BEGIN(cuCtxSynchronize)
    NEEDS_CONTEXT
    return leave(capturing ? mistake(CAPTURE_UNSUPPORTED) : OK);
}

/* Whether names of libraries stand in a fat binary in the place of code (emulated_nvcc.py). */
static int has_names(const char *image)
{
    uint32_t header;
    memcpy(&header, image + 16 + 4, sizeof header);
    return header == 64 && image[16 + 64] == '/';
}
/* The name that stands for the machine code of the device, else for the PTX, as the driver chooses. */
static int inside(const char *image, int device, const char **name)
{
    const int number = model ? model : device == 0 ? 80 : 86;
    const char *at = image + 16, *end;
    uint64_t bytes;
    int result = NO_BINARY;
    memcpy(&bytes, image + 8, sizeof bytes);
    for (end = at + bytes; at < end; at += 64 + bytes) {
        uint32_t built_for;
        memcpy(&bytes, at + 8, sizeof bytes);
        memcpy(&built_for, at + 28, sizeof built_for);
        if ((int)built_for > number)
            continue;
        if (*at == 2 && (int)built_for / 10 == number / 10)
            return *name = at + 64, OK;
        if (*at == 1)
            *name = at + 64, result = old_driver ? UNSUPPORTED_PTX : OK;
    }
    return result;
}

EXPORT int cuModuleLoadData(void **module, const void *image)
{
    char names_of[4096], *part, *rest = names_of;
    const char *name = getenv("FAKE_KERNELS");
    struct module *m;
    int n = 0;
    BEGIN(cuModuleLoadData)
    NEEDS_CONTEXT
    UNSAFE
    if (memcmp(image, "\x50\xed\x55\xba", 4) != 0 || (uintptr_t)image % 8)
        return leave(INVALID_IMAGE);
    if (has_names(image) && (result = inside(image, stack[depth - 1]->device, &name)) != OK)
        return leave(result);
    m = calloc(1, sizeof *m);
    m->context = stack[depth - 1];
    m->alive = 1;
    snprintf(names_of, sizeof names_of, "%s", name ? name : "");
    while ((part = strsep(&rest, ":")) != NULL && n < 8)
        if (*part && (m->libraries[n++] = dlopen(part, RTLD_NOW | RTLD_LOCAL)) == NULL)
            fprintf(stderr, "fake libcuda: %s\n", dlerror());
    counts[MODULES]++;
    *module = m;
    return leave(OK);
}
EXPORT int cuModuleUnload(void *module)
{
    struct module *m = module;
    BEGIN(cuModuleUnload)
    NEEDS_CONTEXT
    if (!m->alive)
        return leave(mistake(INVALID_HANDLE));
    m->alive = 0;
    counts[MODULES]--;
    return leave(OK);
}
EXPORT int cuModuleGetFunction(void **function, void *module, const char *name)
{
    struct module *m = module;
    struct function *f = calloc(1, sizeof *f);
    char symbol[512];
    int i;
    BEGIN(cuModuleGetFunction)
    snprintf(symbol, sizeof symbol, "emulate_%s", name);
    for (i = 0; i < 8 && m->libraries[i] != NULL && f->launch == NULL; i++)
        *(void **)&f->launch = dlsym(m->libraries[i], symbol);
    f->module = m;
    f->shared = 48 << 10;
    *function = f;
    return leave(f->launch ? OK : NOT_FOUND);
}
EXPORT int cuFuncSetAttribute(void *function, int attribute, int value)
{
    BEGIN(cuFuncSetAttribute)
    if (attribute != 8 || value > 232448 - 1024)
        return leave(INVALID_VALUE);
    ((struct function *)function)->shared = value;
    return leave(OK);
}

static struct memory *home(uint64_t pointer, size_t bytes)
{
    int i;
    for (i = 0; i < MOST; i++)
        if (memories[i].start != NULL && (char *)pointer >= memories[i].start &&
            (char *)pointer + bytes <= memories[i].start + memories[i].bytes)
            return &memories[i];
    return NULL;
}
EXPORT int cuMemAlloc_v2(uint64_t *pointer, size_t bytes)
{
    char *block;
    int i = 0;
    BEGIN(cuMemAlloc_v2)
    NEEDS_CONTEXT
    UNSAFE
    if (bytes == 0)
        return leave(mistake(INVALID_VALUE));
    while (i < MOST - 1 && memories[i].start != NULL)
        i++;
    block = bytes <= capacity ? aligned_alloc(256, ((bytes + 255) & ~(size_t)255) + 2 * GUARD) : NULL;
    if (block == NULL)
        return leave(OUT_OF_MEMORY);
    memset(block, 0xa5, ((bytes + 255) & ~(size_t)255) + 2 * GUARD); /* what is read before it is written is no zero */
    memories[i] = (struct memory){block + GUARD, bytes, stack[depth - 1]->device, 2};
    counts[ALLOCATIONS]++;
    *pointer = (uint64_t)(uintptr_t)memories[i].start;
    return leave(OK);
}
EXPORT int cuMemFree_v2(uint64_t pointer)
{
    struct memory *m;
    char *block;
    size_t i, end;
    BEGIN(cuMemFree_v2)
    NEEDS_CONTEXT
    UNSAFE
    m = home(pointer, 0);
    if (m == NULL || (uint64_t)(uintptr_t)m->start != pointer || m->kind != 2)
        return leave(mistake(INVALID_VALUE));
    block = m->start - GUARD;
    end = ((m->bytes + 255) & ~(size_t)255) + 2 * GUARD;
    for (i = 0; i < end; i++)
        if ((i < GUARD || i >= GUARD + m->bytes) && (unsigned char)block[i] != 0xa5) {
            counts[CORRUPT]++;
            break;
        }
    m->start = NULL;
    free(block);
    counts[ALLOCATIONS]--;
    return leave(OK);
}
static int copy(void *to, const void *from, size_t bytes, uint64_t device_side)
{
    struct memory *m = home(device_side, bytes);
    if (m == NULL || m->kind != 2)
        return leave(mistake(INVALID_VALUE));
    memcpy(to, from, bytes);
    return leave(OK);
}
EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream)
{
    BEGIN(cuMemcpyHtoDAsync_v2)
    NEEDS_CONTEXT
    if (stream != NULL && (uintptr_t)stream > 2 && ((struct stream *)stream)->capturing)
        return leave(mistake(CAPTURE_UNSUPPORTED));
    return copy((void *)(uintptr_t)to, from, bytes, to);
}
EXPORT int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream)
{
    BEGIN(cuMemcpyDtoHAsync_v2)
    NEEDS_CONTEXT
    (void)stream;
    return copy(to, (const void *)(uintptr_t)from, bytes, from);
}
EXPORT int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) { return cuMemcpyHtoDAsync_v2(to, from, bytes, NULL); }
EXPORT int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) { return cuMemcpyDtoHAsync_v2(to, from, bytes, NULL); }
EXPORT int cuPointerGetAttributes(unsigned count, int *attributes, void **data, uint64_t pointer)
{
    struct memory *m;
    unsigned i;
    BEGIN(cuPointerGetAttributes)
    m = home(pointer, 0);
    for (i = 0; i < count; i++) {
        int managed = m != NULL && m->kind == 3;
        switch (attributes[i]) {
        case 2: *(unsigned *)data[i] = m == NULL ? 0 : m->kind == 1 || m->kind == 4 ? 1 : 2; break;
        case 3: *(uint64_t *)data[i] = m == NULL || m->kind == 4 ? 0 : pointer; break;
        case 8: *(unsigned char *)data[i] = (unsigned char)managed; break;
        case 9: *(int *)data[i] = m == NULL ? -2 : m->device; break;
        default: return leave(mistake(INVALID_VALUE));
        }
    }
    return leave(OK);
}

EXPORT int cuStreamCreate(void **stream, unsigned flags)
{
    struct stream *s = calloc(1, sizeof *s);
    BEGIN(cuStreamCreate)
    NEEDS_CONTEXT
    (void)flags;
    s->context = stack[depth - 1];
    s->alive = 1;
    counts[STREAMS]++;
    *stream = s;
    return leave(OK);
}
EXPORT int cuStreamDestroy_v2(void *stream)
{
    BEGIN(cuStreamDestroy_v2)
    ((struct stream *)stream)->alive = 0;
    counts[STREAMS]--;
    return leave(OK);
}
EXPORT int cuStreamSynchronize(void *stream)
{
    BEGIN(cuStreamSynchronize)
    if ((uintptr_t)stream > 2 && ((struct stream *)stream)->capturing)
        return leave(mistake(CAPTURE_UNSUPPORTED));
    return leave(OK);
}
EXPORT int cuStreamGetCtx(void *stream, void **context)
{
    BEGIN(cuStreamGetCtx)
    *context = ((struct stream *)stream)->context;
    return leave(((struct stream *)stream)->alive ? OK : INVALID_HANDLE);
}
EXPORT int cuStreamIsCapturing(void *stream, int *status)
{
    BEGIN(cuStreamIsCapturing)
    NEEDS_CONTEXT
    *status = 0;
    if (stream == NULL || stream == (void *)1)
        return leave(capturing ? CAPTURE_IMPLICIT : OK);
    *status = stream == (void *)2 ? 0 : ((struct stream *)stream)->capturing;
    return leave(OK);
}
EXPORT int cuStreamBeginCapture_v2(void *stream, int mode)
{
    BEGIN(cuStreamBeginCapture_v2)
    ((struct stream *)stream)->capturing = 1;
    ((struct stream *)stream)->ns = 0;
    ((struct stream *)stream)->global = mode == 0;
    capturing += mode == 0;
    return leave(OK);
}
EXPORT int cuStreamEndCapture(void *stream, void **graph)
{
    BEGIN(cuStreamEndCapture)
    capturing -= ((struct stream *)stream)->global;
    ((struct stream *)stream)->capturing = ((struct stream *)stream)->global = 0;
    *graph = stream;
    return leave(OK);
}
EXPORT int cuThreadExchangeStreamCaptureMode(int *mode)
{
    int before = relaxed ? 2 : 0;
    BEGIN(cuThreadExchangeStreamCaptureMode)
    relaxed = *mode == 2;
    *mode = before;
    return leave(OK);
}
EXPORT int cuStreamWaitEvent(void *stream, void *event, unsigned flags)
{
    (void)event, (void)stream, (void)flags;
    BEGIN(cuStreamWaitEvent)
    return leave(OK);
}

EXPORT int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, void *stream, void **parameters, void **extra)
{
    struct function *f = function;
    struct stream *s = (uintptr_t)stream > 2 ? stream : NULL;
    unsigned sizes[7] = {gx, gy, gz, bx, by, bz, shared};
    BEGIN(cuLaunchKernel)
    NEEDS_CONTEXT
    if (!f->module->alive || f->module->context != stack[depth - 1] || (s != NULL && s->context != f->module->context) || extra)
        return leave(mistake(INVALID_HANDLE));
    if ((int)shared > f->shared || !gx || !gy || !gz || bx * by * bz > 1024 || gy > 65535 || gz > 65535)
        return leave(mistake(INVALID_VALUE));
    if (s != NULL && s->capturing) {
        counts[CAPTURED]++;
        s->ns += duration(sizes);
        return leave(OK);
    }
    counts[LAUNCHES]++;
    now_ns += duration(sizes);
    result = f->launch(parameters, sizes, 7);
    if (result >= LAUNCH_FAULTS) /* what a kernel written for a test returns: it is seen when somebody waits */
        return broken = result, leave(OK);
    return leave(result ? LAUNCH_FAILED : OK);
}
