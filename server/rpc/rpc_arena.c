/* The arena: a list of chunks, each charged to the arena's budget and the server's meter when it is
 * made. A message's arena is sized from the message, so one chunk is the rule; more come when the
 * message has many small parts. */
#include "rpc/rpc_arena.h"

#include <stdint.h>

#include "engine/mem.h"

enum { ALIGN = 16, MIN_CHUNK = 4096 };

typedef struct tk__rpc_chunk {
    struct tk__rpc_chunk *next;
    size_t size, used; /* of data */
    _Alignas(ALIGN) unsigned char data[];
} chunk;

void tk__rpc_arena_init(tk__rpc_arena *a, tk__rpc_meter *meter, size_t budget)
{
    *a = (tk__rpc_arena){.meter = meter, .budget = budget};
}

static bool charge(tk__rpc_arena *a, size_t bytes)
{
    const size_t before = atomic_fetch_add_explicit(&a->meter->used, bytes, memory_order_relaxed);
    if (before <= a->meter->limit && bytes <= a->meter->limit - before) return true;
    atomic_fetch_sub_explicit(&a->meter->used, bytes, memory_order_relaxed);
    return false;
}

/* `size` is within the budget. */
static chunk *add_chunk(tk__rpc_arena *a, size_t size)
{
    chunk *c = NULL;
    if (charge(a, size)) {
        c = tk_realloc(NULL, sizeof *c + size); /* not zeroed: the bytes will be written anyway */
        if (!c) atomic_fetch_sub_explicit(&a->meter->used, size, memory_order_relaxed);
    }
    if (!c) {
        a->full = TK__ARENA_OVER_METER;
        return NULL;
    }
    c->next = a->chunks;
    c->size = size;
    c->used = 0;
    a->chunks = c;
    a->held += size;
    return c;
}

void *tk__rpc_arena_alloc(tk__rpc_arena *a, size_t size)
{
    const size_t left = a->budget - a->held;
    if (size > SIZE_MAX - ALIGN) {
        a->full = TK__ARENA_OVER_BUDGET;
        return NULL;
    }
    size = (size + ALIGN - 1) / ALIGN * ALIGN;
    chunk *c = a->chunks;
    if (!c || size > c->size - c->used) {
        if (size > left) {
            a->full = TK__ARENA_OVER_BUDGET;
            return NULL;
        }
        /* Grow with what is held, so that many small parts make few chunks. */
        size_t want = a->held > MIN_CHUNK ? a->held : MIN_CHUNK;
        if (want < size) want = size;
        if (want > left) want = left;
        c = add_chunk(a, want);
        if (!c) return NULL;
    }
    void *p = c->data + c->used;
    c->used += size;
    return p;
}

bool tk__rpc_arena_reset(tk__rpc_arena *a, size_t budget, size_t first)
{
    tk__rpc_arena_fini(a);
    a->budget = budget;
    a->full = TK__ARENA_FITS;
    first = (first + ALIGN - 1) / ALIGN * ALIGN;
    return add_chunk(a, first < budget ? first : budget) != NULL;
}

void tk__rpc_arena_fini(tk__rpc_arena *a)
{
    while (a->chunks) {
        chunk *c = a->chunks;
        a->chunks = c->next;
        a->held -= c->size;
        atomic_fetch_sub_explicit(&a->meter->used, c->size, memory_order_relaxed);
        tk_free(c);
    }
}

static void *allocate(void *arena, size_t size)
{
    return tk__rpc_arena_alloc(arena, size);
}

static void release(void *arena, void *p)
{
    (void)arena;
    (void)p;
}

ProtobufCAllocator tk__rpc_arena_allocator(tk__rpc_arena *a)
{
    return (ProtobufCAllocator){.alloc = allocate, .free = release, .allocator_data = a};
}
