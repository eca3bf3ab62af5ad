/* A tenant leaves. The supervisor is paused first, since a job of another tenant may hold the
 * leaving one's held-out images, decoded, in its directory; then every version's file is staged
 * without the tenant's heads, and one transaction puts them in place of the old ones and deletes
 * the records. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "engine/mem.h"
#include "jobs/jobs_internal.h"
#include "store/files.h"

static tk_err no_memory(tk_diag *diag)
{
    return tk_fail(diag, TK_NOMEM, "tenant: out of memory");
}

static size_t count_of(const tk_version *version, int64_t tenant)
{
    size_t n = 0;
    for (size_t i = 0; i < version->n_heads; i++)
        n += version->heads[i].tenant == tenant;
    return n;
}

/* The version's file without the tenant's heads, staged. */
static tk_err scrub(tk_jobs *jobs, const tk_version *version, int64_t tenant, tk_object *out,
                    tk_diag *diag)
{
    tk_model *model = NULL;
    char *from = tk_store_object_path(jobs->store, version->sha);
    char *to = tk_store_temp_path(jobs->store);
    tk_err err = from && to ? tk_model_load(&model, from, true, diag) : no_memory(diag);
    for (size_t i = 0; i < version->n_heads && err == TK_OK; i++)
        if (version->heads[i].tenant == tenant)
            (void)tk_model_drop_head(model, version->heads[i].id);
    if (err == TK_OK) err = tk_model_save(model, to, diag);
    if (err == TK_OK) err = tk_store_stage(jobs->store, to, false, out, diag);
    if (err != TK_OK && to) (void)unlink(to);
    tk_model_destroy(model);
    tk_free(from);
    tk_free(to);
    return err;
}

typedef struct leaving {
    int64_t tenant;
    tk_versions all;
    tk_scrub *scrubbed; /* [n] of all.n */
    size_t n;
} leaving;

static void leaving_fini(leaving *l, tk_store *store)
{
    for (size_t i = 0; i < l->n; i++)
        tk_store_unstage(store, &l->scrubbed[i].model);
    tk_free(l->scrubbed);
    tk_versions_fini(&l->all);
}

static tk_err scrub_all(tk_jobs *jobs, leaving *l, tk_diag *diag)
{
    tk_err err = tk_store_version_list(jobs->store, TK_ALL, 0, 0, &l->all, diag);
    if (err != TK_OK) return err;
    l->scrubbed = tk_calloc(l->all.n + 1, sizeof *l->scrubbed);
    if (!l->scrubbed) return no_memory(diag);
    for (size_t i = 0; i < l->all.n && err == TK_OK; i++) {
        if (count_of(&l->all.items[i], l->tenant) == 0) continue;
        l->scrubbed[l->n] = (tk_scrub){.version = l->all.items[i].number};
        err = scrub(jobs, &l->all.items[i], l->tenant, &l->scrubbed[l->n].model, diag);
        if (err == TK_OK) l->n++;
    }
    return err;
}

static tk_err write_leave(void *ctx, tk_store *store, const tk_commit *commit, tk_diag *diag)
{
    const leaving *l = ctx;
    return tk_store_tenant_delete(store, l->tenant, commit, l->scrubbed, l->n, diag);
}

/* The current version without the tenant's heads; when it has none of them, the records only. */
static tk_err commit_without(tk_jobs *jobs, leaving *l, tk_diag *diag)
{
    tk_version now = {0};
    uint64_t next = 0;
    tk_err err = tk__version_current(jobs, TK_WITH_LABELS | TK_WITH_CONFUSION, &now, diag);
    if (err == TK_OK && count_of(&now, l->tenant) == 0) {
        err = tk_store_tenant_delete(jobs->store, l->tenant, NULL, l->scrubbed, l->n, diag);
    } else if (err == TK_OK) {
        const tk_object *model = NULL;
        size_t kept = 0;
        err = tk_store_version_next(jobs->store, &next, diag);
        for (size_t i = 0; i < l->n; i++)
            if (l->scrubbed[i].version == now.number) model = &l->scrubbed[i].model;
        for (size_t i = 0; i < now.n_heads; i++) {
            /* Those to go are moved to the end: all are freed together. */
            const tk_version_head head = now.heads[i];
            if (head.tenant == l->tenant) continue;
            now.heads[i] = now.heads[kept];
            now.heads[kept++] = head;
        }
        const tk_commit commit = {.expect_current = now.number,
                                  .number = next,
                                  .model = model,
                                  .reason = "a tenant left",
                                  .heads = now.heads,
                                  .n_heads = kept};
        if (err == TK_OK) err = tk__version_publish(jobs, &commit, write_leave, l, diag);
    }
    tk_version_fini(&now);
    return err;
}

/* The supervisor is paused. Whatever a job has under way is thrown away. */
static tk_err leave(tk_jobs *jobs, int64_t tenant, tk_diag *diag)
{
    leaving l = {.tenant = tenant};
    tk_err err = tk_store_jobs_empty(jobs->store, diag);
    (void)pthread_mutex_lock(&jobs->version_lock);
    if (err == TK_OK) err = scrub_all(jobs, &l, diag);
    if (err == TK_OK) err = commit_without(jobs, &l, diag);
    if (err == TK_OK) tk__versions_rewritten(jobs);
    (void)pthread_mutex_unlock(&jobs->version_lock);
    leaving_fini(&l, jobs->store);
    /* Only now are the old files without a name and without a pin. */
    return err == TK_OK ? tk_store_purge(jobs->store, diag) : err;
}

tk_err tk_jobs_delete_tenant(tk_jobs *jobs, const char *tenant, tk_diag *diag)
{
    tk_tenant who;
    tk_err err = tk_store_tenant_find(jobs->store, tenant, &who, diag);
    if (err == TK_OK) err = tk_store_tenant_shut_out(jobs->store, who.id, diag);
    if (err == TK_OK) err = tk__jobs_pause(jobs, diag);
    if (err != TK_OK) return err;
    err = leave(jobs, who.id, diag);
    tk__jobs_go_on(jobs);
    tk__hub_wake_all(&jobs->hub);
    tk__jobs_moved(jobs, TK_JOB_QUEUED);
    return err;
}
