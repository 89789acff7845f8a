/* Firmware for a Cortex-M7 without a C library: from the reset to a line of text, which a debugger or an emulator prints
 * (Arm's semihosting).
 */
#include <stdint.h>

float *layer_input(void);
const float *layer_output(void);
int layer_step(void);

extern uint32_t data_begin, data_end, data_image, bss_begin, bss_end, stack_top;

static int32_t ask(int32_t operation, const void *argument)
{
    register int32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void print(const char *text) { ask(0x04, text); }

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

/* Apart, so that no number is in a register of the FPU before reset() has switched that on. */
__attribute__((noinline)) static void run(void)
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
    ask(0x18, (const void *)0x20026);
}

void reset(void)
{
    volatile uint32_t *fpu = (volatile uint32_t *)0xE000ED88;
    const uint32_t *from = &data_image;
    uint32_t *to;
    *fpu |= 0xFu << 20; /* coprocessors 10 and 11 */
    __asm__ volatile("dsb; isb" ::: "memory");
    for (to = &data_begin; to < &data_end;)
        *to++ = *from++;
    for (to = &bss_begin; to < &bss_end;)
        *to++ = 0;
    run();
    for (;;)
        ;
}

static void fault(void)
{
    print("fault\n");
    ask(0x18, (const void *)0x20023);
    for (;;)
        ;
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    &stack_top, (const void *)reset, (const void *)fault, (const void *)fault,
    (const void *)fault, (const void *)fault, (const void *)fault,
};
