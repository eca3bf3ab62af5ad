/* Pseudo-labels: what the teacher says about the new task's images, computed once and kept in half
 * precision in a mapped file. Of every training image there are V views, each a fixed crop;
 * training draws among exactly these, so that teacher and student always see the same pixels. The
 * trunk's features of each view are kept beside the logits; the warm-up learns from them. */
#ifndef HEADS_PSEUDO_LABELS_H
#define HEADS_PSEUDO_LABELS_H

#include "heads/canvases.h"
#include "heads/model.h"

/* Once open it is only read: any number of threads. */
typedef struct tk_pseudo_labels tk_pseudo_labels;

typedef struct tk_pseudo_labels_opts {
    const tk_model *teacher;
    size_t n_heads; /* whose logits are wanted */
    tk_head *const *heads;
    const tk_canvases *canvases;
    size_t n_images;
    const uint32_t *images; /* [n_images], into canvases; below, `item` indexes this list */
    size_t views;
    tk_augment augment;
    uint64_t seed; /* of the views: tk_view_random(augment, seed, image, view) */
    const char *path;
    tk_pool *pool;
    const tk_watch *watch; /* may be NULL */
} tk_pseudo_labels_opts;

/* Computes them, or what is missing of them when the file was begun before. TK_CANCELLED leaves
 * what is done. Memory does not grow with images, views or heads. */
TK_MUST tk_err tk_pseudo_labels_open(tk_pseudo_labels **out, const tk_pseudo_labels_opts *opts,
                                     tk_diag *diag);
void tk_pseudo_labels_close(tk_pseudo_labels *labels); /* keeps the file; NULL is fine */

size_t tk_pseudo_labels_views(const tk_pseudo_labels *labels);
/* Logits of head `head` (its index in opts->heads), [classes]. */
void tk_pseudo_labels_logits(const tk_pseudo_labels *labels, size_t view, size_t item, size_t head,
                             float *logits);
/* The teacher's features, [features]. */
void tk_pseudo_labels_features(const tk_pseudo_labels *labels, size_t view, size_t item,
                               float *features);

#endif
