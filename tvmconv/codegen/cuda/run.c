/* A call on a device: everything is checked, then the kernels are queued on the caller's stream. Nothing is allocated and
 * nothing waits, except at the first call on a device. */

enum { MEMORY_HOST = 1, MEMORY_DEVICE = 2, MOST_BLOCKS = INT32_MAX };
/* Handles that mean the default stream of the current context, or of the current thread. */
enum { LEGACY_STREAM = 1, THREAD_STREAM = 2 };

static int misaligned(const void *p, size_t element);

/* Whether the memory can be used on the device: its own, managed, or host memory that is mapped at the same address. */
static int32_t refuse_pointer(uint64_t pointer, int32_t ordinal)
{
    unsigned type = 0, managed = 0;
    int home = -1, result;
    uint64_t mapped = 0;
    int attributes[] = {2, 3, 8, 9}; /* CU_POINTER_ATTRIBUTE_MEMORY_TYPE, DEVICE_POINTER, IS_MANAGED, DEVICE_ORDINAL */
    void *data[] = {&type, &mapped, &managed, &home};
    result = driver.pointer_attributes(4, attributes, data, pointer);
    if (result == CUDA_INVALID_VALUE || (result == 0 && type != MEMORY_HOST && type != MEMORY_DEVICE && !managed))
        return LAYER(ERROR_HOST_POINTER);
    if (result != 0)
        return told(result);
    if (managed)
        return LAYER(OK);
    if (type == MEMORY_HOST)
        return mapped == pointer ? LAYER(OK) : LAYER(ERROR_HOST_POINTER);
    return home == ordinal ? LAYER(OK) : LAYER(ERROR_OTHER_DEVICE);
}

static int32_t refuse_stream(void *stream, const struct device *d)
{
    void *context = NULL;
    int result;
    if ((uintptr_t)stream <= THREAD_STREAM)
        return LAYER(OK);
    result = driver.stream_context(stream, &context);
    if (result == CUDA_INVALID_CONTEXT || result == CUDA_INVALID_HANDLE || (result == 0 && context != d->context))
        return LAYER(ERROR_STREAM);
    return told(result);
}

/* Queues the launches of a shape; the context is current. */
static int32_t launch_all(const LAYER(args) * args, int64_t batch, const struct cuda_shape *s, const struct device *d,
                          uint64_t weights, uint64_t workspace)
{
    uint64_t input = (uintptr_t)args->input, output = (uintptr_t)args->output, bias = weights + CUDA_BIAS_OFFSET;
    void *values[] = {&input, &weights, &bias, &output, &workspace, &batch};
    int32_t i, j, code = refuse_stream(args->stream, d);
    if (code == LAYER(OK))
        code = refuse_pointer(input, args->device);
    if (code == LAYER(OK))
        code = refuse_pointer(output, args->device);
    if (code == LAYER(OK) && args->weights != NULL)
        code = refuse_pointer(weights, args->device);
    if (code == LAYER(OK) && workspace != 0)
        code = refuse_pointer(workspace, args->device);
    for (i = 0; i < s->count && code == LAYER(OK); i++) {
        const struct cuda_launch *l = &s->launches[i];
        void *parameters[CUDA_MOST_ARGUMENTS];
        for (j = 0; j < l->count; j++)
            parameters[j] = values[l->arguments[j]];
        code = told(driver.launch(d->functions[l->function], l->grid[0] * (l->per_sample ? (unsigned)batch : 1), l->grid[1],
                                  l->grid[2], l->block[0], l->block[1], l->block[2], l->shared_bytes, args->stream,
                                  parameters, NULL));
    }
    return code;
}

static size_t cuda_workspace(int32_t shape)
{
    size_t bytes = cuda_shapes[shape].workspace_bytes;
    return bytes > 0 ? bytes + CUDA_WORKSPACE_ALIGNMENT : 0;
}

/* Size, shape and batch of the call are checked already. */
static int32_t run_cuda(const LAYER(args) * args, int64_t batch)
{
    const struct cuda_shape *s = &cuda_shapes[args->shape];
    struct device *d = NULL;
    uint64_t weights, workspace = 0;
    void *popped = NULL;
    int32_t i, code, back;
    if (args->device < 0 || args->device >= MOST_DEVICES)
        return LAYER(ERROR_DEVICE);
    for (i = 0; i < s->count; i++)
        if (s->launches[i].per_sample && batch > MOST_BLOCKS / (int64_t)s->launches[i].grid[0])
            return LAYER(ERROR_OVERFLOW);
    if (s->count == 0 || batch == 0)
        return LAYER(OK);
    if (args->input == NULL)
        return LAYER(ERROR_NULL_INPUT);
    if (args->output == NULL)
        return LAYER(ERROR_NULL_OUTPUT);
    if (args->weights == NULL && CUDA_BAKED_WEIGHTS == NULL)
        return LAYER(ERROR_NULL_WEIGHTS);
    if (misaligned(args->input, CUDA_ALIGNMENT))
        return LAYER(ERROR_INPUT_ALIGNMENT);
    if (misaligned(args->output, CUDA_ALIGNMENT))
        return LAYER(ERROR_OUTPUT_ALIGNMENT);
    if (misaligned(args->weights, CUDA_WEIGHTS_ALIGNMENT))
        return LAYER(ERROR_WEIGHTS_ALIGNMENT);
    if (s->workspace_bytes > 0) {
        if (args->workspace == NULL)
            return LAYER(ERROR_NULL_WORKSPACE);
        if (args->workspace_size < cuda_workspace(args->shape))
            return LAYER(ERROR_WORKSPACE_SIZE);
        workspace = ((uintptr_t)args->workspace + CUDA_WORKSPACE_ALIGNMENT - 1) & ~(uint64_t)(CUDA_WORKSPACE_ALIGNMENT - 1);
    }
    code = device_ready(args->device, args->stream, &d);
    if (code != LAYER(OK))
        return code;
    code = told(driver.push(d->context));
    if (code != LAYER(OK))
        return code;
    weights = args->weights != NULL ? (uintptr_t)args->weights + CUDA_OFFSET : d->weights;
    code = launch_all(args, batch, s, d, weights, workspace);
    back = told(driver.pop(&popped));
    return code != LAYER(OK) ? code : back;
}
