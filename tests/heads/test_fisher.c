/* The Fisher diagonal against a loop over single images with the plain backward pass. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "close.h"
#include "engine/linear.h"
#include "engine/mem.h"
#include "engine/rng.h"
#include "fixture.h"
#include "heads/fisher.h"
#include "heads/loss.h"

enum { PX = 32, FLOATS = PX * PX * 3, IMAGES = 6, C = FIXTURE_CLASSES };

typedef struct setup {
    tk_model *model;
    tk_pack *pack;
    tk_canvases *canvases;
    uint32_t images[IMAGES], labels[IMAGES];
    tk_graph *graph; /* batches of 4: the six images are a whole one and a part */
    float *fisher, *wanted, *gradient;
} setup;

static setup s;

static int open_all(void **state)
{
    (void)state;
    const tk_preproc preproc = fixture_preproc();
    const char *path = fixture_path("fisher.pack");
    s.model = fixture_model(11, 1, (const char *const[]){"a"});
    for (size_t i = 0; i < (size_t)C * 64; i++)
        s.model->heads[0]->weight[i] *= 0.2f; /* unsure: a draw is not the likeliest class */
    fixture_pack(path, FIXTURE_COLOUR, IMAGES, 1);
    assert_int_equal(tk_pack_open(&s.pack, path, NULL), TK_OK);
    assert_int_equal(tk_canvases_open(&s.canvases, fixture_path("fisher.canvas"), s.pack, &preproc,
                                      PX, fixture_pool(), NULL, NULL),
                     TK_OK);
    for (uint32_t i = 0; i < IMAGES; i++) {
        s.images[i] = i;
        s.labels[i] = tk_pack_get(s.pack, i).label;
    }
    assert_int_equal(tk_graph_create(&s.graph, TK_RESNET20, PX, 4, fixture_pool(), NULL), TK_OK);
    s.fisher = tk_aligned_calloc(s.model->trunk->trained, sizeof(float));
    s.wanted = tk_aligned_calloc(s.model->trunk->trained, sizeof(float));
    s.gradient = tk_aligned_calloc(s.model->trunk->trained, sizeof(float));
    return s.fisher && s.wanted && s.gradient ? 0 : -1;
}

static int close_all(void **state)
{
    (void)state;
    tk_free(s.fisher);
    tk_free(s.wanted);
    tk_free(s.gradient);
    tk_graph_destroy(s.graph);
    tk_canvases_close(s.canvases);
    tk_pack_close(s.pack);
    tk_model_destroy(s.model);
    tk_pool_destroy(fixture_pool());
    fixture_clean();
    return 0;
}

/* p(y | image) by a pass over this image alone; the graph is then ready for its backward pass. */
static void probabilities_of(uint32_t image, float p[C])
{
    static float x[FLOATS];
    const tk_head *head = s.model->heads[0];
    const tk_cut cut = {.images = &image};
    const float *features;
    tk_canvases_render(s.canvases, &cut, 1, x, fixture_pool());
    tk_graph_forward(s.graph, s.model->trunk, 1, x, TK_BN_FROZEN, &features);
    tk_linear_forward(1, head->features, C, features, head->weight, head->bias, p);
    tk_softmax(C, p, 1, p);
}

/* wanted += weight * (d log p(y) / d theta)^2 */
static void add_square(const float p[C], uint32_t y, double weight)
{
    const tk_head *head = s.model->heads[0];
    float dlogits[C], dfeatures[64];
    for (uint32_t k = 0; k < C; k++)
        dlogits[k] = p[k] - (k == y ? 1.0f : 0.0f);
    for (size_t f = 0; f < head->features; f++) {
        dfeatures[f] = 0;
        for (size_t k = 0; k < C; k++)
            dfeatures[f] += dlogits[k] * head->weight[k * 64 + f];
    }
    tk_graph_backward(s.graph, s.model->trunk, dfeatures, s.gradient);
    for (size_t j = 0; j < s.model->trunk->trained; j++)
        s.wanted[j] += (float)(weight * (double)s.gradient[j] * (double)s.gradient[j] / IMAGES);
}

static double compute(tk_fisher_labels rule)
{
    const tk_preproc preproc = fixture_preproc();
    const tk_fisher_opts opts = {.head = s.model->heads[0],
                                 .canvases = s.canvases,
                                 .n = IMAGES,
                                 .images = s.images,
                                 .labels = s.labels,
                                 .rule = rule,
                                 .seed = 9,
                                 .max_batch = 4};
    double scale;
    assert_int_equal(tk_fisher_compute(s.graph, s.model->trunk, &preproc, &opts, fixture_pool(),
                                       s.fisher, &scale, NULL),
                     TK_OK);
    return scale;
}

