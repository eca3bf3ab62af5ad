/* What the handlers share. Inside server/api only. */
#ifndef SERVER_API_INTERNAL_H
#define SERVER_API_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include <protobuf-c/protobuf-c.h>

#include "api/api.h"
#include "api/pump.h"
#include "clock.h"
#include "log.h"
#include "serving/batcher.h"
#include "trunkd/v1/admin.pb-c.h"
#include "trunkd/v1/classifier.pb-c.h"
#include "trunkd/v1/datasets.pb-c.h"
#include "trunkd/v1/heads.pb-c.h"
#include "trunkd/v1/jobs.pb-c.h"

struct tk_api {
    tk_api_opts o;
    tk_pump *pump;
    pthread_mutex_t streams; /* a leaf; guards the user pointer of calls that the pump moves on */
    int64_t started_ns;      /* CLOCK_MONOTONIC */
    /* Plain counters, a flag that is only ever raised, and settings (tk_api_settings): relaxed
     * order is enough for each by itself. */
    atomic_uint_fast64_t requests, failures;
    atomic_bool stopping;
    atomic_uint_fast64_t max_upload_bytes;
    atomic_bool access_log;
};

enum {
    TK_API_IMAGE_MAX = 32 << 20,   /* bytes of one encoded image */
    TK_API_MESSAGE_MAX = 64 << 20, /* of one message */
    TK_API_SMALL = 64 << 10,       /* of a message without images */
    TK_API_HEADS_MAX = 256,        /* heads named in one request */
};

static inline tk_api *tk__api(const tk_rpc_call *call)
{
    return tk_rpc_ctx(call);
}

/* The tenant id for the store: an admin sees everything. */
static inline int64_t tk__tenant(const tk_rpc_call *call)
{
    const tk_identity *who = tk_rpc_identity(call);
    return who->admin ? TK_ALL : who->tenant;
}

/* -- answers --
 * Messages of one answer live in a region and are freed with it; strings and bytes are borrowed
 * from the records they are made of, which must live until the reply. Out of memory is remembered,
 * so that builders need not pass it on: tk__reply then fails the call. */
typedef struct tk__region {
    struct tk__block *blocks;
    bool failed;
} tk__region;

void *tk__alloc(tk__region *region, size_t n, size_t size); /* zeroed, or NULL */
/* A message of the type, initialised, or NULL. */
void *tk__new(tk__region *region, const ProtobufCMessageDescriptor *type);
/* printf into the region; never NULL. */
char *tk__print(tk__region *region, const char *fmt, ...) TK_PRINTF(2, 3);
void tk__region_fini(tk__region *region);
/* Replies and frees the region. `message` NULL is out of memory. */
void tk__reply(tk_rpc_call *call, tk__region *region, const void *message);
/* Fails the call with the sentence of `diag`, or the error's own text. */
void tk__fail(tk_rpc_call *call, tk_err err, const tk_diag *diag);
/* Counts a request for inference once for each head it was for; `infer` NULL: no head was known
 * yet. */
void tk__count_infer(tk_rpc_call *call, const tk_infer *infer, tk_err err);

/* The call's trace id as a field of a log line; the end of the fields when it has none. */
tk_log_field tk__log_trace(const tk_rpc_call *call);

/* -- the version that answers (api_versions.c) -- */

/* Goes on with a call whose version was found; or was not: then `snapshot` is NULL and *diag has
 * the sentence, but for TK_PRECONDITION (there is no version yet) and TK_NOTFOUND. The snapshot is
 * borrowed. May run on another thread than the call's, with the call held. */
typedef void tk__picked_fn(tk_rpc_call *call, const ProtobufCMessage *in, tk_err err,
                           tk_snapshot *snapshot, const tk_diag *diag);
/* Would `other` answer the request as `current` does? */
typedef bool tk__fits_fn(const tk_rpc_call *call, const ProtobufCMessage *in,
                         const tk_snapshot *current, const tk_snapshot *other);

