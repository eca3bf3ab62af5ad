/* A request for inference: made, its images turned into canvases, counted, freed. What happens to
 * it in between is batcher.c's. */
#include <string.h>

#include "clock.h"
#include "engine/mem.h"
#include "serving/batcher_internal.h"

tk_err tk_infer_create(tk_infer **out, tk_snapshot *snapshot, size_t n_images, size_t n_heads,
                       const tk_head *const *heads, size_t top_k)
{
    *out = NULL;
    tk_infer *r = tk_calloc(1, sizeof *r);
    if (!r) return TK_NOMEM;
    r->snapshot = tk_snapshot_ref(snapshot);
    r->n_images = n_images;
    r->n_heads = n_heads;
    r->deadline_ns = INT64_MAX;
    r->priority = TK_PRIORITY_DEFAULT;
    r->images = tk_calloc(n_images, sizeof *r->images);
    r->heads = tk_calloc(n_heads, sizeof *r->heads);
    r->k = tk_calloc(n_heads, sizeof *r->k);
    size_t per_image = 0, total = 0;
    for (size_t h = 0; r->heads && r->k && h < n_heads; h++) {
        r->heads[h] = heads[h];
        r->k[h] = top_k == 0 ? 1 : top_k < heads[h]->classes ? top_k : heads[h]->classes;
        per_image += r->k[h];
    }
    if (tk_mul_size(per_image, n_images, &total)) r->tops = tk_calloc(total, sizeof *r->tops);
    if (!r->images || !r->heads || !r->k || !r->tops) {
        tk_infer_destroy(r);
        return TK_NOMEM;
    }
    for (size_t i = 0; i < n_images; i++) {
        r->images[i].infer = r;
        r->images[i].top = r->tops + i * per_image;
    }
    *out = r;
    return TK_OK;
}

void tk_infer_destroy(tk_infer *r)
{
    if (!r) return;
    for (size_t i = 0; r->images && i < r->n_images; i++)
        tk_free(r->images[i].error);
    tk_snapshot_unref(r->snapshot);
    tk_free(r->images);
    tk_free(r->heads);
    tk_free(r->k);
    tk_free(r->tops);
    tk_free(r);
}

void tk_infer_tally(const tk_infer *r, bool ok)
{
    tk_request_times t = {.total_ns = tk_now_ns() - r->submitted_ns};
    for (size_t i = 0; i < r->n_images; i++) {
        t.queue_ns += r->images[i].queue_ns;
        t.decode_ns += r->images[i].decode_ns;
        t.trunk_ns += r->images[i].trunk_ns;
        t.heads_ns += r->images[i].heads_ns;
    }
    const int64_t n = (int64_t)r->n_images;
    t = (tk_request_times){t.total_ns, t.queue_ns / n, t.decode_ns / n, t.trunk_ns / n,
                           t.heads_ns / n};
    for (size_t h = 0; h < r->n_heads; h++)
        tk_snapshot_tally(r->snapshot, r->heads[h], ok, r->n_images, &t);
}

/* -- canvases -- */

static tk_err make_canvas(const tk_preproc *p, const tk_image *rgb, tk_infer_image *image,
                          tk_diag *diag)
{
    image->canvas = tk_calloc((size_t)p->crop * p->crop, 3);
    return image->canvas ? tk_preproc_canvas(p, rgb, p->crop, image->canvas, diag) : TK_NOMEM;
}

/* [3][crop][crop] to [crop][crop][3], which takes the canvas' place. Not-a-numbers and infinities
 * would spoil the trunk's low precisions, so they end here. */
static tk_err take_planes(const tk_preproc *p, tk_infer_image *image, tk_diag *diag)
{
    const size_t area = (size_t)p->crop * p->crop;
    float *out = tk_calloc(area, 3 * sizeof *out);
    if (!out) return TK_NOMEM;
    image->canvas = (uint8_t *)out;
    for (size_t c = 0; c < 3; c++)
        for (size_t i = 0; i < area; i++) {
            float x;
            memcpy(&x, (const char *)image->data + (c * area + i) * sizeof x, sizeof x);
            if (!(x >= -TK_PLANES_MAX && x <= TK_PLANES_MAX))
                return tk_fail(diag, TK_BADDATA, "value %zu is %g, the limit is +-%g", c * area + i,
                               (double)x, (double)TK_PLANES_MAX);
            out[i * 3 + c] = x;
        }
    return TK_OK;
}

tk_err tk__infer_decode(tk_infer_image *image, const tk_image_limits *limits)
{
    const tk_preproc *p = tk_snapshot_preproc(image->infer->snapshot);
    tk_diag diag = {{0}};
    tk_image rgb = {.w = image->w, .h = image->h};
    tk_err err;
    if (image->form == TK_IMAGE_PLANES) {
        err = take_planes(p, image, &diag);
    } else if (image->form == TK_IMAGE_PIXELS) {
        memcpy(&rgb.rgb, &image->data, sizeof rgb.rgb); /* only read */
        err = make_canvas(p, &rgb, image, &diag);
    } else {
        err = tk_image_decode(&rgb, image->data, image->size, limits, p->resize, &diag);
        if (err == TK_OK) {
            err = make_canvas(p, &rgb, image, &diag);
            tk_image_fini(&rgb);
        }
    }
    if (err == TK_OK) return TK_OK;
    tk_free(image->canvas);
    image->canvas = NULL;
    if (err == TK_NOMEM) return err;
    image->error = tk_strdup(diag.text[0] ? diag.text : tk_err_text(err));
    return image->error ? TK_OK : TK_NOMEM;
}
