/* Who is next? Start-time fair queueing among flows (here: tenants) of one resource: the flow that
 * has got least is next, and one that comes back after a pause is neither paid for the pause nor
 * made to wait behind what others hoard. Each flow's next item has a start time in a virtual clock
 * of work done; the least start is next, and charging it moves the flow's next start on by the cost
 * and the clock to where the item started. A flow whose items are charged at half their cost gets
 * twice as much as others: so much for weights.
 *
 * O(log flows) to add, charge and remove; no allocation but in tk__fair_reserve(). No locks: the
 * owner's lock guards it. Inside server/serving only. */
#ifndef SERVER_SERVING_FAIR_H
#define SERVER_SERVING_FAIR_H

#include <stddef.h>
#include <stdint.h>

#include "engine/err.h"

/* Lives in its owner's struct; zeroed before the first use. */
typedef struct tk__flow {
    double start;   /* virtual time at which its next item starts */
    uint64_t since; /* when it was added, to keep the order among equals */
    size_t at;      /* 1 + its place in the heap; 0: it is not in it */
} tk__flow;

typedef struct tk__fair {
    tk__flow **heap; /* [n], the least first */
    size_t n, cap;
    double clock;
    uint64_t added;
} tk__fair;

/* Room for `n` flows in all. */
TK_MUST tk_err tk__fair_reserve(tk__fair *fair, size_t n);
void tk__fair_fini(tk__fair *fair); /* a zeroed one is fine */

/* The flow has an item. Nothing happens when it is in already. There must be room. */
void tk__fair_add(tk__fair *fair, tk__flow *flow);
/* Who is next, or NULL. */
tk__flow *tk__fair_first(const tk__fair *fair);
/* An item of the flow, which is in, is taken, of this cost (above 0), by its weight already. */
void tk__fair_charge(tk__fair *fair, tk__flow *flow, double cost);
/* The flow has no item, or none that can be taken now; tk__fair_restore() adds it with its old
 * start, as if it had never gone. Nothing happens when it is not in. */
void tk__fair_remove(tk__fair *fair, tk__flow *flow);
void tk__fair_restore(tk__fair *fair, tk__flow *flow);

#endif
