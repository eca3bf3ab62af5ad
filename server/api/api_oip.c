/* inference.GRPCInferenceService without inference (api_oip_infer.c) and lists of models: what a
 * model takes and gives. It comes from the snapshot of the version that was asked for; which other
 * versions there are, from the store. */
#include "api/api_oip.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const tk__oip_output_names[TK_OIP_OUTPUTS] = {"probabilities", "logits", "features"};

size_t tk__oip_output_width(const tk_head *head, tk_oip_output output)
{
    return output == TK_OIP_FEATURES ? head->features : head->classes;
}

/* -- finding -- */

char *tk__oip_shown(const tk_rpc_call *call, const tk_head *head)
{
    const tk_identity *who = tk_rpc_identity(call);
    return who->admin ? head->id : head->id + strlen(who->name) + 1;
}

static const tk_head *find_head(const tk_rpc_call *call, const tk_snapshot *snapshot,
                                const char *name)
{
    const tk_identity *who = tk_rpc_identity(call);
    if (!who->admin) return tk_snapshot_find(snapshot, who->name, name);
    char tenant[TK_NAME_SIZE];
    const size_t len = strcspn(name, "/");
    if (name[len] != '/' || len >= sizeof tenant) return NULL;
    snprintf(tenant, sizeof tenant, "%.*s", (int)len, name);
    return tk_snapshot_find(snapshot, tenant, name + len + 1);
}

tk_err tk__oip_find(const tk_rpc_call *call, tk_err picked, const tk_snapshot *snapshot,
                    const char *name, const char *version, const tk_head **head, tk_diag *diag)
{
    *head = NULL;
    if (picked != TK_OK && picked != TK_NOTFOUND && picked != TK_PRECONDITION) return picked;
    if (picked == TK_OK) *head = find_head(call, snapshot, name);
    if (*head) return TK_OK;
    char copy[2 * TK_NAME_SIZE];
    tk__api_text_copy(copy, sizeof copy, name);
    return tk_fail(diag, TK_NOTFOUND, "you have no model \"%s\"%s", copy,
                   tk__in_version_of(version).text);
}

/* Nobody's share is spent on a description. */
static void pick(tk_rpc_call *call, const ProtobufCMessage *in, const char *version,
                 tk__picked_fn *then)
{
    tk__pick_version(call, in, version[0] ? version : TK_VERSION_LATEST, NULL, then);
}

/* -- the server -- */

void tk__oip_server_live(tk_rpc_call *call, const ProtobufCMessage *in)
{
    (void)in;
    Inference__ServerLiveResponse out = INFERENCE__SERVER_LIVE_RESPONSE__INIT;
    out.live = true;
    tk_rpc_reply(call, &out.base);
}

void tk__oip_server_ready(tk_rpc_call *call, const ProtobufCMessage *in)
{
    (void)in;
    Inference__ServerReadyResponse out = INFERENCE__SERVER_READY_RESPONSE__INIT;
    out.ready = !atomic_load_explicit(&tk__api(call)->stopping, memory_order_relaxed);
    tk_rpc_reply(call, &out.base);
}

void tk__oip_server_metadata(tk_rpc_call *call, const ProtobufCMessage *in)
{
    (void)in;
    char name[] = "trunkd", version[] = TRUNKD_VERSION;
    char classification[] = "classification", configuration[] = "model_configuration",
         statistics[] = "statistics";
    char *extensions[] = {classification, configuration, statistics};
    Inference__ServerMetadataResponse out = INFERENCE__SERVER_METADATA_RESPONSE__INIT;
    out.name = name;
    out.version = version;
    out.n_extensions = sizeof extensions / sizeof *extensions;
    out.extensions = extensions;
    tk_rpc_reply(call, &out.base);
}

/* -- models -- */

/* A version that cannot be loaded is not ready, either. */
static void ready_picked(tk_rpc_call *call, const ProtobufCMessage *message, tk_err err,
                         tk_snapshot *snapshot, const tk_diag *why)
{
    const Inference__ModelReadyRequest *in = (const Inference__ModelReadyRequest *)message;
    tk_diag diag = *why;
    const tk_head *head;
    err = tk__oip_find(call, err, snapshot, in->name, in->version, &head, &diag);
    if (err != TK_OK && err != TK_NOTFOUND && err != TK_INTERNAL) {
        tk__fail(call, err, &diag);
        return;
    }
    Inference__ModelReadyResponse out = INFERENCE__MODEL_READY_RESPONSE__INIT;
    out.ready = err == TK_OK;
    tk_rpc_reply(call, &out.base);
}

