/* What the trainer says: JSON lines on standard output, and result.json. See protocol.md. */
#ifndef TRAINER_REPORT_H
#define TRAINER_REPORT_H

#include "heads/job.h"

/* Each writes one line and flushes it; false when nobody listens any more. */
bool report_progress(const tk_job_progress *progress);
bool report_validation(const tk_job_validation *validation);
bool report_log(bool warn, const char *message);
bool report_failed(tk_err err, const char *reason);
/* From DIR/result.json, so that a finished job that is run again says the same. */
TK_MUST tk_err report_done(const char *dir, tk_diag *diag);

/* Writes DIR/result.json, durably. */
TK_MUST tk_err report_result(const char *dir, const char *job, const tk_job_opts *opts,
                             const tk_job_result *result, tk_diag *diag);

/* One line about one head's validation, for people and scripts. `check`: against fp32, or NULL. */
bool report_eval(const tk_validation *validation, tk_precision precision,
                 const tk_precision_check *check);

#endif
