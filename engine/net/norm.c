/* Batch norm: merging of statistics, application, backward (Ioffe & Szegedy 1502.03167). */
#include "net/norm.h"

#include <math.h>
#include <string.h>

enum { MAX_CHUNKS = 64, CHUNK_FLOATS = 16384 };

void tk__bn_merge(size_t blocks, size_t block_rows, size_t rows, size_t c, const float *pairs,
                  float *mean, float *invstd, float *running_mean, float *running_var)
{
    for (size_t j = 0; j < c; j++) {
        double n = 0, m = 0, m2 = 0;
        for (size_t b = 0; b < blocks; b++) {
            const double nb = (double)tk__min_size(block_rows, rows - b * block_rows);
            const double d = (double)pairs[2 * b * c + j] - m, all = n + nb;
            m += d * nb / all;
            m2 += (double)pairs[(2 * b + 1) * c + j] + d * d * n * nb / all;
            n = all;
        }
        const double unbiased = rows > 1 ? m2 / (n - 1) : 0.0;
        mean[j] = (float)m;
        invstd[j] = (float)(1.0 / sqrt(m2 / n + (double)TK__BN_EPS));
        running_mean[j] += TK__BN_MOMENTUM * ((float)m - running_mean[j]);
        running_var[j] += TK__BN_MOMENTUM * ((float)unbiased - running_var[j]);
    }
}

void tk__bn_coefficients(size_t c, const float *gamma, const float *beta, const float *mean,
                         const float *invstd, float *scale, float *shift)
{
    for (size_t j = 0; j < c; j++) {
        scale[j] = gamma[j] * invstd[j];
        shift[j] = beta[j] - mean[j] * scale[j];
    }
}

typedef struct apply_state {
    const tk__kernels *kn;
    size_t rows, c, chunk;
    const float *u, *scale, *shift, *residual;
    bool relu;
    float *y;
} apply_state;

static void apply_task(void *ctx, size_t task, size_t thread)
{
    const apply_state *s = ctx;
    (void)thread;
    const size_t r0 = task * s->chunk, at = r0 * s->c;
    s->kn->bn_apply(tk__min_size(s->chunk, s->rows - r0), s->c, s->u + at, s->scale, s->shift,
                    s->residual != NULL ? s->residual + at : NULL, s->relu, s->y + at);
}

void tk__bn_apply(const tk__exec *ex, size_t rows, size_t c, const float *u, const float *scale,
                  const float *shift, const float *residual, bool relu, float *y)
{
    apply_state s = {.kn = ex->kn,
                     .rows = rows,
                     .c = c,
                     .chunk = tk__div_up(CHUNK_FLOATS, c),
                     .u = u,
                     .scale = scale,
                     .shift = shift,
                     .residual = residual,
                     .relu = relu,
                     .y = y};
    tk_pool_run(ex->pool, tk__div_up(rows, s.chunk), apply_task, &s);
}

/* --- backward --- */

typedef struct back_state {
    const tk__kernels *kn;
    const tk__bn_backward *b;
    size_t chunk;
} back_state;

static size_t chunk_rows(size_t rows, size_t c)
{
    const size_t least = tk__div_up(CHUNK_FLOATS, c), even = tk__div_up(rows, MAX_CHUNKS);
    return least > even ? least : even;
}

size_t tk__bn_sums(size_t rows, size_t c, size_t samples)
{
    const size_t chunks = tk__min_size(MAX_CHUNKS, tk__div_up(rows, tk__div_up(CHUNK_FLOATS, c)));
    return 2 * c * (chunks > samples ? chunks : samples);
}

static tk__mask mask_at(const tk__mask *m, size_t at)
{
    return (tk__mask){m->act != NULL ? m->act + at : NULL, m->scale, m->shift};
}

