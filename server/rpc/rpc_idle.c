/* Bidirectional streams that wait for their client. Such a call may stay open for hours, so a
 * graceful stop cannot wait for it: it ends with UNAVAILABLE, while one that is being answered goes
 * on until its answers are out (on_drain, or tk_rpc_next, ends it then).
 *
 * While on the list a call is alive: the tag of the message that it waits for is under way. */
#include "rpc/rpc_internal.h"

bool tk__rpc_idle_add(tk_rpc_call *call)
{
    tk__rpc_idle *idle = &call->server->idle;
    pthread_mutex_lock(&idle->lock);
    const bool room = !idle->stopping;
    if (room) {
        call->idle_prev = NULL;
        call->idle_next = idle->first;
        if (idle->first) idle->first->idle_prev = call;
        idle->first = call;
    }
    pthread_mutex_unlock(&idle->lock);
    return room;
}

void tk__rpc_idle_remove(tk_rpc_call *call)
{
    tk__rpc_idle *idle = &call->server->idle;
    pthread_mutex_lock(&idle->lock);
    if (call->idle_prev)
        call->idle_prev->idle_next = call->idle_next;
    else
        idle->first = call->idle_next;
    if (call->idle_next) call->idle_next->idle_prev = call->idle_prev;
    call->idle_prev = call->idle_next = NULL;
    pthread_mutex_unlock(&idle->lock);
}

void tk__rpc_idle_stop(tk__rpc_idle *idle)
{
    pthread_mutex_lock(&idle->lock);
    idle->stopping = true;
    for (tk_rpc_call *call = idle->first; call; call = call->idle_next)
        tk__rpc_drain(call);
    pthread_mutex_unlock(&idle->lock);
}
