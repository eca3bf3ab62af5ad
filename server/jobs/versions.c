/* New versions that no job made: rollback, deletion of a head, import. Each holds the version lock
 * from reading the current version to publishing the next; a job that trains meanwhile is told to
 * start over. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "engine/mem.h"
#include "jobs/jobs_internal.h"

static tk_err no_memory(tk_diag *diag)
{
    return tk_fail(diag, TK_NOMEM, "version: out of memory");
}

static tk_err write_version(void *ctx, tk_store *store, const tk_commit *commit, tk_diag *diag)
{
    (void)ctx;
    return tk_store_version_commit(store, commit, diag);
}

/* Under the version lock: the commit is done, reads it back, and tells the supervisor. */
static tk_err finish(tk_jobs *jobs, tk_err err, uint64_t number, tk_version *out, tk_diag *diag)
{
    if (err != TK_OK) return err;
    (void)pthread_mutex_lock(&jobs->claim);
    jobs->changes++;
    (void)pthread_mutex_unlock(&jobs->claim);
    tk__jobs_wake(jobs);
    return out ? tk_store_version_get(jobs->store, TK_ALL, number, 0, out, diag) : TK_OK;
}

/* -- rollback -- */

static tk_err rollback(tk_jobs *jobs, uint64_t number, tk_version *out, tk_diag *diag)
{
    tk_version now = {0}, then = {0};
    uint64_t next = 0;
    char reason[64];
    tk_err err = tk_store_version_get(jobs->store, TK_ALL, number,
                                      TK_WITH_LABELS | TK_WITH_CONFUSION, &then, diag);
    if (err == TK_OK) err = tk__version_current(jobs, 0, &now, diag);
    if (err == TK_OK && now.number == number)
        err = tk_fail(diag, TK_PRECONDITION, "version %llu is the current one already",
                      (unsigned long long)number);
    if (err == TK_OK) err = tk_store_version_next(jobs->store, &next, diag);
    if (err == TK_OK) {
        tk_object model = {.bytes = then.bytes};
        memcpy(model.sha, then.sha, sizeof model.sha);
        (void)snprintf(reason, sizeof reason, "rolled back to version %llu",
                       (unsigned long long)number);
        const tk_commit commit = {.expect_current = now.number,
                                  .number = next,
                                  .model = &model,
                                  .reason = reason,
                                  .heads = then.heads,
                                  .n_heads = then.n_heads};
        err = tk__version_publish(jobs, &commit, write_version, NULL, diag);
    }
    tk_version_fini(&now);
    tk_version_fini(&then);
    return finish(jobs, err, next, out, diag);
}

tk_err tk_jobs_rollback(tk_jobs *jobs, uint64_t number, tk_version *out, tk_diag *diag)
{
    *out = (tk_version){0};
    if (number == 0) return tk_fail(diag, TK_BADARG, "version: 0 names none");
    (void)pthread_mutex_lock(&jobs->version_lock);
    const tk_err err = rollback(jobs, number, out, diag);
    (void)pthread_mutex_unlock(&jobs->version_lock);
    return err;
}

/* -- deletion of a head -- */

/* The file `sha` again, without the head, staged. */
static tk_err scrub(tk_jobs *jobs, const char *sha, const char *id, tk_object *out, tk_diag *diag)
{
    tk_model *model = NULL;
    char *from = tk_store_object_path(jobs->store, sha), *to = tk_store_temp_path(jobs->store);
    tk_err err = from && to ? tk_model_load(&model, from, true, diag) : no_memory(diag);
    if (err == TK_OK) (void)tk_model_drop_head(model, id);
    if (err == TK_OK) err = tk_model_save(model, to, diag);
    if (err == TK_OK) err = tk_store_stage(jobs->store, to, false, out, diag);
    if (err != TK_OK && to) (void)unlink(to);
    tk_model_destroy(model);
    tk_free(from);
    tk_free(to);
    return err;
}

static bool has_head(const tk_version *version, const char *id)
{
    for (size_t i = 0; i < version->n_heads; i++)
        if (strcmp(version->heads[i].id, id) == 0) return true;
    return false;
}

/* Every version with the head, its file written anew. `all` is newest first. Versions that share a
 * file (a rollback) are each staged by hash, so that they share the new one, too. */
static tk_err scrub_all(tk_jobs *jobs, const tk_versions *all, const char *id, tk_scrub *out,
                        size_t *n, tk_diag *diag)
{
    tk_err err = TK_OK;
    for (size_t i = 0; i < all->n && err == TK_OK; i++) {
        if (!has_head(&all->items[i], id)) continue;
        out[*n] = (tk_scrub){.version = all->items[i].number};
        err = scrub(jobs, all->items[i].sha, id, &out[*n].model, diag);
        if (err == TK_OK) ++*n;
    }
    return err;
}

typedef struct deletion {
    int64_t tenant;
    const char *head;
    const tk_scrub *scrubbed;
    size_t n;
} deletion;

static tk_err write_deletion(void *ctx, tk_store *store, const tk_commit *commit, tk_diag *diag)
{
    const deletion *d = ctx;
    return tk_store_head_delete(store, d->tenant, d->head, commit, d->scrubbed, d->n, diag);
}

