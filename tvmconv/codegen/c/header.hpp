// @NAME@ for C++17: the layer of @NAME@.h with its buffers kept, its errors thrown and its sizes checked.
//
// Nothing is compiled but this header; link as for C. Memory is allocated when a layer is made, copied or given weights,
// and by `operator()`; `run` and `try_run` allocate none. This file may be copied freely.
#ifndef @NAME@_HPP_
#define @NAME@_HPP_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "@NAME@.h"

// What @NAME@_run or @NAME@_pack_weights answered, see `enum @NAME@_error` in @NAME@.h.
class @NAME@_failure : public std::runtime_error {
  public:
    explicit @NAME@_failure(std::int32_t code)
        : std::runtime_error(std::string("@NAME@: ") + @NAME@_error_text(code)), code_(code) {}
    std::int32_t code() const noexcept { return code_; }

  private:
    std::int32_t code_;
};

// A pointer and a number of elements; made from both, from an array, or from what has data() and size().
template <class T> class @NAME@_span {
  public:
    constexpr @NAME@_span() noexcept = default;
    constexpr @NAME@_span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
    template <std::size_t N> constexpr @NAME@_span(T (&array)[N]) noexcept : data_(array), size_(N) {}
    template <class Container,
              class = std::enable_if_t<std::is_convertible_v<decltype(std::declval<Container &>().data()), T *>>>
    constexpr @NAME@_span(Container &&values) noexcept : data_(values.data()), size_(values.size()) {}
    constexpr T *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }

  private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};

// The layer on one of its input shapes, with a workspace of its own: one object for each thread that calls. A copy shares
// the weights and has another workspace.
class @NAME@_layer {
  public:
    using input_type = @INPUT_TYPE@;       // @INPUT@
    using output_type = @OUTPUT_TYPE@;      // @OUTPUT@
    using variable_type = @VARIABLE_TYPE@;    // @VARIABLE@
    using sizes = std::array<std::int64_t, 5>;

    // `shape` counts from 0; at most `threads` work at once, 0: @THREADS@.
    // Throws std::invalid_argument, std::bad_alloc.
    explicit @NAME@_layer(std::int32_t shape = 0, std::int32_t threads = 0)
    {
        args_.size = sizeof args_;
        args_.shape = shape;
        args_.threads = threads;@CUDA_CPP_START@
        if (@NAME@_input_shape(shape) == nullptr)
            throw std::invalid_argument("@NAME@: shape is not the index of an input shape");
        if (threads < 0)
            throw std::invalid_argument("@NAME@: threads is negative");
        make_workspace();
    }

    @NAME@_layer(const @NAME@_layer &other)
        : args_(other.args_), weights_(other.weights_)
    {
        make_workspace();
    }
    @NAME@_layer(@NAME@_layer &&) noexcept = default; // what was moved from can only be destroyed or assigned to
    @NAME@_layer &operator=(@NAME@_layer other) noexcept
    {
        std::swap(args_, other.args_);
        std::swap(weights_, other.weights_);
        std::swap(workspace_, other.workspace_);
        std::swap(workspace_size_, other.workspace_size_);
        return *this;
    }
    ~@NAME@_layer() = default;

    // Takes other weights from now on: the kernel of shape @KERNEL@ in Keras' layout, and @BIAS_CPP@.
    // Throws std::invalid_argument for another number of values, @NAME@_failure, std::bad_alloc.
    void set_weights(@NAME@_span<const variable_type> kernel, @NAME@_span<const variable_type> bias = {})
    {
        if (kernel.size() != @KERNEL_ELEMENTS@u || bias.size() != @BIAS_ELEMENTS@u)
            throw std::invalid_argument("@NAME@: expected @KERNEL_ELEMENTS@ kernel and @BIAS_ELEMENTS@ bias values");
        std::shared_ptr<char[]> packed(new char[@NAME@_packed_weights_size() + 1]); // aligned for every type
        const std::int32_t code = @NAME@_pack_weights(kernel.data(), bias.size() ? bias.data() : nullptr, packed.get());
        if (code != @NAME@_OK)
            throw @NAME@_failure(code);
        weights_ = std::move(packed);
    }

