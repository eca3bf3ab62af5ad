/* Segments by what their units read and write, and slots by when a map is last read. */
#include "net/route.h"

#include <assert.h>
#include <string.h>

enum {
    SLOTS = 4, /* maps alive at once within a segment: a block's input, shortcut, branch, next */
    GROUP_BYTES = 6 << 20, /* what a unit reads and writes for a group: a part of the last cache */
};

/* The map that later units read once unit i is done, if they read no other; else TK__NO_MAP. */
static int border_after(const tk__layout *l, size_t i)
{
    const tk__unit *u = &l->unit[i];
    if (u->pool_after) return u->out + 1;
    return i == 0 || u->residual != TK__NO_MAP ? u->out : TK__NO_MAP;
}

static size_t group_of(const tk__route *r, size_t i)
{
    const tk__unit *u = &r->layout->unit[i];
    size_t bytes = r->map_bytes[u->in] + r->map_bytes[u->out];
    if (u->residual != TK__NO_MAP) bytes += r->map_bytes[u->residual];
    const size_t images = GROUP_BYTES / bytes;
    return images < 1 ? 1 : images > r->max_batch ? r->max_batch : images;
}

/* Blocks with equal groups make a segment. */
static void plan_segments(tk__route *r)
{
    size_t first = 0, images = r->max_batch;
    for (size_t i = 0; i < r->layout->units; i++) {
        const size_t group = group_of(r, i);
        if (group < images) images = group;
        if (border_after(r->layout, i) == TK__NO_MAP) continue;
        tk__segment *last = r->segments > 0 ? &r->segment[r->segments - 1] : NULL;
        if (last != NULL && (last->images == images || r->segments == TK__MAX_SEGMENTS))
            last->last = i;
        else
            r->segment[r->segments++] = (tk__segment){first, i, images};
        first = i + 1;
        images = r->max_batch;
    }
    for (size_t s = 0; s < r->segments; s++)
        r->border[border_after(r->layout, r->segment[s].last)] = true;
}

/* The unit after which map m is no longer read. */
static size_t last_use(const tk__layout *l, int m)
{
    size_t last = 0;
    for (size_t i = 0; i < l->units; i++)
        if (l->unit[i].in == m || l->unit[i].residual == m) last = i;
    return last;
}

/* Gives every map within the segment the first slot whose map is dead (its number, in `at`), and
 * raises the bytes that each slot needs. */
static void plan_slots(tk__route *r, const tk__segment *seg, size_t bytes[SLOTS])
{
    const tk__layout *l = r->layout;
    size_t busy_until[SLOTS] = {0}; /* unit index + 1 */
    for (size_t i = seg->first; i <= seg->last; i++) {
        const int made = l->unit[i].out, n = l->unit[i].pool_after ? 2 : 1;
        for (int m = made; m < made + n; m++) {
            if (r->border[m]) continue;
            size_t k = 0;
            while (k < SLOTS && busy_until[k] > i)
                k++;
            assert(k < SLOTS);
            const size_t need = seg->images * r->map_bytes[m];
            if (bytes[k] < need) bytes[k] = need;
            r->at[m] = k;
            /* a map that only the max pool reads lives until that has run, within this unit */
            busy_until[k] = n == 2 && m == made ? i + 1 : last_use(l, m) + 1;
        }
    }
}

static size_t place(tk__route *r, size_t bytes)
{
    const size_t at = r->bytes;
    r->bytes += (bytes + 2 * TK__ROUTE_ALIGN - 1) / TK__ROUTE_ALIGN * TK__ROUTE_ALIGN;
    return at;
}

void tk__route_plan(tk__route *r, const tk__layout *layout, size_t max_batch,
                    const size_t *map_bytes)
{
    size_t slot[SLOTS] = {0}, border[2] = {0}; /* borders take turns, too */
    *r = (tk__route){.layout = layout, .max_batch = max_batch};
    memcpy(r->map_bytes, map_bytes, layout->maps * sizeof *map_bytes);
    plan_segments(r);
    for (size_t s = 0; s < r->segments; s++) {
        const int m = border_after(layout, r->segment[s].last);
        const size_t need = max_batch * map_bytes[m];
        if (border[s % 2] < need) border[s % 2] = need;
        r->at[m] = s % 2;
        plan_slots(r, &r->segment[s], slot);
    }
    for (size_t k = 0; k < SLOTS; k++)
        slot[k] = place(r, slot[k]);
    for (size_t k = 0; k < 2; k++)
        border[k] = place(r, border[k]);
    for (size_t m = TK__INPUT_MAP + 1; m < layout->maps; m++)
        r->at[m] = r->border[m] ? border[r->at[m]] : slot[r->at[m]];
}

void tk__route_run(const tk__route *r, size_t n, tk__route_unit *run, void *ctx)
{
    for (size_t s = 0; s < r->segments; s++) {
        const tk__segment *seg = &r->segment[s];
        for (size_t i0 = 0; i0 < n; i0 += seg->images) {
            const size_t group = n - i0 < seg->images ? n - i0 : seg->images;
            for (size_t i = seg->first; i <= seg->last; i++)
                run(ctx, i, i0, group);
        }
    }
}
