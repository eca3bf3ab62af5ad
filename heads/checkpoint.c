/* Checkpoints of joint training. Numbers in the machine's order; the file never leaves the job's
 * directory and appears whole or not at all (engine/file.h).
 *
 *     magic, sizes of everything below          64 bytes
 *     tk__train_state
 *     curve                                     epochs x tk_curve_point
 *     now:  trunk [count], velocity [trained], head, head velocity
 *     good: trunk [count], head                 what a restart begins with, without momentum
 *     best: trunk [count], head                 only when has_best
 *     checksum of all before                    8 bytes */
#include <string.h>

#include "engine/file.h"
#include "hash.h"
#include "train_internal.h"

typedef struct header {
    char magic[8];
    uint64_t state, epochs, count, trained, head, reserved[2];
} header;

static header header_of(const tk__training *t)
{
    header h = {.state = sizeof t->state,
                .epochs = t->epochs,
                .count = t->now->trunk->count,
                .trained = t->now->trunk->trained,
                .head = t->now->head_size};
    memcpy(h.magic, "TKCKPT1", 8);
    return h;
}

/* The pieces of the file after the header, in order. Returns how many. */
typedef struct piece {
    void *data;
    size_t size;
} piece;

enum { PIECES = 10 };

static size_t weights_of(const tk_student *s, piece *out)
{
    out[0] = (piece){s->trunk->data, s->trunk->count * sizeof(float)};
    out[1] = (piece){s->head, s->head_size * sizeof(float)};
    return 2;
}

static size_t pieces_of(tk__training *t, piece out[PIECES])
{
    size_t n = 0;
    out[n++] = (piece){&t->state, sizeof t->state};
    out[n++] = (piece){t->curve, t->epochs * sizeof *t->curve};
    n += weights_of(t->now, out + n);
    out[n++] = (piece){t->now->velocity, t->now->trunk->trained * sizeof(float)};
    out[n++] = (piece){t->now->head_velocity, t->now->head_size * sizeof(float)};
    n += weights_of(&t->good, out + n);
    return n + weights_of(&t->best, out + n);
}

tk_err tk__checkpoint_save(const tk__training *t, const char *path, tk_diag *diag)
{
    tk_file file;
    tk_err err = tk_file_create(&file, path, diag);
    if (err != TK_OK) return err;
    tk__training view = *t; /* pieces_of() serves the reader too, hence not const */
    piece pieces[PIECES];
    const size_t n = pieces_of(&view, pieces) - (t->state.has_best ? 0 : 2);
    const header h = header_of(t);
    uint64_t sum = tk__hash(0, &h, sizeof h);
    bool ok = fwrite(&h, sizeof h, 1, file.stream) == 1;
    for (size_t i = 0; i < n && ok; i++) {
        sum = tk__hash(sum, pieces[i].data, pieces[i].size);
        ok = fwrite(pieces[i].data, 1, pieces[i].size, file.stream) == pieces[i].size;
    }
    ok = ok && fwrite(&sum, sizeof sum, 1, file.stream) == 1;
    if (ok) return tk_file_commit(&file, diag);
    err = tk_fail_errno(diag, "checkpoint %s", path);
    tk_file_abort(&file);
    return err;
}

/* Copies the next piece out of the mapping; false when the file is too short. */
static bool take(const tk_map *map, size_t *at, piece to, uint64_t *sum)
{
    if (map->size - *at < to.size) return false;
    memcpy(to.data, map->data + *at, to.size);
    *sum = tk__hash(*sum, to.data, to.size);
    *at += to.size;
    return true;
}

static bool read_all(tk__training *t, const tk_map *map)
{
    header h;
    const header want = header_of(t);
    uint64_t sum = 0, stored;
    size_t at = 0;
    if (!take(map, &at, (piece){&h, sizeof h}, &sum) || memcmp(&h, &want, sizeof h) != 0)
        return false;
    piece pieces[PIECES];
    size_t n = pieces_of(t, pieces);
    for (size_t i = 0; i < n; i++) {
        if (!take(map, &at, pieces[i], &sum)) return false;
        if (i == 0 && !t->state.has_best) n -= 2;
    }
    const uint64_t computed = sum;
    return take(map, &at, (piece){&stored, sizeof stored}, &sum) && stored == computed &&
           at == map->size;
}

tk_err tk__checkpoint_load(tk__training *t, const char *path, tk_diag *diag)
{
    tk_map map;
    const tk_err err = tk_map_open(&map, path, diag);
    if (err != TK_OK) return err;
    const bool ok = read_all(t, &map);
    tk_map_close(&map);
    return ok ? TK_OK : tk_fail(diag, TK_BADDATA, "checkpoint %s: damaged", path);
}