/* Finds the version that the request `in` names: "", "latest", a number or a label; "" is the
 * current one or, where there is `fits`, a label's share. `then` is called once: at once, or when
 * the version is loaded. `in` must live as long as the call is held and not answered. */
void tk__pick_version(tk_rpc_call *call, const ProtobufCMessage *in, const char *version,
                      tk__fits_fn *fits, tk__picked_fn *then);
/* What a request's field says about the version. TK_BADARG, with a sentence. */
TK_MUST tk_err tk__version_parse(tk_want *want, const char *version, tk_diag *diag);
/* " in version "7"", or "" where no version was named: for a sentence about what is not there. */
typedef struct tk__in_version {
    char text[64];
} tk__in_version;
tk__in_version tk__in_version_of(const char *version);

/* -- checks -- */

/* 1..max bytes of UTF-8 without control characters. `what` names the field. */
TK_MUST tk_err tk__api_text_check(const char *text, size_t max, const char *what, tk_diag *diag);
/* `to` gets `text` cut to fit at a character's end, control characters replaced. */
void tk__api_text_copy(char *to, size_t size, const char *text);

/* -- names of heads, as the caller may see them -- */

/* Own heads by name; those of other tenants as "other-1", "other-2", ... in the order in which they
 * came to the trunk; an admin sees "tenant/name". */
typedef struct tk__names {
    bool admin;
    char tenant[TK_NAME_SIZE];
    size_t n, cap;
    struct tk__foreign {
        char id[TK_HEAD_ID_SIZE], alias[32];
        int64_t created_ms;
        uint64_t born;
    } * foreign;
} tk__names;

TK_MUST tk_err tk__names_init(tk__names *names, tk_rpc_call *call, tk_diag *diag);
void tk__names_fini(tk__names *names);
/* Borrowed from `names` or `id`. *own tells whose it is. Never NULL. */
char *tk__names_show(tk__names *names, char *id, bool *own);

/* -- messages from records; NULL when the region is out of memory -- */
Trunkd__V1__HeadAccuracy *tk__put_measure(tk__region *region, tk__names *names,
                                          tk_measure *measure);
/* A sentence as the caller may read it: ids of heads, which stand in double quotes, under the
 * caller's names for them. */
char *tk__put_text(tk__region *region, tk__names *names, const char *text);
Trunkd__V1__Job *tk__put_job(tk__region *region, tk__names *names, tk_job *job);
Trunkd__V1__JobEvent *tk__put_event(tk__region *region, tk__names *names, tk_job_event *event);
/* `head` as the caller may see it. */
Trunkd__V1__HeadPrecision *tk__put_check(tk__region *region, const char *head,
                                         const tk_precision_check *check);
Trunkd__V1__Version *tk__put_version(tk__region *region, tk_version *version);
Trunkd__V1__TenantLimits *tk__put_limits(tk__region *region, const tk_tenant_limits *limits);
/* What the version admits, from its file's outline. */
void tk__put_precisions(tk__region *region, Trunkd__V1__Version *m, const tk_model *outline);

/* NaN, which a record means as "none", is 0 on the wire. */
static inline double tk__number(double x)
{
    return x == x ? x : 0; /* NaN is the one value that differs from itself */
}

/* -- classification, however the images came (api_classifier.c) -- */

/* TK_PRECONDITION: there is no version yet, and what to do about it. */
TK_MUST tk_err tk__nothing_learned(tk_diag *diag);
/* Checks the request, and makes what the batcher wants: all but `user`, `cancelled` and `done` is
 * filled in. The images' bytes are borrowed from `in`. `snapshot` NULL: a version in which the
 * tenant has no head. */
TK_MUST tk_err tk__classify_prepare(tk_rpc_call *call, const Trunkd__V1__ClassifyRequest *in,
                                    tk_snapshot *snapshot, tk_infer **infer, tk_diag *diag);
