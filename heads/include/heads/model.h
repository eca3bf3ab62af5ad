/* A version's contents: one trunk, its preprocessing, all heads, and what EWC needs. On disk one
 * safetensors file:
 *
 *     trunk.<torchvision name>            the trunk
 *     head.<id>.weight [c][width], .bias [c]  one pair per head
 *     adapter.<id>.<s>.weight [r][c_s], .bias [r]  one pair per stage of a head with an adapter
 *     ewc.fisher.<name>, ewc.anchor.<name>  collapsed Fisher and anchor (absent: EWC off)
 *     ewc.share.<id>                      bytes: the head's part of the Fisher (heads/ewc_share.h)
 *     inputs.<name>                       triangle of the covariance of a convolution's inputs, one
 *                                         row (absent: projection off)
 *     __metadata__.trunkd                 JSON: format, arch, preprocessing, heads (id, labels,
 *                                         tolerance, best, adapter_rank, precisions), Fisher's
 *                                         scale, limit and images of the covariances, int8's ranges
 *
 * An `id` is opaque here; who owns a head is the server's business. A model that nobody changes may
 * be read by any number of threads. */
#ifndef HEADS_MODEL_H
#define HEADS_MODEL_H

#include "engine/covariance.h"
#include "engine/image.h"
#include "engine/net.h"
#include "engine/precision.h"
#include "engine/side.h"
#include "heads/ewc_share.h"

enum { TK_HEAD_MAX_CLASSES = 10000, TK_LABEL_MAX = 256, TK_ADAPTER_MAX_RANK = 256 };

/* How a head fares in a precision: its answers there against its answers in fp32, on the same
 * held-out images. See heads/precision_gate.h. */
typedef struct tk_precision_check {
    size_t n;              /* images; 0: not measured */
    double accuracy, fp32; /* in the precision and in fp32, fractions */
    double alike;          /* fraction of the images that get fp32's answer (top-1) */
    double tolerance;      /* points, that were granted */
    bool agreement;        /* without labels: `accuracy` is `alike`, `fp32` is 1 */
    bool admitted;
} tk_precision_check;

/* A linear classifier on the trunk's features or, with an adapter (a side of its own,
 * engine/side.h), on those and the adapter's S * rank outputs. With 100 classes it takes so many
 * KiB:
 *
 *     rank              none    8   32   64
 *     ResNet-18          200  243  371  541
 *     ResNet-50          800  933 1331 1861 */
typedef struct tk_head {
    char *id;
    size_t classes, features;
    size_t width;       /* of the linear layer's input: features + S * rank */
    size_t rank;        /* of the adapter; 0: none */
    tk_arch arch;       /* of the trunk that the adapter reads */
    float *adapter;     /* as tk_side.data; NULL: none */
    char **labels;      /* [classes], UTF-8, unique, 1..TK_LABEL_MAX bytes */
    float *weight;      /* [classes][width] */
    float *bias;        /* [classes] */
    double tolerance;   /* points that the gate lets it fall, default 1.0 */
    double best;        /* best committed validation accuracy, 0..1; NaN: never measured */
    tk_ewc_share share; /* of the model's Fisher; none when it was made without, or not loaded */
    bool covered;       /* the model's covariances, if there are any, hold its images */
    tk_precision_check checks[TK_PRECISION_COUNT]; /* fp32's is unused */
} tk_head;

typedef struct tk_model {
    tk_preproc preproc;
    tk_params *trunk;
    size_t n_heads;
    tk_head **heads;
    float *fisher, *anchor; /* [trunk->trained] or NULL both; see heads/ewc.h */
    double fisher_scale;    /* mean of the newest head's raw Fisher, which `fisher` has as 1 */
    tk_covariance *inputs;  /* of the old tasks' images, or NULL; see heads/projection.h */
    tk_calibration ranges;  /* for int8; no maps: the version was measured in fp32 only */
} tk_model;

TK_MUST tk_err tk_head_create(tk_head **out, const char *id, size_t classes, size_t features,
                              const char *const *labels, tk_diag *diag);
TK_MUST tk_err tk_head_clone(tk_head **out, const tk_head *from);
void tk_head_destroy(tk_head *head);
/* Gives a head that has none an adapter of rank 1..TK_ADAPTER_MAX_RANK, all zero; its answers stay
 * as they are. On failure the head is unchanged. */
TK_MUST tk_err tk_head_add_adapter(tk_head *head, tk_arch arch, size_t rank, tk_diag *diag);

/* An empty model with a zeroed trunk. Free with tk_model_destroy(). */
TK_MUST tk_err tk_model_create(tk_model **out, tk_arch arch, const tk_preproc *preproc,
                               tk_diag *diag);
TK_MUST tk_err tk_model_clone(tk_model **out, const tk_model *from);
void tk_model_destroy(tk_model *model);
tk_head *tk_model_head(const tk_model *model, const char *id); /* or NULL */
/* Takes the head. TK_EXISTS when the id is there, TK_BADARG when it does not fit the trunk. */
TK_MUST tk_err tk_model_add_head(tk_model *model, tk_head *head);
/* Takes the head's share out of the Fisher sum: the trunk is free to forget it. The part of a head
 * that has no share (of a version made before there were any) stays in the sum. */
void tk_model_unprotect_head(tk_model *model, tk_head *head);
/* Removes and frees, its share of the Fisher with it; without heads there is no Fisher. The
 * covariances are one sum, from which no head's part can be taken: if they hold this head's images,
 * or it is the last one, they go whole, and jobs to come begin new ones. False when absent. */
bool tk_model_drop_head(tk_model *model, const char *id);

/* May the version be served in `precision`? In fp32 always, in another one when every head was
 * admitted in it. Else *refused is the first head that was not, or NULL: nothing was measured. */
bool tk_model_admits(const tk_model *model, tk_precision precision, const tk_head **refused);
/* Forgets what was measured, as when the trunk changes. */
void tk_model_forget_precisions(tk_model *model);

/* `with_ewc` false leaves Fisher, anchor and covariances on disk (serving does not need them). */
TK_MUST tk_err tk_model_load(tk_model **out, const char *path, bool with_ewc, tk_diag *diag);
/* The metadata alone: a model without trunk, its heads without weights and labels. */
TK_MUST tk_err tk_model_outline(tk_model **out, const char *path, tk_diag *diag);
TK_MUST tk_err tk_model_save(const tk_model *model, const char *path, tk_diag *diag);

#endif
