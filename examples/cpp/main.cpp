// Calls a compiled layer from C++17: buffers of the program's own, errors as exceptions.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <vector>

#include "up1.hpp"

int main()
try {
    up1_layer layer; // the workspace lives in it: keep it
    std::vector<float> x(layer.input_size()), y(layer.output_size());
    for (std::size_t i = 0; i < x.size(); i++)
        x[i] = static_cast<float>(i % 101) / 100;
    layer.run(x, y); // any number of times
    const auto [least, most] = std::minmax_element(y.begin(), y.end());
    std::printf("%zu values from %g to %g\n", y.size(), *least, *most);
} catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
