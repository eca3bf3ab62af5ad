/* The threads on which TK_RPC_BLOCKING methods run. The queue holds calls, not callbacks: a call is
 * in it at most once, with a set of bits for what it has to do, and goes to the tail again after
 * each; so its callbacks never overlap, and a busy call does not starve the others. */
#include <string.h>

#include "engine/mem.h"
#include "process.h"
#include "rpc/rpc_internal.h"

static void append_locked(tk__rpc_workers *w, tk_rpc_call *call)
{
    call->next = NULL;
    if (w->last)
        w->last->next = call;
    else
        w->first = call;
    w->last = call;
    pthread_cond_signal(&w->wake);
}

void tk__rpc_workers_push(tk__rpc_workers *w, tk_rpc_call *call, unsigned what)
{
    pthread_mutex_lock(&w->lock);
    call->todo |= what;
    const bool append = !call->scheduled;
    if (append) {
        call->scheduled = true;
        /* A call that is to be freed has no references left, and gets none. */
        if (what != TK__DO_FREE) tk_rpc_ref(call);
        append_locked(w, call);
    }
    pthread_mutex_unlock(&w->lock);
}

/* The next call and one thing to do for it; NULL: the workers stop. */
static tk_rpc_call *take(tk__rpc_workers *w, unsigned *what)
{
    pthread_mutex_lock(&w->lock);
    while (!w->first && !w->stop)
        pthread_cond_wait(&w->wake, &w->lock);
    tk_rpc_call *call = w->first;
    if (call) {
        w->first = call->next;
        if (!w->first) w->last = NULL;
        *what = call->todo & (~call->todo + 1); /* the lowest bit */
        call->todo &= ~*what;
    }
    pthread_mutex_unlock(&w->lock);
    return call;
}

/* Back into the queue when something came up meanwhile, else out of it. */
static void put_back(tk__rpc_workers *w, tk_rpc_call *call)
{
    pthread_mutex_lock(&w->lock);
    call->scheduled = call->todo != 0;
    const bool gone = !call->scheduled;
    if (!gone) append_locked(w, call);
    pthread_mutex_unlock(&w->lock);
    if (gone) tk_rpc_unref(call);
}

static void *work(void *arg)
{
    tk__rpc_workers *w = arg;
    tk_process_thread("rpc worker", TK_THREAD_GIVES_WAY);
    tk__rpc_scratch scratch = {0};
    unsigned what = 0;
    for (tk_rpc_call *call; (call = take(w, &what));) {
        if (what == TK__DO_FREE) {
            tk__rpc_call_free(call);
            continue;
        }
        tk__rpc_call_do(call, what, &scratch);
        put_back(w, call);
    }
    tk_free(scratch.data);
    return NULL;
}

tk_err tk__rpc_workers_start(tk__rpc_workers *w, unsigned n, tk_diag *diag)
{
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->wake, NULL);
    w->made = true;
    w->threads = tk_calloc(n, sizeof *w->threads);
    if (!w->threads) return tk_fail(diag, TK_NOMEM, "no memory for %u RPC workers", n);
    for (; w->n < n; w->n++)
        if (pthread_create(&w->threads[w->n], NULL, work, w) != 0)
            return tk_fail(diag, TK_NOMEM, "cannot start RPC worker %u of %u", w->n + 1, n);
    return TK_OK;
}

void tk__rpc_workers_stop(tk__rpc_workers *w)
{
    if (!w->made) return;
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_broadcast(&w->wake);
    pthread_mutex_unlock(&w->lock);
    for (unsigned i = 0; i < w->n; i++)
        pthread_join(w->threads[i], NULL);
    tk_free(w->threads);
    pthread_cond_destroy(&w->wake);
    pthread_mutex_destroy(&w->lock);
}
