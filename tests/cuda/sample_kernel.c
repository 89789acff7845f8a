/* Kernels by hand for the fake driver, and a packer, both of the layer of tests/c/kernel.c: y = x * diagonal + bias.
 * On the device the packed weights are the diagonal, then the bias: another order than the CPU version's. */
#include <stdint.h>
#include <string.h>

enum { CHANNELS = 8, VOXELS = 5 * 7 * 6 };

/* (input, weights, workspace, batch): the products; a block a sample */
int emulate_sample_products(void **p, const unsigned *sizes, unsigned order)
{
    const float *x = *(const float **)p[0], *w = *(const float **)p[1];
    float *products = *(float **)p[2];
    int64_t batch = *(int64_t *)p[3], i, n;
    if ((int64_t)sizes[0] != batch * 3 || sizes[1] != 2 || sizes[3] != 32 || (uintptr_t)products % 256)
        return 1;
    for (n = 0; n < batch; n++)
        for (i = 0; i < VOXELS * CHANNELS; i++)
            if (n == 0)
                products[i % CHANNELS] = w[i % CHANNELS];
    (void)x, (void)order;
    return 0;
}

/* (batch, output, bias, workspace, input): the sums */
int emulate_sample_sums(void **p, const unsigned *sizes, unsigned order)
{
    int64_t batch = *(int64_t *)p[0], i;
    float *y = *(float **)p[1];
    const float *b = *(const float **)p[2], *w = *(const float **)p[3], *x = *(const float **)p[4];
    (void)order;
    if (sizes[0] != 4)
        return 1;
    for (i = 0; i < batch * VOXELS * CHANNELS; i++)
        y[i] = x[i] * w[i % CHANNELS] + b[i % CHANNELS];
    return 0;
}

void CUDA_PACKER(const void *kernel, const void *bias, void *packed, void *packed_bias)
{
    int i;
    for (i = 0; i < CHANNELS; i++)
        ((float *)packed)[i] = ((const float *)kernel)[i * CHANNELS + i];
    memcpy(packed_bias, bias, sizeof(float) * CHANNELS);
}
