/* Computes every golden case in cases.h: reads NAME.x, writes NAME.y. */
#include <stdio.h>
#include <stdlib.h>

#include "golden.h"

#include "cases.h"

int main(void)
{
    size_t i;
    for (i = 0; i < sizeof all / sizeof *all; i++) {
        char path[200];
        FILE *file;
        layer_args a = {sizeof a};
        void *x = malloc(all[i].input_bytes + 1), *y = calloc(1, all[i].output_bytes + 1);
        int32_t code;
        sprintf(path, "%s.x", all[i].name);
        file = fopen(path, "rb");
        if (!file || fread(x, 1, all[i].input_bytes, file) != all[i].input_bytes)
            return 3;
        fclose(file);
        a.input = x;
        a.output = y;
        a.threads = 1 + (int32_t)(i % 2);
        a.workspace_size = all[i].workspace_size(0, a.threads);
        a.workspace = malloc(a.workspace_size + 1);
        code = all[i].run(&a);
        if (code) {
            fprintf(stderr, "%s: %s\n", all[i].name, all[i].error_text(code));
            return 4;
        }
        sprintf(path, "%s.y", all[i].name);
        file = fopen(path, "wb");
        if (!file || fwrite(y, 1, all[i].output_bytes, file) != all[i].output_bytes || fclose(file))
            return 5;
    }
    return 0;
}
