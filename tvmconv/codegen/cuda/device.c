/* What a device holds of this library: the module, its functions, the weights. Loaded at the first call on the device,
 * kept until the library is unloaded. */

enum {
    MOST_DEVICES = 64,
    MAX_DYNAMIC_SHARED = 8, /* CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES */
    STREAM_NON_BLOCKING = 1,
    CAPTURE_RELAXED = 2
};

struct device {
    int32_t ready; /* atomic: all other fields are set, and stay */
    int handle;
    void *context, *module, *functions[CUDA_HANDLES];
    uint64_t weights;
};

static struct device devices[MOST_DEVICES];

/* Copies the weights of the library to the device. Not on the default stream, which would wait for the caller's work. */
static int32_t device_upload(struct device *d)
{
    void *stream = NULL;
    int32_t code, end;
    if (CUDA_BAKED_WEIGHTS == NULL)
        return LAYER(OK);
    code = told(driver.allocate(&d->weights, CUDA_PACKED_BYTES));
    if (code != LAYER(OK))
        return d->weights = 0, code;
    code = told(driver.stream_create(&stream, STREAM_NON_BLOCKING));
    if (code != LAYER(OK))
        return code;
    code = told(driver.upload(d->weights, CUDA_BAKED_WEIGHTS, CUDA_PACKED_BYTES, stream));
    end = told(driver.stream_synchronize(stream));
    driver.stream_destroy(stream);
    return code != LAYER(OK) ? code : end;
}

/* Loads the module and the weights; the context is current. */
static int32_t device_fill(struct device *d)
{
    int32_t i, code = told(driver.module_load(&d->module, CUDA_FATBIN));
    if (code != LAYER(OK))
        return d->module = NULL, code;
    for (i = 0; i < CUDA_FUNCTIONS; i++) {
        const struct cuda_function *f = &cuda_functions[i];
        code = told(driver.module_function(&d->functions[i], d->module, f->name));
        if (code == LAYER(OK) && f->shared_bytes > 0) /* also for little: what the kernel declares comes on top */
            code = told(driver.function_attribute(d->functions[i], MAX_DYNAMIC_SHARED, (int)f->shared_bytes));
        if (code != LAYER(OK))
            return code;
    }
    return device_upload(d);
}

/* Undoes device_fill, also one that stopped halfway. */
static void device_empty(struct device *d)
{
    if (d->weights != 0)
        driver.free(d->weights);
    if (d->module != NULL)
        driver.module_unload(d->module);
    d->weights = 0;
    d->module = NULL;
}

/* Whether the stream is being captured: nothing can be loaded then. The context is current. */
static int32_t refuse_capture(void *stream)
{
    int status = 0;
    int result = driver.stream_capturing(stream, &status);
    if (result == CUDA_CAPTURE_IMPLICIT || (result == 0 && status != 0))
        return LAYER(ERROR_CAPTURE);
    return told(result);
}

/* Loads what the device is to hold, in its primary context. Leaves all as it was if it fails. */
static int32_t device_load(struct device *d, int32_t ordinal, void *stream)
{
    void *popped = NULL;
    int32_t back, code = told(driver.device_get(&d->handle, ordinal));
    if (code == LAYER(OK))
        code = told(driver.retain(&d->context, d->handle));
    if (code != LAYER(OK))
        return code;
    code = told(driver.push(d->context));
    if (code == LAYER(OK)) {
        code = refuse_capture(stream);
        if (code == LAYER(OK))
            code = device_fill(d);
        if (code != LAYER(OK))
            device_empty(d);
        back = told(driver.pop(&popped));
        if (code == LAYER(OK) && back != LAYER(OK)) {
            device_empty(d);
            code = back;
        }
    }
    if (code != LAYER(OK))
        driver.release(d->handle);
    return code;
}

/* Under the mutex. */
static int32_t device_open(struct device *d, int32_t ordinal, void *stream)
{
    int mode = CAPTURE_RELAXED; /* or loading would break what another thread captures */
    int32_t code = driver_open();
    if (code == LAYER(OK))
        code = told(driver.capture_mode(&mode));
    if (code != LAYER(OK))
        return code;
    code = device_load(d, ordinal, stream);
    driver.capture_mode(&mode);
    return code;
}

/* The device, loaded. A forked child is told before it waits for a lock that nobody in it holds. */
static int32_t device_ready(int32_t ordinal, void *stream, struct device **found)
{
    struct device *d = &devices[ordinal];
    int32_t self = (int32_t)getpid(), nobody = 0, code = LAYER(OK);
    if (!__atomic_compare_exchange_n(&driver_owner, &nobody, self, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE) && nobody != self)
        return LAYER(ERROR_FORK);
    *found = d;
    if (__atomic_load_n(&d->ready, __ATOMIC_ACQUIRE))
        return LAYER(OK);
    pthread_mutex_lock(&driver_mutex);
    __atomic_store_n(&driver_owner, self, __ATOMIC_RELEASE);
    if (!d->ready) {
        code = device_open(d, ordinal, stream);
        __atomic_store_n(&d->ready, code == LAYER(OK), __ATOMIC_RELEASE);
    }
    if (!driver.initialized) /* a child may try for itself */
        __atomic_store_n(&driver_owner, 0, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&driver_mutex);
    return code;
}

/* When the library is unloaded. When the process ends the driver has ended already, and says so. */
__attribute__((destructor)) static void devices_release(void)
{
    int32_t i;
    void *popped;
    if (__atomic_load_n(&driver_owner, __ATOMIC_ACQUIRE) != (int32_t)getpid())
        return;
    pthread_mutex_lock(&driver_mutex);
    for (i = 0; i < MOST_DEVICES; i++)
        if (devices[i].ready && driver.push(devices[i].context) == 0) {
            devices[i].ready = 0;
            device_empty(&devices[i]);
            driver.pop(&popped);
            driver.release(devices[i].handle);
        }
    pthread_mutex_unlock(&driver_mutex);
}
