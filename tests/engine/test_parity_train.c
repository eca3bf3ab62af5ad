/* Twenty training steps of ResNet-20 give PyTorch's losses, each within 1e-3, and end at its
 * weights, each tensor within 2e-3: SGD with Nesterov momentum, weight decay on convolutions and
 * the head's matrix, a one-cycle schedule, label smoothing, the batch's statistics. Sanitizer
 * builds check the first steps only. */
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
#include "engine/optim.h"
#include "parity.h"

static const double LOSS_TOLERANCE = 1e-3, END_TOLERANCE = 2e-3;
static const float MOMENTUM = 0.9f;
static const double SMOOTHING = 0.1;

/* A vector's gradient and velocity. */
typedef struct slope {
    float *g, *v;
} slope;

static float *floats(size_t n)
{
    float *p = tk_aligned_calloc(n, sizeof *p);
    assert_non_null(p);
    return p;
}

static slope slope_make(size_t n)
{
    return (slope){.g = floats(n), .v = floats(n)};
}

static void slope_fini(slope *s)
{
    tk_free(s->g);
    tk_free(s->v);
}

typedef struct trainer {
    parity_net net;
    tk_pool *pool;
    tk_graph *graph;
    float decay;
    slope trunk, fc_w, fc_b;
    float *logits, *dlogits, *dfeatures;
} trainer;

static trainer trainer_make(const golden *g)
{
    trainer t = {.net = parity_net_make(g, TK_RESNET20, (size_t)golden_number(g, "images"))};
    const parity_net *net = &t.net;
    tk_diag diag;
    t.decay = (float)golden_number(g, "decay");
    t.pool = parity_pool();
    assert_int_equal(tk_graph_create(&t.graph, TK_RESNET20, net->px, net->batch, t.pool, &diag),
                     TK_OK);
    t.trunk = slope_make(net->trunk->trained);
    t.fc_w = slope_make(net->classes * net->features);
    t.fc_b = slope_make(net->classes);
    t.logits = floats(net->batch * net->classes);
    t.dlogits = floats(net->batch * net->classes);
    t.dfeatures = floats(net->batch * net->features);
    return t;
}

static void trainer_fini(trainer *t)
{
    tk_graph_destroy(t->graph);
    tk_pool_destroy(t->pool);
    slope_fini(&t->trunk);
    slope_fini(&t->fc_w);
    slope_fini(&t->fc_b);
    tk_free(t->logits);
    tk_free(t->dlogits);
    tk_free(t->dfeatures);
    parity_net_fini(&t->net);
}

/* One step on the images from `first` on; returns its loss. */
static double train_step(trainer *t, size_t first, float lr)
{
    parity_net *net = &t->net;
    const size_t n = net->batch, f = net->features, k = net->classes;
    const float *x = net->x + first * net->px * net->px * 3, *features;
    tk_graph_forward(t->graph, net->trunk, n, x, TK_BN_BATCH, &features);
    tk_linear_forward(n, f, k, features, net->fc_w, net->fc_b, t->logits);
    double loss = parity_cross_entropy(n, k, t->logits, net->y + first, SMOOTHING, t->dlogits);
    tk_linear_backward(n, f, k, features, net->fc_w, t->dlogits, t->dfeatures, 0, t->fc_w.g,
                       t->fc_b.g);
    tk_graph_backward(t->graph, net->trunk, t->dfeatures, t->trunk.g);
    tk_sgd_step_params(net->trunk, t->trunk.g, t->trunk.v, lr, MOMENTUM, t->decay, 1, t->pool);
    tk_sgd_step(k * f, net->fc_w, t->fc_w.g, t->fc_w.v, lr, MOMENTUM, t->decay, 1);
    tk_sgd_step(k, net->fc_b, t->fc_b.g, t->fc_b.v, lr, MOMENTUM, 0, 1);
    return loss;
}

static double worse(double worst, const char *name, double distance)
{
    if (!(distance <= END_TOLERANCE)) fail_msg("%s ends %.1e off", name, distance);
    return fmax(worst, distance);
}

/* The largest distance of a trained tensor from where it should end. */
static double end_distance(const golden *g, const parity_net *net)
{
    double worst = 0;
    for (size_t i = 0; i < net->trunk->tensors; i++) {
        const tk_param *param = &net->trunk->table[i];
        if (param->offset >= net->trunk->trained) continue;
        float *disk = floats(param->count);
        tk_param_to_disk(param, net->trunk->data + param->offset, disk);
        worst =
            worse(worst, param->name, golden_distance(g, "end/", param->name, disk, param->count));
        tk_free(disk);
    }
    const size_t weights = net->classes * net->features;
    worst = worse(worst, "fc.weight", golden_distance(g, "end/", "fc.weight", net->fc_w, weights));
    return worse(worst, "fc.bias", golden_distance(g, "end/", "fc.bias", net->fc_b, net->classes));
}

static void compare(void *ctx)
{
    const golden *g = ctx;
    size_t steps;
    const double *want = golden_find(g, "losses", &steps);
    assert_non_null(want);
    const tk_schedule schedule = {
        .kind = TK_SCHEDULE_ONE_CYCLE,
        .base = (float)golden_number(g, "rate"),
        .steps = steps,
        .warmup = (size_t)golden_number(g, "warmup"),
    };
    trainer t = trainer_make(g);
    size_t run = parity_slow_build() ? 3 : steps;
    double worst = 0;
    for (size_t s = 0; s < run; s++) {
        size_t first = s * t.net.batch % t.net.images; /* the batch divides the images */
        double loss = train_step(&t, first, tk_schedule_rate(&schedule, s));
        double error = fabs(loss / want[s] - 1);
        if (!(error <= LOSS_TOLERANCE))
            fail_msg("step %zu: loss %.6f, want %.6f", s, loss, want[s]);
        worst = fmax(worst, error);
    }
    print_message("train_resnet20, %s: worst of %zu losses %.1e\n", tk_isa_name(), run, worst);
    if (run == steps) print_message("    end: worst tensor %.1e\n", end_distance(g, &t.net));
    trainer_fini(&t);
}

static void test_resnet20_losses_of_a_short_run(void **state)
{
    (void)state;
    golden *g = golden_open("train_resnet20");
    parity_each_isa(compare, g);
    golden_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resnet20_losses_of_a_short_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
