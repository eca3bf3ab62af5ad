/* The linear layer on the matrix product kernel: one operand is packed into a panel on the stack, a
 * block of its rows at a time. Packing does not pay for a single image, whose rows are read in
 * place. */
#include "engine/linear.h"

#include <assert.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/sizes.h"

enum { BLOCK_K = 192 };

/* Element (p, j) of the rows x cols block at src, zero-padded to `width` columns. Columns that lie
 * apart are taken 16 elements at a time, so that each cache line is read once. */
static void pack_block(size_t rows, size_t cols, size_t width, const float *src, size_t rs,
                       size_t cs, float *panel)
{
    for (size_t p = 0; p < rows; p++)
        memset(panel + p * width + cols, 0, (width - cols) * sizeof *panel);
    if (cs == 1) {
        for (size_t p = 0; p < rows; p++)
            memcpy(panel + p * width, src + p * rs, cols * sizeof *panel);
        return;
    }
    for (size_t p0 = 0; p0 < rows; p0 += 16)
        for (size_t j = 0; j < cols; j++)
            for (size_t p = p0; p < tk__min_size(p0 + 16, rows); p++)
                panel[p * width + j] = src[p * rs + j * cs];
}

/* c[m][n] (+)= a b (+ bias): a[i * a_rs + p * a_cs] with one stride 1, b[p * b_rs + j * b_cs]. */
typedef struct product {
    size_t m, n, k;
    const float *a;
    size_t a_rs, a_cs;
    const float *b;
    size_t b_rs, b_cs;
    float *c; /* rows of n */
    bool accumulate;
    const float *bias;
} product;

static void multiply(const product *q)
{
    _Alignas(64) float panel[BLOCK_K * TK__NR_MAX];
    const tk__kernels *kn = tk__kernels_get();
    for (size_t j = 0; j < q->n; j += kn->nr) {
        const size_t cols = tk__min_size(kn->nr, q->n - j), width = tk__panel_width(kn, cols);
        size_t k0 = 0;
        do {
            const size_t kc = tk__min_size(BLOCK_K, q->k - k0);
            pack_block(kc, cols, width, q->b + k0 * q->b_rs + j * q->b_cs, q->b_rs, q->b_cs, panel);
            kn->gemm(&(tk__gemm){.m = q->m,
                                 .n = cols,
                                 .k = kc,
                                 .a = q->a + k0 * q->a_cs,
                                 .rs = q->a_rs,
                                 .cs = q->a_cs,
                                 .b = panel,
                                 .ldb = width,
                                 .c = q->c + j,
                                 .ldc = q->n,
                                 .accumulate = q->accumulate || k0 > 0,
                                 .bias = q->bias != NULL && k0 == 0 ? q->bias + j : NULL});
            k0 += kc;
        } while (k0 < q->k);
    }
}

void tk_linear_forward(size_t n, size_t f, size_t c, const float *x, const float *w, const float *b,
                       float *y)
{
    if (n == 1) {
        tk__kernels_get()->matvec(c, f, w, x, b, y);
        return;
    }
    multiply(&(product){.m = n,
                        .n = c,
                        .k = f,
                        .a = x,
                        .a_rs = f,
                        .a_cs = 1,
                        .b = w,
                        .b_rs = 1,
                        .b_cs = f,
                        .c = y,
                        .bias = b});
}

void tk_linear_backward(size_t n, size_t f, size_t c, const float *x, const float *w,
                        const float *dy, float *dx, int accumulate_dx, float *dw, float *db)
{
    assert((dw == NULL) == (db == NULL));
    if (dx != NULL)
        multiply(&(product){.m = n,
                            .n = f,
                            .k = c,
                            .a = dy,
                            .a_rs = c,
                            .a_cs = 1,
                            .b = w,
                            .b_rs = f,
                            .b_cs = 1,
                            .c = dx,
                            .accumulate = accumulate_dx != 0});
    if (dw == NULL) return;
    multiply(&(product){.m = c,
                        .n = f,
                        .k = n,
                        .a = dy,
                        .a_rs = 1,
                        .a_cs = c,
                        .b = x,
                        .b_rs = f,
                        .b_cs = 1,
                        .c = dw});
    memset(db, 0, c * sizeof *db);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < c; j++)
            db[j] += dy[i * c + j];
}
