/* One fine-tune, from data set to candidate version:
 *
 *     decode, split -> pseudo-labels -> warm-up -> adapter -> joint training -> line search -> gate
 *     -> precisions -> Fisher, covariances -> files
 *
 * Everything lies in the job's directory. Killed or cancelled at any moment and run again, it ends
 * with the same bits. */
#ifndef HEADS_JOB_H
#define HEADS_JOB_H

#include "heads/data_check.h"
#include "heads/gate.h"
#include "heads/precision_gate.h"
#include "heads/train.h"
#include "heads/validator.h"

typedef enum tk_stage {
    TK_STAGE_DECODE,
    TK_STAGE_PSEUDO_LABELS,
    TK_STAGE_WARM_UP,
    TK_STAGE_ADAPTER,
    TK_STAGE_TRAIN,
    TK_STAGE_LINE_SEARCH,
    TK_STAGE_GATE,
    TK_STAGE_PRECISIONS,
    TK_STAGE_FISHER,
    TK_STAGE_WRITE,
    TK_STAGE_COUNT,
} tk_stage;

const char *tk_stage_name(tk_stage stage); /* "decode", "pseudo-labels", ... */

typedef struct tk_job_progress {
    tk_stage stage;
    size_t step, steps, epoch, epochs; /* epochs 0: the stage has none */
    double rate;
    tk_losses losses;
    double eta; /* seconds left in this stage */
} tk_job_progress;

/* All heads at one moment: the others in the base's order, then the new one (`n_others` of n =
 * others + 1). before[] and gate[] have the others' only. */
typedef struct tk_job_validation {
    tk_stage stage;
    size_t step, epoch, n_others;
    tk_losses losses;           /* in stage train: means over the epoch that ends here */
    const tk_gate_record *gate; /* how the gate judges this point */
    const tk_validation *before, *now;
} tk_job_validation;

typedef struct tk_setting {
    const char *name;
    double value;
} tk_setting;

typedef struct tk_job_opts {
    const char *dir;
    const char *base;     /* path of the base version; NULL: a fresh trunk, recipe scratch */
    tk_arch arch;         /* without base */
    tk_preproc preproc;   /* without base */
    const char *data;     /* path of the pack */
    const char *head;     /* id to add or replace */
    double tolerance;     /* of the new head, points */
    bool keep_validation; /* write validation.pack */
    size_t n_validations;
    const tk_validator_pack *validations;
    const char *recipe;
    size_t n_set;
    const tk_setting *set;
    bool fallback_probe; /* when no joint point is admissible: the probe, else rejection */
    bool gate;           /* false: measured and reported, not obeyed; for experiments */
    uint64_t seed;
    double checkpoint_seconds;
    tk_pool *pool;
    void *ctx;
    bool (*cancelled)(void *ctx);
    void (*progress)(void *ctx, const tk_job_progress *progress);
    void (*validation)(void *ctx, const tk_job_validation *validation);
    void (*log)(void *ctx, bool warn, const char *message);
} tk_job_opts;

/* Everything optional at its default; callbacks that do nothing. */
tk_job_opts tk_job_defaults(void);

typedef enum tk_outcome { TK_OUTCOME_COMMIT, TK_OUTCOME_PROBE, TK_OUTCOME_REJECT } tk_outcome;
const char *tk_outcome_name(tk_outcome outcome);

typedef struct tk_job_result {
    tk_outcome outcome;
    char reason[1024]; /* heads stand in it as their id in double quotes */
    tk_recipe recipe;
    tk_arch arch;
    size_t classes, n_images, n_train, n_held, n_unreadable, batch;
    tk_data_check data; /* what its images show */
    double majority;    /* part of the held-out images that have the most frequent label; 0: none */
    size_t n_others;
    tk_gate_record *gate;    /* [n_others], of the candidate that was judged last */
    tk_validation *before;   /* [n_others] */
    tk_validation *after;    /* [n_others + 1], the new head last; of what is committed, or of
                                what was refused */
    double probe_accuracy;   /* of the new head; NaN: there was no probe */
    double adapter_accuracy; /* NaN: none was trained */
    double joint_accuracy;   /* of the chosen joint point; NaN: none */
    size_t best_epoch, restarts, epochs; /* best_epoch 0: none */
    double alpha;                        /* 1: no line search was needed */
    tk_curve_point *curve;               /* [epochs] */
    size_t n_trials;
    tk_trial trials[TK_MAX_TRIALS];
    /* [n_others + 1], as `after`: what is committed, in other precisions; NULL: not measured */
    tk_precision_check (*checks)[TK_PRECISION_COUNT];
    bool admitted[TK_PRECISION_COUNT]; /* may it be served so? */
    double fisher_scale;
    double seconds[TK_STAGE_COUNT]; /* of this run */
    tk_model *base;                 /* owner of the names above; NULL-safe */
    char *head, *earlier;           /* the latter of a head that was refreshed: ID@earlier */
} tk_job_result;

/* Runs the job, on the caller's thread and the pool; callbacks come on the caller's thread. A
 * directory has one job at a time. On TK_OK *result says how it ended and DIR/candidate.safetensors
 * (unless rejected) and DIR/validation.pack (if asked for) are on the disk. TK_CANCELLED: stopped,
 * to be resumed. TK_BADARG, TK_PRECONDITION, TK_BADDATA: as asked it cannot be done, and will not
 * be the next time; TK_DIVERGED: from scratch only; TK_NOMEM, TK_IO. Free *result with
 * tk_job_result_fini() in any case. */
TK_MUST tk_err tk_job_run(const tk_job_opts *opts, tk_job_result *result, tk_diag *diag);
/* The k-th thing that the owner of the data should know, as a sentence; false when there are fewer.
 * All of them were logged as warnings while the job ran. */
bool tk_job_remark(const tk_job_result *result, size_t k, char *text, size_t size);
void tk_job_result_fini(tk_job_result *result);
/* Removes what a finished job no longer needs: canvases, pseudo-labels, checkpoints. */
void tk_job_clean(const char *dir);

#endif
