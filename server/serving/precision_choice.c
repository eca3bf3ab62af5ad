/* See precision_choice.h. */
#include "serving/precision_choice.h"

#include <string.h>
#include <time.h>

#include "engine/mem.h"
#include "engine/rng.h"

enum { RUNS = 4, RUN_IMAGES = 4 }; /* the first run warms up */

const char *tk_precision_wish_name(unsigned wish)
{
    return wish == TK_PRECISION_AUTO ? "auto" : tk_precision_name((tk_precision)wish);
}

tk_err tk_precision_wish_parse(const char *name, unsigned *out, tk_diag *diag)
{
    tk_precision precision = TK_PRECISION_FP32;
    *out = TK_PRECISION_AUTO;
    if (strcmp(name, "auto") == 0) return TK_OK;
    const tk_err err = tk_precision_parse(name, &precision, diag);
    *out = precision;
    return err;
}

static double now_ms(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

/* The shortest run: other work on the machine only ever adds. */
static double measure(tk_plan *plan, size_t n, const float *x, float *features)
{
    double best = 0;
    for (int run = 0; run < RUNS; run++) {
        const double begun = now_ms();
        tk_plan_run(plan, n, x, features);
        const double took = now_ms() - begun;
        if (run == 1 || (run > 1 && took < best)) best = took;
    }
    return best;
}

/* One plan after the other, of which the fastest so far is kept in *out. x and features are for
 * choice->images. */
static tk_err race(tk_plan **out, const tk_model *model, size_t max_batch, tk_pool *pool,
                   const float *x, float *features, tk_precision_choice *choice, tk_diag *diag)
{
    for (tk_precision p = TK_PRECISION_FP32; p < TK_PRECISION_COUNT; p++) {
        tk_plan *plan;
        if (!choice->admitted[p] || !tk_precision_native(p)) continue;
        const tk_err err = tk_plan_create_as(&plan, model->trunk, model->preproc.crop, max_batch, p,
                                             &model->ranges, pool, diag);
        if (err != TK_OK) return err;
        choice->ms[p] = measure(plan, choice->images, x, features);
        const bool faster = !*out || choice->ms[p] < choice->ms[choice->served];
        tk_plan_destroy(faster ? *out : plan);
        if (!faster) continue;
        *out = plan;
        choice->served = p;
    }
    return TK_OK;
}

static tk_err choose_fastest(tk_plan **out, const tk_model *model, size_t max_batch, tk_pool *pool,
                             tk_precision_choice *choice, tk_diag *diag)
{
    const size_t n = max_batch < RUN_IMAGES ? max_batch : RUN_IMAGES;
    const size_t floats = n * model->preproc.crop * model->preproc.crop * 3;
    float *x = tk_aligned_calloc(floats, sizeof *x);
    float *features = tk_aligned_calloc(n * tk_arch_features(model->trunk->arch), sizeof *features);
    tk_err err = x && features ? TK_OK : tk_fail(diag, TK_NOMEM, "no memory to measure precisions");
    for (size_t i = 0; err == TK_OK && i < floats; i++)
        x[i] = tk_rng_uniform(1, 0, i) - 0.5F;
    choice->images = n;
    if (err == TK_OK) err = race(out, model, max_batch, pool, x, features, choice, diag);
    tk_free(x);
    tk_free(features);
    return err;
}

tk_err tk_precision_choose(tk_plan **out, const tk_model *model, unsigned asked, size_t max_batch,
                           tk_pool *pool, tk_precision_choice *choice, tk_diag *diag)
{
    *out = NULL;
    *choice = (tk_precision_choice){.asked = asked, .served = TK_PRECISION_FP32};
    for (tk_precision p = TK_PRECISION_FP32; p < TK_PRECISION_COUNT; p++)
        choice->admitted[p] = tk_model_admits(model, p, &choice->refused[p]);
    if (asked == TK_PRECISION_AUTO) {
        const tk_err err = choose_fastest(out, model, max_batch, pool, choice, diag);
        if (err == TK_OK) return TK_OK;
        tk_plan_destroy(*out);
        *out = NULL;
        return err;
    }
    if (choice->admitted[asked]) choice->served = (tk_precision)asked;
    return tk_plan_create_as(out, model->trunk, model->preproc.crop, max_batch, choice->served,
                             &model->ranges, pool, diag);
}
