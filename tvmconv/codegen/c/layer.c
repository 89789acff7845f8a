/* The public functions of a generated library. Everything here is compiled for the baseline of the architecture; only the
 * kernels and the packer, reached after the check of the processor, use more. */

#ifdef NO_SYSTEM
#define SAVED_ERRNO 0
#define RESTORE_ERRNO(saved) ((void)(saved))
#else
#define SAVED_ERRNO errno
#define RESTORE_ERRNO(saved) (errno = (saved))
#endif

#define MOST_UNITS 0x7fff /* of a share: their numbers fit half a word */
static const int64_t LARGEST = sizeof(size_t) >= 8 ? INT64_MAX / 2 : INT32_MAX;

static int32_t grant(int32_t threads)
{
    int32_t most = processors();
    if (threads == 0)
        threads = DEFAULT_THREADS > 0 ? DEFAULT_THREADS : most;
    if (most < FREE_THREADS)
        most = FREE_THREADS;
    return threads < most ? threads : most;
}

static size_t stride_of(const struct kernel *k) { return (k->scratch + 63) & ~(size_t)63; }

static size_t workspace_for(const struct kernel *k, int32_t tasks)
{
    return k->scratch == 0 || tasks < 1 ? 0 : stride_of(k) * (size_t)tasks + 64;
}

/* Tasks that a call may have before the batch is known. */
static int32_t most_tasks(const struct kernel *k, int32_t shape, int32_t threads)
{
    int64_t batch = sizes_in[shape][0];
    int32_t tasks = grant(threads);
    if (batch >= 0 && k->tiles * batch < tasks)
        tasks = (int32_t)(k->tiles * batch);
    return tasks;
}

struct call {
    const struct kernel *kernel;
    const void *input;
    const char *weights;
    void *output;
    char *scratch;
    int64_t batch, tiles;
    int64_t unit, units; /* tiles of a unit, units of the call */
    int32_t tasks;
    uint32_t left[MAX_THREADS]; /* atomic: the units of each share that nobody has, the first and the last's next */
};

/* Where the share of a task begins: as many units for each, the same in each call, so that what a core has in its caches
 * from one call serves the next. */
static int64_t share_of(const struct call *c, int32_t index) { return c->units * index / c->tasks; }

static void divide_tiles(struct call *c)
{
    int32_t i;
    c->unit = c->tiles / c->tasks / MOST_UNITS + 1;
    c->units = (c->tiles + c->unit - 1) / c->unit;
    for (i = 0; i < c->tasks; i++)
        c->left[i] = (uint32_t)(share_of(c, i + 1) - share_of(c, i)) << 16;
}

static uint32_t count_left(uint32_t left) { return (left >> 16) - (left & 0xffff); }

/* Takes half of what a share has left: from its front for the task that owns it, whose tiles follow each other and share
 * what it has in its caches, and from its back for others, who even out cores of unequal speed. Returns the number. */