/* The sums of one chunk, and du where it needs no sums. */
static void reduce_task(void *ctx, size_t task, size_t thread)
{
    const back_state *s = ctx;
    const tk__bn_backward *b = s->b;
    (void)thread;
    const size_t c = b->c, r0 = task * s->chunk, at = r0 * c;
    const size_t rows = tk__min_size(s->chunk, b->rows - r0);
    const tk__mask mask = mask_at(&b->mask, at);
    float *g_out = b->g_out != NULL ? b->g_out + at : NULL;
    float *sum_g = b->sums + task * 2 * c, *sum_gu = sum_g + c;
    memset(sum_g, 0, 2 * c * sizeof *sum_g);
    if (b->batch)
        s->kn->bn_reduce(rows, c, b->dy + at, &mask, b->u + at, b->mean, g_out, sum_g, sum_gu);
    else
        s->kn->bn_frozen(rows, c, b->dy + at, &mask, b->u + at, b->mean, b->coef, g_out, b->du + at,
                         sum_g, sum_gu);
}

static void dx_task(void *ctx, size_t task, size_t thread)
{
    const back_state *s = ctx;
    const tk__bn_backward *b = s->b;
    (void)thread;
    const size_t c = b->c, r0 = task * s->chunk, at = r0 * c;
    /* a masked copy, where there is one, spares the mask */
    const float *dy = b->g_out != NULL ? b->g_out + at : b->dy + at;
    const tk__mask mask = b->g_out == NULL ? mask_at(&b->mask, at) : (tk__mask){0};
    s->kn->bn_dx(tk__min_size(s->chunk, b->rows - r0), c, dy, &mask, b->u + at, b->coef,
                 b->coef + c, b->coef + 2 * c, b->du + at);
}

static void add_up(const tk__bn_backward *b, size_t chunks)
{
    const size_t c = b->c;
    for (size_t j = 0; j < c; j++) {
        double g = 0, gx = 0;
        for (size_t k = 0; k < chunks; k++) {
            g += (double)b->sums[2 * k * c + j];
            gx += (double)b->sums[(2 * k + 1) * c + j];
        }
        gx *= (double)b->invstd[j]; /* sum of g * xhat */
        b->dbeta[j] = (float)g;
        b->dgamma[j] = (float)gx;
        if (!b->batch) continue;
        /* du = ka (g - mean(g) - xhat mean(g xhat)), as g ka + u kb + kc */
        const double ka = (double)b->gamma[j] * (double)b->invstd[j], m = (double)b->rows;
        const double kb = -ka * (double)b->invstd[j] * gx / m;
        b->coef[j] = (float)ka;
        b->coef[c + j] = (float)kb;
        b->coef[2 * c + j] = (float)(-ka * g / m - kb * (double)b->mean[j]);
    }
}

static void add_up_squares(const tk__bn_backward *b, size_t samples)
{
    const size_t c = b->c;
    for (size_t i = 0; i < samples; i++)
        for (size_t j = 0; j < c; j++) {
            const float g = b->sums[2 * i * c + j];
            const float gx = b->sums[(2 * i + 1) * c + j] * b->invstd[j];
            b->dbeta[j] += g * g;
            b->dgamma[j] += gx * gx;
        }
}

void tk__bn_backward_run(const tk__exec *ex, const tk__bn_backward *b)
{
    back_state s = {.kn = ex->kn,
                    .b = b,
                    .chunk = b->sample_rows != 0 ? b->sample_rows : chunk_rows(b->rows, b->c)};
    const size_t chunks = tk__div_up(b->rows, s.chunk);
    if (!b->batch)
        for (size_t j = 0; j < b->c; j++)
            b->coef[j] = b->gamma[j] * b->invstd[j];
    tk_pool_run(ex->pool, chunks, reduce_task, &s);
    if (b->sample_rows != 0)
        add_up_squares(b, chunks);
    else
        add_up(b, chunks);
    if (b->batch) tk_pool_run(ex->pool, chunks, dx_task, &s);
}
