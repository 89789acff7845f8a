/* bfloat16 of the emulator: bits, widened where a fragment is multiplied. */
#pragma once
struct __nv_bfloat16 {
    unsigned short bits;
    operator float() const {
        unsigned wide = (unsigned)bits << 16;
        float f;
        memcpy(&f, &wide, 4);
        return f;
    }
};
typedef __nv_bfloat16 nv_bfloat16;
