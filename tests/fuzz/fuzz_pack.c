/* Any bytes as a pack file. The checksum finds accidents, not intent, so the target sets it right
 * and the reader has to stand without it. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/mem.h"
#include "fuzz.h"
#include "heads/pack.h"

enum { FOOTER = 40 };

static uint64_t little_endian(const uint8_t *p)
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

static void set_checksum(uint8_t *data, size_t size)
{
    if (size < FOOTER) return;
    const uint64_t index = little_endian(data + size - FOOTER);
    uint64_t h = 0xcbf29ce484222325u;
    for (uint64_t i = index; i < size - 8; i++)
        h = (h ^ data[i]) * 0x100000001b3u;
    for (size_t i = 0; i < 8; i++)
        data[size - 8 + i] = (uint8_t)(h >> (8 * i));
}

static void use(const tk_pack *pack)
{
    size_t sum = 0;
    for (size_t i = 0; i < tk_pack_count(pack); i++) {
        const tk_pack_item item = tk_pack_get(pack, i);
        assert(item.size > 0 && item.label < tk_pack_classes(pack));
        sum += strlen(item.name) + strlen(tk_pack_label_name(pack, item.label));
        for (size_t k = 0; k < item.size; k++)
            sum += item.data[k];
    }
    volatile size_t sink = sum; /* every byte is read */
    (void)sink;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[] = "/tmp/fuzz-pack-XXXXXX";
    const long live = tk_test_alloc_live();
    uint8_t *copy = tk_calloc(size + 1, 1);
    tk_pack *pack;
    const int fd = mkstemp(path);
    if (!copy || fd < 0) return 0;
    memcpy(copy, data, size);
    set_checksum(copy, size);
    const int written = write(fd, copy, size) == (ssize_t)size;
    (void)close(fd);
    tk_free(copy);
    const tk_err err = tk_pack_open(&pack, path, NULL);
    (void)unlink(path);
    assert((err == TK_OK) == (pack != NULL));
    if (pack && written) use(pack);
    tk_pack_close(pack);
    assert(tk_test_alloc_live() == live);
    return 0;
}
