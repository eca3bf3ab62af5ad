/* Records of the store as messages, with the names of heads as the caller may see them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/api_internal.h"
#include "engine/mem.h"

#define PB(name)                                                                                   \
    trunkd__v1__##name##__descriptor /* generated names: only the preprocessor can join them */

/* -- names of heads -- */

static int by_birth(const void *a, const void *b)
{
    const struct tk__foreign *x = a, *y = b;
    if (x->created_ms != y->created_ms) return x->created_ms < y->created_ms ? -1 : 1;
    if (x->born != y->born) return x->born < y->born ? -1 : 1;
    return strcmp(x->id, y->id);
}

/* Is `id` "tenant/..."? Returns the part behind the slash, or NULL. */
static char *own_part(const char *tenant, char *id)
{
    const size_t n = strlen(tenant);
    return strncmp(id, tenant, n) == 0 && id[n] == '/' ? id + n + 1 : NULL;
}

static struct tk__foreign *foreign_add(tk__names *names, const char *id)
{
    if (names->n == names->cap) {
        const size_t cap = names->cap ? 2 * names->cap : 16;
        struct tk__foreign *more = tk_realloc(names->foreign, cap * sizeof *more);
        if (!more) return NULL;
        names->foreign = more;
        names->cap = cap;
    }
    struct tk__foreign *f = &names->foreign[names->n++];
    *f = (struct tk__foreign){.created_ms = 0};
    snprintf(f->id, sizeof f->id, "%s", id);
    snprintf(f->alias, sizeof f->alias, "other-%zu", names->n);
    return f;
}

tk_err tk__names_init(tk__names *names, tk_rpc_call *call, tk_diag *diag)
{
    const tk_identity *who = tk_rpc_identity(call);
    *names = (tk__names){.admin = who->admin};
    snprintf(names->tenant, sizeof names->tenant, "%s", who->name);
    if (who->admin) return TK_OK;
    tk_version version;
    tk_err err = tk_store_version_get(tk__api(call)->o.store, TK_ALL, 0, 0, &version, diag);
    if (err == TK_PRECONDITION) return TK_OK; /* no version, no heads */
    if (err != TK_OK) return err;
    for (size_t i = 0; err == TK_OK && i < version.n_heads; i++) {
        tk_version_head *head = &version.heads[i];
        if (own_part(names->tenant, head->id)) continue;
        struct tk__foreign *f = foreign_add(names, head->id);
        if (!f) {
            err = TK_NOMEM;
            break;
        }
        f->created_ms = head->created_ms;
        f->born = head->born;
    }
    tk_version_fini(&version);
    if (err != TK_OK) {
        tk__names_fini(names);
        return err;
    }
    if (names->n > 1) qsort(names->foreign, names->n, sizeof *names->foreign, by_birth);
    for (size_t i = 0; i < names->n; i++) {
        snprintf(names->foreign[i].alias, sizeof names->foreign[i].alias, "other-%zu", i + 1);
    }
    return TK_OK;
}

void tk__names_fini(tk__names *names)
{
    tk_free(names->foreign);
    names->foreign = NULL;
    names->n = names->cap = 0;
}

char *tk__names_show(tk__names *names, char *id, bool *own)
{
    static char unnamed[] = "other";
    char *mine = names->admin ? id : own_part(names->tenant, id);
    *own = mine && !names->admin;
    if (mine) return mine;
    for (size_t i = 0; i < names->n; i++) {
        if (strcmp(names->foreign[i].id, id) == 0) return names->foreign[i].alias;
    }
    /* A head that came or went since. */
    struct tk__foreign *f = foreign_add(names, id);
    return f ? f->alias : unnamed;
}

/* How the caller may read what stands in quotes, text[0..n): an alias for a head of another tenant,
 * or NULL when it is no head's id or the caller's own affair. */
