/* The first part of a job: base, recipe, data set, canvases, split, and the base's own validation.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/mem.h"
#include "job_internal.h"

tk_err tk__job_path(const tk__job *j, const char *name, char *out, size_t size)
{
    const int n = snprintf(out, size, "%s/%s", j->o->dir, name);
    if (n < 0 || (size_t)n >= size)
        return tk_fail(j->diag, TK_BADARG, "job directory: path too long");
    return TK_OK;
}

static tk_err load_base(tk__job *j)
{
    const tk_job_opts *o = j->o;
    tk_err err = o->base ? tk_model_load(&j->r->base, o->base, true, j->diag)
                         : tk_model_create(&j->r->base, o->arch, &o->preproc, j->diag);
    if (err != TK_OK) return err;
    j->base = j->r->base;
    j->r->arch = j->base->trunk->arch;
    return TK_OK;
}

static tk_err resolve_recipe(tk__job *j)
{
    tk_recipe *recipe = &j->r->recipe;
    tk_err err = tk_recipe_find(recipe, j->o->recipe, j->r->arch, j->diag);
    for (size_t i = 0; i < j->o->n_set && err == TK_OK; i++)
        err = tk_recipe_set(recipe, j->o->set[i].name, j->o->set[i].value, j->diag);
    if (err != TK_OK) return err;
    if (recipe->policy == TK_POLICY_ADAPTER || recipe->policy == TK_POLICY_PROBE)
        *recipe = tk_recipe_apart(recipe, recipe->policy == TK_POLICY_ADAPTER);
    if (recipe->projection > 0 && (recipe->batch_norm == TK_NORM_BATCH || recipe->decay != 0))
        return tk_fail(j->diag, TK_BADARG,
                       "projection: %g needs batch_norm 0 or 2 and decay 0, which act past it",
                       recipe->projection);
    size_t others = j->base->n_heads;
    if (tk_model_head(j->base, j->o->head)) others--;
    if (recipe->from_scratch && others > 0)
        return tk_fail(
            j->diag, TK_PRECONDITION,
            "recipe scratch: the trunk carries %zu other heads, a fresh one would lose them",
            others);
    if (!recipe->from_scratch && !j->o->base)
        return tk_fail(j->diag, TK_PRECONDITION,
                       "recipe %s: there is no trunk yet; begin with recipe scratch", recipe->name);
    if (recipe->from_scratch) tk_params_init(j->base->trunk, j->o->seed);
    return TK_OK;
}

/* The head of this name, if there is one: it is refreshed, or else to be replaced. */
static tk_err settle_earlier(tk__job *j)
{
    tk_head *earlier = tk_model_head(j->base, j->o->head);
    const tk_err err = tk__job_find_refreshed(j);
    if (err == TK_OK && earlier && !j->was) tk_model_unprotect_head(j->base, earlier);
    return err;
}

/* Side of the canvases: the crop and, where the resize leaves one, a margin to draw crops from;
 * what the margin lacks is padding. */
static unsigned plan_views(tk__job *j)
{
    const tk_preproc *p = &j->base->preproc;
    const tk_recipe *r = &j->r->recipe;
    const unsigned margin = (unsigned)lround(r->pad * p->crop);
    unsigned side = p->crop + 2 * margin;
    if (side > p->resize) side = p->resize;
    if ((side - p->crop) % 2) side--;
    const unsigned inside = (side - p->crop) / 2;
    j->augment = (tk_augment){
        .pad = margin - inside, .scale_min = (float)r->scale_min, .flip = r->flip != 0};
    return side;
}

/* The new head's classes: those that a refreshed head has, then the data set's that are not among
 * them. */
static tk_err list_classes(tk__job *j)
{
    const size_t had = j->was ? j->was->classes : 0, labels = tk_pack_classes(j->pack);
    j->names = tk_calloc(had + labels + 1, sizeof *j->names);
    j->class_of = tk_calloc(labels + 1, sizeof *j->class_of);
    if (!j->names || !j->class_of) return tk_fail(j->diag, TK_NOMEM, "job: out of memory");
    size_t n = had;
    for (size_t c = 0; c < had; c++)
        j->names[c] = j->was->labels[c];
    for (uint32_t l = 0; l < labels; l++) {
        const char *name = tk_pack_label_name(j->pack, l);
        size_t c = 0;
        while (c < had && strcmp(j->names[c], name) != 0)
            c++;
        if (c == had) j->names[c = n++] = name; /* a pack has no label twice */
        j->class_of[l] = (uint32_t)c;
    }
    j->r->classes = n;
    return TK_OK;
}

