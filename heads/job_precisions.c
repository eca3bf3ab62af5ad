/* After the gate: may what it let pass be served in the other precisions, too? One pass of the
 * candidate over the held-out images per precision, and one in fp32 over some hundred of them for
 * int8's ranges. The validations in fp32 are the gate's own. */
#include <stdio.h>
#include <string.h>

#include "engine/mem.h"
#include "job_internal.h"

enum { CALIBRATION_IMAGES = 512 };

/* Calibration and each precision other than fp32. */
static void report_steps(tk__job *j, size_t done)
{
    j->watch.progress(j->watch.ctx, done, TK_PRECISION_COUNT);
}

/* One line: a reader of events sees its first 255 bytes only. */
static void say_judged(tk__job *j, tk_precision precision, const tk_gate_record *records)
{
    const tk_gate_record *worst = records;
    for (size_t h = 1; h <= j->n_others; h++)
        if (records[h].drop - records[h].tolerance > worst->drop - worst->tolerance)
            worst = &records[h];
    tk__job_say(
        j, false,
        "%s against fp32: %s; it costs head \"%s\" most: %+.1f +- %.1f points on %zu images, "
        "where %.1f may be lost",
        tk_precision_name(precision), j->r->admitted[precision] ? "admitted" : "not admitted",
        worst->head, 0 - worst->drop, worst->se, worst->n, worst->tolerance);
}

/* Judges every head, the new one last, and tells. `now` and `records` are [n_others + 1]. */
static tk_err judge(tk__job *j, tk_precision precision, tk_validation *now, tk_gate_record *records)
{
    char why[800];
    const size_t n = j->n_others + 1;
    tk_err err = TK_OK;
    for (size_t h = 0; h < n && err == TK_OK; h++) {
        const tk_gate_rule rule = tk__job_rule(j, h);
        err = tk_precision_judge(&j->r->after[h], &now[h], &rule, &records[h],
                                 &j->r->checks[h][precision], j->diag);
    }
    if (err != TK_OK) return err;
    j->r->admitted[precision] = tk_gate_decide(records, n, why, sizeof why);
    say_judged(j, precision, records);
    return TK_OK;
}

static tk_err measure(tk__job *j, const tk_model *candidate, tk_precision precision)
{
    const size_t n = j->n_others + 1;
    tk_validation *now = tk_calloc(n, sizeof *now);
    tk_gate_record *records = tk_calloc(n, sizeof *records);
    tk_err err = now && records ? TK_OK : tk_fail(j->diag, TK_NOMEM, "precision: out of memory");
    if (err == TK_OK)
        err = tk_validator_run_as(j->validator, candidate->trunk, j->head, precision,
                                  &candidate->ranges, now, j->diag);
    if (err == TK_OK) err = judge(j, precision, now, records);
    for (size_t h = 0; now && h < n; h++)
        tk_validation_fini(&now[h]);
    tk_free(now);
    tk_free(records);
    return err;
}

/* The checks go with the heads. */
static void keep(const tk__job *j, const tk_model *candidate)
{
    for (size_t h = 0; h <= j->n_others; h++) {
        if (j->was && h == j->refreshed) continue; /* tk__job_merge_earlier() */
        const char *id = h < j->n_others ? j->others[h]->id : j->head->id;
        tk_head *head = tk_model_head(candidate, id);
        memcpy(head->checks, j->r->checks[h], sizeof head->checks);
    }
}

tk_err tk__job_precisions(tk__job *j, tk_model *candidate)
{
    tk_err err = tk_validator_calibrate(j->validator, candidate->trunk, CALIBRATION_IMAGES,
                                        &candidate->ranges, j->diag);
    if (err != TK_OK) return err;
    j->r->admitted[TK_PRECISION_FP32] = true;
    if (candidate->ranges.maps == 0) {
        tk__job_say(j, true, "no image is held out: the version is offered in fp32 only");
        return TK_OK;
    }
    j->r->checks = tk_calloc(j->n_others + 1, sizeof *j->r->checks);
    if (!j->r->checks) return tk_fail(j->diag, TK_NOMEM, "precision: out of memory");
    for (tk_precision p = TK_PRECISION_FP32 + 1; p < TK_PRECISION_COUNT && err == TK_OK; p++) {
        report_steps(j, (size_t)p);
        if (tk_watch_cancelled(&j->watch)) return TK_CANCELLED;
        err = measure(j, candidate, p);
    }
    if (err != TK_OK) return err;
    report_steps(j, TK_PRECISION_COUNT);
    keep(j, candidate);
    return TK_OK;
}
