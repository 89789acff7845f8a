/* NVIDIA's driver, opened when it is first needed: where there is none the library still loads and answers.
 *
 * No header of CUDA is used. Names, types and numbers below are the driver's binary interface, which does not change; a
 * CUdeviceptr is an integer of 64 bits, all handles are pointers. Every function is of CUDA 10.1 or earlier.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>

#define DRIVER_FUNCTIONS(F) \
    F(init, cuInit, (unsigned flags)) \
    F(error_string, cuGetErrorString, (int result, const char **text)) \
    F(device_get, cuDeviceGet, (int *device, int ordinal)) \
    F(retain, cuDevicePrimaryCtxRetain, (void **context, int device)) \
    F(release, cuDevicePrimaryCtxRelease_v2, (int device)) \
    F(push, cuCtxPushCurrent_v2, (void *context)) \
    F(pop, cuCtxPopCurrent_v2, (void **context)) \
    F(module_load, cuModuleLoadData, (void **module, const void *image)) \
    F(module_unload, cuModuleUnload, (void *module)) \
    F(module_function, cuModuleGetFunction, (void **function, void *module, const char *name)) \
    F(function_attribute, cuFuncSetAttribute, (void *function, int attribute, int value)) \
    F(allocate, cuMemAlloc_v2, (uint64_t * memory, size_t bytes)) \
    F(free, cuMemFree_v2, (uint64_t memory)) \
    F(upload, cuMemcpyHtoDAsync_v2, (uint64_t to, const void *from, size_t bytes, void *stream)) \
    F(stream_create, cuStreamCreate, (void **stream, unsigned flags)) \
    F(stream_destroy, cuStreamDestroy_v2, (void *stream)) \
    F(stream_synchronize, cuStreamSynchronize, (void *stream)) \
    F(stream_context, cuStreamGetCtx, (void *stream, void **context)) \
    F(stream_capturing, cuStreamIsCapturing, (void *stream, int *status)) \
    F(capture_mode, cuThreadExchangeStreamCaptureMode, (int *mode)) \
    F(pointer_attributes, cuPointerGetAttributes, (unsigned count, int *attributes, void **data, uint64_t pointer)) \
    F(launch, cuLaunchKernel, \
      (void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, \
       unsigned block_z, unsigned shared_bytes, void *stream, void **parameters, void **extra))

enum { /* CUresult, as far as an answer of ours has its own code */
    CUDA_INVALID_VALUE = 1,
    CUDA_OUT_OF_MEMORY = 2,
    CUDA_STUB_LIBRARY = 34,
    CUDA_NO_DEVICE = 100,
    CUDA_INVALID_DEVICE = 101,
    CUDA_INVALID_IMAGE = 200,
    CUDA_INVALID_CONTEXT = 201,
    CUDA_NO_BINARY_FOR_GPU = 209,
    CUDA_INVALID_PTX = 218,
    CUDA_NO_JIT_COMPILER = 221,
    CUDA_UNSUPPORTED_PTX = 222,
    CUDA_INVALID_HANDLE = 400,
    CUDA_CAPTURE_IMPLICIT = 906,
    CUDA_UNKNOWN = 999
};

enum { DRIVER_CODES = 1000 }; /* a result r of the driver that has no code of ours is the code 1000 + r */

static struct {
    int32_t initialized;
    void *handle;
#define FIELD(field, name, arguments) int(*field) arguments;
    DRIVER_FUNCTIONS(FIELD)
#undef FIELD
} driver;

static pthread_mutex_t driver_mutex = PTHREAD_MUTEX_INITIALIZER;
static int32_t driver_owner; /* atomic: the process that uses the driver; a forked child cannot */

/* The code for a result of the driver. */
static int32_t told(int result)
{
    switch (result) {
    case 0: return LAYER(OK);
    case CUDA_OUT_OF_MEMORY: return LAYER(ERROR_DEVICE_MEMORY);
    case CUDA_STUB_LIBRARY: return LAYER(ERROR_NO_DRIVER);
    case CUDA_NO_DEVICE: return LAYER(ERROR_NO_DEVICE);
    case CUDA_INVALID_DEVICE: return LAYER(ERROR_DEVICE);
    case CUDA_NO_BINARY_FOR_GPU: return LAYER(ERROR_ARCHITECTURE);
    case CUDA_INVALID_IMAGE:
    case CUDA_INVALID_PTX:
    case CUDA_NO_JIT_COMPILER:
    case CUDA_UNSUPPORTED_PTX: return LAYER(ERROR_OLD_DRIVER);
    default: return DRIVER_CODES + (result > 0 && result <= CUDA_UNKNOWN ? result : CUDA_UNKNOWN);
    }
}

/* Opens the driver; under the mutex. Tried again by the next call if it fails. */
static int32_t driver_open(void)
{
    int32_t code;
    if (driver.initialized)
        return LAYER(OK);
    if (driver.handle == NULL) {
        void *handle = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        int missing = 0;
        if (handle == NULL)
            return LAYER(ERROR_NO_DRIVER);
#define FIND(field, name, arguments) missing |= (*(void **)(void *)&driver.field = dlsym(handle, #name)) == NULL;
        DRIVER_FUNCTIONS(FIND)
#undef FIND
        if (missing) {
            dlclose(handle);
            return LAYER(ERROR_OLD_DRIVER);
        }
        driver.handle = handle;
    }
    code = told(driver.init(0));
    driver.initialized = code == LAYER(OK);
    return code;
}

/* The driver's own sentence for a code. Text of the driver lives as long as the process. */
static const char *driver_text(int32_t code)
{
    const char *text = NULL;
    if (driver.handle != NULL && driver.error_string(code - DRIVER_CODES, &text) == 0 && text != NULL)
        return text;
    return "the CUDA driver failed with an error that it does not name";
}
