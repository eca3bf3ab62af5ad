/* Golden files and the networks they belong to; see parity.h. The rules for start values, images
 * and labels are those of values(), images() and labels() in tests/golden/make_golden.py. */
#include "parity.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/isa.h"
#include "engine/mem.h"
#include "engine/rng.h"

enum { KEY_MAX = 64 };

typedef struct entry {
    char key[KEY_MAX];
    size_t n;
    double *numbers;
} entry;

struct golden {
    size_t n;
    entry *entries;
};

/* "key number number ..."; the text is cut up. */
static void parse_line(entry *e, char *line)
{
    char *rest = strchr(line, ' ');
    assert_non_null(rest);
    *rest++ = '\0';
    assert_true(strlen(line) < KEY_MAX);
    strcpy(e->key, line);
    size_t most = strlen(rest) / 2 + 1;
    e->numbers = tk_calloc(most, sizeof *e->numbers);
    assert_non_null(e->numbers);
    for (char *end; e->n < most; rest = end) {
        double number = strtod(rest, &end);
        if (end == rest) break;
        e->numbers[e->n++] = number;
    }
    assert_true(e->n > 0);
}

golden *golden_open(const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/tests/golden/%s.txt", TRUNKD_SOURCE_DIR, name);
    FILE *file = fopen(path, "r");
    if (!file) fail_msg("cannot open %s", path);
    golden *g = tk_calloc(1, sizeof *g);
    assert_non_null(g);
    char *line = NULL;
    size_t room = 0;
    while (getline(&line, &room, file) > 0) {
        if (line[0] == '#') continue;
        g->entries = tk_realloc(g->entries, (g->n + 1) * sizeof *g->entries);
        assert_non_null(g->entries);
        memset(&g->entries[g->n], 0, sizeof *g->entries);
        parse_line(&g->entries[g->n++], line);
    }
    free(line);
    fclose(file);
    return g;
}

void golden_close(golden *g)
{
    for (size_t i = 0; i < g->n; i++)
        tk_free(g->entries[i].numbers);
    tk_free(g->entries);
    tk_free(g);
}

const double *golden_find(const golden *g, const char *key, size_t *n)
{
    *n = 0;
    for (size_t i = 0; i < g->n; i++) {
        if (strcmp(g->entries[i].key, key) != 0) continue;
        *n = g->entries[i].n;
        return g->entries[i].numbers;
    }
    return NULL;
}

double golden_number(const golden *g, const char *key)
{
    size_t n;
    const double *number = golden_find(g, key, &n);
    if (!number || n != 1) fail_msg("the golden file has no single number %s", key);
    return *number;
}

double golden_distance(const golden *g, const char *prefix, const char *name, const float *disk,
                       size_t count)
{
    char key[2 * KEY_MAX], stream_name[2 * KEY_MAX];
    snprintf(key, sizeof key, "%s%s", prefix, name);
    snprintf(stream_name, sizeof stream_name, "sample.%s", name);
    size_t n;
    const double *want = golden_find(g, key, &n);
    if (!want || n < 2) fail_msg("the golden file has no tensor %s", key);

    uint64_t seed = (uint64_t)golden_number(g, "seed"), stream = tk_rng_stream(stream_name);
    double square = 0, off = 0, whole = 0;
    for (size_t i = 0; i < count; i++)
        square += (double)disk[i] * (double)disk[i];
    for (size_t i = 1; i < n; i++) {
        double have = (double)disk[tk_rng_below(seed, stream, i - 1, (uint32_t)count)];
        off += (have - want[i]) * (have - want[i]);
        whole += want[i] * want[i];
    }
    double norm_error = fabs(sqrt(square) / want[0] - 1), sample_error = sqrt(off / whole);
    /* A NaN must not pass for the smaller one. */
    return norm_error <= sample_error ? sample_error : norm_error;
}

/* Start values of one batch norm vector. */
static void start_bn(float *data, const tk_param *param, uint64_t seed, const golden *g)
{
    char key[2 * KEY_MAX];
    size_t n;
    snprintf(key, sizeof key, "start/%s", param->name);
    const double *given = golden_find(g, key, &n);
    uint64_t stream = tk_rng_stream(param->name);
    for (size_t i = 0; i < param->count; i++) {
        if (param->kind == TK_PARAM_BN_GAMMA)
            data[i] = 0.05f + 0.05f * tk_rng_uniform(seed, stream, i);
        else if (param->kind == TK_PARAM_BN_VAR)
            data[i] = 0.0075f + 0.005f * tk_rng_uniform(seed, stream, i);
        else
            data[i] = given ? (float)given[i] : 0.125f * tk_rng_normal(seed, stream, i);
    }
    if (given) assert_int_equal(n, param->count);
}

