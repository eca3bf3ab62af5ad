/* SGD, norms and learning-rate schedules. */
#include "engine/optim.h"

#include <math.h>
#include <string.h>

#include "kernels/kernels.h"

void tk_sgd_step(size_t n, float *w, const float *g, float *v, float lr, float momentum,
                 float decay, int nesterov)
{
    tk__kernels_get()->sgd(n, w, g, v, lr, momentum, decay, nesterov != 0);
}

enum { PIECE = 16384 }; /* floats per task */

typedef struct sgd_state {
    const tk__kernels *kn;
    tk_params *params;
    const float *grads;
    float *velocity;
    float lr, momentum, decay;
    int nesterov;
} sgd_state;

/* Floats task*PIECE.. of the trained part, tensor by tensor: decay changes with the kind. */
static void sgd_task(void *ctx, size_t task, size_t thread)
{
    const sgd_state *s = ctx;
    (void)thread;
    const size_t begin = task * PIECE, end = begin + PIECE;
    for (size_t t = 0; t < s->params->tensors; t++) {
        const tk_param *p = &s->params->table[t];
        if (p->offset >= end || p->offset >= s->params->trained) return;
        if (p->offset + p->count <= begin) continue;
        const size_t a = p->offset > begin ? p->offset : begin;
        const size_t b = p->offset + p->count < end ? p->offset + p->count : end;
        s->kn->sgd(b - a, s->params->data + a, s->grads + a, s->velocity + a, s->lr, s->momentum,
                   p->kind == TK_PARAM_CONV ? s->decay : 0.0f, s->nesterov != 0);
    }
}

void tk_sgd_step_params(tk_params *params, const float *grads, float *velocity, float lr,
                        float momentum, float decay, int nesterov, tk_pool *pool)
{
    sgd_state s = {.kn = tk__kernels_get(),
                   .params = params,
                   .grads = grads,
                   .velocity = velocity,
                   .lr = lr,
                   .momentum = momentum,
                   .decay = decay,
                   .nesterov = nesterov};
    tk_pool_run(pool, (params->trained + PIECE - 1) / PIECE, sgd_task, &s);
}

double tk_norm(size_t n, const float *g)
{
    return sqrt(tk__kernels_get()->sum_squares(n, g));
}

void tk_scale(size_t n, float *g, float factor)
{
    tk__kernels_get()->scale(n, g, factor);
}

float tk_schedule_rate(const tk_schedule *schedule, size_t step)
{
    const double base = (double)schedule->base;
    if (step < schedule->warmup)
        return (float)(base * (double)(step + 1) / (double)schedule->warmup);
    const size_t rest = schedule->steps > schedule->warmup ? schedule->steps - schedule->warmup : 1;
    double at = (double)(step - schedule->warmup) / (double)rest; /* 0..1 */
    if (at > 1) at = 1;
    switch (schedule->kind) {
    case TK_SCHEDULE_CONSTANT:
        return schedule->base;
    case TK_SCHEDULE_COSINE:
        return (float)(0.5 * base * (1 + cos(3.14159265358979323846 * at)));
    case TK_SCHEDULE_ONE_CYCLE:
        return (float)(base * (1 - at));
    }
    return schedule->base;
}

tk_err tk_schedule_parse(const char *name, tk_schedule_kind *out, tk_diag *diag)
{
    static const char *const names[] = {[TK_SCHEDULE_CONSTANT] = "constant",
                                        [TK_SCHEDULE_COSINE] = "cosine",
                                        [TK_SCHEDULE_ONE_CYCLE] = "one-cycle"};
    *out = TK_SCHEDULE_CONSTANT;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (tk_schedule_kind)i;
            return TK_OK;
        }
    return tk_fail(diag, TK_BADARG, "unknown schedule \"%.32s\": constant, cosine or one-cycle",
                   name);
}
