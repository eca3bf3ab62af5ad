/* The pack file. All numbers are little-endian.
 *
 *     offset        size            what
 *     0             8               "TKPACK1\n"
 *     8             ...             records, back to back: [u8 n][name: n bytes][NUL][image bytes]
 *     index         16 x images     [u64 offset of the record][u32 image bytes][u32 label]
 *     labels        ...             per label: [u16 n][n bytes][NUL]
 *     size - 40     40              [u64 index][u64 labels][u64 images][u32 classes][u32 zero]
 *                                   [u64 FNV-1a of everything from `index` to here]
 *
 * The writer holds 16 bytes per image and the labels; the reader holds nothing but pointers into
 * the mapping. Opening walks the index once and proves that the records tile the file exactly, so
 * that tk_pack_get() needs no check. The images themselves stay what they are: hostile bytes. */
#include "heads/pack.h"

#include <assert.h>
#include <string.h>

#include "engine/file.h"
#include "engine/mem.h"
#include "engine/rng.h"
#include "heads/model.h"
#include "text.h"

static const char magic[8] = "TKPACK1\n";
enum { MAGIC = sizeof magic, ENTRY = 16, FOOTER = 40, COUNT_MAX = 1 << 26 };

static void put16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)v, p[1] = (uint8_t)(v >> 8);
}

static void put32(uint8_t *p, uint32_t v)
{
    put16(p, v), put16(p + 2, v >> 16);
}

static void put64(uint8_t *p, uint64_t v)
{
    put32(p, (uint32_t)v), put32(p + 4, (uint32_t)(v >> 32));
}

