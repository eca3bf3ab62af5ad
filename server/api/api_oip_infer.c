/* ModelInfer and ModelStreamInfer. A request is checked here, on the completion-queue thread
 * (memory only) or on the shelf's when its version had to be loaded; handed to the batcher, and
 * answered from the batcher's executor. The call is held meanwhile, and with it the request, whose
 * bytes the batcher reads: pixels and files lie where protobuf-c put them, but for UINT8 in typed
 * contents, whose elements are numbers of four bytes there.
 *
 * Of a stream one request at a time is under way (tk_rpc_next); its errors are answers, too. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "api/api_oip.h"
#include "engine/mem.h"

enum {
    MAX_VALUES = 1 << 22,      /* of one answer: bounds its memory */
    MAX_PREDICTIONS = 1 << 18, /* the same, of classifications */
};

typedef tk__oip_query query;
typedef Inference__ModelInferRequest request;
typedef Inference__ModelInferRequest__InferRequestedOutputTensor wanted_tensor;
typedef Inference__ModelInferResponse__InferOutputTensor output_tensor;

static void destroy(query *q)
{
    if (!q) return;
    for (size_t o = 0; o < TK_OIP_OUTPUTS; o++)
        tk_free(q->values[o]);
    tk_free(q->own);
    tk_free(q);
}

/* -- the outputs -- */

static tk_err read_parameters(query *q, size_t index, const wanted_tensor *t, tk_diag *diag)
{
    size_t *k = &q->outputs[index].k;
    for (size_t i = 0; i < t->n_parameters; i++) {
        const char *key = t->parameters[i]->key;
        const Inference__InferParameter *value = t->parameters[i]->value;
        if (strncmp(key, "shared_memory_", 14) == 0)
            return tk_fail(diag, TK_BADARG,
                           "outputs[%zu].parameters has %s: there is no shared memory", index,
                           tk__oip_quoted(key).text);
        if (strcmp(key, "classification") != 0) continue;
        if (!value || value->parameter_choice_case !=
                          INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_INT64_PARAM)
            return tk_fail(diag, TK_BADARG,
                           "outputs[%zu].parameters: classification is no int64_param", index);
        if (value->int64_param < 1)
            return tk_fail(diag, TK_BADARG,
                           "outputs[%zu].parameters: classification is %" PRId64
                           ", it must be at least 1",
                           index, value->int64_param);
        if (q->outputs[index].what == TK_OIP_FEATURES)
            return tk_fail(
                diag, TK_BADARG,
                "outputs[%zu].parameters: features have no classes, so no classification", index);
        const uint64_t wanted = (uint64_t)value->int64_param;
        *k = wanted < q->head->classes ? (size_t)wanted : q->head->classes;
    }
    if (*k > q->top_k) q->top_k = *k;
    return TK_OK;
}

static tk_err read_output(query *q, size_t index, const wanted_tensor *t, tk_diag *diag)
{
    tk_oip_output what = 0;
    while (what < TK_OIP_OUTPUTS && strcmp(t->name, tk__oip_output_names[what]) != 0)
        what++;
    if (what == TK_OIP_OUTPUTS)
        return tk_fail(
            diag, TK_BADARG,
            "outputs[%zu].name is \"%s\": the model gives probabilities, logits and features",
            index, tk__oip_quoted(t->name).text);
    for (size_t i = 0; i < index; i++)
        if (q->outputs[i].what == what)
            return tk_fail(diag, TK_BADARG, "outputs[%zu] asks for %s, as outputs[%zu] does", index,
                           t->name, i);
    q->outputs[index].what = what;
    return read_parameters(q, index, t, diag);
}

static tk_err check_outputs(query *q, tk_diag *diag)
{
    const request *in = q->in;
    if (in->n_outputs > TK_OIP_OUTPUTS)
        return tk_fail(diag, TK_BADARG, "outputs has %zu entries, the limit is %d", in->n_outputs,
                       (int)TK_OIP_OUTPUTS);
    q->n_outputs = in->n_outputs > 0 ? in->n_outputs : TK_OIP_OUTPUTS;
    for (size_t i = 0; in->n_outputs == 0 && i < TK_OIP_OUTPUTS; i++)
        q->outputs[i].what = (tk_oip_output)i;
    for (size_t i = 0; i < in->n_outputs; i++) {
        const tk_err err = read_output(q, i, in->outputs[i], diag);
        if (err != TK_OK) return err;
    }
    size_t values = 0, predictions = 0;
    for (size_t i = 0; i < q->n_outputs; i++) {
        values += q->n * tk__oip_output_width(q->head, q->outputs[i].what);
        predictions += q->n * q->outputs[i].k;
    }
    if (values > MAX_VALUES)
        return tk_fail(
            diag, TK_BADARG,
            "the outputs of %zu images have %zu values, the limit is %d: send fewer images, "
            "or name fewer outputs",
            q->n, values, MAX_VALUES);
    if (predictions > MAX_PREDICTIONS)
        return tk_fail(diag, TK_BADARG,
                       "classification of %zu images makes %zu predictions, the limit is %d", q->n,
                       predictions, MAX_PREDICTIONS);
    return TK_OK;
}

