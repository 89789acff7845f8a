/* Half-width floats of the emulator. */
#pragma once
typedef _Float16 half;
typedef half __half;
struct half2 { half x, y; } __align__(4);
typedef half2 __half2;
static inline half2 make_half2(half x, half y) { return half2{x, y}; }
static inline half __float2half_rn(float f) { return (half)f; }
static inline half __float2half(float f) { return (half)f; }
static inline float __half2float(half h) { return (float)h; }
