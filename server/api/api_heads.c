/* trunkd.v1.Heads. A tenant sees its own heads only; an admin sees all, as "tenant/name". */
#include <stdio.h>
#include <string.h>

#include "api/api_internal.h"
#include "engine/mem.h"
#include "log.h"

/* Cells of all confusion matrices of one answer; the rest goes without. */
enum { MAX_CONFUSION = 1 << 20 };

static Trunkd__V1__Head *put_head(tk__region *region, bool admin, tk_version_head *head)
{
    Trunkd__V1__Head *m = tk__new(region, &trunkd__v1__head__descriptor);
    if (!m) return NULL;
    m->name = head->name;
    if (admin) {
        const char *slash = strchr(head->id, '/');
        m->name = head->id;
        m->tenant = tk__print(region, "%.*s", slash ? (int)(slash - head->id) : 0, head->id);
    }
    m->n_labels = head->n_labels;
    m->labels = head->labels;
    m->accuracy = tk__number(head->accuracy);
    m->best = tk__number(head->best);
    m->tolerance = head->tolerance;
    m->validation_images = head->n;
    m->born_version = head->born;
    m->created_ms = head->created_ms;
    return m;
}

void tk__heads_list(tk_rpc_call *call, const ProtobufCMessage *in)
{
    (void)in;
    tk_diag diag = {{0}};
    tk_version version;
    const tk_err err = tk_store_version_get(tk__api(call)->o.store, tk__tenant(call), 0,
                                            TK_WITH_LABELS, &version, &diag);
    if (err != TK_OK && err != TK_PRECONDITION) {
        tk__fail(call, err, &diag);
        return;
    }
    tk__region region = {NULL, false};
    Trunkd__V1__ListHeadsResponse *m =
        tk__new(&region, &trunkd__v1__list_heads_response__descriptor);
    if (m && err == TK_OK) {
        m->version = version.number;
        m->heads = tk__alloc(&region, version.n_heads, sizeof *m->heads);
        for (size_t i = 0; m->heads && i < version.n_heads; i++) {
            m->heads[m->n_heads++] =
                put_head(&region, tk_rpc_identity(call)->admin, &version.heads[i]);
        }
    }
    tk__reply(call, &region, m);
    if (err == TK_OK) tk_version_fini(&version);
}

