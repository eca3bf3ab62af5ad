/* Validation. One pass of the inference plan over the images serves every head of the task. */
#include "heads/eval.h"

#include <string.h>

#include "engine/linear.h"
#include "engine/mem.h"
#include "engine/plan.h"
#include "heads/stack.h"

enum { BATCH = 64 };

void tk_validation_fini(tk_validation *validation)
{
    tk_free(validation->answers);
    tk_free(validation->right);
    tk_free(validation->confusion);
    *validation = (tk_validation){0};
}

double tk_validation_accuracy(const tk_validation *validation)
{
    return validation->n ? (double)validation->correct / (double)validation->n : 0;
}

static tk_err allocate(tk_validation *v)
{
    v->answers = tk_calloc(v->n + 1, sizeof *v->answers);
    v->right = tk_calloc(v->n + 1, sizeof *v->right);
    if (!v->answers || !v->right) return TK_NOMEM;
    if (v->classes > TK_CONFUSION_MAX_CLASSES) return TK_OK;
    v->confusion = tk_calloc(v->classes * v->classes, sizeof *v->confusion);
    return v->confusion ? TK_OK : TK_NOMEM;
}

tk_err tk_validation_clone(tk_validation *out, const tk_validation *from)
{
    *out = *from;
    out->answers = NULL;
    out->right = NULL;
    out->confusion = NULL;
    const tk_err err = allocate(out);
    if (err != TK_OK) {
        tk_validation_fini(out);
        return err;
    }
    memcpy(out->answers, from->answers, from->n * sizeof *from->answers);
    memcpy(out->right, from->right, from->n * sizeof *from->right);
    if (out->confusion)
        memcpy(out->confusion, from->confusion,
               from->classes * from->classes * sizeof *from->confusion);
    return TK_OK;
}

void tk_validation_agree(tk_validation *validation, const uint32_t *truth)
{
    tk_validation *v = validation;
    v->agreement = true;
    v->correct = 0;
    if (v->confusion) memset(v->confusion, 0, v->classes * v->classes * sizeof *v->confusion);
    for (size_t i = 0; i < v->n; i++) {
        v->right[i] = v->answers[i] == truth[i];
        v->correct += v->right[i];
        if (v->confusion) v->confusion[truth[i] * v->classes + v->answers[i]]++;
    }
    v->top5 = v->correct;
}

/* Of equal logits the first wins, as in every argmax here. */
static uint32_t best_of(size_t c, const float *logits)
{
    size_t best = 0;
    for (size_t k = 1; k < c; k++)
        if (logits[k] > logits[best]) best = k;
    return (uint32_t)best;
}

static size_t rank_of(size_t c, const float *logits, uint32_t label)
{
    size_t rank = 0;
    for (size_t k = 0; k < c; k++)
        rank += logits[k] > logits[label] || (logits[k] == logits[label] && k < label);
    return rank;
}

static void score(tk_validation *v, size_t image, const float *logits, const uint32_t *truth)
{
    const uint32_t answer = best_of(v->classes, logits);
    v->answers[image] = answer;
    if (!truth) return;
    const uint32_t label = truth[image];
    v->right[image] = answer == label;
    v->correct += answer == label;
    v->top5 += rank_of(v->classes, logits, label) < 5;
    if (v->confusion) v->confusion[label * v->classes + answer]++;
}

typedef struct scratch {
    tk_plan *plan;
    tk_stack stack;
    float *x, *features, *z, *inputs, *logits;
} scratch;

static void scratch_fini(scratch *s)
{
    tk_plan_destroy(s->plan);
    tk_stack_fini(&s->stack);
    tk_free(s->x);
    tk_free(s->features);
    tk_free(s->z);
    tk_free(s->inputs);
    tk_free(s->logits);
}

