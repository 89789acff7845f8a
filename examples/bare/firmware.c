/* What the firmware does: calls the layer, and tells the first value of its output. */
#include <stdint.h>

void print(const char *text);
float *layer_input(void);
const float *layer_output(void);
int layer_step(void);

static void print_number(int32_t value)
{
    char digits[12], *at = digits + sizeof digits;
    uint32_t rest = value < 0 ? 0u - (uint32_t)value : (uint32_t)value;
    *--at = 0;
    do
        *--at = (char)('0' + rest % 10);
    while ((rest /= 10) > 0);
    if (value < 0)
        *--at = '-';
    print(at);
}

int main(void)
{
    int32_t i, code;
    for (i = 0; i < 8 * 8 * 8 * 64; i++)
        layer_input()[i] = (float)(i % 101) / 100;
    code = layer_step();
    print("code ");
    print_number(code);
    print(", the first value is ");
    print_number((int32_t)(layer_output()[0] * 1e7f));
    print(" / 10000000\n");
    return code;
}
