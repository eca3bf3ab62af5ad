/* Batches of images to Classifier.Classify: see ask.h. */
#include "ask.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void put(tk__batch *batch, uint8_t *data, size_t size, char *name, size_t index)
{
    batch->data[batch->n] = (ProtobufCBinaryData){.len = size, .data = data};
    batch->names[batch->n] = name;
    batch->index[batch->n] = index;
    batch->bytes += size;
    batch->n++;
}

static bool has_room(const tk__batch *batch, size_t limit)
{
    return batch->n < limit && batch->n < TK__BATCH_MAX && batch->bytes < TK__BATCH_BYTES;
}

bool tk__batch_fill(tk__batch *batch, const tk__images *list, size_t *next, size_t limit)
{
    for (; *next < list->n && has_room(batch, limit); ++*next) {
        uint8_t *data = NULL;
        size_t capacity = 0, size = 0;
        char why[600];
        if (!tk__read_image(list->items[*next].path, &data, &capacity, &size, why, sizeof(why))) {
            free(data);
            tk__fail("%s", why);
            return false;
        }
        put(batch, data, size, tk__copy(list->items[*next].name), *next);
    }
    return true;
}

void tk__batch_frames(tk__batch *batch, tk__frames *frames, size_t limit)
{
    while (has_room(batch, limit) && tk__frames_next(frames)) {
        uint8_t *copy = tk__alloc(frames->size, 1);
        memcpy(copy, frames->data, frames->size);
        put(batch, copy, frames->size, tk__format("frame %llu", (unsigned long long)frames->count),
            0);
    }
}

void tk__batch_clear(tk__batch *batch)
{
    for (size_t i = 0; i < batch->n; i++) {
        free(batch->data[i].data);
        free(batch->names[i]);
    }
    batch->n = batch->bytes = 0;
}

Trunkd__V1__ClassifyResponse *tk__ask(tk__ctl *ctl, const tk__batch *batch,
                                      const tk__question *question, tk_client_status *status)
{
    Trunkd__V1__ClassifyRequest request;
    trunkd__v1__classify_request__init(&request);
    ProtobufCBinaryData images[TK__BATCH_MAX];
    memcpy(images, batch->data, batch->n * sizeof(*images));
    request.n_images = batch->n;
    request.images = images;
    request.n_heads = question->heads.n;
    request.heads = question->heads.items;
    request.top_k = question->top;
    request.priority = question->priority;
    request.version = tk__copy(question->version);
    const unsigned timeout = ctl->timeout_ms > 86400000 ? 86400000 : (unsigned)ctl->timeout_ms;
    ProtobufCMessage *answer = NULL;
    const bool answered =
        tk_client_unary(ctl->client, "/trunkd.v1.Classifier/Classify", &request.base,
                        &trunkd__v1__classify_response__descriptor, timeout, &answer, status);
    free(request.version);
    if (!answered) return NULL;
    Trunkd__V1__ClassifyResponse *typed = (Trunkd__V1__ClassifyResponse *)answer;
    if (typed->n_images == batch->n) return typed;
    status->code = TK_CLIENT_INTERNAL;
    snprintf(status->text, sizeof(status->text),
             "the server answered for %zu images where %zu were asked", typed->n_images, batch->n);
    tk_client_free_message(answer);
    return NULL;
}

const Trunkd__V1__HeadAnswer *tk__answer_of(const Trunkd__V1__ImageAnswer *image, const char *head)
{
    for (size_t i = 0; i < image->n_heads; i++)
        if (strcmp(image->heads[i]->head, head) == 0) return image->heads[i];
    return NULL;
}
