/* trunkd.v1.Jobs: what a job leaves behind. ExplainGate shows the decision as it was written, and
 * has the gate decide again from the counts; GetCurve shows every evaluation. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "api/api_internal.h"
#include "engine/mem.h"

/* -- the decision, again -- */

static Trunkd__V1__JudgedHead *put_judged(tk__region *region, tk__names *names,
                                          tk_judged_head *head, const tk_gate_record *again)
{
    Trunkd__V1__JudgedHead *m = tk__new(region, &trunkd__v1__judged_head__descriptor);
    if (!m) return NULL;
    const tk_gate_record *g = &head->gate;
    bool own;
    m->head = tk__print(region, "%s", tk__names_show(names, head->id, &own));
    m->own = own;
    m->agreement = g->agreement;
    m->best = g->best;
    m->tolerance = g->tolerance;
    m->sigma = g->sigma;
    m->images = g->n;
    m->right_before = g->right_before;
    m->right_after = g->right_before - g->n01 + g->n10;
    m->lost = g->n01;
    m->won = g->n10;
    m->before = g->before;
    m->after = g->after;
    m->floor = g->floor;
    m->drop = g->drop;
    m->se = g->se;
    m->resolved = g->resolved;
    m->admitted = g->admitted;
    m->same = tk_gate_same(g, again);
    return m;
}

static Trunkd__V1__HeadPrecision *put_check(tk__region *region, tk__names *names,
                                            tk_judged_precision *p)
{
    bool own;
    return tk__put_check(region, tk__names_show(names, p->id, &own), &p->check);
}

/* The checks are in order of precision. */
static void put_checks(tk__region *region, tk__names *names, tk_judgement *judged,
                       Trunkd__V1__Decision *m)
{
    m->precisions = tk__alloc(region, TK_PRECISION_COUNT, sizeof *m->precisions);
    for (size_t i = 0; m->precisions && i < judged->n_checks;) {
        const tk_precision precision = judged->checks[i].precision;
        Trunkd__V1__Precision *p = tk__new(region, &trunkd__v1__precision__descriptor);
        if (!p || m->n_precisions == TK_PRECISION_COUNT) return;
        m->precisions[m->n_precisions++] = p;
        p->name = tk__print(region, "%s", tk_precision_name(precision));
        p->admitted = true;
        p->heads = tk__alloc(region, judged->n_checks, sizeof *p->heads);
        for (; i < judged->n_checks && judged->checks[i].precision == precision; i++) {
            if (!p->heads) return;
            p->heads[p->n_heads] = put_check(region, names, &judged->checks[i]);
            if (!p->heads[p->n_heads]) return;
            p->n_heads++;
            p->admitted = p->admitted && judged->checks[i].check.admitted;
        }
    }
}

static bool put_alternative(tk__region *region, Trunkd__V1__Decision *m, const char *name,
                            double accuracy)
{
    if (isnan(accuracy)) return true;
    Trunkd__V1__Alternative *a = tk__new(region, &trunkd__v1__alternative__descriptor);
    if (!a) return false;
    a->name = tk__print(region, "%s", name);
    a->accuracy = accuracy;
    m->alternatives[m->n_alternatives++] = a;
    return true;
}

static bool put_trial(tk__region *region, Trunkd__V1__Decision *m, const tk_trial *trial)
{
    Trunkd__V1__Trial *t = tk__new(region, &trunkd__v1__trial__descriptor);
    if (!t) return false;
    t->strength = trial->strength;
    t->epochs = (uint32_t)trial->epochs;
    t->admitted = trial->admissible;
    t->improved = trial->improved;
    t->worth = trial->worth;
    m->trials[m->n_trials++] = t;
    return true;
}

/* How it came to the decision: what there was to choose from, the trials, the remarks. */
static void put_training(tk__region *region, tk__names *names, const tk_judgement *judged,
                         Trunkd__V1__Decision *m)
{
    m->alternatives = tk__alloc(region, 3, sizeof *m->alternatives);
    m->trials = tk__alloc(region, TK_MAX_TRIALS, sizeof *m->trials);
    m->remarks = tk__alloc(region, judged->n_remarks + 1, sizeof *m->remarks);
    if (!m->alternatives || !m->trials || !m->remarks) return;
    if (!put_alternative(region, m, "probe", judged->probe) ||
        !put_alternative(region, m, "adapter", judged->adapter) ||
        !put_alternative(region, m, "joint", judged->joint))
        return;
    for (size_t i = 0; i < judged->n_trials; i++)
        if (!put_trial(region, m, &judged->trials[i])) return;
    for (; m->n_remarks < judged->n_remarks; m->n_remarks++)
        m->remarks[m->n_remarks] = tk__put_text(region, names, judged->remarks[m->n_remarks]);
}

