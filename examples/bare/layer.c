/* A layer as firmware calls it: every byte is there when the program starts, nothing is allocated, no thread is started, and
 * of the C library nothing is used here (-ffreestanding). The sizes are constants of up1.h.
 */
#include "up1.h"

static float input[up1_INPUT_ELEMENTS], output[up1_OUTPUT_ELEMENTS];
static unsigned char workspace[up1_WORKSPACE_SIZE];

/* What a sensor or another layer would fill, and where the result is. */
float *layer_input(void) { return input; }
const float *layer_output(void) { return output; }

int layer_step(void)
{
    static const up1_args args = {
        .size = sizeof args,
        .input = input,
        .output = output,
        .workspace = workspace,
        .workspace_size = sizeof workspace,
        .threads = 1,
    };
    return (int)up1_run(&args);
}