    // Runs its tasks on another pool, for example on another artifact's NAME_parallel_for; nullptr: the library's own.
    void set_parallel_for(decltype(@NAME@_args::parallel_for) parallel_for, void *context = nullptr) noexcept
    {
        args_.parallel_for = parallel_for;
        args_.context = context;
    }
@CUDA_CPP_METHOD@
    // The sizes for a batch; it counts only where the batch is open.
    sizes input_shape(std::int64_t batch = 1) const { return with_batch(@NAME@_input_shape(args_.shape), batch); }
    sizes output_shape(std::int64_t batch = 1) const { return with_batch(@NAME@_output_shape(args_.shape), batch); }
    std::size_t input_size(std::int64_t batch = 1) const { return product(input_shape(batch)); }
    std::size_t output_size(std::int64_t batch = 1) const { return product(output_shape(batch)); }
    bool has_open_batch() const noexcept { return @NAME@_input_shape(args_.shape)[0] < 0; }

    // Computes y from x; the batch, where it is open, is what the input holds. Throws std::invalid_argument for another
    // number of values, @NAME@_failure, for example where the processor lacks a feature.
    void run(@NAME@_span<const input_type> x, @NAME@_span<output_type> y)
    {
        const std::int64_t batch = batch_of(x.size());
        if (x.size() != input_size(batch) || y.size() != output_size(batch))
            throw std::invalid_argument("@NAME@: expected " + std::to_string(input_size(batch)) + " values in, " +
                                        std::to_string(output_size(batch)) + " out, got " + std::to_string(x.size()) +
                                        " and " + std::to_string(y.size()));
        const std::int32_t code = try_run(x.data(), y.data(), batch);
        if (code != @NAME@_OK)
            throw @NAME@_failure(code);
    }

    // The same into a new vector.
    std::vector<output_type> operator()(@NAME@_span<const input_type> x)
    {
        std::vector<output_type> y(output_size(batch_of(x.size())));
        run(x, {y.data(), y.size()});
        return y;
    }

    // The same without exceptions and without checks of sizes: an error code.
    std::int32_t try_run(const input_type *x, output_type *y, std::int64_t batch = 1) noexcept
    {
        @NAME@_args args = args_;
        args.input = x;
        args.output = y;
        args.batch = has_open_batch() ? batch : 0;@CUDA_CPP_CALL@
        args.weights = weights_.get();
        args.workspace = workspace_.get();
        args.workspace_size = workspace_size_;
        return @NAME@_run(&args);
    }

  private:
    static sizes with_batch(const std::int64_t *shape, std::int64_t batch)
    {
        return {shape[0] < 0 ? batch : shape[0], shape[1], shape[2], shape[3], shape[4]};
    }

    static std::size_t product(const sizes &shape) noexcept
    {
        std::size_t count = 1;
        for (const std::int64_t size : shape)
            count *= static_cast<std::size_t>(size);
        return count;
    }

    std::int64_t batch_of(std::size_t values) const
    {
        const std::size_t sample = has_open_batch() ? input_size(1) : 0;
        return sample == 0 ? 1 : static_cast<std::int64_t>(values / sample);
    }

    void make_workspace()
    {
        workspace_size_ = @NAME@_workspace_size(args_.shape, args_.threads);
        workspace_.reset(workspace_size_ ? new char[workspace_size_] : nullptr);
    }

    @NAME@_args args_ = {}; // what is the same in every call
    std::shared_ptr<const char[]> weights_; // null: those inside
    std::unique_ptr<char[]> workspace_;
    std::size_t workspace_size_ = 0;
};

#endif