static tk_err open_data(tk__job *j)
{
    char path[TK__PATH];
    tk_err err = tk_pack_open(&j->pack, j->o->data, j->diag);
    if (err == TK_OK) err = tk__job_path(j, "canvases.train", path, sizeof path);
    if (err != TK_OK) return err;
    j->r->n_images = tk_pack_count(j->pack);
    err = list_classes(j);
    if (err != TK_OK) return err;
    if (j->r->classes < 2)
        return tk_fail(j->diag, TK_BADDATA, "data set: %zu labels, a head needs at least two",
                       j->r->classes);
    err = tk_canvases_open(&j->canvases, path, j->pack, &j->base->preproc, plan_views(j),
                           j->o->pool, &j->watch, j->diag);
    if (err != TK_OK) return err;
    for (size_t i = 0; i < j->r->n_images; i++)
        j->r->n_unreadable += !tk_canvases_ok(j->canvases, i);
    if (j->r->n_unreadable)
        tk__job_say(j, true, "%zu of %zu images cannot be read and are left out",
                    j->r->n_unreadable, j->r->n_images);
    err = tk_data_check_run(&j->r->data, j->pack, j->canvases, j->diag);
    if (err == TK_OK) tk__job_remark(j);
    return err;
}

static uint32_t *labels_of(const tk__job *j, const uint32_t *images, size_t n)
{
    uint32_t *labels = tk_calloc(n + 1, sizeof *labels);
    for (size_t i = 0; labels && i < n; i++)
        labels[i] = j->class_of[tk_pack_get(j->pack, images[i]).label];
    return labels;
}

/* How good it is to give always the most frequent label of the held-out images. */
static tk_err find_majority(tk__job *j)
{
    size_t most = 0;
    size_t *count = tk_calloc(j->r->classes, sizeof *count);
    if (!count) return tk_fail(j->diag, TK_NOMEM, "job: out of memory");
    for (size_t i = 0; i < j->split.n_held; i++)
        if (++count[j->held_labels[i]] > most) most = count[j->held_labels[i]];
    tk_free(count);
    if (j->split.n_held > 0 && !j->was) j->r->majority = (double)most / (double)j->split.n_held;
    return TK_OK;
}

static tk_err split_data(tk__job *j)
{
    const tk_recipe *r = &j->r->recipe;
    const tk_err err = tk_split_create(&j->split, j->pack, j->canvases, r->validation,
                                       (size_t)r->validation_max, j->o->seed, j->diag);
    if (err != TK_OK) return err;
    j->labels = labels_of(j, j->split.train, j->split.n_train);
    j->held_labels = labels_of(j, j->split.held, j->split.n_held);
    if (!j->labels || !j->held_labels) return tk_fail(j->diag, TK_NOMEM, "job: out of memory");
    j->r->n_train = j->split.n_train;
    j->r->n_held = j->split.n_held;
    j->r->batch = tk_train_batch(r, j->split.n_train);
    const size_t epochs = tk_train_epochs(r, j->split.n_train);
    j->r->recipe.epochs = (double)epochs; /* as used, for the report */
    if (r->views == 0) j->r->recipe.views = (double)(epochs < TK_MAX_VIEWS ? epochs : TK_MAX_VIEWS);
    if (j->split.n_held == 0)
        tk__job_say(j, true, "no class has an image to spare: the new head is not validated");
    return find_majority(j);
}

tk_err tk__job_make_head(const tk__job *j, tk_head **out)
{
    const tk_err err = tk_head_create(out, j->o->head, j->r->classes, tk_arch_features(j->r->arch),
                                      j->names, j->diag);
    if (err != TK_OK) return err == TK_BADARG ? TK_BADDATA : err;
    (*out)->tolerance = j->o->tolerance;
    return TK_OK;
}