void tk__heads_get(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__GetHeadRequest *in = (const Trunkd__V1__GetHeadRequest *)message;
    tk_diag diag = {{0}};
    tk_head_history found;
    const tk_err err = tk_store_head_get(tk__api(call)->o.store, tk__tenant(call), in->name, false,
                                         TK_WITH_LABELS, &found, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    tk__region region = {NULL, false};
    if (found.n > 0) {
        tk__reply(call, &region,
                  put_head(&region, tk_rpc_identity(call)->admin, &found.items[0].head));
    } else {
        tk_rpc_fail(call, TK_INTERNAL, "the store found the head, but no version of it");
    }
    tk_head_history_fini(&found);
}

void tk__heads_delete(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__DeleteHeadRequest *in = (const Trunkd__V1__DeleteHeadRequest *)message;
    tk_diag diag = {{0}};
    const tk_err err =
        tk_jobs_delete_head(tk__api(call)->o.jobs, tk__tenant(call), in->name, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    tk_log(TK_LOG_INFO, "head deleted",
           (tk_log_field[]){tk_log_str("tenant", tk_rpc_identity(call)->name),
                            tk_log_str("head", in->name), tk__log_trace(call), tk_log_end()});
    const Trunkd__V1__Empty out = TRUNKD__V1__EMPTY__INIT;
    tk_rpc_reply(call, &out.base);
}

/* -- validation -- */

static void put_classes(tk__region *region, Trunkd__V1__Validation *m, tk_version_head *head)
{
    const size_t c = head->n_labels;
    m->classes = tk__alloc(region, c, sizeof *m->classes);
    for (size_t i = 0; m->classes && i < c; i++) {
        Trunkd__V1__ClassValidation *v = tk__new(region, &trunkd__v1__class_validation__descriptor);
        if (!v) return;
        v->label = head->labels[i];
        for (size_t k = 0; k < c; k++)
            v->images += head->confusion[i * c + k];
        v->correct = head->confusion[i * c + i];
        m->classes[m->n_classes++] = v;
    }
}

static Trunkd__V1__Validation *put_validation(tk__region *region, bool admin,
                                              struct tk_head_at *from, size_t *cells)
{
    tk_version_head *head = &from->head;
    Trunkd__V1__Validation *m = tk__new(region, &trunkd__v1__validation__descriptor);
    if (!m) return NULL;
    m->head = admin ? head->id : head->name;
    m->version = from->version;
    m->accuracy = tk__number(head->accuracy);
    m->top5 = tk__number(head->top5);
    m->images = head->n;
    m->agreement = head->agreement;
    if (!head->confusion || !head->labels) return m;
    put_classes(region, m, head);
    const size_t n = head->n_labels * head->n_labels;
    if (n > *cells) return m;
    *cells -= n;
    m->confusion = tk__alloc(region, n, sizeof *m->confusion);
    for (size_t i = 0; m->confusion && i < n; i++)
        m->confusion[i] = head->confusion[i];
    m->n_confusion = m->confusion ? n : 0;
    return m;
}

/* The names asked for, or of all the caller may see; written to names[], borrowed from `in` or
 * `version`. */
static size_t asked_names(const Trunkd__V1__GetValidationRequest *in, bool admin,
                          tk_version *version, const char **names)
{
    if (in->n_heads > 0) {
        for (size_t i = 0; i < in->n_heads; i++)
            names[i] = in->heads[i];
        return in->n_heads;
    }
    for (size_t i = 0; i < version->n_heads; i++) {
        names[i] = admin ? version->heads[i].id : version->heads[i].name;
    }
    return version->n_heads;
}

/* Reads each head's history from the store into found[0..*n_found). */
static tk_err read_validations(tk_rpc_call *call, const char *const *names, size_t n, bool history,
                               tk_head_history *found, size_t *n_found, tk_diag *diag)
{
    for (*n_found = 0; *n_found < n; (*n_found)++) {
        const tk_err err =
            tk_store_head_get(tk__api(call)->o.store, tk__tenant(call), names[*n_found], history,
                              TK_WITH_LABELS | TK_WITH_CONFUSION, &found[*n_found], diag);
        if (err != TK_OK) return err;
    }
    return TK_OK;
}

static void reply_validations(tk_rpc_call *call, tk_head_history *found, size_t n)
{
    tk__region region = {NULL, false};
    Trunkd__V1__GetValidationResponse *m =
        tk__new(&region, &trunkd__v1__get_validation_response__descriptor);
    size_t total = 0, cells = MAX_CONFUSION;
    for (size_t i = 0; i < n; i++)
        total += found[i].n;
    if (m) m->validations = tk__alloc(&region, total, sizeof *m->validations);
    for (size_t i = 0; m && m->validations && i < n; i++) {
        for (size_t k = 0; k < found[i].n; k++) {
            m->validations[m->n_validations++] =
                put_validation(&region, tk_rpc_identity(call)->admin, &found[i].items[k], &cells);
        }
    }
    tk__reply(call, &region, m);
}

void tk__heads_validation(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__GetValidationRequest *in = (const Trunkd__V1__GetValidationRequest *)message;
    tk_diag diag = {{0}};
    tk_version version = {.n_heads = 0};
    tk_err err = TK_OK;
    if (in->n_heads > TK_API_HEADS_MAX) {
        err = tk_fail(&diag, TK_BADARG, "heads has %zu entries, the limit is %d", in->n_heads,
                      (int)TK_API_HEADS_MAX);
    } else if (in->n_heads == 0) {
        err = tk_store_version_get(tk__api(call)->o.store, tk__tenant(call), 0, 0, &version, &diag);
        if (err == TK_PRECONDITION) err = TK_OK; /* no version yet: nothing to show */
    }
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    const size_t most = in->n_heads > 0 ? in->n_heads : version.n_heads;
    const char **names = tk_calloc(most + 1, sizeof *names);
    tk_head_history *found = tk_calloc(most + 1, sizeof *found);
    size_t n_found = 0;
    if (names && found) {
        const size_t n = asked_names(in, tk_rpc_identity(call)->admin, &version, names);
        err = read_validations(call, names, n, in->history, found, &n_found, &diag);
    } else {
        err = TK_NOMEM;
    }
    if (err != TK_OK)
        tk__fail(call, err, &diag);
    else
        reply_validations(call, found, n_found);
    for (size_t i = 0; i < n_found; i++)
        tk_head_history_fini(&found[i]);
    tk_free(found);
    tk_free(names);
    tk_version_fini(&version);
}
