// Uses up1.hpp of a library with a CUDA part and a CPU version: on the processor, on a device, and there again.
#include "up1.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>

extern "C" {
int cuInit(unsigned flags);
int cuDevicePrimaryCtxRetain(void **context, int device);
int cuCtxPushCurrent_v2(void *context);
int cuCtxSynchronize(void);
int cuMemAlloc_v2(std::uint64_t *pointer, std::size_t bytes);
}

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            std::fprintf(stderr, "wrapper_device.cpp:%d: %s\n", __LINE__, #condition); \
            std::exit(1); \
        } \
    } while (0)

static void *on_device(std::size_t bytes) // the fake driver's memory is the processor's
{
    std::uint64_t pointer = 0;
    CHECK(cuMemAlloc_v2(&pointer, bytes) == 0);
    return reinterpret_cast<void *>(pointer);
}

int main()
{
    up1_layer layer;
    std::vector<float> x(layer.input_size()), expected;
    for (std::size_t i = 0; i < x.size(); i++)
        x[i] = static_cast<float>(i % 7) - 3.0f;
    expected = layer(x);

    void *context = nullptr;
    CHECK(cuInit(0) == 0 && cuDevicePrimaryCtxRetain(&context, 100) == 0 && cuCtxPushCurrent_v2(context) == 0);
    auto *from = static_cast<float *>(on_device(x.size() * sizeof(float)));
    auto *to = static_cast<float *>(on_device(expected.size() * sizeof(float)));
    std::memcpy(from, x.data(), x.size() * sizeof(float));
    const std::size_t scratch = up1_workspace_size(0, 0);
    layer.set_device(0, nullptr, on_device(scratch), scratch);
    up1_layer copy(layer);
    for (up1_layer *one : {&layer, &copy}) {
        std::memset(to, 0xff, expected.size() * sizeof(float));
        one->run({from, x.size()}, {to, expected.size()});
        CHECK(cuCtxSynchronize() == 0);
        CHECK(std::memcmp(to, expected.data(), expected.size() * sizeof(float)) == 0);
    }
    CHECK(layer.try_run(x.data(), expected.data()) != up1_OK); // memory of the processor
    copy.set_device(0);
    CHECK(copy.try_run(from, to) != up1_OK); // no workspace
    layer.set_device(-1);
    CHECK(layer(x) == expected);
    std::puts("good");
    return 0;
}