static uint32_t take(struct call *c, int32_t share, int is_owner, int64_t *first)
{
    uint32_t left = __atomic_load_n(&c->left[share], __ATOMIC_RELAXED), count, next;
    do {
        count = count_left(left);
        if (count > 1 && c->tasks > 1)
            count /= 2;
        next = is_owner ? left + count : left - (count << 16);
    } while (count > 0 &&
             !__atomic_compare_exchange_n(&c->left[share], &left, next, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    *first = share_of(c, share) + (is_owner ? left & 0xffff : next >> 16);
    return count;
}

/* The share that has most left; -1: all are taken. */
static int32_t fullest(struct call *c)
{
    int32_t i, found = -1;
    uint32_t count, most = 0;
    for (i = 0; i < c->tasks; i++) {
        count = count_left(__atomic_load_n(&c->left[i], __ATOMIC_RELAXED));
        if (count > most) {
            most = count;
            found = i;
        }
    }
    return found;
}

static void run_task(void *data, int32_t index)
{
    struct call *c = data;
    void *scratch = c->scratch ? c->scratch + stride_of(c->kernel) * (size_t)index : NULL;
    int saved = SAVED_ERRNO; /* the functions of libm set it */
    int32_t share = index;
    while (share >= 0) {
        int64_t begin, end;
        uint32_t count = take(c, share, share == index, &begin);
        if (count == 0) {
            share = fullest(c);
            continue;
        }
        end = (begin + count) * c->unit;
        c->kernel->compute(c->input, c->weights, c->weights + BIAS_OFFSET, c->output, scratch, c->batch,
                           begin * c->unit, end < c->tiles ? end : c->tiles);
    }
    RESTORE_ERRNO(saved);
}

static int misaligned(const void *p, size_t element) { return (uintptr_t)p % element != 0; }

/* The size field, and that whatever a later version put behind our fields is not in use. */
static int wrong_size(const LAYER(args) * args)
{
    size_t i;
    if (args->size < sizeof *args || args->size > 1024)
        return 1;
    for (i = sizeof *args; i < args->size; i++)
        if (((const char *)args)[i] != 0)
            return 1;
    return 0;
}

int32_t LAYER(run)(const LAYER(args) * args)
{
    const struct variant *v;
    const struct kernel *k;
    struct call c; /* not zeroed: it has a word for each thread there may be */
    int32_t tasks;
    if (args == NULL)
        return LAYER(ERROR_NULL_ARGS);
    if (wrong_size(args))
        return LAYER(ERROR_SIZE);
    if (args->shape < 0 || args->shape >= SHAPES)
        return LAYER(ERROR_SHAPE);
    if (args->threads < 0)
        return LAYER(ERROR_THREADS);
    c.batch = sizes_in[args->shape][0];
    if (c.batch < 0 ? args->batch < 0 : args->batch != 0)
        return LAYER(ERROR_BATCH);
    if (c.batch < 0)
        c.batch = args->batch;
    if (sample_bytes[args->shape] > 0 && c.batch > LARGEST / sample_bytes[args->shape])
        return LAYER(ERROR_OVERFLOW);
#ifdef CUDA_FATBIN
    if (args->device != -1)
        return run_cuda(args, c.batch);
    if (variants[0].kernels[args->shape].compute == NULL)
        return LAYER(ERROR_NO_CPU);
#endif
    v = select_variant();
    if (v == NULL)
        return LAYER(ERROR_PROCESSOR);
    k = &v->kernels[args->shape];
    if (k->tiles > 0 && c.batch > LARGEST / k->tiles)
        return LAYER(ERROR_OVERFLOW);
    c.tiles = k->tiles * c.batch;
    if (c.tiles == 0)
        return LAYER(OK);
    if (args->input == NULL)
        return LAYER(ERROR_NULL_INPUT);
    if (args->output == NULL)
        return LAYER(ERROR_NULL_OUTPUT);
    c.scratch = NULL;
    c.weights = args->weights ? args->weights : BAKED_WEIGHTS;
    if (c.weights == NULL)
        return LAYER(ERROR_NULL_WEIGHTS);
    if (misaligned(args->input, INPUT_ELEMENT))
        return LAYER(ERROR_INPUT_ALIGNMENT);
    if (misaligned(args->output, OUTPUT_ELEMENT))
        return LAYER(ERROR_OUTPUT_ALIGNMENT);
    if (misaligned(c.weights, PACKED_ELEMENT))
        return LAYER(ERROR_WEIGHTS_ALIGNMENT);
    tasks = most_tasks(k, args->shape, args->threads);
    if (k->scratch > 0) {
        if (args->workspace == NULL)
            return LAYER(ERROR_NULL_WORKSPACE);
        if (args->workspace_size < workspace_for(k, tasks))
            return LAYER(ERROR_WORKSPACE_SIZE);
        c.scratch = (char *)(((uintptr_t)args->workspace + 63) & ~(uintptr_t)63);
    }
    if (c.tiles < tasks)
        tasks = (int32_t)c.tiles;
    c.kernel = k;
    c.input = args->input;
    c.output = args->output;
    c.tasks = tasks;
    divide_tiles(&c);
    if (tasks == 1)
        run_task(&c, 0);
    else if (args->parallel_for)
        args->parallel_for(args->context, tasks, run_task, &c);
    else
        run_parallel(tasks, run_task, &c);
    if (k->finish != NULL) {
        int saved = SAVED_ERRNO;
        k->finish(args->output, c.batch);
        RESTORE_ERRNO(saved);
    }
    return LAYER(OK);
}

size_t LAYER(workspace_size)(int32_t shape, int32_t threads)
{
    const struct variant *v = select_variant();
    size_t bytes = 0;
    if (shape < 0 || shape >= SHAPES || threads < 0)
        return 0;
    if (v != NULL)
        bytes = workspace_for(&v->kernels[shape], most_tasks(&v->kernels[shape], shape, threads));
#ifdef CUDA_FATBIN
    if (bytes < cuda_workspace(shape)) /* one size serves every device */
        bytes = cuda_workspace(shape);
#endif
    return bytes;
}

size_t LAYER(packed_weights_size)(void) { return PACKED_BYTES; }

int32_t LAYER(pack_weights)(const void *kernel, const void *bias, void *packed)
{
    int saved = SAVED_ERRNO;
    if (kernel == NULL)
        return LAYER(ERROR_NULL_KERNEL);
    if (USE_BIAS && bias == NULL)
        return LAYER(ERROR_NULL_BIAS);
    if (packed == NULL)
        return LAYER(ERROR_NULL_PACKED);
    if (misaligned(kernel, VARIABLE_ELEMENT) || (USE_BIAS && misaligned(bias, VARIABLE_ELEMENT)) ||
        misaligned(packed, PACKED_ELEMENT))
        return LAYER(ERROR_WEIGHTS_ALIGNMENT);
    if (select_variant() == NULL)
        return LAYER(ERROR_PROCESSOR);
#ifdef PACK
    PACK(kernel, USE_BIAS ? bias : NULL, packed, (char *)packed + BIAS_OFFSET);
#endif
#ifdef CUDA_PACK
    CUDA_PACK(kernel, USE_BIAS ? bias : NULL, (char *)packed + CUDA_OFFSET, (char *)packed + CUDA_OFFSET + CUDA_BIAS_OFFSET);
#endif
    RESTORE_ERRNO(saved);
    return LAYER(OK);
}

int32_t LAYER(shapes)(void) { return SHAPES; }

const int64_t *LAYER(input_shape)(int32_t shape) { return shape < 0 || shape >= SHAPES ? NULL : sizes_in[shape]; }

const int64_t *LAYER(output_shape)(int32_t shape) { return shape < 0 || shape >= SHAPES ? NULL : sizes_out[shape]; }

int32_t LAYER(abi_version)(void) { return ABI_VERSION; }

const char *LAYER(manifest)(void)
{
    const struct variant *v = select_variant();
    return v == NULL ? MANIFEST : v->manifest;
}

const char *LAYER(error_text)(int32_t code)
{
    const struct variant *v = code == LAYER(OK) ? select_variant() : NULL;
    int trusted;
    int32_t row = asked_variant(&trusted);
    row = code == LAYER(ERROR_PROCESSOR) ? missing_feature(&variants[row < 0 ? VARIANTS - 1 : row]) : -1;
    if (row >= 0)
        return features[row].text;
#ifdef CUDA_FATBIN
    if (code >= DRIVER_CODES)
        return driver_text(code);
    if (code >= CUDA_ERRORS && code < CUDA_ERRORS + (int32_t)(sizeof cuda_error_texts / sizeof *cuda_error_texts))
        return cuda_error_texts[code - CUDA_ERRORS];
#endif
    if (v != NULL)
        return v->done;
    return code < 0 || code >= (int32_t)(sizeof error_texts / sizeof *error_texts) ? "unknown error code" : error_texts[code];
}

void LAYER(parallel_for)(void *context, int32_t tasks, void (*task)(void *, int32_t), void *data)
{
    (void)context;
    run_parallel(tasks, task, data);
}
