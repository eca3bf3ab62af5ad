/* See precision_gate.h. */
#include "heads/precision_gate.h"

#include <math.h>

/* Fraction of the images that both answer alike. */
static double alike(const tk_validation *a, const tk_validation *b)
{
    size_t same = 0;
    for (size_t i = 0; i < a->n; i++)
        same += a->answers[i] == b->answers[i];
    return a->n ? (double)same / (double)a->n : 0;
}

tk_err tk_precision_judge(const tk_validation *fp32, tk_validation *now, const tk_gate_rule *rule,
                          tk_gate_record *record, tk_precision_check *check, tk_diag *diag)
{
    const tk_gate_rule against_fp32 = {
        .best = (double)NAN, .tolerance = rule->tolerance, .sigma = rule->sigma};
    tk_validation before;
    const tk_err err = tk_validation_clone(&before, fp32);
    if (err != TK_OK) return tk_fail(diag, err, "precision: %s", tk_err_text(err));
    if (fp32->agreement) {
        tk_validation_agree(&before, fp32->answers);
        tk_validation_agree(now, fp32->answers);
    }
    *record = tk_gate_judge(&before, now, &against_fp32);
    *check = (tk_precision_check){.n = record->n,
                                  .accuracy = record->after,
                                  .fp32 = record->before,
                                  .alike = alike(fp32, now),
                                  .tolerance = record->tolerance,
                                  .agreement = record->agreement,
                                  .admitted = record->admitted};
    tk_validation_fini(&before);
    return TK_OK;
}
