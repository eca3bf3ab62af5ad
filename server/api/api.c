/* The life of a tk_api, and what every handler needs of it: who calls, streams that the pump moves
 * on, answers built in a region, checks of text. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "api/api_internal.h"
#include "engine/mem.h"
#include "log.h"

/* -- life -- */

tk_err tk_api_create(tk_api **out, const tk_api_opts *opts, tk_diag *diag)
{
    *out = NULL;
    tk_api *api = tk_calloc(1, sizeof *api);
    if (!api) return tk_fail(diag, TK_NOMEM, "no memory for the services");
    api->o = *opts;
    api->started_ns = tk_now_ns();
    tk_api_set(api, &opts->settings);
    pthread_mutex_init(&api->streams, NULL);
    const tk_err err = tk_pump_create(&api->pump);
    if (err != TK_OK) {
        pthread_mutex_destroy(&api->streams);
        tk_free(api);
        return tk_fail(diag, err, "no memory or threads for the services");
    }
    *out = api;
    return TK_OK;
}

void tk_api_destroy(tk_api *api)
{
    if (!api) return;
    tk_pump_destroy(api->pump);
    pthread_mutex_destroy(&api->streams);
    tk_free(api);
}

void tk_api_set(tk_api *api, const tk_api_settings *settings)
{
    atomic_store_explicit(&api->max_upload_bytes, settings->max_upload_bytes, memory_order_relaxed);
    atomic_store_explicit(&api->access_log, settings->access_log, memory_order_relaxed);
}

void tk_api_shutdown(tk_api *api)
{
    atomic_store_explicit(&api->stopping, true, memory_order_relaxed);
    tk_pump_wake_all(api->pump); /* its lock orders the flag before the steps that follow */
}

tk_err tk_api_authenticate(void *ctx, const char *token, size_t len, tk_identity *out,
                           tk_diag *diag)
{
    tk_api *api = ctx;
    tk_principal who;
    const tk_err err = tk_store_authenticate(api->o.store, token, len, &who, diag);
    if (err != TK_OK) return err;
    *out = (tk_identity){.tenant = who.tenant, .admin = who.admin};
    snprintf(out->name, sizeof out->name, "%s", who.name);
    return TK_OK;
}

tk_err tk_api_tenant_named(void *ctx, const char *name, tk_identity *out, tk_diag *diag)
{
    tk_api *api = ctx;
    *out = (tk_identity){0};
    const tk_err err = tk_store_tenant_live(api->o.store, name, &out->tenant, diag);
    if (err == TK_OK) snprintf(out->name, sizeof out->name, "%s", name);
    return err;
}

/* A cancel may come from the completion-queue thread while a worker still attaches the item. */
void tk__stream_attach(tk_rpc_call *call, tk_pump_item *item)
{
    tk_api *api = tk__api(call);
    tk_pump_add(api->pump, item);
    pthread_mutex_lock(&api->streams);
    tk_rpc_set_user(call, item);
    pthread_mutex_unlock(&api->streams);
    tk_pump_wake(item); /* for what happened before the call knew its item */
}

static tk_pump_item *attached(tk_rpc_call *call)
{
    tk_api *api = tk__api(call);
    pthread_mutex_lock(&api->streams);
    tk_pump_item *item = tk_rpc_user(call);
    pthread_mutex_unlock(&api->streams);
    return item;
}

void tk__stream_wake(tk_rpc_call *call)
{
    tk_pump_item *item = attached(call);
    if (item) tk_pump_wake(item);
}

void tk__stream_free(tk_rpc_call *call)
{
    tk_pump_item *item = attached(call);
    if (item) tk_pump_release(item);
}

/* -- regions -- */

struct tk__block {
    struct tk__block *next;
    size_t used, size;
    _Alignas(16) unsigned char data[];
};

void *tk__alloc(tk__region *region, size_t n, size_t size)
{
    size_t bytes;
    if (!tk_mul_size(n, size, &bytes) || bytes > SIZE_MAX / 2) {
        region->failed = true;
        return NULL;
    }
    bytes = (bytes + 15) & ~(size_t)15;
    struct tk__block *block = region->blocks;
    if (!block || block->size - block->used < bytes) {
        const size_t room = bytes > 16384 ? bytes : 16384;
        block = tk_calloc(1, sizeof *block + room);
        if (!block) {
            region->failed = true;
            return NULL;
        }
        block->size = room;
        block->next = region->blocks;
        region->blocks = block;
    }
    void *p = block->data + block->used;
    block->used += bytes;
    return p;
}