/* Room for what is wanted, and the images' pointers into it. */
static tk_err make_values(query *q, tk_infer *infer, tk_diag *diag)
{
    for (size_t i = 0; i < q->n_outputs; i++) {
        const tk_oip_output o = q->outputs[i].what;
        if (o == TK_OIP_PROBABILITIES && q->outputs[i].k > 0) continue; /* tk_top has them */
        q->values[o] = tk_calloc(q->n * tk__oip_output_width(q->head, o), sizeof(float));
        if (!q->values[o]) return tk_fail(diag, TK_NOMEM, "no memory for the outputs");
    }
    for (size_t i = 0; i < q->n; i++) {
        float *at[TK_OIP_OUTPUTS] = {NULL};
        for (tk_oip_output o = 0; o < TK_OIP_OUTPUTS; o++)
            if (q->values[o]) at[o] = q->values[o] + i * tk__oip_output_width(q->head, o);
        infer->images[i].probabilities = at[TK_OIP_PROBABILITIES];
        infer->images[i].logits = at[TK_OIP_LOGITS];
        infer->images[i].features = at[TK_OIP_FEATURES];
    }
    return TK_OK;
}

/* -- the answer -- */

static void put_raw(tk__region *region, Inference__ModelInferResponse *m, size_t i, size_t bytes)
{
    m->raw_output_contents[i].data = tk__alloc(region, bytes, 1);
    m->raw_output_contents[i].len = m->raw_output_contents[i].data ? bytes : 0;
}

/* The i-th output's values, borrowed from the query. */
static void put_values(const query *q, size_t i, Inference__ModelInferResponse *m, output_tensor *t)
{
    float *values = q->values[q->outputs[i].what];
    const size_t n = q->n * tk__oip_output_width(q->head, q->outputs[i].what);
    if (q->raw) {
        m->raw_output_contents[i] =
            (ProtobufCBinaryData){.data = (uint8_t *)values, .len = n * sizeof *values};
    } else {
        t->contents->n_fp32_contents = n;
        t->contents->fp32_contents = values;
    }
}

/* "value:index:label" of the k best of each image. */
static void put_classes(tk__region *region, const query *q, const tk_infer *infer, size_t i,
                        Inference__ModelInferResponse *m, output_tensor *t)
{
    const size_t k = q->outputs[i].k, n = q->n * k;
    const float *logits = q->outputs[i].what == TK_OIP_LOGITS ? q->values[TK_OIP_LOGITS] : NULL;
    ProtobufCBinaryData *list = tk__alloc(region, n, sizeof *list);
    if (!list) return;
    size_t bytes = 0;
    for (size_t e = 0; e < n; e++) {
        const tk_top *top = &infer->images[e / k].top[e % k];
        const double value =
            (double)(logits ? logits[e / k * q->head->classes + top->label] : top->score);
        char *text =
            tk__print(region, "%f:%" PRIu32 ":%s", value, top->label, q->head->labels[top->label]);
        list[e] = (ProtobufCBinaryData){.data = (uint8_t *)text, .len = strlen(text)};
        bytes += sizeof(uint32_t) + list[e].len;
    }
    if (!q->raw) {
        t->contents->n_bytes_contents = n;
        t->contents->bytes_contents = list;
        return;
    }
    put_raw(region, m, i, bytes);
    uint8_t *at = m->raw_output_contents[i].data;
    for (size_t e = 0; at && e < n; e++) {
        const uint32_t len = (uint32_t)list[e].len;
        memcpy(at, &len, sizeof len);
        memcpy(at + sizeof len, list[e].data, len);
        at += sizeof len + len;
    }
}