void tk__oip_model_ready(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Inference__ModelReadyRequest *in = (const Inference__ModelReadyRequest *)message;
    pick(call, message, in->version, ready_picked);
}

static int64_t *put_shape(tk__region *region, int64_t a, int64_t b)
{
    int64_t *shape = tk__alloc(region, 2, sizeof *shape);
    if (shape) {
        shape[0] = a;
        shape[1] = b;
    }
    return shape;
}

typedef Inference__ModelMetadataResponse__TensorMetadata tensor_metadata;

static tensor_metadata *put_tensor(tk__region *region, const char *name, const char *datatype,
                                   size_t dims, int64_t width)
{
    tensor_metadata *m =
        tk__new(region, &inference__model_metadata_response__tensor_metadata__descriptor);
    if (!m) return NULL;
    m->name = tk__print(region, "%s", name);
    m->datatype = tk__print(region, "%s", datatype);
    m->shape = put_shape(region, -1, width);
    m->n_shape = m->shape ? dims : 0;
    return m;
}

static char *put_platform(tk__region *region, const tk_snapshot *snapshot)
{
    return tk__print(region, "trunkd_%s", tk_arch_name(tk_snapshot_arch(snapshot)));
}

/* `places`: the versions to list; none is only the snapshot's. */
static Inference__ModelMetadataResponse *put_metadata(tk__region *region, const tk_rpc_call *call,
                                                      const tk_snapshot *snapshot,
                                                      const tk_head *head,
                                                      const tk_head_places *places)
{
    const size_t n = places->n > 0 ? places->n : 1;
    Inference__ModelMetadataResponse *m =
        tk__new(region, &inference__model_metadata_response__descriptor);
    if (!m) return NULL;
    m->versions = tk__alloc(region, n, sizeof *m->versions);
    m->inputs = tk__alloc(region, 1, sizeof(tensor_metadata *));
    m->outputs = tk__alloc(region, TK_OIP_OUTPUTS, sizeof(tensor_metadata *));
    if (!m->versions || !m->inputs || !m->outputs) return NULL;
    m->name = tk__oip_shown(call, head);
    m->platform = put_platform(region, snapshot);
    while (m->n_versions < n) {
        const uint64_t number =
            places->n > 0 ? places->items[m->n_versions].version : tk_snapshot_number(snapshot);
        m->versions[m->n_versions++] = tk__print(region, "%" PRIu64, number);
    }
    m->inputs[m->n_inputs++] = put_tensor(region, "image", "BYTES", 1, 0);
    for (tk_oip_output o = 0; o < TK_OIP_OUTPUTS; o++)
        m->outputs[m->n_outputs++] = put_tensor(region, tk__oip_output_names[o], "FP32", 2,
                                                (int64_t)tk__oip_output_width(head, o));
    return m;
}

static void metadata_picked(tk_rpc_call *call, const ProtobufCMessage *message, tk_err err,
                            tk_snapshot *snapshot, const tk_diag *why)
{
    const Inference__ModelMetadataRequest *in = (const Inference__ModelMetadataRequest *)message;
    tk_diag diag = *why;
    tk_head_places places = {0};
    const tk_head *head;
    err = tk__oip_find(call, err, snapshot, in->name, in->version, &head, &diag);
    /* Who names no version is still on the call's own worker thread, which may ask the store. */
    if (err == TK_OK && !in->version[0])
        err = tk_store_head_places(tk__api(call)->o.store, tk__tenant(call), in->name,
                                   TK_OIP_PLACES_MAX, &places, &diag);
    tk__region region = {NULL, false};
    if (err == TK_OK)
        tk__reply(call, &region, put_metadata(&region, call, snapshot, head, &places));
    else
        tk__fail(call, err, &diag);
    tk_head_places_fini(&places);
}

void tk__oip_model_metadata(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Inference__ModelMetadataRequest *in = (const Inference__ModelMetadataRequest *)message;
    pick(call, message, in->version, metadata_picked);
}

/* -- configuration -- */

static void put_parameter(tk__region *region, Inference__ModelConfig *m, const char *key,
                          char *value)
{
    Inference__ModelConfig__ParametersEntry *entry =
        tk__new(region, &inference__model_config__parameters_entry__descriptor);
    Inference__ModelParameter *parameter = tk__new(region, &inference__model_parameter__descriptor);
    if (!entry || !parameter) return;
    entry->key = tk__print(region, "%s", key);
    entry->value = parameter;
    parameter->string_value = value;
    m->parameters[m->n_parameters++] = entry;
}