static tk_err make_head(tk__job *j)
{
    const tk_err err = tk__job_make_head(j, &j->head);
    if (err != TK_OK) return err;
    j->r->head = tk_strdup(j->o->head);
    return j->r->head ? TK_OK : tk_fail(j->diag, TK_NOMEM, "job: out of memory");
}

static tk_err make_validator(tk__job *j)
{
    const tk_validator_opts opts = {.base = j->base,
                                    .new_head = j->o->head,
                                    .refresh = j->was != NULL,
                                    .max_earlier = (size_t)j->r->recipe.validation_max,
                                    .canvases = j->canvases,
                                    .n_held = j->split.n_held,
                                    .held = j->split.held,
                                    .labels = j->held_labels,
                                    .n_packs = j->o->n_validations,
                                    .packs = j->o->validations,
                                    .dir = j->o->dir,
                                    .pool = j->o->pool,
                                    .watch = &j->watch};
    const tk_err err = tk_validator_create(&j->validator, &opts, j->diag);
    if (err != TK_OK) return err;
    j->n_others = j->r->n_others = tk_validator_others(j->validator);
    j->others = tk_validator_heads(j->validator);
    j->refreshed = tk_validator_refreshed(j->validator);
    if (j->was) {
        j->r->earlier = tk_strdup(j->others[j->refreshed]->id);
        if (!j->r->earlier) return tk_fail(j->diag, TK_NOMEM, "job: out of memory");
    }
    for (size_t h = 0; h < j->n_others; h++)
        if (tk_validator_before(j->validator)[h].agreement)
            tk__job_say(
                j, true,
                "head \"%s\" has no validation images; it is judged by its agreement with the "
                "base on the new images, which is a weaker promise",
                j->others[h]->id);
    if (tk_validator_skipped(j->validator))
        tk__job_say(j, true, "%zu validation images cannot be read and are left out",
                    tk_validator_skipped(j->validator));
    return TK_OK;
}

static tk_err make_results(tk__job *j)
{
    tk_job_result *r = j->r;
    r->gate = tk_calloc(j->n_others + 1, sizeof *r->gate);
    r->before = tk_calloc(j->n_others + 1, sizeof *r->before);
    r->after = tk_calloc(j->n_others + 1, sizeof *r->after);
    j->scratch = tk_calloc(j->n_others + 1, sizeof *j->scratch);
    tk_err err = r->gate && r->before && r->after && j->scratch ? TK_OK : TK_NOMEM;
    for (size_t h = 0; h < j->n_others && err == TK_OK; h++)
        err = tk_validation_clone(&r->before[h], &tk_validator_before(j->validator)[h]);
    if (err == TK_OK) err = tk_student_init(&j->warm, j->base->trunk, r->classes, 0);
    if (err == TK_OK) err = tk_student_init(&j->now, j->base->trunk, r->classes, 0);
    if (err != TK_OK) return tk_fail(j->diag, err, "job: %s", tk_err_text(err));
    return TK_OK;
}

tk_err tk__job_prepare(tk__job *j)
{
    j->watch = tk__job_watch(j);
    tk__job_enter(j, TK_STAGE_DECODE);
    tk_err err = load_base(j);
    if (err == TK_OK) err = resolve_recipe(j);
    if (err == TK_OK) err = settle_earlier(j);
    if (err == TK_OK) err = open_data(j);
    if (err == TK_OK) err = split_data(j);
    if (err == TK_OK) err = make_head(j);
    if (err == TK_OK) err = make_validator(j);
    if (err == TK_OK) err = make_results(j);
    if (err == TK_OK) tk__job_leave(j);
    return err;
}

void tk__job_fini(tk__job *j)
{
    tk_objective_destroy(j->objective);
    tk_projection_destroy(j->projection);
    tk_student_fini(&j->warm);
    tk_student_fini(&j->now);
    tk_student_fini(&j->adapted);
    tk_student_fini(&j->best);
    tk_pseudo_labels_close(j->pseudo);
    tk_validator_destroy(j->validator);
    tk_head_destroy(j->head);
    tk_split_fini(&j->split);
    tk_free(j->names);
    tk_free(j->class_of);
    tk_free(j->labels);
    tk_free(j->held_labels);
    tk_free(j->scratch);
    tk_canvases_close(j->canvases);
    tk_pack_close(j->pack);
}