/* May these judgements have this outcome? A commit needs every head admitted; a probe leaves the
 * trunk alone, so that no answer changes. A rejection needs nothing: training may have diverged. */
static bool follows(const char *outcome, bool admitted, const tk_judgement *judged)
{
    if (strcmp(outcome, "commit") == 0) return admitted;
    bool changed = false;
    for (size_t i = 0; i < judged->n_heads; i++)
        changed = changed || judged->heads[i].gate.n01 > 0 || judged->heads[i].gate.n10 > 0;
    return strcmp(outcome, "probe") != 0 || !changed;
}

/* Has the gate decide again, and tells what it said then and says now. `again` has room for a
 * record of each head. */
static Trunkd__V1__Decision *put_decision(tk__region *region, tk__names *names, tk_decision *d,
                                          tk_gate_record *again)
{
    char reason[1024];
    Trunkd__V1__Decision *m = tk__new(region, &trunkd__v1__decision__descriptor);
    if (!m) return NULL;
    for (size_t i = 0; i < d->judged.n_heads; i++) {
        again[i] = tk_gate_judge_again(&d->judged.heads[i].gate);
        again[i].head = d->judged.heads[i].id;
    }
    const bool admitted = tk_gate_decide(again, d->judged.n_heads, reason, sizeof reason);
    m->job = d->job;
    m->outcome = d->outcome;
    m->reason = tk__put_text(region, names, d->reason);
    m->base_version = d->base_version;
    m->base_sha256 = d->base_sha;
    m->version = d->version;
    m->sha256 = d->sha;
    m->decided_ms = d->decided_ms;
    m->same = follows(d->outcome, admitted, &d->judged);
    m->again = tk__put_text(region, names, reason);
    m->heads = tk__alloc(region, d->judged.n_heads, sizeof *m->heads);
    for (size_t i = 0; m->heads && i < d->judged.n_heads; i++) {
        m->heads[i] = put_judged(region, names, &d->judged.heads[i], &again[i]);
        if (!m->heads[i]) return NULL;
        m->same = m->same && m->heads[i]->same;
        m->n_heads++;
    }
    put_checks(region, names, &d->judged, m);
    put_training(region, names, &d->judged, m);
    return m;
}

void tk__jobs_explain_gate(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__ExplainGateRequest *in = (const Trunkd__V1__ExplainGateRequest *)message;
    tk_diag diag = {{0}};
    tk_decision decision;
    tk__names names = {.n = 0};
    tk_err err =
        tk_store_decision_get(tk__api(call)->o.store, tk__tenant(call), in->id, &decision, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    tk_gate_record *again = tk_calloc(decision.judged.n_heads + 1, sizeof *again);
    err = again ? tk__names_init(&names, call, &diag) : TK_NOMEM;
    if (err == TK_OK) {
        tk__region region = {NULL, false};
        tk__reply(call, &region, put_decision(&region, &names, &decision, again));
        tk__names_fini(&names);
    } else {
        tk__fail(call, err, &diag);
    }
    tk_free(again);
    tk_decision_fini(&decision);
}

/* -- the curve -- */

static void reply_curve(tk_rpc_call *call, tk__names *names, tk_job_events *points)
{
    tk__region region = {NULL, false};
    Trunkd__V1__Curve *m = tk__new(&region, &trunkd__v1__curve__descriptor);
    if (m) m->points = tk__alloc(&region, points->n, sizeof *m->points);
    for (size_t i = 0; m && m->points && i < points->n; i++) {
        m->points[i] = tk__put_event(&region, names, &points->items[i]);
        if (!m->points[i]) break;
        m->n_points++;
    }
    tk__reply(call, &region, m);
}

void tk__jobs_get_curve(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__GetCurveRequest *in = (const Trunkd__V1__GetCurveRequest *)message;
    tk_diag diag = {{0}};
    tk_job job = {.id = 0};
    tk_job_events points = {.n = 0};
    tk__names names = {.n = 0};
    tk_store *store = tk__api(call)->o.store;
    tk_err err = tk_store_job_get(store, tk__tenant(call), in->id, &job, &diag);
    if (err == TK_OK) err = tk_store_curve_list(store, in->id, &points, &diag);
    if (err == TK_OK) err = tk__names_init(&names, call, &diag);
    if (err == TK_OK)
        reply_curve(call, &names, &points);
    else
        tk__fail(call, err, &diag);
    tk__names_fini(&names);
    tk_job_events_fini(&points);
    tk_job_fini(&job);
}
