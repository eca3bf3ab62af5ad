/* The pass over a job's images, and the projection of a trunk's changes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "close.h"
#include "engine/mem.h"
#include "engine/rng.h"
#include "fixture.h"
#include "heads/projection.h"

enum { PX = 32, IMAGES = 6, FLOATS = PX * PX * 3, LIMIT = 4 << 20 };

typedef struct setup {
    tk_model *model;
    tk_pack *pack;
    tk_canvases *canvases;
    uint32_t images[IMAGES];
    tk_graph *graph; /* batches of 4: the six images are a whole one and a part */
} setup;

static setup s;

static int open_all(void **state)
{
    (void)state;
    const tk_preproc preproc = fixture_preproc();
    const char *path = fixture_path("inputs.pack");
    s.model = fixture_model(11, 0, NULL);
    fixture_pack(path, FIXTURE_COLOUR, IMAGES, 1);
    assert_int_equal(tk_pack_open(&s.pack, path, NULL), TK_OK);
    assert_int_equal(tk_canvases_open(&s.canvases, fixture_path("inputs.canvas"), s.pack, &preproc,
                                      PX, fixture_pool(), NULL, NULL),
                     TK_OK);
    for (uint32_t i = 0; i < IMAGES; i++)
        s.images[i] = i;
    return tk_graph_create(&s.graph, TK_RESNET20, PX, 4, fixture_pool(), NULL) == TK_OK ? 0 : -1;
}

static int close_all(void **state)
{
    (void)state;
    tk_graph_destroy(s.graph);
    tk_canvases_close(s.canvases);
    tk_pack_close(s.pack);
    tk_model_destroy(s.model);
    tk_pool_destroy(fixture_pool());
    fixture_clean();
    return 0;
}

static tk_inputs_opts of_images(size_t first, size_t n)
{
    return (tk_inputs_opts){
        .canvases = s.canvases, .n = n, .images = s.images + first, .seed = 3, .max_batch = 4};
}

static tk_err add(tk_covariance *to, const tk_inputs_opts *opts)
{
    const tk_preproc preproc = fixture_preproc();
    return tk_inputs_add(to, s.graph, s.model->trunk, &preproc, opts, fixture_pool(), NULL);
}

static tk_covariance *create(size_t limit)
{
    tk_covariance *c;
    assert_int_equal(tk_covariance_create(&c, s.model->trunk, limit), TK_OK);
    return c;
}

/* Two jobs' images one after the other are one job's with all of them, bit by bit but for the order
 * of sums; the trunk stays as it is. */
static void a_second_jobs_images_are_added_to_the_firsts(void **state)
{
    (void)state;
    tk_covariance *all = create(LIMIT), *parts = create(LIMIT);
    tk_params *before;
    double error = 0, norm = 0;
    const tk_inputs_opts six = of_images(0, 6), two = of_images(0, 2), four = of_images(2, 4);
    assert_int_equal(tk_params_clone(&before, s.model->trunk), TK_OK);
    assert_int_equal(add(all, &six), TK_OK);
    assert_int_equal(add(parts, &two), TK_OK);
    const double alone = (double)parts->data[0];
    assert_int_equal(add(parts, &four), TK_OK);
    assert_true(all->images == 6 && parts->images == 6);
    assert_true((double)parts->data[0] > 1.5 * alone);
    for (size_t i = 0; i < all->floats; i++) {
        error += pow((double)(all->data[i] - parts->data[i]), 2);
        norm += pow((double)all->data[i], 2);
    }
    assert_true(error < 1e-11 * norm);
    assert_memory_equal(before->data, s.model->trunk->data, before->count * sizeof(float));
    tk_params_destroy(before);
    tk_covariance_destroy(all);
    tk_covariance_destroy(parts);
}

static void an_input_that_is_not_finite_is_named(void **state)
{
    (void)state;
    tk_covariance *c = create(LIMIT);
    tk_diag diag;
    const tk_preproc preproc = fixture_preproc();
    const tk_inputs_opts opts = of_images(0, 1);
    float *beta = s.model->trunk->data +
                  s.model->trunk->table[tk_params_find(s.model->trunk, "layer2.0.bn1.bias")].offset;
    beta[3] = NAN;
    assert_int_equal(
        tk_inputs_add(c, s.graph, s.model->trunk, &preproc, &opts, fixture_pool(), &diag),
        TK_DIVERGED);
    beta[3] = 0;
    assert_non_null(strstr(diag.text, "layer2.0.conv2.weight"));
    tk_covariance_destroy(c);
}

