/* Prints the features of table.h that this processor has. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define VARIANTS 1
struct kernel;
struct variant { const struct kernel *kernels; int32_t first_feature, last_feature; const char *name; };
struct feature { uint8_t word, bit, state; const char *text; };
static const struct feature features[] = {
#include "table.h"
};
static const struct variant variants[] = {{NULL, 0, 0, ""}};
#include "processor.c"

int main(void)
{
    int32_t i, n = (int32_t)(sizeof features / sizeof *features);
    for (i = 0; i < n; i++) {
        struct variant one = {NULL, i, i + 1, ""};
        if (missing_feature(&one) < 0)
            puts(features[i].text);
    }
    return select_variant() != variants;
}
