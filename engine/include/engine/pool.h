/* The thread pool: the one owner of parallelism in the engine. The caller makes it and hands it in. */
#ifndef ENGINE_POOL_H
#define ENGINE_POOL_H

#include <stddef.h>

#include "engine/err.h"

typedef struct tk_pool tk_pool;

/* Work item `task` of `tasks`; `thread` is 0..threads-1, for per-thread scratch. */
typedef void tk_pool_fn(void *ctx, size_t task, size_t thread);

/* `threads` counts the caller: 1 starts no thread. 0 means one per online core. Workers sleep while
 * idle (after at most a millisecond, in which they yield to anybody who wants to run). */
TK_MUST tk_err tk_pool_create(tk_pool **out, unsigned threads);
void tk_pool_destroy(tk_pool *pool); /* NULL is fine; joins */
unsigned tk_pool_threads(const tk_pool *pool);

/* Runs fn(ctx, 0..tasks-1) on the workers and the caller, and returns when all are done. Which thread
 * runs which task is unspecified: results must not depend on it. One caller at a time; not from
 * inside a task. */
void tk_pool_run(tk_pool *pool, size_t tasks, tk_pool_fn *fn, void *ctx);

#endif
