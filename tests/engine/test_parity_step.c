/* One training step, forward, cross-entropy and backward, gives PyTorch's loss, gradients, running
 * statistics (batch norm on the batch) and per-image squared gradients (frozen batch norm): every
 * tensor within 1e-3 of the one computed in double precision, under every instruction set. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "engine/graph.h"
#include "engine/isa.h"
#include "engine/linear.h"
#include "engine/mem.h"
#include "parity.h"

static const double TOLERANCE = 1e-3;

typedef struct step_case {
    const char *file;
    tk_bn_mode mode;
    tk_arch arch;
    golden *g;
    tk_pool *pool;
} step_case;

/* What a step leaves behind. */
typedef struct step_result {
    double loss;
    float *grads;   /* [trunk->trained] */
    float *squares; /* frozen: of each image's own loss, [trunk->trained] */
    float *dfc_w, *dfc_b;
} step_result;

static float *floats(size_t n)
{
    float *p = tk_aligned_calloc(n, sizeof *p);
    assert_non_null(p);
    return p;
}

static step_result step(const step_case *c, parity_net *net)
{
    const size_t n = net->batch, f = net->features, k = net->classes;
    step_result r = {
        .grads = floats(net->trunk->trained), .dfc_w = floats(k * f), .dfc_b = floats(k)};
    float *logits = floats(n * k), *dlogits = floats(n * k), *dfeatures = floats(n * f);
    const float *features;
    tk_graph *graph;
    tk_diag diag;
    assert_int_equal(tk_graph_create(&graph, c->arch, net->px, n, c->pool, &diag), TK_OK);
    tk_graph_forward(graph, net->trunk, n, net->x, c->mode, &features);
    tk_linear_forward(n, f, k, features, net->fc_w, net->fc_b, logits);
    r.loss = parity_cross_entropy(n, k, logits, net->y, 0, dlogits);
    tk_linear_backward(n, f, k, features, net->fc_w, dlogits, dfeatures, 0, r.dfc_w, r.dfc_b);
    tk_graph_backward(graph, net->trunk, dfeatures, r.grads);
    if (c->mode == TK_BN_FROZEN) {
        r.squares = floats(net->trunk->trained);
        for (size_t i = 0; i < n * f; i++)
            dfeatures[i] *= (float)n; /* the loss above is a mean */
        tk_graph_backward_squares(graph, net->trunk, dfeatures, NULL, r.squares);
    }
    tk_graph_destroy(graph);
    tk_free(logits);
    tk_free(dlogits);
    tk_free(dfeatures);
    return r;
}

/* Follows the largest distance and names the first tensors that are too far. */
typedef struct tally {
    double worst;
    char name[64];
    size_t tensors, bad;
} tally;

static void count(tally *t, const char *what, const char *name, double distance)
{
    t->tensors++;
    if (!(distance <= TOLERANCE)) {
        if (++t->bad <= 10) print_message("    %s%s is %.1e off\n", what, name, distance);
    }
    if (distance <= t->worst) return;
    t->worst = distance;
    snprintf(t->name, sizeof t->name, "%s%s", what, name);
}

/* Compares one tensor of a block laid out as trunk->data. */
static void count_param(tally *t, const step_case *c, const tk_param *param, const char *what,
                        const float *block)
{
    float *disk = floats(param->count);
    tk_param_to_disk(param, block + param->offset, disk);
    count(t, what, param->name, golden_distance(c->g, what, param->name, disk, param->count));
    tk_free(disk);
}

static tally compare_tensors(const step_case *c, const parity_net *net, const step_result *r)
{
    tally t = {0};
    const tk_params *trunk = net->trunk;
    for (size_t i = 0; i < trunk->tensors; i++) {
        const tk_param *param = &trunk->table[i];
        bool trained = param->offset < trunk->trained;
        if (trained) count_param(&t, c, param, "grad/", r->grads);
        if (trained && r->squares) count_param(&t, c, param, "squares/", r->squares);
        if (!trained && c->mode == TK_BN_BATCH) count_param(&t, c, param, "after/", trunk->data);
    }
    count(&t, "grad/", "fc.weight",
          golden_distance(c->g, "grad/", "fc.weight", r->dfc_w, net->classes * net->features));
    count(&t, "grad/", "fc.bias",
          golden_distance(c->g, "grad/", "fc.bias", r->dfc_b, net->classes));
    return t;
}

static void compare(void *ctx)
{
    const step_case *c = ctx;
    parity_net net = parity_net_make(c->g, c->arch, (size_t)golden_number(c->g, "batch"));
    step_result r = step(c, &net);
    double loss_error = fabs(r.loss / golden_number(c->g, "loss") - 1);
    tally t = compare_tensors(c, &net, &r);
    print_message("%s, %s: loss %.1e, worst of %zu tensors %.1e (%s)\n", c->file, tk_isa_name(),
                  loss_error, t.tensors, t.worst, t.name);
    assert_true(loss_error <= TOLERANCE / 10);
    assert_int_equal(t.bad, 0);
    tk_free(r.grads);
    tk_free(r.squares);
    tk_free(r.dfc_w);
    tk_free(r.dfc_b);
    parity_net_fini(&net);
}

static void run_case(const char *file, tk_arch arch, tk_bn_mode mode)
{
    step_case c = {.file = file, .mode = mode, .arch = arch};
    c.g = golden_open(file);
    c.pool = parity_pool();
    parity_each_isa(compare, &c);
    tk_pool_destroy(c.pool);
    golden_close(c.g);
}

static void test_resnet20_gradients_with_batch_statistics(void **state)
{
    (void)state;
    run_case("step_resnet20_batch", TK_RESNET20, TK_BN_BATCH);
}

static void test_resnet20_gradients_with_frozen_statistics(void **state)
{
    (void)state;
    run_case("step_resnet20_frozen", TK_RESNET20, TK_BN_FROZEN);
}

static void test_resnet18_gradients_with_batch_statistics(void **state)
{
    (void)state;
    run_case("step_resnet18_batch", TK_RESNET18, TK_BN_BATCH);
}

static void test_resnet18_gradients_with_frozen_statistics(void **state)
{
    (void)state;
    run_case("step_resnet18_frozen", TK_RESNET18, TK_BN_FROZEN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resnet20_gradients_with_batch_statistics),
        cmocka_unit_test(test_resnet20_gradients_with_frozen_statistics),
        cmocka_unit_test(test_resnet18_gradients_with_batch_statistics),
        cmocka_unit_test(test_resnet18_gradients_with_frozen_statistics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
