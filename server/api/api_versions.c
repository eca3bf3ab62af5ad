/* Which version answers a request, between the handlers and the shelf (serving/shelf.h); and the
 * labels that an admin gives to versions. */
#include <stdio.h>
#include <string.h>

#include "api/api_internal.h"
#include "engine/mem.h"

/* -- picking -- */

/* A call and how it goes on; its own memory while it waits. */
typedef struct visit {
    tk_rpc_call *call;
    const ProtobufCMessage *in;
    tk__fits_fn *fits;
    tk__picked_fn *then;
} visit;

static bool fits(void *user, const tk_snapshot *current, const tk_snapshot *other)
{
    const visit *v = user;
    return v->fits(v->call, v->in, current, other);
}

static bool cancelled(void *user)
{
    return tk_rpc_cancelled(((const visit *)user)->call);
}

/* The end of a wait. */
static void done(void *user, tk_err err, tk_snapshot *snapshot, const tk_diag *diag)
{
    visit *v = user;
    v->then(v->call, v->in, err, snapshot, diag);
    tk_rpc_unref(v->call);
    tk_free(v);
}

tk_err tk__version_parse(tk_want *want, const char *version, tk_diag *diag)
{
    if (tk_want_parse(want, version) == TK_OK) return TK_OK;
    char copy[48];
    tk__api_text_copy(copy, sizeof copy, version);
    return tk_fail(
        diag, TK_BADARG,
        "the version is \"%s\": it is a number from 1, \"" TK_VERSION_LATEST
        "\", a label (1 to %d characters of a-z, 0-9, '-', the first a letter), or empty",
        copy, (int)TK_VERSION_LABEL_MAX);
}

void tk__pick_version(tk_rpc_call *call, const ProtobufCMessage *in, const char *version,
                      tk__fits_fn *may_share, tk__picked_fn *then)
{
    tk_diag diag = {{0}};
    tk_pick pick = {.tenant = tk__tenant(call),
                    .deadline_ns = tk_rpc_deadline_ns(call),
                    .fits = may_share ? fits : NULL,
                    .cancelled = cancelled,
                    .done = done};
    tk_snapshot *snapshot = NULL;
    visit *v = tk_calloc(1, sizeof *v);
    tk_err err = v ? tk__version_parse(&pick.want, version, &diag)
                   : tk_fail(&diag, TK_NOMEM, "no memory for the request");
    if (err == TK_OK) {
        *v = (visit){.call = call, .in = in, .fits = may_share, .then = then};
        pick.user = v;
        if (pick.want.kind == TK_WANT_NUMBER || pick.want.kind == TK_WANT_LABEL)
            pick.bytes = protobuf_c_message_get_packed_size(in);
        tk_rpc_ref(call);
        err = tk_shelf_pick(tk__api(call)->o.shelf, &pick, &snapshot, &diag);
        if (err == TK_OK && !snapshot) return; /* `done` has it, and may be over by now */
        tk_rpc_unref(call);                    /* the caller still has the call */
    }
    tk_free(v);
    tk_rpc_retry_after(call, pick.retry_ms);
    then(call, in, err, snapshot, &diag);
    tk_snapshot_unref(snapshot);
}

tk__in_version tk__in_version_of(const char *version)
{
    tk__in_version in = {{0}};
    char copy[48];
    tk__api_text_copy(copy, sizeof copy, version);
    if (copy[0]) snprintf(in.text, sizeof in.text, " in version \"%s\"", copy);
    return in;
}

/* -- labels -- */

static tk_err write_label(void *ctx, const tk_version_label *label, tk_diag *diag)
{
    return tk_store_version_label_set(ctx, label, diag);
}

static tk_err write_no_label(void *ctx, const tk_version_label *label, tk_diag *diag)
{
    return tk_store_version_label_delete(ctx, label->name, diag);
}

static tk_err read_label(tk_version_label *label, const char *name, tk_diag *diag)
{
    *label = (tk_version_label){.percent = 0};
    const tk_err err = tk_version_label_check(name, diag);
    if (err == TK_OK) snprintf(label->name, sizeof label->name, "%s", name);
    return err;
}

static void log_label(const tk_rpc_call *call, const char *event, const tk_version_label *label)
{
    tk_log(TK_LOG_INFO, event,
           (tk_log_field[]){
               tk_log_str("label", label->name), tk_log_int("version", (int64_t)label->version),
               tk_log_int("percent", label->percent), tk__log_trace(call), tk_log_end()});
}

void tk__admin_set_label(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__SetVersionLabelRequest *in =
        (const Trunkd__V1__SetVersionLabelRequest *)message;
    tk_api *api = tk__api(call);
    tk_diag diag = {{0}};
    tk_version_label label;
    tk_err err = read_label(&label, in->label, &diag);
    if (err == TK_OK && in->version == 0)
        err = tk_fail(&diag, TK_BADARG, "version is missing: which one the label names");
    if (err == TK_OK && in->percent > 100)
        err = tk_fail(&diag, TK_BADARG, "percent is %u, the limit is 100", (unsigned)in->percent);
    label.version = in->version;
    label.percent = in->percent;
    if (err == TK_OK) err = tk_shelf_label(api->o.shelf, &label, write_label, api->o.store, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    log_label(call, "label set", &label);
    Trunkd__V1__VersionLabel out;
    trunkd__v1__version_label__init(&out);
    out.label = in->label;
    out.version = label.version;
    out.percent = label.percent;
    out.loaded = true;
    tk_rpc_reply(call, &out.base);
}

void tk__admin_delete_label(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__DeleteVersionLabelRequest *in =
        (const Trunkd__V1__DeleteVersionLabelRequest *)message;
    tk_api *api = tk__api(call);
    tk_diag diag = {{0}};
    tk_version_label label;
    tk_err err = read_label(&label, in->label, &diag);
    if (err == TK_OK)
        err = tk_shelf_unlabel(api->o.shelf, &label, write_no_label, api->o.store, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    tk_log(TK_LOG_INFO, "label deleted",
           (tk_log_field[]){tk_log_str("label", label.name), tk__log_trace(call), tk_log_end()});
    Trunkd__V1__Empty out;
    trunkd__v1__empty__init(&out);
    tk_rpc_reply(call, &out.base);
}