/* Commits the current version less the head. */
static tk_err commit_without(tk_jobs *jobs, const char *id, deletion *d, tk_diag *diag)
{
    tk_version now = {0};
    uint64_t next = 0;
    char reason[TK_HEAD_ID_SIZE + 32];
    tk_err err = tk__version_current(jobs, TK_WITH_LABELS | TK_WITH_CONFUSION, &now, diag);
    if (err == TK_OK) err = tk_store_version_next(jobs->store, &next, diag);
    size_t kept = 0;
    for (size_t i = 0; i < now.n_heads && err == TK_OK; i++) {
        /* The one to go is moved to the end: all of them are freed together. */
        const tk_version_head head = now.heads[i];
        if (strcmp(head.id, id) == 0) continue;
        now.heads[i] = now.heads[kept];
        now.heads[kept++] = head;
    }
    const tk_object *model = NULL;
    for (size_t i = 0; i < d->n; i++)
        if (d->scrubbed[i].version == now.number) model = &d->scrubbed[i].model;
    if (err == TK_OK && !model)
        err = tk_fail(diag, TK_NOTFOUND, "head \"%s\": there is none", d->head);
    if (err == TK_OK) {
        (void)snprintf(reason, sizeof reason, "head %s was deleted", id);
        const tk_commit commit = {.expect_current = now.number,
                                  .number = next,
                                  .model = model,
                                  .reason = reason,
                                  .heads = now.heads,
                                  .n_heads = kept};
        err = tk__version_publish(jobs, &commit, write_deletion, d, diag);
    }
    tk_version_fini(&now);
    return err;
}

static tk_err delete_head(tk_jobs *jobs, int64_t tenant, const char *head, tk_diag *diag)
{
    tk_head_history at = {0};
    tk_versions all = {0};
    tk_scrub *scrubbed = NULL;
    deletion d = {.tenant = tenant, .head = head};
    tk_err err = tk_store_head_deletable(jobs->store, tenant, head, diag);
    if (err == TK_OK) err = tk_store_head_get(jobs->store, tenant, head, false, 0, &at, diag);
    if (err == TK_OK) err = tk_store_version_list(jobs->store, TK_ALL, 0, 0, &all, diag);
    if (err == TK_OK && !(scrubbed = tk_calloc(all.n ? all.n : 1, sizeof *scrubbed)))
        err = no_memory(diag);
    if (err == TK_OK) err = scrub_all(jobs, &all, at.items[0].head.id, scrubbed, &d.n, diag);
    if (err == TK_OK) {
        d.scrubbed = scrubbed;
        err = commit_without(jobs, at.items[0].head.id, &d, diag);
    }
    if (err == TK_OK) tk__versions_rewritten(jobs);
    for (size_t i = 0; i < d.n; i++)
        tk_store_unstage(jobs->store, &scrubbed[i].model);
    tk_free(scrubbed);
    tk_versions_fini(&all);
    tk_head_history_fini(&at);
    return finish(jobs, err, 0, NULL, diag);
}

tk_err tk_jobs_delete_head(tk_jobs *jobs, int64_t tenant, const char *head, tk_diag *diag)
{
    (void)pthread_mutex_lock(&jobs->version_lock);
    const tk_err err = delete_head(jobs, tenant, head, diag);
    (void)pthread_mutex_unlock(&jobs->version_lock);
    return err;
}

/* -- import -- */

static tk_err import(tk_jobs *jobs, const tk_model *model, const char *reason, tk_version *out,
                     tk_diag *diag)
{
    tk_version now = {0};
    tk_object file = {0};
    uint64_t next = 0;
    tk_trunk trunk = {.preproc = model->preproc};
    (void)snprintf(trunk.arch, sizeof trunk.arch, "%s", tk_arch_name(model->trunk->arch));
    char *path = tk_store_temp_path(jobs->store);
    tk_err err = path ? tk__version_current(jobs, 0, &now, diag) : no_memory(diag);
    if (err == TK_OK && now.n_heads > 0)
        err = tk_fail(diag, TK_PRECONDITION,
                      "version %llu has %zu heads, which another trunk would make useless",
                      (unsigned long long)now.number, now.n_heads);
    if (err == TK_OK) err = tk_model_save(model, path, diag);
    if (err == TK_OK) err = tk_store_stage(jobs->store, path, false, &file, diag);
    if (err == TK_OK) err = tk_store_version_next(jobs->store, &next, diag);
    if (err == TK_OK) {
        const tk_commit commit = {.expect_current = now.number,
                                  .number = next,
                                  .model = &file,
                                  .reason = reason,
                                  .trunk = &trunk};
        err = tk__version_publish(jobs, &commit, write_version, NULL, diag);
    }
    if (err != TK_OK && path) (void)unlink(path);
    tk_store_unstage(jobs->store, &file);
    tk_version_fini(&now);
    tk_free(path);
    return finish(jobs, err, next, out, diag);
}

tk_err tk_jobs_import(tk_jobs *jobs, const tk_model *model, const char *reason, tk_version *out,
                      tk_diag *diag)
{
    *out = (tk_version){0};
    if (model->n_heads > 0)
        return tk_fail(diag, TK_BADARG, "import: a trunk without heads is wanted");
    (void)pthread_mutex_lock(&jobs->version_lock);
    const tk_err err = import(jobs, model, reason, out, diag);
    (void)pthread_mutex_unlock(&jobs->version_lock);
    return err;
}