static tk_err scratch_init(scratch *s, const tk_params *trunk, const tk_preproc *preproc,
                           const tk_eval_task *task, tk_pool *pool, tk_diag *diag)
{
    size_t widest = 1;
    for (size_t h = 0; h < task->n_heads; h++)
        if (task->heads[h]->classes > widest) widest = task->heads[h]->classes;
    *s = (scratch){0};
    tk_err err = tk_stack_of_heads(&s->stack, trunk->arch, task->n_heads, task->heads);
    if (err != TK_OK) return tk_fail(diag, err, "validation: out of memory");
    const tk_side side = tk_stack_side(&s->stack);
    s->x = tk_aligned_calloc((size_t)BATCH * preproc->crop * preproc->crop * 3, sizeof(float));
    s->features = tk_aligned_calloc(BATCH * tk_arch_features(trunk->arch), sizeof(float));
    s->z = tk_aligned_calloc(BATCH * tk_stack_width(&s->stack) + 1, sizeof(float));
    s->inputs = tk_aligned_calloc(BATCH * tk_stack_widest(&s->stack), sizeof(float));
    s->logits = tk_aligned_calloc(BATCH * widest, sizeof(float));
    if (!s->x || !s->features || !s->z || !s->inputs || !s->logits)
        return tk_fail(diag, TK_NOMEM, "validation: out of memory");
    err = tk_plan_create_as(&s->plan, trunk, preproc->crop, BATCH, task->precision, task->ranges,
                            pool, diag);
    return err == TK_OK ? tk_plan_set_side(s->plan, &side, diag) : err;
}

static void run_batch(const tk_eval_task *task, const scratch *s, size_t first, size_t n,
                      tk_validation *out, tk_pool *pool)
{
    const tk_cut cut = {.images = task->images + first};
    tk_canvases_render(task->canvases, &cut, n, s->x, pool);
    tk_plan_run_side(s->plan, n, s->x, s->features, tk_stack_rank(&s->stack) > 0 ? s->z : NULL,
                     NULL);
    for (size_t h = 0; h < task->n_heads; h++) {
        const tk_head *head = task->heads[h];
        const float *in = tk_stack_input(&s->stack, h, n, s->features, s->z, s->inputs);
        tk_linear_forward(n, head->width, head->classes, in, head->weight, head->bias, s->logits);
        for (size_t i = 0; i < n; i++)
            score(&out[h], first + i, s->logits + i * head->classes, task->truth[h]);
    }
}

tk_err tk_eval_run(const tk_params *trunk, const tk_preproc *preproc, const tk_eval_task *task,
                   tk_validation *out, tk_pool *pool, tk_diag *diag)
{
    tk_err err = TK_OK;
    for (size_t h = 0; h < task->n_heads; h++)
        out[h] = (tk_validation){.head = task->heads[h]->id,
                                 .n = task->n,
                                 .classes = task->heads[h]->classes,
                                 .agreement = task->agreement && task->agreement[h]};
    for (size_t h = 0; h < task->n_heads && err == TK_OK; h++)
        err = allocate(&out[h]);
    if (err != TK_OK) tk_fail(diag, err, "validation: %s", tk_err_text(err));
    scratch s = {0};
    if (err == TK_OK && task->n > 0) err = scratch_init(&s, trunk, preproc, task, pool, diag);
    for (size_t first = 0; first < task->n && err == TK_OK; first += BATCH)
        run_batch(task, &s, first, task->n - first < BATCH ? task->n - first : BATCH, out, pool);
    scratch_fini(&s);
    if (err != TK_OK)
        for (size_t h = 0; h < task->n_heads; h++)
            tk_validation_fini(&out[h]);
    return err;
}

tk_err tk_eval_calibrate(const tk_params *trunk, const tk_preproc *preproc,
                         const tk_canvases *canvases, size_t n, const uint32_t *images,
                         tk_calibration *ranges, tk_pool *pool, tk_diag *diag)
{
    const tk_eval_task task = {.canvases = canvases, .n = n, .images = images};
    scratch s = {0};
    tk_err err = n > 0 ? scratch_init(&s, trunk, preproc, &task, pool, diag) : TK_OK;
    for (size_t first = 0; first < n && err == TK_OK; first += BATCH) {
        const size_t count = n - first < BATCH ? n - first : BATCH;
        const tk_cut cut = {.images = images + first};
        tk_canvases_render(canvases, &cut, count, s.x, pool);
        err = tk_plan_calibrate(s.plan, count, s.x, ranges, diag);
    }
    scratch_fini(&s);
    return err;
}