static output_tensor *put_output(tk__region *region, const query *q, const tk_infer *infer,
                                 size_t i, Inference__ModelInferResponse *m)
{
    output_tensor *t =
        tk__new(region, &inference__model_infer_response__infer_output_tensor__descriptor);
    if (!t) return NULL;
    const size_t k = q->outputs[i].k;
    t->name = tk__print(region, "%s", tk__oip_output_names[q->outputs[i].what]);
    t->datatype = tk__print(region, "%s", k > 0 ? "BYTES" : "FP32");
    t->shape = tk__alloc(region, 2, sizeof *t->shape);
    if (!q->raw) t->contents = tk__new(region, &inference__infer_tensor_contents__descriptor);
    if (!t->shape || (!q->raw && !t->contents)) return NULL;
    t->n_shape = 2;
    t->shape[0] = (int64_t)q->n;
    t->shape[1] = (int64_t)(k > 0 ? k : tk__oip_output_width(q->head, q->outputs[i].what));
    if (k > 0)
        put_classes(region, q, infer, i, m, t);
    else
        put_values(q, i, m, t);
    return t;
}

/* Names and id; `version` 0 is none. */
static Inference__ModelInferResponse *put_response(tk__region *region, const request *in,
                                                   uint64_t version)
{
    Inference__ModelInferResponse *m =
        tk__new(region, &inference__model_infer_response__descriptor);
    if (!m) return NULL;
    m->model_name = in->model_name;
    m->id = in->id;
    m->model_version = version ? tk__print(region, "%" PRIu64, version) : in->model_version;
    return m;
}

static Inference__ModelInferResponse *put_answer(tk__region *region, const query *q,
                                                 const tk_infer *infer)
{
    Inference__ModelInferResponse *m = put_response(region, q->in, q->version);
    if (!m) return NULL;
    m->outputs = tk__alloc(region, q->n_outputs, sizeof(output_tensor *));
    m->raw_output_contents = tk__alloc(region, q->n_outputs, sizeof *m->raw_output_contents);
    if (!m->outputs || !m->raw_output_contents) return NULL;
    for (size_t i = 0; i < q->n_outputs; i++) {
        m->outputs[i] = put_output(region, q, infer, i, m);
        m->n_outputs++;
    }
    if (q->raw) m->n_raw_output_contents = q->n_outputs;
    return m;
}

/* Packs and sends one message of a stream, and asks for the next request. */
static void send_answer(tk_rpc_call *call, tk__region *region, Inference__ModelInferResponse *m,
                        const char *error)
{
    Inference__ModelStreamInferResponse *out =
        tk__new(region, &inference__model_stream_infer_response__descriptor);
    if (out && m && !region->failed) {
        out->error_message = error ? tk__print(region, "%s", error) : out->error_message;
        out->infer_response = m;
        tk_rpc_send(call, &out->base); /* there is room: see tk_rpc_next */
        tk__region_fini(region);
        tk_rpc_next(call);
    } else {
        tk_rpc_fail(call, TK_NOMEM, "no memory for the answer");
        tk__region_fini(region);
    }
}

static void refuse(tk_rpc_call *call, bool stream, const request *in, tk_err err,
                   const tk_diag *diag)
{
    if (!stream) {
        tk__fail(call, err, diag);
        return;
    }
    tk__region region = {NULL, false};
    Inference__ModelInferResponse *m = put_response(&region, in, 0);
    send_answer(call, &region, m, diag->text[0] ? diag->text : tk_err_text(err));
}

static void answer(const query *q, const tk_infer *infer)
{
    tk__region region = {NULL, false};
    Inference__ModelInferResponse *m = put_answer(&region, q, infer);
    tk_api *api = tk__api(q->call);
    if (m && !region.failed) atomic_fetch_add_explicit(&api->requests, 1, memory_order_relaxed);
    if (!q->stream) {
        tk__reply(q->call, &region, m);
        return;
    }
    tk_metrics_observe(api->o.metrics, TK_STAGE_TOTAL, tk_now_ns() - tk_rpc_received_ns(q->call));
    send_answer(q->call, &region, m, NULL);
}

/* The first image that could not be read. */
static tk_err find_bad(const query *q, const tk_infer *infer, tk_diag *diag)
{
    for (size_t i = 0; i < q->n; i++)
        if (infer->images[i].error)
            return tk_fail(diag, TK_BADDATA, "inputs[0]: image %zu of %zu cannot be read: %s", i,
                           q->n, infer->images[i].error);
    return TK_OK;
}

static void done(tk_infer *infer, tk_err err, const char *reason)
{
    query *q = infer->user;
    tk_rpc_call *call = q->call;
    tk_diag diag = {{0}};
    err = err == TK_OK ? find_bad(q, infer, &diag) : tk_fail(&diag, err, "%s", reason);
    tk__count_infer(call, infer, err); /* before the caller can look */
    if (err == TK_OK)
        answer(q, infer);
    else
        refuse(call, q->stream, q->in, err, &diag);
    tk_infer_destroy(infer);
    destroy(q);
    tk_rpc_unref(call);
}

