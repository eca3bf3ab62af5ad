/* The pump: one thread that moves server streams on: reads the next piece of a file or the next
 * event of a job, which must not happen on a completion-queue thread and would hold up a worker for
 * as long as the stream.
 *
 * An item has two owners, the pump and the call. Its `step` runs on the pump's thread, once after
 * it was added and again after each wake, until it returns false; the pump then lets go. The call
 * lets go in its on_free. The last one destroys the item. */
#ifndef SERVER_API_PUMP_H
#define SERVER_API_PUMP_H

#include <stdbool.h>

#include "engine/err.h"

typedef struct tk_pump tk_pump;

typedef struct tk_pump_item {
    bool (*step)(struct tk_pump_item *item);    /* pump thread, no lock held; false: over */
    void (*destroy)(struct tk_pump_item *item); /* any thread, no lock held; must not block */
    /* the pump's, under its lock: */
    tk_pump *pump;
    bool queued, over;
    int owners;
    struct tk_pump_item *next_queued, *prev, *next;
} tk_pump_item;

TK_MUST tk_err tk_pump_create(tk_pump **out);
/* Finishes what is queued, then joins. No item may be left that somebody could still wake. */
void tk_pump_destroy(tk_pump *pump); /* NULL is fine */

/* `item` is zeroed but for step and destroy; a call holds it, too, and will release it. */
void tk_pump_add(tk_pump *pump, tk_pump_item *item);
void tk_pump_wake(
    tk_pump_item *item); /* any thread, while holding the item; never blocks for long */
void tk_pump_wake_all(tk_pump *pump);
void tk_pump_release(tk_pump_item *item); /* the call's share */

#endif
