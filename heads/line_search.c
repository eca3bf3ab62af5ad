/* Weight interpolation (WiSE-FT: Wortsman et al. 2021, 2109.01903): theta = old + alpha (new -
 * old), the head included. Running batch-norm statistics are part of the trunk's block and go
 * along. */
#include "heads/line_search.h"

static void interpolate(size_t n, const float *old, const float *tuned, double alpha, float *out)
{
    for (size_t j = 0; j < n; j++)
        out[j] = (float)((double)old[j] + alpha * ((double)tuned[j] - (double)old[j]));
}

tk_err tk_line_search(const tk_line_search_opts *opts, tk_student *student,
                      tk_line_search_result *result, tk_diag *diag)
{
    *result = (tk_line_search_result){0};
    for (size_t k = 1; k < opts->points && !result->found; k++) {
        if (tk_watch_cancelled(opts->watch)) return TK_CANCELLED;
        result->alpha = 1 - (double)k / (double)opts->points;
        interpolate(student->trunk->count, opts->old->trunk->data, opts->tuned->trunk->data,
                    result->alpha, student->trunk->data);
        interpolate(student->head_size, opts->old->head, opts->tuned->head, result->alpha,
                    student->head);
        const tk_err err = opts->validate(opts->ctx, student, k, &result->verdict, diag);
        if (err != TK_OK) return err;
        result->found = result->verdict.admissible;
        tk_watch_progress(opts->watch, k, opts->points - 1);
    }
    return TK_OK;
}
