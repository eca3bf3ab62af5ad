/* From a finished job's directory to the version that is served. The order is what makes it safe:
 * the candidate is checked and staged, the hook loads it, one transaction makes it the current
 * version, the hook swaps it in. Up to the transaction a crash or a failure leaves the old version
 * and the job's directory as they were; after it the directory is not needed any more. */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "engine/mem.h"
#include "heads/pack.h"
#include "jobs/jobs_internal.h"

static tk_err no_memory(tk_diag *diag)
{
    return tk_fail(diag, TK_NOMEM, "commit: out of memory");
}

tk_err tk__version_current(tk_jobs *jobs, unsigned with, tk_version *out, tk_diag *diag)
{
    const tk_err err = tk_store_version_get(jobs->store, TK_ALL, 0, with, out, diag);
    return err == TK_PRECONDITION ? TK_OK : err; /* none yet: number 0 */
}

void tk__versions_rewritten(const tk_jobs *jobs)
{
    const tk_version_hooks *hooks = &jobs->opts.hooks;
    if (hooks->rewritten) hooks->rewritten(hooks->ctx);
}

tk_err tk__version_publish(tk_jobs *jobs, const tk_commit *commit, tk_write_fn *write, void *ctx,
                           tk_diag *diag)
{
    const tk_version_hooks *hooks = &jobs->opts.hooks;
    void *snapshot = NULL;
    char *path = tk_store_object_path(jobs->store, commit->model->sha);
    tk_err err = path ? TK_OK : no_memory(diag);
    if (err == TK_OK && hooks->prepare)
        err = hooks->prepare(hooks->ctx, commit->number, path, &snapshot, diag);
    tk_free(path);
    if (err != TK_OK) return err;
    err = write(ctx, jobs->store, commit, diag);
    if (err == TK_OK && hooks->publish)
        hooks->publish(hooks->ctx, commit->number, snapshot);
    else if (err != TK_OK && hooks->discard)
        hooks->discard(hooks->ctx, snapshot);
    return err;
}

static tk_err write_version(void *ctx, tk_store *store, const tk_commit *commit, tk_diag *diag)
{
    (void)ctx;
    return tk_store_version_commit(store, commit, diag);
}

/* -- is the candidate what it must be? -- */

static const tk_version_head *find_head(const tk_version_head *heads, size_t n, const char *id)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(heads[i].id, id) == 0) return &heads[i];
    return NULL;
}

static bool same_labels(const tk_head *head, const tk_version_head *was)
{
    if (head->classes != was->n_labels) return false;
    for (size_t i = 0; i < head->classes; i++)
        if (strcmp(head->labels[i], was->labels[i]) != 0) return false;
    return true;
}

/* Exactly the base's heads, unchanged in their labels, and the job's. */
static tk_err check_candidate(const tk_model *model, const tk_version *base, const char *own,
                              tk_diag *diag)
{
    if (!tk_model_head(model, own))
        return tk_fail(diag, TK_BADDATA, "candidate: head %s is missing", own);
    for (size_t i = 0; i < model->n_heads; i++) {
        const tk_head *head = model->heads[i];
        if (strcmp(head->id, own) == 0) continue;
        const tk_version_head *was = find_head(base->heads, base->n_heads, head->id);
        if (!was)
            return tk_fail(diag, TK_BADDATA, "candidate: head %.127s is not the base's", head->id);
        if (!same_labels(head, was))
            return tk_fail(diag, TK_BADDATA, "candidate: head %s has other labels", was->id);
    }
    for (size_t i = 0; i < base->n_heads; i++)
        if (!tk_model_head(model, base->heads[i].id))
            return tk_fail(diag, TK_BADDATA, "candidate: head %s is missing", base->heads[i].id);
    return TK_OK;
}

/* -- the record of its heads -- */

/* One head: labels, tolerance and best from the file, numbers from the result; without those the
 * base's go on. */
static void describe_head(tk_version_head *out, const tk_head *head, const tk_job *job,
                          const char *own, const tk_version_head *was,
                          const tk_version_head *measured, const char *pack)
{
    const bool mine = strcmp(head->id, own) == 0;
    assert(mine || was); /* check_candidate() */
    *out = (tk_version_head){.accuracy = (double)NAN, .top5 = (double)NAN};
    if (was && !mine) *out = *was;
    if (measured) {
        out->accuracy = measured->accuracy;
        out->top5 = measured->top5;
        out->n = measured->n;
        out->agreement = measured->agreement;
        out->confusion = measured->n_labels == head->classes ? measured->confusion : NULL;
    }
    out->tenant = mine ? job->tenant : was->tenant;
    (void)snprintf(out->id, sizeof out->id, "%s", head->id);
    (void)snprintf(out->name, sizeof out->name, "%s", mine ? job->head : was->name);
    out->n_labels = head->classes;
    out->labels = head->labels;
    out->tolerance = head->tolerance;
    out->best = head->best;
    if (mine) (void)snprintf(out->pack, sizeof out->pack, "%s", pack);
}

