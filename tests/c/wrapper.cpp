// Uses up1.hpp of the sample library (two shapes: batch 2, and an open batch) in every way it offers.
#include "up1.hpp"
#include "up1.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            std::fprintf(stderr, "wrapper.cpp:%d: %s\n", __LINE__, #condition); \
            std::exit(1); \
        } \
    } while (0)

static std::size_t allocations;

void *operator new(std::size_t size)
{
    allocations++;
    if (void *p = std::malloc(size ? size : 1))
        return p;
    throw std::bad_alloc();
}
void operator delete(void *p) noexcept { std::free(p); }
void operator delete(void *p, std::size_t) noexcept { std::free(p); }

template <class Failure, class Function> static std::string thrown(Function function)
{
    try {
        function();
    } catch (const Failure &failure) {
        return failure.what();
    }
    std::fprintf(stderr, "nothing was thrown\n");
    std::exit(1);
}

static int pools_used;

static void serial(void *context, std::int32_t tasks, void (*task)(void *, std::int32_t), void *data)
{
    ++*static_cast<int *>(context);
    for (std::int32_t i = 0; i < tasks; i++)
        task(data, i);
}

int main()
{
    static_assert(std::is_same_v<up1_layer::input_type, float>);
    static_assert(!std::is_convertible_v<std::int32_t, up1_layer>);
    static_assert(std::is_nothrow_move_constructible_v<up1_layer>);
    const up1_layer::sizes expected = {2, 5, 7, 6, 8};

    static_assert(up1_INPUT_ELEMENTS == 3360 && up1_OUTPUT_ELEMENTS == 3360);
    CHECK(up1_workspace_size(0, 1) == up1_WORKSPACE_SIZE && up1_workspace_size(1, 1) == up1_WORKSPACE_SIZE);

    up1_layer layer(0, 2);
    CHECK(layer.input_shape() == expected && layer.output_shape(9) == expected && !layer.has_open_batch());
    CHECK(layer.input_size() == 3360 && layer.output_size() == 3360);
    std::vector<float> x(3360), y(3360);
    for (std::size_t i = 0; i < x.size(); i++)
        x[i] = static_cast<float>(i % 97);

#ifdef BAKED
    const std::vector<float> first = layer(x);
    CHECK(first[5] != first[6]);
#else
    CHECK(thrown<up1_failure>([&] { layer(x); }).find("weights") != std::string::npos);
    try {
        layer.run(x, y);
    } catch (const up1_failure &failure) {
        CHECK(failure.code() == up1_ERROR_NULL_WEIGHTS);
    }
#endif

    // Other weights: the diagonal of the kernel times x, and the bias.
    std::array<float, 64> kernel{};
    float bias[8];
    for (int i = 0; i < 8; i++) {
        kernel[static_cast<std::size_t>(9 * i)] = static_cast<float>(i);
        bias[i] = 0.5f;
    }
    layer.set_weights(kernel, bias);
    const auto right = [&](const std::vector<float> &found) {
        for (std::size_t i = 0; i < found.size(); i++)
            if (found[i] != x[i] * static_cast<float>(i % 8) + 0.5f)
                return false;
        return true;
    };
    CHECK(right(layer(x)));
    CHECK(thrown<std::invalid_argument>([&] { layer.set_weights(kernel); }).find("64 kernel and 8 bias") != std::string::npos);

    // `run` allocates nothing.
    layer.run(x, y);
    std::fill(y.begin(), y.end(), 0.0f);
    const std::size_t before = allocations;
    layer.run(x, y);
    CHECK(layer.try_run(x.data(), y.data()) == up1_OK);
    CHECK(allocations == before && right(y));

    // Copies share the weights and work at once; what was moved from can be assigned to.
    up1_layer copy = layer;
    std::vector<float> z(3360);
    std::thread other([&] { copy.run(x, z); });
    layer.run(x, y);
    other.join();
    CHECK(right(y) && right(z));
    up1_layer moved = std::move(copy);
    CHECK(right(moved(x)));
    copy = moved;
    CHECK(right(copy(x)));
    moved = up1_layer(1);
    CHECK(moved.has_open_batch() && moved.input_shape(4)[0] == 4);

    // An open batch is what the input holds.
    moved.set_weights({kernel.data(), kernel.size()}, bias);
    x.resize(1680 * 3);
    CHECK(moved(x).size() == 1680 * 3 && right(moved(x)));
    x.resize(0);
    CHECK(moved(x).empty());
    x.resize(1681);
    y.resize(1680);
    CHECK(thrown<std::invalid_argument>([&] { moved.run(x, y); }).find("got 1681 and 1680") != std::string::npos);
    CHECK(thrown<std::invalid_argument>([&] { layer.run(x, y); }).find("3360 values in") != std::string::npos);

    CHECK(thrown<std::invalid_argument>([] { up1_layer bad(2); }).find("shape") != std::string::npos);
    CHECK(thrown<std::invalid_argument>([] { up1_layer bad(0, -1); }).find("threads") != std::string::npos);
    CHECK(layer.try_run(nullptr, y.data()) == up1_ERROR_NULL_INPUT);

    // A pool of the caller's.
    x.assign(3360, 1.0f);
    layer.set_parallel_for(serial, &pools_used);
    CHECK(right(layer(x)) && pools_used == 1);
    layer.set_parallel_for(up1_parallel_for);
    CHECK(right(layer(x)) && pools_used == 1);
    std::puts("good");
    return 0;
}
