/* The adapters of several heads as one side (engine/side.h): each head owns a run of its rows in
 * every stage. A head without an adapter owns none. */
#ifndef HEADS_STACK_H
#define HEADS_STACK_H

#include "heads/model.h"

typedef struct tk_stack {
    tk_arch arch;
    size_t features, stages, n;
    size_t *first; /* [n + 1]: rows of head i are first[i]..first[i + 1] - 1 */
    float *data;   /* as tk_side.data; NULL while no head has an adapter */
} tk_stack;

/* A stack of zeros for n adapters of these ranks; 0: none. */
TK_MUST tk_err tk_stack_init(tk_stack *out, tk_arch arch, size_t n, const size_t *ranks);
/* The heads' adapters, copied. `heads` may go. */
TK_MUST tk_err tk_stack_of_heads(tk_stack *out, tk_arch arch, size_t n,
                                 const tk_head *const *heads);
void tk_stack_fini(tk_stack *stack); /* zeroed is fine */

/* Frees the numbers, which a plan has copied; the shape stays, for input and spread. */
void tk_stack_drop_data(tk_stack *stack);

size_t tk_stack_rank(const tk_stack *stack);  /* of all together */
tk_side tk_stack_side(const tk_stack *stack); /* borrows the data */
/* Floats of z for one image: 0 without any adapter. */
size_t tk_stack_width(const tk_stack *stack);
/* Inputs of the widest head. */
size_t tk_stack_widest(const tk_stack *stack);

/* Marks the rows of head i, for tk_plan_run_side(). */
void tk_stack_mark(const tk_stack *stack, size_t i, bool *rows);

/* Copies one adapter's numbers (as tk_side.data of its own rank) into the stack, and back. */
void tk_stack_put(tk_stack *stack, size_t i, const float *adapter);
void tk_stack_take(const tk_stack *stack, size_t i, float *adapter);

/* What the linear layer of head i reads, for n images: its features and its part of z [n][stages]
 * [rank], side by side in x [n][widest]; without an adapter the features themselves. */
const float *tk_stack_input(const tk_stack *stack, size_t i, size_t n, const float *features,
                            const float *z, float *x);
/* The way back: adds dx [n][features + stages * rank of i] to the gradients of features and z. */
void tk_stack_spread(const tk_stack *stack, size_t i, size_t n, const float *dx, float *dfeatures,
                     float *dz);

#endif
