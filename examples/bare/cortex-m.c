/* A board with a Cortex-M7 or a Cortex-M55, without a C library: from the reset to main(), and lines of text, which a debugger
 * or an emulator prints (Arm's semihosting).
 */
#include <stdint.h>

int main(void);
int32_t ask(int32_t operation, const void *argument);
void print(const char *text);
void reset(void);

extern uint32_t data_begin, data_end, data_image, bss_begin, bss_end, stack_top;

int32_t ask(int32_t operation, const void *argument)
{
    register int32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void print(const char *text) { ask(0x04, text); }

/* The end of the program; 0 is success. */
static void leave(int code)
{
    ask(0x18, (const void *)(code == 0 ? 0x20026 : 0x20023));
    for (;;)
        ;
}

void reset(void)
{
    volatile uint32_t *coprocessors = (volatile uint32_t *)0xE000ED88;
    const uint32_t *from = &data_image;
    uint32_t *to;
    *coprocessors |= 0xFu << 20; /* 10 and 11: numbers and vectors */
    __asm__ volatile("dsb; isb" ::: "memory");
    for (to = &data_begin; to < &data_end;)
        *to++ = *from++;
    for (to = &bss_begin; to < &bss_end;)
        *to++ = 0;
    leave(main());
}

static void fault(void)
{
    print("fault\n");
    leave(1);
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    &stack_top, (const void *)reset, (const void *)fault, (const void *)fault,
    (const void *)fault, (const void *)fault, (const void *)fault, (const void *)fault,
};
