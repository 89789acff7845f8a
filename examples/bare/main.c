/* Stands in for the board: calls the layer and prints. */
#include <stdio.h>

float *layer_input(void);
const float *layer_output(void);
int layer_step(void);

int main(void)
{
    int i, code;
    for (i = 0; i < 8 * 8 * 8 * 64; i++)
        layer_input()[i] = (float)(i % 101) / 100;
    code = layer_step();
    printf("code %d, the first value is %g\n", code, layer_output()[0]);
    return code;
}
