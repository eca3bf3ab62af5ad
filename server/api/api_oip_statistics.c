/* ModelStatistics, Triton's extension: what the caller's heads have done, in each version that is
 * in memory. All of it comes from the snapshots' tallies. */
#include <inttypes.h>
#include <string.h>

#include "api/api_oip.h"

typedef Inference__ModelStatistics statistics;
typedef Inference__StatisticDuration duration;
typedef Inference__ModelStatisticsRequest request;

static duration *put_duration(tk__region *region, uint64_t count, int64_t ns)
{
    duration *m = tk__new(region, &inference__statistic_duration__descriptor);
    if (!m) return NULL;
    m->count = count;
    m->ns = (uint64_t)ns;
    return m;
}

static duration *put_tally(tk__region *region, const tk_tally *tally)
{
    return put_duration(region, tally->count, tally->ns);
}

static Inference__InferStatistics *put_requests(tk__region *region, const tk_head_tallies *t)
{
    Inference__InferStatistics *m = tk__new(region, &inference__infer_statistics__descriptor);
    if (!m) return NULL;
    m->success = put_tally(region, &t->success);
    m->fail = put_tally(region, &t->fail);
    m->queue = put_tally(region, &t->queue);
    m->compute_input = put_tally(region, &t->decode);
    m->compute_infer = put_tally(region, &t->trunk);
    m->compute_output = put_tally(region, &t->heads);
    m->cache_hit = put_duration(region, 0, 0);
    m->cache_miss = put_duration(region, 0, 0);
    return m;
}

static Inference__InferBatchStatistics *put_batch(tk__region *region, size_t images,
                                                  const tk_pass_tally *passes)
{
    Inference__InferBatchStatistics *m =
        tk__new(region, &inference__infer_batch_statistics__descriptor);
    if (!m) return NULL;
    m->batch_size = images;
    m->compute_input = put_duration(region, 0, 0);
    m->compute_infer = put_duration(region, passes->count, passes->trunk_ns);
    m->compute_output = put_duration(region, passes->count, passes->heads_ns);
    return m;
}

/* The head's own part: the trunk is everybody's. */
static Inference__MemoryUsage *put_memory(tk__region *region, const tk_snapshot *snapshot,
                                          const tk_head *head)
{
    Inference__MemoryUsage *m = tk__new(region, &inference__memory_usage__descriptor);
    if (!m) return NULL;
    m->type = tk__print(region, "CPU");
    m->byte_size = tk_snapshot_head_bytes(snapshot, head);
    return m;
}

static statistics *put_model(tk__region *region, const tk_rpc_call *call, tk_snapshot *snapshot,
                             const tk_head *head)
{
    const size_t most = tk_snapshot_max_batch(snapshot);
    statistics *m = tk__new(region, &inference__model_statistics__descriptor);
    tk_pass_tally *passes = tk__alloc(region, most, sizeof *passes);
    if (!m || !passes) return NULL;
    tk_head_tallies t;
    tk_snapshot_read_tallies(snapshot, head, &t, passes);
    size_t sizes = 0;
    for (size_t i = 0; i < most; i++)
        sizes += passes[i].count > 0;
    m->batch_stats = tk__alloc(region, sizes, sizeof *m->batch_stats);
    m->memory_usage = tk__alloc(region, 1, sizeof *m->memory_usage);
    if (!m->batch_stats || !m->memory_usage) return NULL;
    m->name = tk__print(region, "%s", tk__oip_shown(call, head));
    m->version = tk__print(region, "%" PRIu64, tk_snapshot_number(snapshot));
    m->last_inference = (uint64_t)t.last_ms;
    m->inference_count = t.images;
    m->execution_count = t.passes;
    m->inference_stats = put_requests(region, &t);
    for (size_t i = 0; i < most; i++)
        if (passes[i].count > 0)
            m->batch_stats[m->n_batch_stats++] = put_batch(region, i + 1, &passes[i]);
    m->memory_usage[m->n_memory_usage++] = put_memory(region, snapshot, head);
    return m;
}

/* Heads of the caller in the snapshot; *first is the index of the first. */
static size_t heads_of(const tk_rpc_call *call, const tk_snapshot *snapshot, size_t *first)
{
    const tk_identity *who = tk_rpc_identity(call);
    *first = 0;
    return who->admin ? tk_snapshot_heads(snapshot)
                      : tk_snapshot_of_tenant(snapshot, who->name, first);
}

/* Adds those that were asked for. */
static void put_version(tk__region *region, const tk_rpc_call *call, const request *in,
                        tk_snapshot *snapshot, Inference__ModelStatisticsResponse *out)
{
    size_t first;
    const size_t n = heads_of(call, snapshot, &first);
    for (size_t i = first; i < first + n; i++) {
        const tk_head *head = tk_snapshot_head(snapshot, i);
        if (in->name[0] && strcmp(in->name, tk__oip_shown(call, head)) != 0) continue;
        statistics *m = put_model(region, call, snapshot, head);
        if (!m) return;
        out->model_stats[out->n_model_stats++] = m;
    }
}

static void answer(tk_rpc_call *call, const request *in, size_t n, tk_snapshot *const *snapshots)
{
    tk__region region = {NULL, false};
    Inference__ModelStatisticsResponse *out =
        tk__new(&region, &inference__model_statistics_response__descriptor);
    size_t room = 0, first;
    for (size_t i = 0; i < n; i++)
        room += heads_of(call, snapshots[i], &first);
    if (out) out->model_stats = tk__alloc(&region, room, sizeof *out->model_stats);
    for (size_t i = 0; out && out->model_stats && i < n; i++)
        put_version(&region, call, in, snapshots[i], out);
    if (out && !region.failed && out->n_model_stats == 0 && in->name[0]) {
        char copy[2 * TK_NAME_SIZE];
        tk__api_text_copy(copy, sizeof copy, in->name);
        tk_rpc_fail(call, TK_NOTFOUND, "you have no model \"%s\"%s", copy,
                    tk__in_version_of(in->version).text);
        tk__region_fini(&region);
        return;
    }
    tk__reply(call, &region, out);
}

static void picked(tk_rpc_call *call, const ProtobufCMessage *message, tk_err err,
                   tk_snapshot *snapshot, const tk_diag *diag)
{
    if (err == TK_OK)
        answer(call, (const request *)message, 1, &snapshot);
    else if (err == TK_NOTFOUND || err == TK_PRECONDITION)
        answer(call, (const request *)message, 0, NULL);
    else
        tk__fail(call, err, diag);
}

void tk__oip_model_statistics(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const request *in = (const request *)message;
    if (in->version[0]) {
        tk__pick_version(call, message, in->version, NULL, picked);
        return;
    }
    tk_snapshot *all[TK_SHELF_ALL];
    const size_t n = tk_shelf_all(tk__api(call)->o.shelf, all);
    answer(call, in, n, all);
    for (size_t i = 0; i < n; i++)
        tk_snapshot_unref(all[i]);
}