static const char *alias_of(tk__names *names, const char *text, size_t n)
{
    char id[TK_HEAD_ID_SIZE];
    if (names->admin || n == 0 || n >= sizeof id || !memchr(text, '/', n)) return NULL;
    if (strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789._-/@") < n) return NULL;
    memcpy(id, text, n);
    id[n] = '\0';
    bool own;
    return tk__names_show(names, id, &own);
}

char *tk__put_text(tk__region *region, tk__names *names, const char *text)
{
    char *out = tk__print(region, "%s", "");
    if (!text) return out;
    for (const char *quote; (quote = strchr(text, '"')) != NULL;) {
        const char *end = strchr(quote + 1, '"');
        if (!end) break;
        const char *alias = alias_of(names, quote + 1, (size_t)(end - quote) - 1);
        if (alias) {
            out = tk__print(region, "%s%.*s\"%s\"", out, (int)(quote - text), text, alias);
            text = end + 1;
        } else { /* the second quote may open what comes next */
            out = tk__print(region, "%s%.*s", out, (int)(end - text), text);
            text = end;
        }
    }
    return tk__print(region, "%s%s", out, text);
}

/* -- messages from records -- */

Trunkd__V1__HeadAccuracy *tk__put_measure(tk__region *region, tk__names *names, tk_measure *measure)
{
    Trunkd__V1__HeadAccuracy *m = tk__new(region, &PB(head_accuracy));
    if (!m) return NULL;
    bool own;
    const char *shown = tk__names_show(names, measure->head, &own);
    m->head = tk__print(region, "%s", shown); /* a copy: an alias may move when names grow */
    m->own = own;
    m->accuracy = tk__number(measure->accuracy);
    m->change = tk__number(measure->change);
    m->tolerance = measure->tolerance;
    m->floor = tk__number(measure->floor);
    m->images = measure->n;
    m->agreement = measure->agreement;
    return m;
}

Trunkd__V1__JobEvent *tk__put_event(tk__region *region, tk__names *names, tk_job_event *event)
{
    Trunkd__V1__JobEvent *m = tk__new(region, &PB(job_event));
    if (!m) return NULL;
    m->sequence = event->sequence;
    m->state = (Trunkd__V1__JobState)event->state;
    m->stage = event->stage;
    m->step = event->step;
    m->steps = event->steps;
    m->epoch = event->epoch;
    m->epochs = event->epochs;
    m->eta_seconds = tk__number(event->eta_seconds);
    m->message = tk__put_text(region, names, event->message);
    m->losses = tk__new(region, &PB(losses));
    if (m->losses) {
        m->losses->total = event->loss_total;
        m->losses->ce = event->loss_ce;
        m->losses->kd = event->loss_kd;
        m->losses->ewc = event->loss_ewc;
    }
    m->heads = tk__alloc(region, event->n_heads, sizeof *m->heads);
    for (size_t i = 0; m->heads && i < event->n_heads; i++) {
        m->heads[m->n_heads++] = tk__put_measure(region, names, &event->heads[i]);
    }
    return m;
}

Trunkd__V1__Job *tk__put_job(tk__region *region, tk__names *names, tk_job *job)
{
    Trunkd__V1__Job *m = tk__new(region, &PB(job));
    if (!m) return NULL;
    m->id = job->id;
    m->state = (Trunkd__V1__JobState)job->state; /* the store has proto's numbers */
    m->head = job->head;
    m->data_set = job->data_set;
    m->recipe = job->recipe;
    m->outcome = job->outcome;
    m->reason = tk__put_text(region, names, job->reason);
    m->base_version = job->base_version;
    m->version = job->version;
    m->submitted_ms = job->submitted_ms;
    m->started_ms = job->started_ms;
    m->ended_ms = job->ended_ms;
    m->attempts = job->attempts;
    if (names->admin) m->tenant = job->tenant_name;
    m->set = tk__alloc(region, job->n_set, sizeof *m->set);
    for (size_t i = 0; m->set && i < job->n_set; i++) {
        Trunkd__V1__Setting *s = m->set[i] = tk__new(region, &PB(setting));
        if (!s) return NULL;
        s->name = job->set[i].name;
        s->value = job->set[i].value;
        m->n_set++;
    }
    m->heads = tk__alloc(region, job->n_heads, sizeof *m->heads);
    for (size_t i = 0; m->heads && i < job->n_heads; i++) {
        m->heads[i] = tk__put_measure(region, names, &job->heads[i]);
        if (!m->heads[i]) return NULL;
        m->n_heads++;
    }
    return m;
}

Trunkd__V1__Version *tk__put_version(tk__region *region, tk_version *version)
{
    Trunkd__V1__Version *m = tk__new(region, &PB(version));
    if (!m) return NULL;
    m->number = version->number;
    m->current = version->current;
    m->job = version->job;
    m->reason = version->reason;
    m->bytes = version->bytes;
    m->sha256 = version->sha;
    m->created_ms = version->created_ms;
    m->heads = tk__alloc(region, version->n_heads, sizeof *m->heads);
    for (size_t i = 0; m->heads && i < version->n_heads; i++) {
        tk_version_head *head = &version->heads[i];
        Trunkd__V1__HeadAccuracy *h = m->heads[i] = tk__new(region, &PB(head_accuracy));
        if (!h) return NULL;
        h->head = head->id;
        h->accuracy = tk__number(head->accuracy);
        h->change = tk__number(head->change);
        h->tolerance = head->tolerance;
        h->images = head->n;
        h->agreement = head->agreement;
        m->n_heads++;
    }
    return m;
}

Trunkd__V1__HeadPrecision *tk__put_check(tk__region *region, const char *head,
                                         const tk_precision_check *check)
{
    Trunkd__V1__HeadPrecision *m = tk__new(region, &PB(head_precision));
    if (!m) return NULL;
    m->head = tk__print(region, "%s", head);
    m->accuracy = check->accuracy;
    m->change = check->accuracy - check->fp32;
    m->alike = check->alike;
    m->tolerance = check->tolerance;
    m->images = check->n;
    m->agreement = check->agreement;
    m->admitted = check->admitted;
    return m;
}

static Trunkd__V1__Precision *put_precision(tk__region *region, const tk_model *outline,
                                            tk_precision precision)
{
    const tk_head *refused;
    Trunkd__V1__Precision *m = tk__new(region, &PB(precision));
    if (!m) return NULL;
    m->name = tk__print(region, "%s", tk_precision_name(precision));
    m->admitted = tk_model_admits(outline, precision, &refused);
    if (precision == TK_PRECISION_FP32 || outline->ranges.maps == 0) return m;
    m->heads = tk__alloc(region, outline->n_heads, sizeof *m->heads);
    for (size_t h = 0; m->heads && h < outline->n_heads; h++) {
        const tk_head *head = outline->heads[h];
        m->heads[h] = tk__put_check(region, head->id, &head->checks[precision]);
        if (!m->heads[h]) return NULL;
        m->n_heads++;
    }
    return m;
}

void tk__put_precisions(tk__region *region, Trunkd__V1__Version *m, const tk_model *outline)
{
    m->precisions = tk__alloc(region, TK_PRECISION_COUNT, sizeof *m->precisions);
    for (tk_precision p = TK_PRECISION_FP32; m->precisions && p < TK_PRECISION_COUNT; p++) {
        m->precisions[p] = put_precision(region, outline, p);
        if (!m->precisions[p]) return;
        m->n_precisions++;
    }
}