/* The same without its images: are its priority and its heads good? */
TK_MUST tk_err tk__classify_check(tk_rpc_call *call, const Trunkd__V1__ClassifyRequest *in,
                                  const tk_snapshot *snapshot, tk_diag *diag);
/* A request's priority as the batcher takes it; 0 is the default. TK_BADARG. */
TK_MUST tk_err tk__priority(uint64_t asked, unsigned *out, tk_diag *diag);
/* The answers for its images, infer->n_images of them. NULL: out of memory. */
Trunkd__V1__ImageAnswer **tk__classify_put(tk__region *region, const tk_rpc_call *call,
                                           const tk_infer *infer);
/* Could no image be read? */
bool tk__classify_all_bad(const tk_infer *infer);

/* -- handlers, by service -- */
void tk__classify_stream_start(tk_rpc_call *call);
void tk__classify_stream_message(tk_rpc_call *call, const ProtobufCMessage *message);
void tk__classify_stream_refused(tk_rpc_call *call, tk_err err, const tk_diag *why);
void tk__classify_stream_end(tk_rpc_call *call);
void tk__classify_stream_writable(tk_rpc_call *call);
void tk__classify_stream_drain(tk_rpc_call *call);
void tk__classify_stream_free(tk_rpc_call *call);
void tk__classify(tk_rpc_call *call, const ProtobufCMessage *in);

void tk__upload_start(tk_rpc_call *call);
void tk__upload_message(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__upload_end(tk_rpc_call *call);
void tk__upload_free(tk_rpc_call *call);
void tk__datasets_list(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__datasets_get(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__datasets_delete(tk_rpc_call *call, const ProtobufCMessage *in);

void tk__jobs_submit(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__jobs_get(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__jobs_list(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__jobs_cancel(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__jobs_explain_gate(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__jobs_get_curve(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__jobs_watch(tk_rpc_call *call, const ProtobufCMessage *in);

void tk__heads_list(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__heads_get(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__heads_delete(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__heads_validation(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__heads_history(tk_rpc_call *call, const ProtobufCMessage *in);

void tk__admin_create_tenant(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__admin_list_tenants(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__admin_delete_tenant(tk_rpc_call *call, const ProtobufCMessage *message);
void tk__admin_issue_token(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__admin_revoke_token(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__admin_set_limits(tk_rpc_call *call, const ProtobufCMessage *message);
void tk__admin_list_versions(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__admin_set_label(tk_rpc_call *call, const ProtobufCMessage *message);
void tk__admin_delete_label(tk_rpc_call *call, const ProtobufCMessage *message);
void tk__admin_rollback(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__admin_status(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__import_message(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__import_end(tk_rpc_call *call);
void tk__import_free(tk_rpc_call *call);
void tk__admin_export(tk_rpc_call *call, const ProtobufCMessage *in);

void tk__oip_server_live(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__oip_server_ready(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__oip_server_metadata(tk_rpc_call *call, const ProtobufCMessage *in);
void tk__oip_model_ready(tk_rpc_call *call, const ProtobufCMessage *message);
void tk__oip_model_metadata(tk_rpc_call *call, const ProtobufCMessage *message);
void tk__oip_model_config(tk_rpc_call *call, const ProtobufCMessage *message);
void tk__oip_model_statistics(tk_rpc_call *call, const ProtobufCMessage *message);
void tk__oip_model_infer(tk_rpc_call *call, const ProtobufCMessage *message);
void tk__oip_model_stream_infer(tk_rpc_call *call, const ProtobufCMessage *message);
void tk__oip_repository_index(tk_rpc_call *call, const ProtobufCMessage *message);

/* Streams moved on by the pump: the call's user is the tk_pump_item. The item is added to the pump,
 * and holds the call (tk_rpc_ref) until its last step. */
void tk__stream_attach(tk_rpc_call *call, tk_pump_item *item);
void tk__stream_wake(tk_rpc_call *call);
void tk__stream_free(tk_rpc_call *call);

#endif
