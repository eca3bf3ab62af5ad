/* A canvas file. All numbers in the machine's order; it never leaves the job's directory.
 *
 *     0     64              header: magic, count, side, complete
 *     64    count           one byte per image: 1 when it was decoded
 *     ...   count x side x side x 3, from a multiple of 64
 *
 * Its blocks are allocated before it is mapped, so that a full disk is an error here and not a
 * signal later. `complete` is set last, after the pixels were synced. */
#include "heads/canvases.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/mem.h"

enum { HEADER = 64, CHUNK = 256 };
enum { BROKEN, DECODED, STARVED }; /* the byte of an image */

typedef struct header {
    char magic[8];
    uint64_t count, side, complete;
} header;

struct tk_canvases {
    uint8_t *base;
    size_t size, count;
    unsigned side;
    tk_preproc preproc;
    uint8_t *ok, *pixels; /* into base */
};

static size_t round_up(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

static size_t canvas_bytes(const tk_canvases *c)
{
    return (size_t)c->side * c->side * 3;
}

static bool is_complete(const tk_canvases *c)
{
    const header *h = (const header *)(const void *)c->base;
    return memcmp(h->magic, "TKCANV1", 8) == 0 && h->count == c->count && h->side == c->side &&
           h->complete == 1;
}

/* Opens or makes the file with its blocks and maps it. */
static tk_err map_file(tk_canvases *c, const char *path, tk_diag *diag)
{
    size_t pixels;
    const size_t start = HEADER + round_up(c->count);
    if (!tk_mul_size(c->count, canvas_bytes(c), &pixels) || pixels > SIZE_MAX / 2)
        return tk_fail(diag, TK_LIMIT, "canvases: too many images");
    c->size = start + pixels;
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return tk_fail_errno(diag, "canvases %s", path);
    struct stat st;
    int failed = fstat(fd, &st) != 0;
    if (!failed && (size_t)st.st_size != c->size) failed = ftruncate(fd, 0) != 0;
    if (!failed) {
        errno = posix_fallocate(fd, 0, (off_t)c->size);
        failed = errno != 0;
    }
    if (!failed) {
        void *base = mmap(NULL, c->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        failed = base == MAP_FAILED;
        if (!failed) c->base = base;
    }
    const tk_err err = failed ? tk_fail_errno(diag, "canvases %s", path) : TK_OK;
    close(fd);
    if (err != TK_OK) return err;
    c->ok = c->base + HEADER;
    c->pixels = c->base + start;
    return TK_OK;
}

typedef struct decode_job {
    const tk_pack *pack;
    tk_canvases *canvases;
    size_t first;
} decode_job;

static void decode_one(void *ctx, size_t task, size_t thread)
{
    (void)thread;
    const decode_job *job = ctx;
    tk_canvases *c = job->canvases;
    const size_t i = job->first + task;
    const tk_pack_item item = tk_pack_get(job->pack, i);
    tk_image image = {0};
    tk_err err = tk_image_decode(&image, item.data, item.size, NULL, c->preproc.resize, NULL);
    if (err == TK_OK)
        err =
            tk_preproc_canvas(&c->preproc, &image, c->side, c->pixels + i * canvas_bytes(c), NULL);
    tk_image_fini(&image);
    c->ok[i] = err == TK_OK ? DECODED : err == TK_NOMEM ? STARVED : BROKEN;
}

static tk_err decode_all(tk_canvases *c, const tk_pack *pack, tk_pool *pool, const tk_watch *watch,
                         tk_diag *diag)
{
    header *h = (header *)(void *)c->base;
    h->complete = 0;
    for (size_t first = 0; first < c->count; first += CHUNK) {
        if (tk_watch_cancelled(watch)) return TK_CANCELLED;
        decode_job job = {pack, c, first};
        const size_t n = c->count - first < CHUNK ? c->count - first : CHUNK;
        tk_pool_run(pool, n, decode_one, &job);
        if (memchr(c->ok + first, STARVED, n))
            return tk_fail(diag, TK_NOMEM, "canvases: out of memory while decoding");
        tk_watch_progress(watch, first + n, c->count);
    }
    *h = (header){.count = c->count, .side = c->side};
    memcpy(h->magic, "TKCANV1", 8);
    if (msync(c->base, c->size, MS_SYNC) != 0) return tk_fail_errno(diag, "canvases");
    h->complete = 1;
    if (msync(c->base, HEADER, MS_SYNC) != 0) return tk_fail_errno(diag, "canvases");
    return TK_OK;
}

tk_err tk_canvases_open(tk_canvases **out, const char *path, const tk_pack *pack,
                        const tk_preproc *preproc, unsigned side, tk_pool *pool,
                        const tk_watch *watch, tk_diag *diag)
{
    *out = NULL;
    assert(side >= preproc->crop && side <= preproc->resize);
    tk_canvases *c = tk_calloc(1, sizeof *c);
    if (!c) return tk_fail(diag, TK_NOMEM, "canvases: out of memory");
    c->count = tk_pack_count(pack);
    c->side = side;
    c->preproc = *preproc;
    tk_err err = map_file(c, path, diag);
    if (err == TK_OK && !is_complete(c)) err = decode_all(c, pack, pool, watch, diag);
    if (err != TK_OK) {
        tk_canvases_close(c);
        return err;
    }
    *out = c;
    return TK_OK;
}

void tk_canvases_close(tk_canvases *canvases)
{
    if (!canvases) return;
    if (canvases->base) munmap(canvases->base, canvases->size);
    tk_free(canvases);
}

size_t tk_canvases_count(const tk_canvases *canvases)
{
    return canvases->count;
}

bool tk_canvases_ok(const tk_canvases *canvases, size_t image)
{
    return canvases->ok[image] == DECODED;
}

typedef struct render_job {
    const tk_canvases *canvases;
    const tk_cut *cut;
    float *x;
} render_job;

static void render_one(void *ctx, size_t task, size_t thread)
{
    (void)thread;
    const render_job *job = ctx;
    const tk_canvases *c = job->canvases;
    const tk_cut *cut = job->cut;
    const uint32_t image = cut->images[task];
    const size_t floats = (size_t)c->preproc.crop * c->preproc.crop * 3;
    const tk_view view = cut->augment ? tk_view_random(&c->preproc, c->side, cut->augment,
                                                       cut->seed, image, cut->views[task])
                                      : tk_view_centre(&c->preproc, c->side);
    tk_view_render(&c->preproc, c->pixels + image * canvas_bytes(c), c->side, &view,
                   job->x + task * floats);
}

void tk_canvases_render(const tk_canvases *canvases, const tk_cut *cut, size_t n, float *x,
                        tk_pool *pool)
{
    render_job job = {canvases, cut, x};
    tk_pool_run(pool, n, render_one, &job);
}
