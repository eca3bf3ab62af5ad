/* Logits of whole networks, by the training graph (frozen batch norm) and by the inference plan,
 * are PyTorch's: relative error of the whole vector at most 1e-4, under every instruction set. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "engine/graph.h"
#include "engine/isa.h"
#include "engine/linear.h"
#include "engine/mem.h"
#include "engine/plan.h"
#include "parity.h"

static const double TOLERANCE = 1e-4;

typedef struct logits_case {
    const char *file;
    tk_arch arch;
    golden *g;
    parity_net net;
    tk_pool *pool;
} logits_case;

/* Relative error of the head's logits on `features`. */
static double distance(const logits_case *c, const float *features)
{
    const parity_net *net = &c->net;
    size_t n;
    const double *want = golden_find(c->g, "logits", &n);
    assert_non_null(want);
    assert_int_equal(n, net->batch * net->classes);
    float *logits = tk_calloc(n, sizeof *logits);
    assert_non_null(logits);
    tk_linear_forward(net->batch, net->features, net->classes, features, net->fc_w, net->fc_b,
                      logits);
    double off = 0, whole = 0;
    for (size_t i = 0; i < n; i++) {
        off += ((double)logits[i] - want[i]) * ((double)logits[i] - want[i]);
        whole += want[i] * want[i];
    }
    tk_free(logits);
    return sqrt(off / whole);
}

static double graph_distance(const logits_case *c)
{
    tk_graph *graph;
    tk_diag diag;
    const float *features;
    assert_int_equal(tk_graph_create(&graph, c->arch, c->net.px, c->net.batch, c->pool, &diag),
                     TK_OK);
    tk_graph_forward(graph, c->net.trunk, c->net.batch, c->net.x, TK_BN_FROZEN, &features);
    double found = distance(c, features);
    tk_graph_destroy(graph);
    return found;
}

static double plan_distance(const logits_case *c)
{
    tk_plan *plan;
    tk_diag diag;
    float *features = tk_calloc(c->net.batch * c->net.features, sizeof *features);
    assert_non_null(features);
    assert_int_equal(tk_plan_create(&plan, c->net.trunk, c->net.px, c->net.batch, c->pool, &diag),
                     TK_OK);
    tk_plan_run(plan, c->net.batch, c->net.x, features);
    double found = distance(c, features);
    tk_plan_destroy(plan);
    tk_free(features);
    return found;
}

static void compare(void *ctx)
{
    const logits_case *c = ctx;
    bool scalar = strcmp(tk_isa_name(), "scalar") == 0;
    if (c->net.px > 64 && (scalar || parity_slow_build())) return; /* the small case is enough */
    double graph = graph_distance(c), plan = plan_distance(c);
    print_message("%s, %s: graph %.1e, plan %.1e\n", c->file, tk_isa_name(), graph, plan);
    assert_true(graph <= TOLERANCE);
    assert_true(plan <= TOLERANCE);
}

static void run_case(const char *file, tk_arch arch)
{
    logits_case c = {.file = file, .arch = arch, .g = golden_open(file), .pool = parity_pool()};
    c.net = parity_net_make(c.g, arch, (size_t)golden_number(c.g, "batch"));
    parity_each_isa(compare, &c);
    parity_net_fini(&c.net);
    tk_pool_destroy(c.pool);
    golden_close(c.g);
}

static void test_resnet18_logits_at_64_px(void **state)
{
    (void)state;
    run_case("logits_resnet18_64", TK_RESNET18);
}

static void test_resnet18_logits_at_224_px(void **state)
{
    (void)state;
    run_case("logits_resnet18_224", TK_RESNET18);
}

static void test_resnet50_logits_at_64_px(void **state)
{
    (void)state;
    run_case("logits_resnet50_64", TK_RESNET50);
}

static void test_resnet50_logits_at_224_px(void **state)
{
    (void)state;
    run_case("logits_resnet50_224", TK_RESNET50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resnet18_logits_at_64_px),
        cmocka_unit_test(test_resnet18_logits_at_224_px),
        cmocka_unit_test(test_resnet50_logits_at_64_px),
        cmocka_unit_test(test_resnet50_logits_at_224_px),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
