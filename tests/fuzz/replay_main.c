/* Runs a fuzz target over committed inputs, with any compiler: each argument is a file or a folder.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

#include "fuzz.h"

static int replay_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) return 0;
    /* Exactly as large as the input, so that AddressSanitizer sees the first byte read beyond it.
     */
    int good = fseek(file, 0, SEEK_END) == 0;
    const long size = good ? ftell(file) : -1;
    uint8_t *data = size < 0 ? NULL : malloc(size ? (size_t)size : 1);
    rewind(file);
    good = data && fread(data, 1, (size_t)size, file) == (size_t)size;
    if (good) (void)LLVMFuzzerTestOneInput(data, (size_t)size);
    free(data);
    (void)fclose(file);
    return good;
}

/* The number of inputs run. */
static int replay(const char *path)
{
    DIR *folder = opendir(path);
    if (!folder) return replay_file(path);
    int inputs = 0;
    for (struct dirent *entry; (entry = readdir(folder));) {
        char name[1024];
        if (entry->d_name[0] == '.') continue;
        (void)snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        inputs += replay_file(name);
    }
    (void)closedir(folder);
    return inputs;
}

int main(int argc, char **argv)
{
    int inputs = 0;
    for (int i = 1; i < argc; i++) {
        const int more = replay(argv[i]);
        if (more == 0) (void)fprintf(stderr, "%s: no inputs\n", argv[i]);
        if (more == 0) return 1;
        inputs += more;
    }
    (void)printf("%d inputs\n", inputs);
    return inputs > 0 ? 0 : 1;
}