/* How images are prepared, for clients that do it themselves. */
static void put_parameters(tk__region *region, Inference__ModelConfig *m,
                           const tk_snapshot *snapshot)
{
    const tk_preproc *p = tk_snapshot_preproc(snapshot);
    m->parameters = tk__alloc(region, 7, sizeof(Inference__ModelConfig__ParametersEntry *));
    if (!m->parameters) return;
    put_parameter(region, m, "arch",
                  tk__print(region, "%s", tk_arch_name(tk_snapshot_arch(snapshot))));
    put_parameter(region, m, "px", tk__print(region, "%u", p->crop));
    put_parameter(region, m, "resize", tk__print(region, "%u", p->resize));
    put_parameter(region, m, "resize_mode",
                  tk__print(region, "%s", p->mode == TK_RESIZE_SQUASH ? "squash" : "short"));
    put_parameter(region, m, "mean",
                  tk__print(region, "%.9g %.9g %.9g", (double)p->mean[0], (double)p->mean[1],
                            (double)p->mean[2]));
    put_parameter(region, m, "std",
                  tk__print(region, "%.9g %.9g %.9g", (double)p->std[0], (double)p->std[1],
                            (double)p->std[2]));
    put_parameter(
        region, m, "datatypes",
        tk__print(region, "BYTES [-1]; UINT8 [-1,-1,-1,3]; FP32 [-1,3,%u,%u]", p->crop, p->crop));
}

static Inference__ModelInput *put_input(tk__region *region)
{
    Inference__ModelInput *m = tk__new(region, &inference__model_input__descriptor);
    if (!m) return NULL;
    m->name = tk__print(region, "image");
    m->data_type = INFERENCE__DATA_TYPE__TYPE_STRING;
    m->dims = put_shape(region, -1, 0);
    m->n_dims = m->dims ? 1 : 0;
    return m;
}

static Inference__ModelOutput *put_output(tk__region *region, const tk_head *head, tk_oip_output o)
{
    Inference__ModelOutput *m = tk__new(region, &inference__model_output__descriptor);
    if (!m) return NULL;
    m->name = tk__print(region, "%s", tk__oip_output_names[o]);
    m->data_type = INFERENCE__DATA_TYPE__TYPE_FP32;
    m->dims = put_shape(region, -1, (int64_t)tk__oip_output_width(head, o));
    m->n_dims = m->dims ? 2 : 0;
    return m;
}

static Inference__ModelConfigResponse *put_config(tk__region *region, const tk_rpc_call *call,
                                                  const tk_snapshot *snapshot, const tk_head *head)
{
    Inference__ModelConfigResponse *out =
        tk__new(region, &inference__model_config_response__descriptor);
    Inference__ModelConfig *m = tk__new(region, &inference__model_config__descriptor);
    if (!out || !m) return NULL;
    out->config = m;
    m->input = tk__alloc(region, 1, sizeof(Inference__ModelInput *));
    m->output = tk__alloc(region, TK_OIP_OUTPUTS, sizeof(Inference__ModelOutput *));
    if (!m->input || !m->output) return NULL;
    m->name = tk__oip_shown(call, head);
    m->platform = put_platform(region, snapshot);
    m->backend = tk__print(region, "trunkd");
    m->input[m->n_input++] = put_input(region);
    for (tk_oip_output o = 0; o < TK_OIP_OUTPUTS; o++)
        m->output[m->n_output++] = put_output(region, head, o);
    put_parameters(region, m, snapshot);
    return out;
}

static void config_picked(tk_rpc_call *call, const ProtobufCMessage *message, tk_err err,
                          tk_snapshot *snapshot, const tk_diag *why)
{
    const Inference__ModelConfigRequest *in = (const Inference__ModelConfigRequest *)message;
    tk_diag diag = *why;
    const tk_head *head;
    err = tk__oip_find(call, err, snapshot, in->name, in->version, &head, &diag);
    tk__region region = {NULL, false};
    if (err == TK_OK)
        tk__reply(call, &region, put_config(&region, call, snapshot, head));
    else
        tk__fail(call, err, &diag);
}

void tk__oip_model_config(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Inference__ModelConfigRequest *in = (const Inference__ModelConfigRequest *)message;
    pick(call, message, in->version, config_picked);
}
