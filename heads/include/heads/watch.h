/* How long work tells its caller how far it is, and asks whether to stop. */
#ifndef HEADS_WATCH_H
#define HEADS_WATCH_H

#include <stdbool.h>
#include <stddef.h>

/* Both functions may be NULL; they are called on the caller's thread, between pieces of work. */
typedef struct tk_watch {
    void *ctx;
    bool (*cancelled)(void *ctx);
    void (*progress)(void *ctx, size_t done, size_t total);
} tk_watch;

static inline bool tk_watch_cancelled(const tk_watch *watch)
{
    return watch && watch->cancelled && watch->cancelled(watch->ctx);
}

static inline void tk_watch_progress(const tk_watch *watch, size_t done, size_t total)
{
    if (watch && watch->progress) watch->progress(watch->ctx, done, total);
}

#endif
