/* Many images over one Classifier.ClassifyStream call. */
#ifndef TRUNKCTL_STREAM_H
#define TRUNKCTL_STREAM_H

#include "ask.h"

/* The answers for one batch, images[i] for names[i]; borrowed. */
typedef void tk__stream_take(void *ctx, const tk__batch *batch, uint64_t version,
                             Trunkd__V1__ImageAnswer *const *images);

/* Sends all images of `list`, `limit` in a message, several messages under way; `take` gets the
 * answers in the same order. What the server refuses for a limit is sent again when it says. Ends
 * early when tk__stop_asked(). Returns an exit code; what failed is printed. */
int tk__stream_ask(tk__ctl *ctl, const tk__images *list, size_t limit, const tk__question *question,
                   tk__stream_take *take, void *ctx);

#endif
