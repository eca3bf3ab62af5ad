/* Do convolutions by Winograd answer as direct ones do? A trained version on real images:
 *
 *     winograd_check VERSION PACK...
 *
 * VERSION is a safetensors file (`trunkctl version export`), a PACK is made by `trunkd-trainer pack
 * FOLDER PACK`. Prints for each head of the version how many images get another top-1 class, and
 * the largest difference of logits relative to the image's largest logit. Exit status 1: more than
 * 1 image in 1,000 differs, or logits by more than 1e-4. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"
#include "engine/linear.h"
#include "engine/mem.h"
#include "engine/plan.h"
#include "heads/model.h"
#include "heads/pack.h"

enum { BATCH = 32 };

/* What a head's answers came to. */
typedef struct tally {
    size_t images, differ;
    double worst;
} tally;

typedef struct check {
    const tk_model *model;
    tk_plan *winograd, *direct;
    float *x, *features[2], *logits[2];
    tally *heads; /* [model->n_heads] */
    size_t skipped;
} check;

static size_t top1(const float *logits, size_t classes)
{
    size_t best = 0;
    for (size_t c = 1; c < classes; c++)
        if (logits[c] > logits[best]) best = c;
    return best;
}

static void compare(tally *t, size_t classes, const float *a, const float *b)
{
    float most = 0, apart = 0;
    for (size_t c = 0; c < classes; c++) {
        most = fmaxf(most, fabsf(b[c]));
        apart = fmaxf(apart, fabsf(a[c] - b[c]));
    }
    t->images++;
    t->differ += top1(a, classes) != top1(b, classes);
    if (apart > 0) t->worst = fmax(t->worst, (double)apart / (double)most);
}

static void run_batch(check *c, size_t n)
{
    const size_t features = tk_arch_features(c->model->trunk->arch);
    tk_plan_run(c->winograd, n, c->x, c->features[0]);
    tk_plan_run(c->direct, n, c->x, c->features[1]);
    for (size_t h = 0; h < c->model->n_heads; h++) {
        const tk_head *head = c->model->heads[h];
        if (head->rank > 0) continue; /* it reads more than features */
        for (int way = 0; way < 2; way++)
            tk_linear_forward(n, features, head->classes, c->features[way], head->weight,
                              head->bias, c->logits[way]);
        for (size_t i = 0; i < n; i++)
            compare(&c->heads[h], head->classes, c->logits[0] + i * head->classes,
                    c->logits[1] + i * head->classes);
    }
}

/* The image as inference sees it; false: it cannot be read. */
static bool prepare(const tk_preproc *preproc, const tk_pack_item *item, float *x)
{
    tk_diag diag;
    tk_image image;
    if (tk_image_decode(&image, item->data, item->size, NULL, preproc->resize, &diag) != TK_OK)
        return false;
    uint8_t *canvas = tk_calloc((size_t)preproc->crop * preproc->crop * 3, 1);
    if (!canvas) bench_die("out of memory");
    const bool fine = tk_preproc_canvas(preproc, &image, preproc->crop, canvas, &diag) == TK_OK;
    const tk_view view = tk_view_centre(preproc, preproc->crop);
    if (fine) tk_view_render(preproc, canvas, preproc->crop, &view, x);
    tk_free(canvas);
    tk_image_fini(&image);
    return fine;
}

static void run_pack(check *c, const char *path)
{
    tk_diag diag;
    tk_pack *pack;
    const tk_preproc *preproc = &c->model->preproc;
    const size_t each = (size_t)preproc->crop * preproc->crop * 3;
    if (tk_pack_open(&pack, path, &diag) != TK_OK) bench_die(diag.text);
    size_t n = 0;
    for (size_t i = 0; i < tk_pack_count(pack); i++) {
        const tk_pack_item item = tk_pack_get(pack, i);
        if (prepare(preproc, &item, c->x + n * each))
            n++;
        else
            c->skipped++;
        if (n < BATCH && i + 1 < tk_pack_count(pack)) continue;
        if (n > 0) run_batch(c, n);
        n = 0;
    }
    tk_pack_close(pack);
}

static void make(check *c, tk_pool *pool)
{
    tk_diag diag;
    const tk_params *trunk = c->model->trunk;
    const unsigned px = c->model->preproc.crop;
    size_t widest = 1;
    for (size_t h = 0; h < c->model->n_heads; h++)
        if (c->model->heads[h]->classes > widest) widest = c->model->heads[h]->classes;
    if (tk_plan_create(&c->winograd, trunk, px, BATCH, pool, &diag) != TK_OK ||
        tk_plan_create_direct(&c->direct, trunk, px, BATCH, pool, &diag) != TK_OK)
        bench_die(diag.text);
    c->x = bench_floats((size_t)BATCH * px * px * 3);
    for (int way = 0; way < 2; way++) {
        c->features[way] = bench_floats(BATCH * tk_arch_features(trunk->arch));
        c->logits[way] = bench_floats(BATCH * widest);
    }
    c->heads = tk_calloc(c->model->n_heads + 1, sizeof *c->heads);
    if (!c->heads) bench_die("out of memory");
}

static bool report(const check *c)
{
    bool fine = true;
    char text[200];
    tk_plan_describe(c->winograd, text, sizeof text);
    printf("%s\nagainst direct convolutions; %zu images could not be read\n", text, c->skipped);
    for (size_t h = 0; h < c->model->n_heads; h++) {
        const tally *t = &c->heads[h];
        printf("%s: %zu images, %zu with another top-1 class, logits within %.2g\n",
               c->model->heads[h]->id, t->images, t->differ, t->worst);
        fine = fine && t->images > 0 && t->differ * 1000 <= t->images && t->worst <= 1e-4;
    }
    return fine;
}

static void release(check *c)
{
    tk_plan_destroy(c->winograd);
    tk_plan_destroy(c->direct);
    tk_free(c->x);
    for (int way = 0; way < 2; way++) {
        tk_free(c->features[way]);
        tk_free(c->logits[way]);
    }
    tk_free(c->heads);
}

int main(int argc, char **argv)
{
    tk_diag diag;
    tk_pool *pool;
    tk_model *model;
    if (argc < 3) bench_die("usage: winograd_check VERSION PACK...");
    if (tk_model_load(&model, argv[1], false, &diag) != TK_OK) bench_die(diag.text);
    if (tk_pool_create(&pool, 0) != TK_OK) bench_die("no thread pool");
    check c = {.model = model};
    make(&c, pool);
    for (int i = 2; i < argc; i++)
        run_pack(&c, argv[i]);
    const bool fine = report(&c);
    release(&c);
    tk_model_destroy(model);
    tk_pool_destroy(pool);
    return fine ? 0 : 1;
}
