/* A kernel and a packer by hand, to test the run time of libraries: a 1x1x1 layer, stride 1, that scales each channel.
 * The packed weights are the kernel's diagonal in reverse, then the bias in reverse. One tile is one row of voxels.
 * Where EXPF is defined the result goes through expf, which sets errno.
 */
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifndef KERNEL
#define KERNEL up1_kernel_0_0
#define PACKER up1_pack
#endif
#define CHANNELS 8
#define ROW 6 /* voxels */

/* TVM's objects bring one, too. */
__attribute__((weak, section(".text.tvm.fp16.conv"))) float __extendhfsf2(float x) { return x; }
__attribute__((weak)) void *__TVMBackendNothing = 0;
static float tvm_static_data[CHANNELS] = {1, 1, 1, 1, 1, 1, 1, 1};

void KERNEL(const void *input, const void *weights, const void *bias, void *output, void *scratch, int64_t batch,
            int64_t begin, int64_t end)
{
    const float *x = input, *w = weights, *b = bias;
    float *y = output, *line = scratch;
    volatile float *one = tvm_static_data;
    int64_t row, i;
    (void)batch;
    for (row = begin; row < end; row++) {
        memcpy(line, x + row * ROW * CHANNELS, sizeof(float) * ROW * CHANNELS);
        for (i = 0; i < ROW * CHANNELS; i++) {
            float v = line[i] * w[CHANNELS - 1 - i % CHANNELS] * one[i % CHANNELS] + b[CHANNELS - 1 - i % CHANNELS];
#ifdef ALIGNED
            if ((uintptr_t)weights % ALIGNED || (uintptr_t)scratch % ALIGNED)
                v = NAN;
#endif
#ifdef EXPF
            v = expf(v * 1e9f); /* overflows, underflows */
#endif
            y[row * ROW * CHANNELS + i] = __extendhfsf2(v);
        }
    }
}

#ifdef FINISH
/* Replaces every value by its difference to the last, which only works when all is there. */
void FINISH(void *output, int64_t batch)
{
    float *y = output;
    int64_t i, n = batch * 5 * 7 * ROW * CHANNELS;
    for (i = 0; i < n; i++)
        y[i] -= y[n - 1];
    errno = 99;
}
#endif

void PACKER(const void *kernel, const void *bias, void *packed, void *packed_bias)
{
    const float *k = kernel;
    float *w = packed, *b = packed_bias;
    int i;
    for (i = 0; i < CHANNELS; i++) {
        w[CHANNELS - 1 - i] = k[i * CHANNELS + i];
        b[CHANNELS - 1 - i] = bias ? ((const float *)bias)[i] : 0;
    }
}
