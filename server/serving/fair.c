/* See fair.h. A binary heap of pointers; each flow knows its place. */
#include "serving/fair.h"

#include <assert.h>
#include <stdbool.h>
#include <string.h>

#include "engine/mem.h"

tk_err tk__fair_reserve(tk__fair *fair, size_t n)
{
    if (n <= fair->cap) return TK_OK;
    const size_t cap = n < 16 ? 16 : 2 * n;
    tk__flow **heap = tk_calloc(cap, sizeof(tk__flow *));
    if (!heap) return TK_NOMEM;
    if (fair->n) memcpy(heap, fair->heap, fair->n * sizeof(tk__flow *));
    tk_free(fair->heap);
    fair->heap = heap;
    fair->cap = cap;
    return TK_OK;
}

void tk__fair_fini(tk__fair *fair)
{
    tk_free(fair->heap);
    *fair = (tk__fair){0};
}

static bool before(const tk__flow *a, const tk__flow *b)
{
    if (a->start < b->start) return true;
    return !(b->start < a->start) && a->since < b->since;
}

static void put(tk__fair *fair, size_t at, tk__flow *flow)
{
    fair->heap[at] = flow;
    flow->at = at + 1;
}

static void up(tk__fair *fair, size_t at, tk__flow *flow)
{
    for (; at > 0 && before(flow, fair->heap[(at - 1) / 2]); at = (at - 1) / 2)
        put(fair, at, fair->heap[(at - 1) / 2]);
    put(fair, at, flow);
}

static void down(tk__fair *fair, size_t at, tk__flow *flow)
{
    for (size_t child; (child = 2 * at + 1) < fair->n; at = child) {
        if (child + 1 < fair->n && before(fair->heap[child + 1], fair->heap[child])) child++;
        if (!before(fair->heap[child], flow)) break;
        put(fair, at, fair->heap[child]);
    }
    put(fair, at, flow);
}

void tk__fair_restore(tk__fair *fair, tk__flow *flow)
{
    if (flow->at) return;
    assert(fair->n < fair->cap);
    flow->since = fair->added++;
    up(fair, fair->n++, flow);
}

void tk__fair_add(tk__fair *fair, tk__flow *flow)
{
    if (flow->at) return;
    if (flow->start < fair->clock) flow->start = fair->clock;
    tk__fair_restore(fair, flow);
}

tk__flow *tk__fair_first(const tk__fair *fair)
{
    return fair->n ? fair->heap[0] : NULL;
}

void tk__fair_charge(tk__fair *fair, tk__flow *flow, double cost)
{
    assert(flow->at && cost > 0);
    if (fair->clock < flow->start) fair->clock = flow->start;
    flow->start += cost;
    flow->since = fair->added++;
    down(fair, flow->at - 1, flow);
}

void tk__fair_remove(tk__fair *fair, tk__flow *flow)
{
    if (!flow->at) return;
    const size_t at = flow->at - 1;
    flow->at = 0;
    tk__flow *last = fair->heap[--fair->n];
    if (last == flow) return;
    if (at > 0 && before(last, fair->heap[(at - 1) / 2]))
        up(fair, at, last);
    else
        down(fair, at, last);
}