static uint32_t get16(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t get32(const uint8_t *p)
{
    return get16(p) | get16(p + 2) << 16;
}

static uint64_t get64(const uint8_t *p)
{
    return get32(p) | (uint64_t)get32(p + 4) << 32;
}

static const uint64_t fnv_start = 0xcbf29ce484222325u;

static uint64_t fnv(uint64_t h, const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

/* ---- writing ---- */

typedef struct entry {
    uint64_t offset;
    uint32_t size, label;
} entry;

struct tk_pack_writer {
    tk_file file;
    uint64_t at, hash;
    entry *entries;
    size_t n, cap;
    char **labels;
    size_t classes, label_cap;
    uint32_t *slots; /* open addressing by hash of the label: index + 1, 0 is free */
    size_t n_slots;  /* a power of two, at least twice `classes` */
};

tk_err tk_pack_create(tk_pack_writer **out, const char *path, tk_diag *diag)
{
    *out = NULL;
    tk_pack_writer *w = tk_calloc(1, sizeof *w);
    if (!w) return tk_fail(diag, TK_NOMEM, "pack: out of memory");
    const tk_err err = tk_file_create(&w->file, path, diag);
    if (err != TK_OK) {
        tk_free(w);
        return err;
    }
    w->hash = fnv_start;
    w->at = MAGIC;
    if (fwrite(magic, 1, MAGIC, w->file.stream) != MAGIC) {
        tk_pack_abort(w);
        return tk_fail_errno(diag, "pack %s", path);
    }
    *out = w;
    return TK_OK;
}

static void writer_free(tk_pack_writer *w)
{
    for (size_t i = 0; i < w->classes; i++)
        tk_free(w->labels[i]);
    tk_free(w->labels);
    tk_free(w->slots);
    tk_free(w->entries);
    tk_free(w);
}

void tk_pack_abort(tk_pack_writer *w)
{
    if (!w) return;
    tk_file_abort(&w->file);
    writer_free(w);
}

size_t tk_pack_writer_count(const tk_pack_writer *w)
{
    return w->n;
}

/* The slot that holds `label`, or the free one where it belongs. */
static size_t slot_of(const tk_pack_writer *w, const char *label)
{
    size_t i = (size_t)tk_rng_stream(label) & (w->n_slots - 1);
    while (w->slots[i] && strcmp(w->labels[w->slots[i] - 1], label) != 0)
        i = (i + 1) & (w->n_slots - 1);
    return i;
}

static bool grow_slots(tk_pack_writer *w)
{
    const size_t n = w->n_slots ? 2 * w->n_slots : 64;
    uint32_t *slots = tk_calloc(n, sizeof *slots);
    if (!slots) return false;
    tk_free(w->slots);
    w->slots = slots;
    w->n_slots = n;
    for (size_t i = 0; i < w->classes; i++)
        slots[slot_of(w, w->labels[i])] = (uint32_t)i + 1;
    return true;
}

tk_err tk_pack_label(tk_pack_writer *w, const char *label, uint32_t *index, tk_diag *diag)
{
    *index = 0;
    const tk_err err = tk__text_check("label", label, TK_LABEL_MAX, diag);
    if (err != TK_OK) return err;
    if (2 * (w->classes + 1) > w->n_slots && !grow_slots(w))
        return tk_fail(diag, TK_NOMEM, "pack: out of memory");
    const size_t slot = slot_of(w, label);
    if (w->slots[slot]) {
        *index = w->slots[slot] - 1;
        return TK_OK;
    }
    if (w->classes == TK_HEAD_MAX_CLASSES)
        return tk_fail(diag, TK_LIMIT, "label \"%s\": a data set has at most %d labels", label,
                       TK_HEAD_MAX_CLASSES);
    if (w->classes == w->label_cap) {
        const size_t cap = w->label_cap ? 2 * w->label_cap : 32;
        char **labels = tk_realloc(w->labels, cap * sizeof *labels);
        if (!labels) return tk_fail(diag, TK_NOMEM, "pack: out of memory");
        w->labels = labels;
        w->label_cap = cap;
    }
    char *copy = tk_strdup(label);
    if (!copy) return tk_fail(diag, TK_NOMEM, "pack: out of memory");
    w->labels[w->classes] = copy;
    *index = (uint32_t)w->classes++;
    w->slots[slot] = *index + 1;
    return TK_OK;
}

tk_err tk_pack_add(tk_pack_writer *w, uint32_t label, const char *name, const void *data,
                   size_t size, tk_diag *diag)
{
    const size_t n = name ? strlen(name) : 0;
    if (label >= w->classes)
        return tk_fail(diag, TK_BADARG, "label %u: there are %zu", label, w->classes);
    if (n > TK_PACK_NAME_MAX)
        return tk_fail(diag, TK_BADARG, "file name: %zu bytes, at most %d are allowed", n,
                       TK_PACK_NAME_MAX);
    if (!tk__text_is_clean(name ? name : "", n))
        return tk_fail(diag, TK_BADARG, "file name: not UTF-8 text without control characters");
    if (size == 0) return tk_fail(diag, TK_BADARG, "image \"%s\": empty", name ? name : "");
    if (size > TK_PACK_IMAGE_MAX)
        return tk_fail(diag, TK_LIMIT, "image \"%s\": %zu bytes, at most %d are allowed",
                       name ? name : "", size, TK_PACK_IMAGE_MAX);
    if (w->n == COUNT_MAX)
        return tk_fail(diag, TK_LIMIT, "a data set has at most %d images", COUNT_MAX);
    if (w->n == w->cap) {
        const size_t cap = w->cap ? 2 * w->cap : 256;
        entry *entries = tk_realloc(w->entries, cap * sizeof *entries);
        if (!entries) return tk_fail(diag, TK_NOMEM, "pack: out of memory");
        w->entries = entries;
        w->cap = cap;
    }
    const uint8_t length = (uint8_t)n;
    FILE *f = w->file.stream;
    if (fwrite(&length, 1, 1, f) != 1 || fwrite(name ? name : "", 1, n + 1, f) != n + 1 ||
        fwrite(data, 1, size, f) != size)
        return tk_fail_errno(diag, "pack %s", w->file.path);
    w->entries[w->n++] = (entry){.offset = w->at, .size = (uint32_t)size, .label = label};
    w->at += 1 + n + 1 + size;
    return TK_OK;
}

/* Writes a piece of the tail, which the checksum covers. */
static bool put_tail(tk_pack_writer *w, const void *data, size_t size)
{
    w->hash = fnv(w->hash, data, size);
    w->at += size;
    return fwrite(data, 1, size, w->file.stream) == size;
}

static bool put_index_and_labels(tk_pack_writer *w)
{
    uint8_t b[FOOTER];
    const uint64_t index = w->at;
    for (size_t i = 0; i < w->n; i++) {
        put64(b, w->entries[i].offset);
        put32(b + 8, w->entries[i].size);
        put32(b + 12, w->entries[i].label);
        if (!put_tail(w, b, ENTRY)) return false;
    }
    const uint64_t labels = w->at;
    for (size_t i = 0; i < w->classes; i++) {
        const size_t n = strlen(w->labels[i]);
        put16(b, (uint32_t)n);
        if (!put_tail(w, b, 2) || !put_tail(w, w->labels[i], n + 1)) return false;
    }
    put64(b, index);
    put64(b + 8, labels);
    put64(b + 16, w->n);
    put32(b + 24, (uint32_t)w->classes);
    put32(b + 28, 0);
    if (!put_tail(w, b, FOOTER - 8)) return false;
    put64(b, w->hash);
    return put_tail(w, b, 8);
}

tk_err tk_pack_commit(tk_pack_writer *w, tk_diag *diag)
{
    tk_err err;
    if (put_index_and_labels(w)) {
        err = tk_file_commit(&w->file, diag);
    } else {
        err = tk_fail_errno(diag, "pack %s", w->file.path);
        tk_file_abort(&w->file);
    }
    writer_free(w);
    return err;
}

/* ---- reading ---- */

struct tk_pack {
    tk_map map;
    const uint8_t *index;
    size_t count, classes;
    const char **labels; /* into the mapping */
};

static tk_err bad(tk_diag *diag, const char *path, const char *what)
{
    return tk_fail(diag, TK_BADDATA, "pack %s: %s", path, what);
}

static tk_err check_labels(tk_pack *p, const char *path, size_t at, size_t end, tk_diag *diag)
{
    p->labels = tk_calloc(p->classes ? p->classes : 1, sizeof *p->labels);
    if (!p->labels) return tk_fail(diag, TK_NOMEM, "pack: out of memory");
    for (size_t i = 0; i < p->classes; i++) {
        if (end - at < 2) return bad(diag, path, "labels are cut short");
        const size_t n = get16(p->map.data + at);
        at += 2;
        if (n == 0 || n > TK_LABEL_MAX || end - at < n + 1)
            return bad(diag, path, "a label has an impossible length");
        const char *label = (const char *)p->map.data + at;
        if (label[n] != 0 || !tk__text_is_clean(label, n))
            return bad(diag, path, "a label is not clean text");
        p->labels[i] = label;
        at += n + 1;
    }
    if (at != end) return bad(diag, path, "bytes are left over after the labels");
    return TK_OK;
}

/* Each record begins where the one before it ends, the last ends at the index. */
static tk_err check_records(const tk_pack *p, const char *path, size_t end, tk_diag *diag)
{
    size_t at = MAGIC;
    for (size_t i = 0; i < p->count; i++) {
        const uint8_t *e = p->index + i * ENTRY;
        const uint64_t offset = get64(e);
        const size_t size = get32(e + 8);
        if (offset != at) return bad(diag, path, "records overlap or leave a hole");
        if (size == 0 || size > TK_PACK_IMAGE_MAX)
            return bad(diag, path, "an image has an impossible size");
        if (get32(e + 12) >= p->classes) return bad(diag, path, "an image has an unknown label");
        if (end - at < 2) return bad(diag, path, "records are cut short");
        const size_t n = p->map.data[at];
        if (end - at < 1 + n + 1 + size) return bad(diag, path, "records are cut short");
        const char *name = (const char *)p->map.data + at + 1;
        if (name[n] != 0 || !tk__text_is_clean(name, n))
            return bad(diag, path, "a file name is not clean text");
        at += 1 + n + 1 + size;
    }
    return at == end ? TK_OK : bad(diag, path, "records overlap or leave a hole");
}

static tk_err check(tk_pack *p, const char *path, tk_diag *diag)
{
    const uint8_t *d = p->map.data;
    const size_t size = p->map.size;
    if (size < MAGIC + FOOTER || memcmp(d, magic, MAGIC) != 0)
        return bad(diag, path, "this is not a pack file");
    const size_t footer = size - FOOTER;
    const uint64_t index = get64(d + footer), labels = get64(d + footer + 8);
    const uint64_t count = get64(d + footer + 16);
    if (index < MAGIC || index > footer || labels < index || labels > footer || count > COUNT_MAX ||
        labels - index != count * ENTRY || get32(d + footer + 28) != 0)
        return bad(diag, path, "the index is damaged");
    if (fnv(fnv_start, d + index, size - 8 - index) != get64(d + size - 8))
        return bad(diag, path, "the index does not match its checksum");
    p->index = d + index;
    p->count = (size_t)count;
    p->classes = get32(d + footer + 24);
    if (p->classes > TK_HEAD_MAX_CLASSES) return bad(diag, path, "too many labels");
    const tk_err err = check_labels(p, path, (size_t)labels, footer, diag);
    return err != TK_OK ? err : check_records(p, path, (size_t)index, diag);
}

tk_err tk_pack_open(tk_pack **out, const char *path, tk_diag *diag)
{
    *out = NULL;
    tk_pack *p = tk_calloc(1, sizeof *p);
    if (!p) return tk_fail(diag, TK_NOMEM, "pack: out of memory");
    tk_err err = tk_map_open(&p->map, path, diag);
    if (err == TK_OK) err = check(p, path, diag);
    if (err != TK_OK) {
        tk_pack_close(p);
        return err;
    }
    *out = p;
    return TK_OK;
}

void tk_pack_close(tk_pack *pack)
{
    if (!pack) return;
    tk_map_close(&pack->map);
    tk_free(pack->labels);
    tk_free(pack);
}

size_t tk_pack_count(const tk_pack *pack)
{
    return pack->count;
}

size_t tk_pack_classes(const tk_pack *pack)
{
    return pack->classes;
}

const char *tk_pack_label_name(const tk_pack *pack, uint32_t label)
{
    assert(label < pack->classes);
    return pack->labels[label];
}

tk_pack_item tk_pack_get(const tk_pack *pack, size_t i)
{
    assert(i < pack->count);
    const uint8_t *e = pack->index + i * ENTRY;
    const uint8_t *record = pack->map.data + get64(e);
    return (tk_pack_item){.label = get32(e + 12),
                          .name = (const char *)record + 1,
                          .data = record + 1 + record[0] + 1,
                          .size = get32(e + 8)};
}
