/* See pump.h. */
#include "api/pump.h"

#include <pthread.h>

#include "engine/mem.h"
#include "process.h"

struct tk_pump {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    /* lock: */
    tk_pump_item *all;          /* those the pump still owns */
    tk_pump_item *first, *last; /* queued */
    bool stop;
    pthread_t thread;
};

static void queue_locked(tk_pump_item *item)
{
    tk_pump *pump = item->pump;
    if (item->queued || item->over) return;
    item->queued = true;
    item->next_queued = NULL;
    if (pump->last)
        pump->last->next_queued = item;
    else
        pump->first = item;
    pump->last = item;
    pthread_cond_signal(&pump->wake);
}

static tk_pump_item *take_locked(tk_pump *pump)
{
    tk_pump_item *item = pump->first;
    pump->first = item->next_queued;
    if (!pump->first) pump->last = NULL;
    item->queued = false;
    return item;
}

/* The pump lets go; true when it was the last owner. */
static bool end_locked(tk_pump_item *item)
{
    tk_pump *pump = item->pump;
    if (item->queued) { /* woken again during its last step */
        tk_pump_item **at = &pump->first, *before = NULL;
        while (*at != item)
            before = *at, at = &before->next_queued;
        *at = item->next_queued;
        if (pump->last == item) pump->last = before;
        item->queued = false;
    }
    item->over = true;
    if (item->prev)
        item->prev->next = item->next;
    else
        pump->all = item->next;
    if (item->next) item->next->prev = item->prev;
    return --item->owners == 0;
}

static void *pump_main(void *arg)
{
    tk_pump *pump = arg;
    tk_process_thread("export", TK_THREAD_GIVES_WAY);
    pthread_mutex_lock(&pump->lock);
    for (;;) {
        while (!pump->first && !pump->stop)
            pthread_cond_wait(&pump->wake, &pump->lock);
        if (!pump->first) break;
        tk_pump_item *item = take_locked(pump);
        pthread_mutex_unlock(&pump->lock);
        const bool more = item->step(item);
        pthread_mutex_lock(&pump->lock);
        if (!more && end_locked(item)) {
            pthread_mutex_unlock(&pump->lock);
            item->destroy(item);
            pthread_mutex_lock(&pump->lock);
        }
    }
    pthread_mutex_unlock(&pump->lock);
    return NULL;
}

tk_err tk_pump_create(tk_pump **out)
{
    *out = NULL;
    tk_pump *pump = tk_calloc(1, sizeof *pump);
    if (!pump) return TK_NOMEM;
    pthread_mutex_init(&pump->lock, NULL);
    pthread_cond_init(&pump->wake, NULL);
    if (pthread_create(&pump->thread, NULL, pump_main, pump) != 0) {
        pthread_mutex_destroy(&pump->lock);
        pthread_cond_destroy(&pump->wake);
        tk_free(pump);
        return TK_NOMEM;
    }
    *out = pump;
    return TK_OK;
}

void tk_pump_destroy(tk_pump *pump)
{
    if (!pump) return;
    pthread_mutex_lock(&pump->lock);
    pump->stop = true;
    pthread_cond_signal(&pump->wake);
    pthread_mutex_unlock(&pump->lock);
    pthread_join(pump->thread, NULL);
    pthread_mutex_destroy(&pump->lock);
    pthread_cond_destroy(&pump->wake);
    tk_free(pump);
}

void tk_pump_add(tk_pump *pump, tk_pump_item *item)
{
    pthread_mutex_lock(&pump->lock);
    item->pump = pump;
    item->owners = 2;
    item->next = pump->all;
    if (pump->all) pump->all->prev = item;
    pump->all = item;
    queue_locked(item);
    pthread_mutex_unlock(&pump->lock);
}

void tk_pump_wake(tk_pump_item *item)
{
    tk_pump *pump = item->pump;
    pthread_mutex_lock(&pump->lock);
    queue_locked(item);
    pthread_mutex_unlock(&pump->lock);
}

void tk_pump_wake_all(tk_pump *pump)
{
    pthread_mutex_lock(&pump->lock);
    for (tk_pump_item *item = pump->all; item; item = item->next)
        queue_locked(item);
    pthread_mutex_unlock(&pump->lock);
}

void tk_pump_release(tk_pump_item *item)
{
    tk_pump *pump = item->pump;
    pthread_mutex_lock(&pump->lock);
    const bool last = --item->owners == 0;
    pthread_mutex_unlock(&pump->lock);
    if (last) item->destroy(item);
}
