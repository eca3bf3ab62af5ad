/* The state of joint training, as checkpoint.c writes it. */
#ifndef HEADS_TRAIN_INTERNAL_H
#define HEADS_TRAIN_INTERNAL_H

#include "heads/train.h"

/* Plain numbers. Anything that decides the next bit of training is here or in a student. */
typedef struct tk__train_state {
    uint64_t step;      /* next step to take */
    uint64_t good_step; /* the step that `good` stands at */
    uint64_t restarts;
    uint64_t has_best, best_epoch;
    uint64_t finished;    /* no further trial */
    uint64_t trial_begin; /* the epoch (0..) with which the trial at work began */
    uint64_t n_trials;    /* of `trials`, the one at work among them */
    tk_trial trials[TK_MAX_TRIALS];
    double rate_factor; /* halved by every restart */
    double start_loss;  /* of the first step; 0: not known yet */
    double smooth_loss; /* running mean that the guard watches */
    double top_worth;   /* the highest of an admissible point of the trial */
    double seconds;     /* of training up to here, in all runs of the job */
    tk_losses sums;     /* over the epoch so far */
    tk_verdict best_verdict;
} tk__train_state;

typedef struct tk__training {
    tk__train_state state;
    tk_student *now;       /* borrowed */
    tk_student good, best; /* good: the end of the last sound epoch */
    size_t epochs;         /* of all trials, at most */
    tk_curve_point *curve; /* [epochs] */
} tk__training;

TK_MUST tk_err tk__checkpoint_save(const tk__training *t, const char *path, tk_diag *diag);
/* TK_NOTFOUND when there is none, TK_BADDATA when it is damaged or belongs to another job; *t is
 * then in an undefined but safe state and must be started afresh. */
TK_MUST tk_err tk__checkpoint_load(tk__training *t, const char *path, tk_diag *diag);

#endif
