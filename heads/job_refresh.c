/* A head that goes on learning from new images, with more classes or the same ones (recipe's
 * `refresh`). Its owner's earlier images are gone, as the other heads' are, and so it is treated as
 * one of them: its earlier self is distilled (step.h), its share of the Fisher stays, and the gate
 * holds it to its floor on the held-out images that it had already (validator.h). What the gate
 * refuses leaves the head as it is. */
#include <math.h>
#include <string.h>

#include "job_internal.h"

tk_err tk__job_find_refreshed(tk__job *j)
{
    const tk_recipe *r = &j->r->recipe;
    if (r->refresh == 0) return TK_OK;
    j->was = tk_model_head(j->base, j->o->head);
    if (!j->was)
        return tk_fail(j->diag, TK_PRECONDITION, "refresh: there is no head \"%s\" yet",
                       j->o->head);
    if (r->from_scratch || !r->train_trunk)
        return tk_fail(j->diag, TK_BADARG,
                       "refresh: 1 needs a recipe and a policy that train the shared trunk");
    return TK_OK;
}

bool tk__job_may_fall_back(const tk__job *j)
{
    return j->o->fallback_probe && !j->was;
}

void tk__job_start_refresh(tk__job *j)
{
    const size_t f = j->was->features, had = j->was->classes;
    memcpy(j->warm.head, j->was->weight, had * f * sizeof(float));
    memcpy(j->warm.head + j->r->classes * f, j->was->bias, had * sizeof(float));
}

static void merge_validation(tk_validation *all, const tk_validation *earlier)
{
    const size_t cells = all->classes * all->classes;
    all->n += earlier->n;
    all->correct += earlier->correct;
    all->top5 += earlier->top5;
    for (size_t i = 0; all->confusion && i < cells; i++)
        all->confusion[i] += earlier->confusion[i];
}

static void merge_check(tk_precision_check *all, const tk_precision_check *earlier)
{
    const double n = (double)(all->n + earlier->n), part = n > 0 ? (double)earlier->n / n : 0;
    all->n += earlier->n;
    all->accuracy += part * (earlier->accuracy - all->accuracy);
    all->fp32 += part * (earlier->fp32 - all->fp32);
    all->alike += part * (earlier->alike - all->alike);
    all->admitted = all->admitted && earlier->admitted;
}

void tk__job_merge_earlier(tk__job *j, tk_model *candidate)
{
    tk_job_result *r = j->r;
    tk_head *head = tk_model_head(candidate, j->o->head);
    tk_validation *all = &r->after[j->n_others];
    merge_validation(all, &r->after[j->refreshed]);
    head->best = tk_validation_accuracy(all);
    for (tk_precision p = TK_PRECISION_FP32 + 1; r->checks && p < TK_PRECISION_COUNT; p++) {
        merge_check(&r->checks[j->n_others][p], &r->checks[j->refreshed][p]);
        head->checks[p] = r->checks[j->n_others][p];
    }
}

tk_err tk__job_keep_earlier(const tk__job *j, tk_pack_writer *w)
{
    const tk_pack *pack;
    size_t n;
    const uint32_t *images = tk_validator_earlier(j->validator, &pack, &n);
    for (size_t i = 0; i < n; i++) {
        uint32_t label;
        const tk_pack_item item = tk_pack_get(pack, images[i]);
        tk_err err = tk_pack_label(w, tk_pack_label_name(pack, item.label), &label, j->diag);
        if (err == TK_OK) err = tk_pack_add(w, label, item.name, item.data, item.size, j->diag);
        if (err != TK_OK) return err;
    }
    return TK_OK;
}
