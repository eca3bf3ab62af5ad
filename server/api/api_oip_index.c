/* RepositoryIndex: every head of the caller's in every version that can be asked for. The store
 * knows them; which are in memory, the shelf. */
#include <inttypes.h>
#include <string.h>

#include "api/api_oip.h"

typedef Inference__RepositoryIndexResponse__ModelIndex model_index;

/* The versions in memory. */
typedef struct loaded {
    tk_snapshot *snapshots[TK_SHELF_ALL];
    size_t n;
} loaded;

static bool is_ready(const loaded *have, uint64_t version)
{
    for (size_t i = 0; i < have->n; i++)
        if (tk_snapshot_number(have->snapshots[i]) == version) return true;
    return false;
}

static model_index *put_line(tk__region *region, const tk_rpc_call *call,
                             struct tk_head_place *place, bool ready)
{
    const tk_identity *who = tk_rpc_identity(call);
    model_index *m =
        tk__new(region, &inference__repository_index_response__model_index__descriptor);
    if (!m) return NULL;
    m->name = who->admin ? place->head : place->head + strlen(who->name) + 1;
    m->version = tk__print(region, "%" PRIu64, place->version);
    m->state = tk__print(region, ready ? "READY" : "UNAVAILABLE");
    if (!ready) m->reason = tk__print(region, "loaded when it is asked for");
    return m;
}

static Inference__RepositoryIndexResponse *put_index(tk__region *region, const tk_rpc_call *call,
                                                     const tk_head_places *places,
                                                     const loaded *have, bool only_ready)
{
    Inference__RepositoryIndexResponse *m =
        tk__new(region, &inference__repository_index_response__descriptor);
    if (m) m->models = tk__alloc(region, places->n, sizeof(model_index *));
    for (size_t i = 0; m && m->models && i < places->n; i++) {
        const bool ready = is_ready(have, places->items[i].version);
        if (!ready && only_ready) continue;
        model_index *one = put_line(region, call, &places->items[i], ready);
        if (!one) return NULL;
        m->models[m->n_models++] = one;
    }
    return m;
}

void tk__oip_repository_index(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Inference__RepositoryIndexRequest *in =
        (const Inference__RepositoryIndexRequest *)message;
    if (in->repository_name[0] != '\0') {
        tk_rpc_fail(call, TK_NOTFOUND, "there is no repository \"%s\": leave repository_name empty",
                    tk__oip_quoted(in->repository_name).text);
        return;
    }
    tk_diag diag = {{0}};
    tk_head_places places;
    const tk_err err = tk_store_head_places(tk__api(call)->o.store, tk__tenant(call), "",
                                            TK_OIP_PLACES_MAX, &places, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    loaded have;
    tk__region region = {NULL, false};
    have.n = tk_shelf_all(tk__api(call)->o.shelf, have.snapshots);
    tk__reply(call, &region, put_index(&region, call, &places, &have, in->ready));
    for (size_t i = 0; i < have.n; i++)
        tk_snapshot_unref(have.snapshots[i]);
    tk_head_places_fini(&places);
}
