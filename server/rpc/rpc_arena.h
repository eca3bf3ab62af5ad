/* A bump arena in chunks with a hard budget, for one decoded message or one call. All arenas of a
 * server draw on one meter, so that many large messages at once are refused instead of exhausting
 * the machine. */
#ifndef SERVER_RPC_ARENA_H
#define SERVER_RPC_ARENA_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include <protobuf-c/protobuf-c.h>

/* Bytes held by all arenas of a server. */
typedef struct tk__rpc_meter {
    atomic_size_t used; /* relaxed: a count that nothing is read through */
    size_t limit;
} tk__rpc_meter;

typedef enum tk__rpc_full {
    TK__ARENA_FITS,
    TK__ARENA_OVER_BUDGET, /* the arena's own */
    TK__ARENA_OVER_METER,  /* the server's, or the machine is out of memory */
} tk__rpc_full;

typedef struct tk__rpc_arena {
    tk__rpc_meter *meter;
    struct tk__rpc_chunk *chunks; /* newest first */
    size_t held, budget;          /* bytes */
    tk__rpc_full full;            /* why the last allocation failed */
} tk__rpc_arena;

void tk__rpc_arena_init(tk__rpc_arena *a, tk__rpc_meter *meter, size_t budget);
/* 16-byte aligned, not zeroed; NULL when full. */
void *tk__rpc_arena_alloc(tk__rpc_arena *a, size_t size);
/* Frees everything, sets a new budget and makes a first chunk of `first` bytes. False: full
 * already. */
bool tk__rpc_arena_reset(tk__rpc_arena *a, size_t budget, size_t first);
void tk__rpc_arena_fini(tk__rpc_arena *a);
/* For protobuf-c: frees nothing. Never call free_unpacked on what it made. */
ProtobufCAllocator tk__rpc_arena_allocator(tk__rpc_arena *a);

#endif
