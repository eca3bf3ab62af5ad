/* See stream.h. One thread sends and receives: the server keeps as many answers as messages are
 * under way here, so that neither side waits for the other. */
#include "stream.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "stop.h"

enum { UNDER_WAY = 8 }; /* no more: the answers that the server keeps for who does not read */

typedef Trunkd__V1__ClassifyStreamResponse response;

typedef struct stream {
    tk__ctl *ctl;
    const tk__question *question;
    tk_client_call *call;
    tk__batch *ring; /* [UNDER_WAY] */
    size_t first, n; /* under way */
    bool settled;
} stream;

static bool send_batch(stream *s, const tk__batch *batch)
{
    Trunkd__V1__ClassifySettings settings;
    trunkd__v1__classify_settings__init(&settings);
    settings.n_heads = s->question->heads.n;
    settings.heads = s->question->heads.items;
    settings.top_k = s->question->top;
    settings.priority = s->question->priority;
    settings.version = tk__copy(s->question->version);
    Trunkd__V1__ClassifyStreamRequest in;
    trunkd__v1__classify_stream_request__init(&in);
    if (!s->settled) in.settings = &settings;
    s->settled = true;
    ProtobufCBinaryData images[TK__BATCH_MAX];
    for (size_t i = 0; i < batch->n; i++)
        images[i] = batch->data[i];
    in.n_images = batch->n;
    in.images = images;
    const bool sent = tk_client_send(s->call, &in.base);
    free(settings.version);
    return sent;
}

/* As many messages as may be under way. False: the call is over, or a file cannot be read
 * (*code). */
static bool send_some(stream *s, const tk__images *list, size_t limit, size_t *next, int *code)
{
    while (s->n < UNDER_WAY && *next < list->n && !tk__stop_asked()) {
        tk__batch *batch = &s->ring[(s->first + s->n) % UNDER_WAY];
        if (!tk__batch_fill(batch, list, next, limit)) {
            *code = TK__FAILED;
            return false;
        }
        s->n++;
        if (!send_batch(s, batch)) return false;
    }
    return true;
}

static void pause_ms(unsigned ms)
{
    const struct timespec t = {.tv_sec = (time_t)(ms / 1000),
                               .tv_nsec = (long)(ms % 1000) * 1000000};
    nanosleep(&t, NULL);
}

/* What the stream refused for a limit, by calls of its own, so that the order stays. As in the
 * stream, no name of a version means the current one, without a label's share. */
static int ask_again(stream *s, const tk__batch *batch, unsigned wait_ms, tk__stream_take *take,
                     void *ctx)
{
    tk__question again = *s->question;
    if (!again.version[0]) again.version = "latest";
    for (;;) {
        pause_ms(wait_ms);
        tk_client_status status = {0};
        Trunkd__V1__ClassifyResponse *answer = tk__ask(s->ctl, batch, &again, &status);
        if (answer) {
            take(ctx, batch, answer->version, answer->images);
            tk_client_free_message(&answer->base);
            return TK__DONE;
        }
        wait_ms = status.retry_ms;
        if (status.code != TK_CLIENT_RESOURCE_EXHAUSTED || wait_ms == 0 || tk__stop_asked())
            return tk__rpc_failed(s->ctl, &status);
    }
}

static int take_answer(stream *s, const response *answer, tk__stream_take *take, void *ctx)
{
    const tk__batch *batch = &s->ring[s->first];
    if (answer->code == TK_CLIENT_RESOURCE_EXHAUSTED && answer->retry_after_ms > 0)
        return ask_again(s, batch, answer->retry_after_ms, take, ctx);
    if (answer->code != TK_CLIENT_OK)
        return tk__fail("%s: %s", tk_client_code_text((int)answer->code), answer->error);
    if (answer->n_images != batch->n)
        return tk__fail("the server answered for %zu images where %zu were asked", answer->n_images,
                        batch->n);
    take(ctx, batch, answer->version, answer->images);
    return TK__DONE;
}

static int run(stream *s, const tk__images *list, size_t limit, tk__stream_take *take, void *ctx)
{
    int code = TK__DONE;
    size_t next = 0;
    while (send_some(s, list, limit, &next, &code) && s->n > 0) {
        response *answer = (response *)tk_client_receive(s->call);
        if (!answer) break;
        code = take_answer(s, answer, take, ctx);
        tk_client_free_message(&answer->base);
        tk__batch_clear(&s->ring[s->first]);
        s->first = (s->first + 1) % UNDER_WAY;
        s->n--;
        if (code != TK__DONE) break;
    }
    tk_client_status status;
    if (code != TK__DONE) tk_client_cancel(s->call);
    tk_client_send_end(s->call);
    tk_client_finish(s->call, &status);
    if (code == TK__DONE && status.code != TK_CLIENT_OK) code = tk__rpc_failed(s->ctl, &status);
    return code;
}

int tk__stream_ask(tk__ctl *ctl, const tk__images *list, size_t limit, const tk__question *question,
                   tk__stream_take *take, void *ctx)
{
    stream s = {.ctl = ctl, .question = question};
    s.call = tk_client_start(ctl->client, "/trunkd.v1.Classifier/ClassifyStream",
                             &trunkd__v1__classify_stream_response__descriptor, 0);
    if (!s.call) return tk__fail("out of memory");
    s.ring = tk__alloc(UNDER_WAY, sizeof *s.ring);
    const int code = run(&s, list, limit, take, ctx);
    for (size_t i = 0; i < UNDER_WAY; i++)
        tk__batch_clear(&s.ring[i]);
    free(s.ring);
    return code;
}
