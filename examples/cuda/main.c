/* A layer on a CUDA device, from C: through the driver alone, without cudart.
 *
 * It opens the driver as the artifact does, so it is built without CUDA, and where there is no GPU it prints why. Build and
 * run:
 *
 *     tvmconv compile model.keras --layer up1 --input-shape 1,8,8,8,16 --target cuda:sm_80,sm_90 --name up1 -o up1
 *     make && ./main
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "up1.h"

typedef uint64_t device_pointer;
static int (*init)(unsigned), (*device_get)(int *, int), (*retain)(void **, int), (*set_current)(void *);
static int (*allocate)(device_pointer *, size_t), (*upload)(device_pointer, const void *, size_t);
static int (*download)(void *, device_pointer, size_t), (*release)(device_pointer), (*error_text)(int, const char **);

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static void check(int result, const char *what)
{
    const char *text = "unknown error";
    if (result != 0) {
        error_text(result, &text);
        fail(what, text);
    }
}

static void open_driver(void)
{
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    struct { void *function; const char *name; } wanted[] = {
        {&init, "cuInit"}, {&device_get, "cuDeviceGet"}, {&retain, "cuDevicePrimaryCtxRetain"},
        {&set_current, "cuCtxSetCurrent"}, {&allocate, "cuMemAlloc_v2"}, {&upload, "cuMemcpyHtoD_v2"},
        {&download, "cuMemcpyDtoH_v2"}, {&release, "cuMemFree_v2"}, {&error_text, "cuGetErrorString"},
    };
    size_t i;
    if (driver == NULL)
        fail("libcuda.so.1", "there is no NVIDIA driver on this machine");
    for (i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if ((*(void **)wanted[i].function = dlsym(driver, wanted[i].name)) == NULL)
            fail(wanted[i].name, "the NVIDIA driver is too old");
}

static size_t values(const int64_t *shape)
{
    size_t count = 1;
    int i;
    for (i = 0; i < 5; i++)
        count *= (size_t)(shape[i] < 0 ? 1 : shape[i]);
    return count;
}

int main(void)
{
    size_t in = values(up1_input_shape(0)), out = values(up1_output_shape(0)), i;
    float *x = malloc(in * sizeof *x), *y = malloc(out * sizeof *y);
    device_pointer dx, dy, workspace = 0;
    up1_args args = {.size = sizeof args};
    double sum = 0;
    int32_t code;
    int device;
    void *context;

    printf("input %zu values, output %zu values\n", in, out);
    for (i = 0; i < in; i++)
        x[i] = (float)(i % 7) - 3;
    open_driver();
    check(init(0), "cuInit");
    check(device_get(&device, 0), "device 0");
    check(retain(&context, device), "context");
    check(set_current(context), "context");
    check(allocate(&dx, in * sizeof *x), "input");
    check(allocate(&dy, out * sizeof *y), "output");
    args.workspace_size = up1_workspace_size(0, 0);
    if (args.workspace_size > 0)
        check(allocate(&workspace, args.workspace_size), "workspace");
    check(upload(dx, x, in * sizeof *x), "upload");

    args.input = (const void *)(uintptr_t)dx;
    args.output = (void *)(uintptr_t)dy;
    args.workspace = (void *)(uintptr_t)workspace;
    args.device = 0;
    args.stream = NULL;
    args.batch = up1_input_shape(0)[0] < 0 ? 1 : 0;
    code = up1_run(&args); /* queued; the copy below waits for it */
    if (code != up1_OK)
        fail("up1_run", up1_error_text(code));

    check(download(y, dy, out * sizeof *y), "download");
    for (i = 0; i < out; i++)
        sum += y[i];
    printf("sum of the output %.6g\n", sum);
    release(dx);
    release(dy);
    if (workspace != 0)
        release(workspace);
    free(x);
    free(y);
    return 0;
}