void *tk__new(tk__region *region, const ProtobufCMessageDescriptor *type)
{
    void *message = tk__alloc(region, 1, type->sizeof_message);
    if (message) type->message_init(message);
    return message;
}

char *tk__print(tk__region *region, const char *fmt, ...)
{
    static char nothing[1];
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    const int n = vsnprintf(NULL, 0, fmt, args);
    char *text = n < 0 ? NULL : tk__alloc(region, (size_t)n + 1, 1);
    if (text) vsnprintf(text, (size_t)n + 1, fmt, again);
    va_end(again);
    va_end(args);
    return text ? text : nothing;
}

void tk__region_fini(tk__region *region)
{
    while (region->blocks) {
        struct tk__block *next = region->blocks->next;
        tk_free(region->blocks);
        region->blocks = next;
    }
}

void tk__reply(tk_rpc_call *call, tk__region *region, const void *message)
{
    if (!message || region->failed)
        tk_rpc_fail(call, TK_NOMEM, "no memory for the answer");
    else
        tk_rpc_reply(call, message);
    tk__region_fini(region);
}

void tk__fail(tk_rpc_call *call, tk_err err, const tk_diag *diag)
{
    const char *text = diag && diag->text[0] ? diag->text : tk_err_text(err);
    if (err == TK_INTERNAL || err == TK_IO || err == TK_NOSPACE || err == TK_NOMEM) {
        tk_log(TK_LOG_ERROR, "call failed",
               (tk_log_field[]){tk_log_str("tenant", tk_rpc_identity(call)->name),
                                tk_log_str("peer", tk_rpc_peer(call)),
                                tk_log_str("error", tk_err_text(err)), tk_log_str("reason", text),
                                tk__log_trace(call), tk_log_end()});
    }
    tk_rpc_fail(call, err, "%s", text);
}

/* -- text -- */

/* Length of the UTF-8 character at s and its code point; 0 when malformed. */
static size_t utf8_next(const unsigned char *s, uint32_t *point)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const size_t n = s[0] < 0x80   ? 1
                     : s[0] < 0xC2 ? 0
                     : s[0] < 0xE0 ? 2
                     : s[0] < 0xF0 ? 3
                     : s[0] < 0xF5 ? 4
                                   : 0;
    if (n == 0) return 0;
    uint32_t c = n == 1 ? s[0] : s[0] & (0x7FU >> n);
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xC0) != 0x80) return 0; /* also stops at the NUL */
        c = c << 6 | (s[i] & 0x3FU);
    }
    if (c < least[n] || c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF)) return 0;
    *point = c;
    return n;
}

static bool is_control(uint32_t point)
{
    return point < 0x20 || (point >= 0x7F && point < 0xA0) || point == 0x2028 || point == 0x2029;
}

tk_err tk__api_text_check(const char *text, size_t max, const char *what, tk_diag *diag)
{
    const size_t len = strlen(text);
    if (len == 0) return tk_fail(diag, TK_BADARG, "%s is empty", what);
    if (len > max) {
        return tk_fail(diag, TK_BADARG, "%s has %zu bytes, the limit is %zu", what, len, max);
    }
    const unsigned char *s = (const unsigned char *)text;
    uint32_t point = 0;
    for (size_t n; *s; s += n) {
        n = utf8_next(s, &point);
        if (n == 0) return tk_fail(diag, TK_BADARG, "%s is not UTF-8", what);
        if (is_control(point)) {
            return tk_fail(diag, TK_BADARG, "%s contains the control character U+%04X", what,
                           (unsigned)point);
        }
    }
    return TK_OK;
}

void tk__api_text_copy(char *to, size_t size, const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t used = 0;
    uint32_t point = 0;
    while (*s) {
        const size_t n = utf8_next(s, &point);
        const bool good = n > 0 && !is_control(point);
        const size_t width = good ? n : 1;
        if (used + width >= size) break;
        if (good)
            memcpy(to + used, s, n);
        else
            to[used] = '?';
        used += width;
        s += n ? n : 1;
    }
    to[used] = '\0';
}