static void start_head(parity_net *net, uint64_t seed)
{
    size_t weights = net->classes * net->features;
    net->fc_w = tk_calloc(weights, sizeof *net->fc_w);
    net->fc_b = tk_calloc(net->classes, sizeof *net->fc_b);
    assert_non_null(net->fc_w);
    assert_non_null(net->fc_b);
    float scale = (float)(1 / sqrt((double)net->features));
    for (size_t i = 0; i < weights; i++)
        net->fc_w[i] = scale * tk_rng_normal(seed, tk_rng_stream("fc.weight"), i);
    for (size_t i = 0; i < net->classes; i++)
        net->fc_b[i] = 0.125f * tk_rng_normal(seed, tk_rng_stream("fc.bias"), i);
}

static void draw_images(parity_net *net, uint64_t seed)
{
    const size_t px = net->px;
    net->x = tk_aligned_calloc(net->images * px * px * 3, sizeof *net->x);
    net->y = tk_calloc(net->images, sizeof *net->y);
    assert_non_null(net->x);
    assert_non_null(net->y);
    uint64_t pixels = tk_rng_stream("images"), blocks = tk_rng_stream("blocks");
    for (size_t i = 0; i < net->images * px * px * 3; i++) {
        size_t c = i % 3, column = i / 3 % px, row = i / 3 / px % px, image = i / 3 / px / px;
        size_t block = (image * 8 + row / (px / 8)) * 8 + column / (px / 8);
        net->x[i] = tk_rng_normal(seed, pixels, i) + tk_rng_normal(seed, blocks, block * 3 + c);
    }
    for (size_t i = 0; i < net->images; i++)
        net->y[i] = tk_rng_below(seed, tk_rng_stream("labels"), i, (uint32_t)net->classes);
}

parity_net parity_net_make(const golden *g, tk_arch arch, size_t images)
{
    parity_net net = {
        .px = (unsigned)golden_number(g, "px"),
        .batch = (size_t)golden_number(g, "batch"),
        .classes = (size_t)golden_number(g, "classes"),
        .features = tk_arch_features(arch),
        .images = images,
    };
    uint64_t seed = (uint64_t)golden_number(g, "seed");
    assert_int_equal(tk_params_create(&net.trunk, arch), TK_OK);
    tk_params_init(net.trunk, seed);
    for (size_t t = 0; t < net.trunk->tensors; t++) {
        const tk_param *param = &net.trunk->table[t];
        if (param->kind != TK_PARAM_CONV) start_bn(net.trunk->data + param->offset, param, seed, g);
    }
    start_head(&net, seed);
    draw_images(&net, seed);
    return net;
}

void parity_net_fini(parity_net *net)
{
    tk_params_destroy(net->trunk);
    tk_free(net->fc_w);
    tk_free(net->fc_b);
    tk_free(net->x);
    tk_free(net->y);
}

double parity_cross_entropy(size_t n, size_t c, const float *logits, const uint32_t *y,
                            double smoothing, float *dlogits)
{
    double loss = 0;
    for (size_t i = 0; i < n; i++) {
        const float *z = logits + i * c;
        double top = (double)z[0], sum = 0;
        for (size_t k = 1; k < c; k++)
            top = fmax(top, (double)z[k]);
        for (size_t k = 0; k < c; k++)
            sum += exp((double)z[k] - top);
        for (size_t k = 0; k < c; k++) {
            double log_p = (double)z[k] - top - log(sum);
            double target = (k == y[i] ? 1 - smoothing : 0) + smoothing / (double)c;
            loss -= target * log_p;
            dlogits[i * c + k] = (float)((exp(log_p) - target) / (double)n);
        }
    }
    return loss / (double)n;
}

void parity_each_isa(void (*run)(void *ctx), void *ctx)
{
    static const char *const names[] = {"scalar", "avx2", "avx512"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (tk_isa_select(names[i], NULL) == TK_OK) run(ctx);
    }
    assert_int_equal(tk_isa_select(NULL, NULL), TK_OK);
}

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define PARITY_SANITIZED
#endif
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PARITY_SANITIZED
#endif

bool parity_slow_build(void)
{
#if defined(PARITY_SANITIZED)
    return true;
#else
    return false;
#endif
}

tk_pool *parity_pool(void)
{
    tk_pool *pool;
    assert_int_equal(tk_pool_create(&pool, 2), TK_OK);
    return pool;
}
