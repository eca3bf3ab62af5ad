/* Images are sorted by the hash of their bytes, so that equal ones stand together; the bytes
 * themselves decide. */
#include "heads/data_check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/mem.h"
#include "hash.h"

typedef struct entry {
    uint64_t hash;
    size_t image;
} entry;

static int by_hash(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->hash != y->hash) return x->hash < y->hash ? -1 : 1;
    return (x->image > y->image) - (x->image < y->image);
}

static bool same_bytes(const tk_pack_item *a, const tk_pack_item *b)
{
    return a->size == b->size && memcmp(a->data, b->data, a->size) == 0;
}

static void count_classes(tk_data_check *out, const size_t *sizes)
{
    out->smallest = SIZE_MAX;
    for (size_t c = 0; c < out->classes; c++) {
        const size_t n = sizes[c];
        out->empty += n == 0;
        out->single += n == 1;
        if (n > out->largest) out->largest = n;
        if (n > 0 && n < out->smallest) out->smallest = n;
    }
    if (out->images == 0) out->smallest = 0;
}

/* A run of equal images is compared with its first. */
static void count_equals(tk_data_check *out, const tk_pack *pack, const entry *sorted)
{
    tk_pack_item first = {0};
    bool told = false; /* that this image contradicts itself */
    for (size_t i = 0; i < out->images; i++) {
        const tk_pack_item item = tk_pack_get(pack, sorted[i].image);
        if (i == 0 || sorted[i].hash != sorted[i - 1].hash || !same_bytes(&item, &first)) {
            out->different++;
            first = item;
            told = false;
        } else if (!told && item.label != first.label) {
            out->contradictory++;
            told = true;
        }
    }
}

tk_err tk_data_check_run(tk_data_check *out, const tk_pack *pack, const tk_canvases *canvases,
                         tk_diag *diag)
{
    const size_t n = tk_pack_count(pack);
    *out = (tk_data_check){.classes = tk_pack_classes(pack)};
    entry *entries = tk_calloc(n + 1, sizeof *entries);
    size_t *sizes = tk_calloc(out->classes + 1, sizeof *sizes);
    const bool ok = entries && sizes;
    for (size_t i = 0; ok && i < n; i++) {
        if (!tk_canvases_ok(canvases, i)) continue;
        const tk_pack_item item = tk_pack_get(pack, i);
        entries[out->images++] = (entry){tk__hash(0, item.data, item.size), i};
        sizes[item.label]++;
    }
    if (ok) {
        qsort(entries, out->images, sizeof *entries, by_hash);
        count_equals(out, pack, entries);
        count_classes(out, sizes);
    }
    tk_free(entries);
    tk_free(sizes);
    return ok ? TK_OK : tk_fail(diag, TK_NOMEM, "data set: out of memory");
}

/* From this ratio on a rare class is hardly seen in training, and its errors weigh nothing in the
 * accuracy. */
enum { UNBALANCED = 20 };

bool tk_data_check_remark(const tk_data_check *check, size_t k, char *text, size_t size)
{
    const tk_data_check *c = check;
    const size_t copies = c->images - c->different;
    if (c->images > 1 && c->different == 1 && k-- == 0)
        snprintf(text, size, "every image is the same: there is nothing to tell the labels by");
    else if (c->contradictory > 0 && k-- == 0)
        snprintf(text, size, "%zu %s with more than one label", c->contradictory,
                 c->contradictory == 1 ? "image occurs" : "images occur");
    else if (copies > 0 && c->different > 1 && k-- == 0)
        snprintf(text, size,
                 "%zu of %zu images are copies of others: where one is trained on and its copy is "
                 "held out, validation flatters",
                 copies, c->images);
    else if (c->empty > 0 && k-- == 0)
        snprintf(text, size, "%zu of %zu labels have no readable image", c->empty, c->classes);
    else if (c->single > 0 && k-- == 0)
        snprintf(text, size, "%zu of %zu labels have one image only, which is never held out",
                 c->single, c->classes);
    else if (c->smallest > 0 && c->largest / c->smallest >= UNBALANCED && k-- == 0)
        snprintf(text, size, "the labels are unbalanced: %zu images of one, %zu of another",
                 c->largest, c->smallest);
    else
        return false;
    return true;
}