static tk_version_head *describe_heads(const tk_model *model, const tk_job *job, const char *own,
                                       const tk_version *base, const tk_result *result,
                                       const char *pack)
{
    tk_version_head *heads = tk_calloc(model->n_heads ? model->n_heads : 1, sizeof *heads);
    for (size_t i = 0; heads && i < model->n_heads; i++) {
        const char *id = model->heads[i]->id;
        describe_head(&heads[i], model->heads[i], job, own,
                      find_head(base->heads, base->n_heads, id),
                      find_head(result->heads, result->n_heads, id), pack);
    }
    return heads;
}

/* The held-out images, when they are to be kept. */
static tk_err stage_pack(tk_jobs *jobs, const tk_job *job, const char *dir, tk_object *out,
                         tk_diag *diag)
{
    *out = (tk_object){0};
    if (job->retention != TK_RETAIN_VALIDATION) return TK_OK;
    char *path = tk__join(dir, "validation.pack");
    if (!path) return no_memory(diag);
    tk_err err = TK_OK;
    if (access(path, F_OK) == 0) {
        tk_pack *pack;
        err = tk_pack_open(&pack, path, diag);
        if (err == TK_OK) tk_pack_close(pack);
        if (err == TK_OK) err = tk_store_stage(jobs->store, path, true, out, diag);
    }
    tk_free(path);
    return err;
}

/* Everything of a commit that has to be let go of. */
typedef struct candidate {
    tk_version base;
    tk_model *model;
    tk_object file, pack;
    tk_version_head *heads;
} candidate;

static void candidate_fini(candidate *c, tk_store *store)
{
    tk_free(c->heads);
    tk_store_unstage(store, &c->file);
    tk_store_unstage(store, &c->pack);
    tk_model_destroy(c->model);
    tk_version_fini(&c->base);
}

static tk_err open_candidate(tk_jobs *jobs, const tk_job *job, const char *own, const char *dir,
                             const tk_result *result, candidate *c, tk_diag *diag)
{
    tk_err err = tk__version_current(jobs, TK_WITH_LABELS | TK_WITH_CONFUSION, &c->base, diag);
    if (err != TK_OK) return err;
    if (c->base.number != job->base_version)
        return tk_fail(diag, TK_PRECONDITION,
                       "the current version is %llu by now, the job started from %llu",
                       (unsigned long long)c->base.number, (unsigned long long)job->base_version);
    char *path = tk__join(dir, "candidate.safetensors");
    if (!path) return no_memory(diag);
    err = tk_model_load(&c->model, path, true, diag);
    if (err == TK_NOTFOUND) err = TK_BADDATA;
    if (err == TK_OK) err = check_candidate(c->model, &c->base, own, diag);
    if (err == TK_OK) err = tk_store_stage(jobs->store, path, true, &c->file, diag);
    tk_free(path);
    if (err == TK_OK) err = stage_pack(jobs, job, dir, &c->pack, diag);
    if (err != TK_OK) return err;
    c->heads = describe_heads(c->model, job, own, &c->base, result, c->pack.sha);
    return c->heads ? TK_OK : no_memory(diag);
}

static tk_err commit(tk_jobs *jobs, const tk_job *job, const char *dir, const tk_result *result,
                     tk_job_event *event, uint64_t *number, candidate *c, tk_diag *diag)
{
    char own[TK_HEAD_ID_SIZE];
    (void)snprintf(own, sizeof own, "%s/%s", job->tenant_name, job->head);
    tk_err err = open_candidate(jobs, job, own, dir, result, c, diag);
    if (err == TK_OK) err = tk_store_version_next(jobs->store, number, diag);
    if (err != TK_OK) return err;
    tk_trunk trunk = {.preproc = c->model->preproc};
    (void)snprintf(trunk.arch, sizeof trunk.arch, "%s", tk_arch_name(c->model->trunk->arch));
    const tk_commit commit = {
        .expect_current = c->base.number,
        .number = *number,
        .model = &c->file,
        .reason = result->reason,
        .heads = c->heads,
        .n_heads = c->model->n_heads,
        .job = job->id,
        .outcome = result->outcome,
        .record = result->record,
        .judged = result->judged,
        .event = event,
        .forget_packs_of = job->retention == TK_RETAIN_NOTHING ? own : NULL,
        .trunk = c->base.number ? NULL : &trunk,
    };
    return tk__version_publish(jobs, &commit, write_version, NULL, diag);
}

tk_err tk__job_commit(tk_jobs *jobs, const tk_job *job, const char *dir, const tk_result *result,
                      tk_job_event *event, uint64_t *number, tk_diag *diag)
{
    candidate c = {0};
    *number = 0;
    (void)pthread_mutex_lock(&jobs->version_lock);
    const tk_err err = commit(jobs, job, dir, result, event, number, &c, diag);
    (void)pthread_mutex_unlock(&jobs->version_lock);
    candidate_fini(&c, jobs->store);
    return err;
}