/* tr(D^T C D): what a change of a layer's weights does to the answers that it gave. */
static double harm(const tk_covariance_layer *l, size_t oc, const float *change)
{
    double sum = 0;
    for (size_t t = 0; t < l->taps; t++, change += l->n * oc)
        for (size_t i = 0; i < l->n; i++)
            for (size_t j = 0; j < l->n; j++) {
                const size_t low = i < j ? i : j, high = i < j ? j : i;
                double dot = 0;
                for (size_t o = 0; o < oc; o++)
                    dot += (double)change[i * oc + o] * (double)change[j * oc + o];
                sum += dot * (double)l->c[high * (high + 1) / 2 + low];
            }
    return sum;
}

/* In both forms of a layer: the change does next to nothing to what was read, yet is not zero. */
static void a_projected_change_leaves_the_answers_alone(void **state)
{
    (void)state;
    static const size_t limits[] = {LIMIT, 1};
    const tk_params *trunk = s.model->trunk;
    float *change = tk_aligned_calloc(trunk->trained, sizeof *change);
    assert_non_null(change);
    for (size_t k = 0; k < 2; k++) {
        tk_covariance *c = create(limits[k]);
        tk_projection *p;
        const tk_inputs_opts opts = of_images(0, 2);
        double left = 0;
        assert_int_equal(add(c, &opts), TK_OK);
        assert_int_equal(tk_projection_create(&p, c, trunk, 1 - 1e-4, fixture_pool(), NULL, NULL),
                         TK_OK);
        const double freedom = tk_projection_freedom(p);
        assert_true(freedom > 0.05 && freedom < 0.95);
        for (size_t i = 0; i < trunk->trained; i++)
            change[i] = tk_rng_normal(8, 1, i);
        for (size_t pass = 0; pass < 2; pass++) { /* as it is, then projected */
            if (pass == 1) tk_projection_apply(p, trunk, change);
            double sum = 0;
            for (size_t l = 0; l < c->layers; l += 5) {
                const tk_param *param = &trunk->table[c->layer[l].param];
                sum += harm(&c->layer[l], param->oc, change + param->offset);
            }
            if (pass == 1) assert_true(sum < 1.01e-4 * left);
            left = sum;
        }
        double norm = 0;
        for (size_t t = 0; t < trunk->tensors && trunk->table[t].offset < trunk->trained; t++)
            for (size_t i = 0; i < trunk->table[t].count; i++) {
                const double v = (double)change[trunk->table[t].offset + i];
                if (trunk->table[t].kind != TK_PARAM_CONV) assert_true(v == 0);
                norm += v * v;
            }
        assert_true(norm > 0.02 * (double)trunk->trained);
        tk_projection_destroy(p);
        tk_covariance_destroy(c);
    }
    tk_free(change);
}

static bool stop(void *ctx)
{
    size_t *left = ctx;
    return (*left)-- == 0;
}

static void it_stops_between_layers_and_batches(void **state)
{
    (void)state;
    tk_covariance *c = create(1);
    tk_projection *p;
    size_t left = 1;
    const tk_watch watch = {.ctx = &left, .cancelled = stop};
    tk_inputs_opts opts = of_images(0, 6);
    assert_int_equal(add(c, &opts), TK_OK);
    left = 7;
    assert_int_equal(tk_projection_create(&p, c, s.model->trunk, 0.9, fixture_pool(), &watch, NULL),
                     TK_CANCELLED);
    assert_null(p);
    left = 0;
    opts.watch = &watch;
    assert_int_equal(add(c, &opts), TK_CANCELLED);
    tk_covariance_destroy(c);
}

static void a_damaged_covariance_is_refused(void **state)
{
    (void)state;
    tk_covariance *c = create(1);
    tk_projection *p;
    c->layer[4].c[7] = NAN;
    assert_int_equal(tk_projection_create(&p, c, s.model->trunk, 0.9, fixture_pool(), NULL, NULL),
                     TK_BADDATA);
    assert_null(p);
    tk_covariance_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_second_jobs_images_are_added_to_the_firsts),
        cmocka_unit_test(an_input_that_is_not_finite_is_named),
        cmocka_unit_test(a_projected_change_leaves_the_answers_alone),
        cmocka_unit_test(it_stops_between_layers_and_batches),
        cmocka_unit_test(a_damaged_covariance_is_refused),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