/* Compares fisher * scale with wanted, by the error's norm, and checks that the mean is 1. */
static void assert_matches(double scale)
{
    const tk_params *trunk = s.model->trunk;
    double error = 0, norm = 0, sum = 0, weights = 0;
    for (size_t j = 0; j < trunk->trained; j++) {
        const double d = (double)s.fisher[j] * scale - (double)s.wanted[j];
        error += d * d;
        norm += (double)s.wanted[j] * (double)s.wanted[j];
        sum += (double)s.fisher[j];
        assert_true(s.fisher[j] >= 0);
    }
    for (size_t t = 0; t < trunk->tensors; t++)
        if (trunk->table[t].offset < trunk->trained) weights += (double)trunk->table[t].count;
    assert_true(norm > 0);
    assert_true(sqrt(error / norm) < 1e-4);
    assert_close(sum / weights, 1, 1e-4);
}

static void empirical_rule_squares_each_images_own_gradient(void **state)
{
    (void)state;
    memset(s.wanted, 0, s.model->trunk->trained * sizeof(float));
    for (uint32_t i = 0; i < IMAGES; i++) {
        float p[C];
        probabilities_of(i, p);
        add_square(p, s.labels[i], 1);
    }
    assert_matches(compute(TK_FISHER_EMPIRICAL));
}

static void exact_rule_enumerates_the_classes(void **state)
{
    (void)state;
    memset(s.wanted, 0, s.model->trunk->trained * sizeof(float));
    for (uint32_t i = 0; i < IMAGES; i++) {
        float p[C];
        probabilities_of(i, p);
        for (uint32_t y = 0; y < C; y++)
            add_square(p, y, (double)p[y]);
    }
    assert_matches(compute(TK_FISHER_EXACT));
}

static void sample_rule_draws_from_the_models_answer(void **state)
{
    (void)state;
    const uint64_t stream = tk_rng_stream("fisher");
    size_t unlikely = 0;
    memset(s.wanted, 0, s.model->trunk->trained * sizeof(float));
    for (uint32_t i = 0; i < IMAGES; i++) {
        float p[C];
        uint32_t y = 0;
        probabilities_of(i, p);
        const float u = tk_rng_uniform(9, stream, i);
        for (double below = (double)p[0]; (double)u >= below && y < C - 1;)
            below += (double)p[++y];
        add_square(p, y, 1);
        for (uint32_t k = 0; k < C; k++)
            unlikely += p[k] > p[y];
    }
    assert_true(unlikely > 0); /* else the likeliest class would do as well */
    assert_matches(compute(TK_FISHER_SAMPLE));
}

/* The most reported mistake: the square of the sum is another vector. */
static void it_is_not_the_square_of_the_batch_gradient(void **state)
{
    (void)state;
    const double scale = compute(TK_FISHER_EMPIRICAL);
    const size_t n = s.model->trunk->trained;
    double apart = 0, together = 0;
    memset(s.wanted, 0, n * sizeof(float));
    for (uint32_t i = 0; i < IMAGES; i++) {
        float p[C];
        probabilities_of(i, p);
        const tk_head *head = s.model->heads[0];
        float dfeatures[64] = {0};
        for (size_t f = 0; f < 64; f++)
            for (uint32_t k = 0; k < C; k++)
                dfeatures[f] +=
                    (p[k] - (k == s.labels[i] ? 1.0f : 0.0f)) * head->weight[k * 64 + f];
        tk_graph_backward(s.graph, s.model->trunk, dfeatures, s.gradient);
        for (size_t j = 0; j < n; j++)
            s.wanted[j] += s.gradient[j] / IMAGES;
    }
    for (size_t j = 0; j < n; j++) {
        apart += (double)s.fisher[j] * scale;
        together += (double)s.wanted[j] * (double)s.wanted[j];
    }
    assert_true(apart > 1.2 * together);
}

static void the_pass_changes_no_weight_and_no_statistic(void **state)
{
    (void)state;
    tk_params *before;
    assert_int_equal(tk_params_clone(&before, s.model->trunk), TK_OK);
    compute(TK_FISHER_SAMPLE);
    assert_memory_equal(before->data, s.model->trunk->data, before->count * sizeof(float));
    tk_params_destroy(before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(empirical_rule_squares_each_images_own_gradient),
        cmocka_unit_test(exact_rule_enumerates_the_classes),
        cmocka_unit_test(sample_rule_draws_from_the_models_answer),
        cmocka_unit_test(it_is_not_the_square_of_the_batch_gradient),
        cmocka_unit_test(the_pass_changes_no_weight_and_no_statistic),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
