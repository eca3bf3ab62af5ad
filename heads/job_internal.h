/* What the stages of a job share. */
#ifndef HEADS_JOB_INTERNAL_H
#define HEADS_JOB_INTERNAL_H

#include <time.h>

#include "heads/job.h"
#include "heads/split.h"

typedef struct tk__job {
    const tk_job_opts *o;
    tk_job_result *r;
    tk_diag *diag;

    /* where it stands, for progress */
    tk_stage stage;
    struct timespec stage_began;
    size_t train_first_step; /* of this run */
    tk_losses losses;        /* as last told in this stage */
    size_t remarks;          /* logged so far */
    tk_watch watch;

    /* prepared */
    tk_model *base; /* owned by r */
    tk_pack *pack;
    tk_canvases *canvases;
    tk_split split;
    const char **names;             /* [r->classes], borrowed from base and pack */
    uint32_t *class_of;             /* [labels of the pack] */
    uint32_t *labels, *held_labels; /* classes of split.train and split.held */
    tk_augment augment;
    tk_validator *validator;
    tk_head *head; /* the new one */
    size_t n_others;
    tk_head *const *others;
    const tk_head *was; /* the base's head that is refreshed; NULL: none is */
    size_t refreshed;   /* its place among the others; n_others: none */
    tk_pseudo_labels *pseudo;

    /* learnt */
    tk_student warm;    /* base trunk, warm head: the probe */
    tk_student now;     /* joint training's last point, then the chosen one */
    tk_student adapted; /* base trunk, head with adapter; zero: none */
    tk_student best;    /* joint training's best admissible point; zero: none */
    tk_projection *projection;
    tk_objective *objective;
    tk_validation *scratch; /* [n_others + 1] */
} tk__job;

/* What joint training and line search have found so far. */
typedef struct tk__point {
    bool found;           /* an admissible point */
    bool last_admissible; /* the last of training is one: nothing to search for */
    tk_verdict verdict;   /* of the point found */
} tk__point;

/* job_prepare.c: everything up to the split and the base's validation. */
TK_MUST tk_err tk__job_prepare(tk__job *j);
void tk__job_fini(tk__job *j);
/* The new head, without weights and adapter. */
TK_MUST tk_err tk__job_make_head(const tk__job *j, tk_head **out);
/* May the probe, or an adapter, take the place of joint training? Not of a head that is refreshed:
 * it stays as it is then. */
bool tk__job_may_fall_back(const tk__job *j);
/* DIR/name. */
TK_MUST tk_err tk__job_path(const tk__job *j, const char *name, char *out, size_t size);
enum { TK__PATH = 4096 };

/* job_learn.c */
/* Pseudo-labels, then the warm head, in j->warm. Also for a recipe that does not start from it: the
 * probe is what a job falls back to. */
TK_MUST tk_err tk__job_probe(tk__job *j);
TK_MUST tk_err tk__job_objective(tk__job *j);
/* Joint training. Leaves its last point in j->now and the best admissible one, if any, in j->best.
 * TK_DIVERGED: the guard gave up; there may be a best point all the same. */
TK_MUST tk_err tk__job_train(tk__job *j, tk__point *point);
/* From the last point towards the base. When it finds a point that is worth more than j->best, that
 * is in j->now and j->best is empty. */
TK_MUST tk_err tk__job_line_search(tk__job *j, tk__point *point);

/* job_adapter.c */
/* Does the recipe ask for an adapter, or the policy for its result? */
bool tk__job_wants_adapter(const tk__job *j);
/* Trains one, which is then j->adapted unless training diverged at once. */
TK_MUST tk_err tk__job_adapter(tk__job *j);
/* j->now as its training begins: the probe, with an adapter that has no say yet. */
TK_MUST tk_err tk__job_start_adapter(tk__job *j);
/* Accuracy of the better of adapter and probe, which cost nobody anything. */
double tk__job_apart_worth(const tk__job *j);
/* That one is the outcome. */
TK_MUST tk_err tk__job_keep_apart(tk__job *j, const char *why);

/* job_refresh.c: a head that goes on learning. */
/* Which head, if the recipe asks for it. */
TK_MUST tk_err tk__job_find_refreshed(tk__job *j);
/* Where its training begins, in j->warm: the head as it is, new classes with weight 0. */
void tk__job_start_refresh(tk__job *j);
/* The result's and the candidate's numbers of the head become those of all its held-out images,
 * the earlier and the new ones. After the precisions. */
void tk__job_merge_earlier(tk__job *j, tk_model *candidate);
/* Adds those that it had already to its pack. */
TK_MUST tk_err tk__job_keep_earlier(const tk__job *j, tk_pack_writer *w);

/* job_precisions.c: measures the candidate in every precision, if there is an image to do it with.
 */
TK_MUST tk_err tk__job_precisions(tk__job *j, tk_model *candidate);

/* job_commit.c */
/* The gate on j->now: commit, or fall back when no point was found, or one that is worth less than
 * the probe. */
TK_MUST tk_err tk__job_decide(tk__job *j, const tk__point *point, bool diverged);
/* The probe on the untouched trunk is the outcome. */
TK_MUST tk_err tk__job_keep_probe(tk__job *j, const char *why);
/* Fisher, candidate and validation pack. */
TK_MUST tk_err tk__job_finish(tk__job *j);

/* job_report.c */
tk_watch tk__job_watch(tk__job *j);
void tk__job_enter(tk__job *j, tk_stage stage);
void tk__job_leave(tk__job *j);
void tk__job_tick(void *job, const tk_train_tick *tick);
void tk__job_say(tk__job *j, bool warn, const char *fmt, ...) TK_PRINTF(3, 4);
/* Logs every remark that the result has by now and was not logged yet. */
void tk__job_remark(tk__job *j);
/* The gate's rule for head `h`, the new one last. */
tk_gate_rule tk__job_rule(const tk__job *j, size_t h);
/* Validates all heads at this point, judges it into r->gate, and tells. `out` [n_others + 1] may be
 * NULL. */
TK_MUST tk_err tk__job_validate(tk__job *j, const tk_student *student, size_t step, size_t epoch,
                                tk_verdict *verdict, tk_validation *out);

#endif