static bool cancelled(void *user)
{
    return tk_rpc_cancelled(((const query *)user)->call);
}

/* -- the question -- */

/* Triton's parameter, which may be missing. */
static tk_err read_priority(const request *in, unsigned *priority, tk_diag *diag)
{
    for (size_t i = 0; i < in->n_parameters; i++) {
        const Inference__InferParameter *value = in->parameters[i]->value;
        if (strcmp(in->parameters[i]->key, "priority") != 0) continue;
        const int kind = value ? (int)value->parameter_choice_case : 0;
        if (kind == INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_UINT64_PARAM)
            return tk__priority(value->uint64_param, priority, diag);
        if (kind == INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_INT64_PARAM)
            return tk__priority((uint64_t)value->int64_param, priority, diag); /* -1 is too much */
        return tk_fail(diag, TK_BADARG,
                       "parameters: priority is no int64_param and no uint64_param");
    }
    return TK_OK;
}

static tk_err submit(query *q, tk_snapshot *snapshot, tk_diag *diag)
{
    tk_err err = tk__oip_check_input(q, snapshot, diag);
    if (err == TK_OK) err = check_outputs(q, diag);
    if (err != TK_OK) return err;
    tk_infer *infer;
    err = tk_infer_create(&infer, snapshot, q->n, 1, &q->head, q->top_k);
    if (err != TK_OK) return tk_fail(diag, err, "no memory for %zu images", q->n);
    err = read_priority(q->in, &infer->priority, diag);
    if (err == TK_OK) err = tk__oip_take_contents(q, infer, diag);
    if (err == TK_OK) err = make_values(q, infer, diag);
    if (err == TK_OK) {
        infer->tenant = tk_rpc_identity(q->call)->tenant;
        infer->deadline_ns = tk_rpc_deadline_ns(q->call);
        infer->user = q;
        infer->cancelled = cancelled;
        infer->done = done;
        tk_rpc_call *call = q->call; /* `q` may be gone when the submit comes back */
        tk_rpc_ref(call);
        tk_rpc_note(call, q->n, q->version);
        err = tk_batcher_submit(tk__api(call)->o.batcher, infer, diag);
        if (err != TK_OK) {
            if (!q->stream) tk_rpc_retry_after(call, infer->retry_ms);
            tk_rpc_unref(call);
        }
    }
    if (err != TK_OK) tk_infer_destroy(infer);
    return err;
}

static void infer_picked(tk_rpc_call *call, const ProtobufCMessage *message, bool stream,
                         tk_err err, tk_snapshot *snapshot, const tk_diag *why)
{
    const request *in = (const request *)message;
    tk_diag diag = *why;
    const tk_head *head;
    err = tk__oip_find(call, err, snapshot, in->model_name, in->model_version, &head, &diag);
    query *q = NULL;
    if (err == TK_OK) {
        q = tk_calloc(1, sizeof *q);
        err = q ? TK_OK : tk_fail(&diag, TK_NOMEM, "no memory for the request");
    }
    if (err == TK_OK) {
        q->call = call;
        q->stream = stream;
        q->in = in;
        q->head = head;
        q->version = tk_snapshot_number(snapshot);
        err = submit(q, snapshot, &diag);
    }
    if (err == TK_OK) return;
    destroy(q);
    tk__count_infer(call, NULL, err);
    refuse(call, stream, in, err, &diag);
}

static void picked(tk_rpc_call *call, const ProtobufCMessage *message, tk_err err,
                   tk_snapshot *snapshot, const tk_diag *diag)
{
    infer_picked(call, message, false, err, snapshot, diag);
}

static void stream_picked(tk_rpc_call *call, const ProtobufCMessage *message, tk_err err,
                          tk_snapshot *snapshot, const tk_diag *diag)
{
    infer_picked(call, message, true, err, snapshot, diag);
}

/* Has `other` the model, too? */
static bool fits(const tk_rpc_call *call, const ProtobufCMessage *message,
                 const tk_snapshot *current, const tk_snapshot *other)
{
    const char *name = ((const request *)message)->model_name;
    const char *tenant = tk_rpc_identity(call)->name;
    return tk_snapshot_find(current, tenant, name) && tk_snapshot_find(other, tenant, name);
}

void tk__oip_model_infer(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const request *in = (const request *)message;
    tk__pick_version(call, message, in->model_version, fits, picked);
}

void tk__oip_model_stream_infer(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const request *in = (const request *)message;
    tk__pick_version(call, message, in->model_version, fits, stream_picked);
}
