/* Batches of images to Classifier.Classify: what classify and evaluate share. */
#ifndef TRUNKCTL_ASK_H
#define TRUNKCTL_ASK_H

#include "ctl.h"
#include "frames.h"
#include "images.h"
#include "trunkd/v1/classifier.pb-c.h"

enum { TK__BATCH_MAX = 256, TK__BATCH_BYTES = 4 << 20 };

/* Images read and ready to be sent. */
typedef struct tk__batch {
    size_t n, bytes;
    ProtobufCBinaryData data[TK__BATCH_MAX]; /* owned */
    char *names[TK__BATCH_MAX];              /* owned */
    size_t index[TK__BATCH_MAX];             /* in the list of images; 0 for a frame */
} tk__batch;

/* Reads images from list->items[*next] on into the batch, at most `limit`, and moves *next behind
 * them. False: a file cannot be read any more, with the reason printed. */
bool tk__batch_fill(tk__batch *batch, const tk__images *list, size_t *next, size_t limit);
/* The same from a stream of frames; an empty batch is the stream's end. */
void tk__batch_frames(tk__batch *batch, tk__frames *frames, size_t limit);
void tk__batch_clear(tk__batch *batch);

/* What is asked about every image; all borrowed. */
typedef struct tk__question {
    tk__list heads;      /* none: all */
    const char *version; /* "": the current one */
    unsigned top;        /* answers of each head */
    unsigned priority;   /* 1 to 5; 0: the default */
} tk__question;

/* One request. NULL: *status says why. An answer has as many images as the batch. */
Trunkd__V1__ClassifyResponse *tk__ask(tk__ctl *ctl, const tk__batch *batch,
                                      const tk__question *question, tk_client_status *status);
/* The answer of one head, or NULL. */
const Trunkd__V1__HeadAnswer *tk__answer_of(const Trunkd__V1__ImageAnswer *image, const char *head);

#endif
