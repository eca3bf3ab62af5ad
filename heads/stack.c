/* See stack.h. */
#include "heads/stack.h"

#include <string.h>

#include "engine/mem.h"

static size_t rank_of(const tk_stack *s, size_t i)
{
    return s->first[i + 1] - s->first[i];
}

tk_err tk_stack_init(tk_stack *out, tk_arch arch, size_t n, const size_t *ranks)
{
    *out = (tk_stack){
        .arch = arch, .features = tk_arch_features(arch), .stages = tk_arch_stages(arch), .n = n};
    out->first = tk_calloc(n + 1, sizeof *out->first);
    if (!out->first) return TK_NOMEM;
    for (size_t i = 0; i < n; i++)
        out->first[i + 1] = out->first[i] + ranks[i];
    if (out->first[n] == 0) return TK_OK;
    out->data = tk_aligned_calloc(tk_side_size(arch, out->first[n]), sizeof *out->data);
    if (out->data) return TK_OK;
    tk_stack_fini(out);
    return TK_NOMEM;
}

tk_err tk_stack_of_heads(tk_stack *out, tk_arch arch, size_t n, const tk_head *const *heads)
{
    size_t *ranks = tk_calloc(n + 1, sizeof *ranks);
    *out = (tk_stack){0};
    if (!ranks) return TK_NOMEM;
    for (size_t i = 0; i < n; i++)
        ranks[i] = heads[i]->rank;
    const tk_err err = tk_stack_init(out, arch, n, ranks);
    tk_free(ranks);
    for (size_t i = 0; err == TK_OK && i < n; i++)
        if (heads[i]->rank > 0) tk_stack_put(out, i, heads[i]->adapter);
    return err;
}

void tk_stack_fini(tk_stack *stack)
{
    tk_free(stack->first);
    tk_free(stack->data);
    *stack = (tk_stack){0};
}

void tk_stack_drop_data(tk_stack *stack)
{
    tk_free(stack->data);
    stack->data = NULL;
}

size_t tk_stack_rank(const tk_stack *stack)
{
    return stack->first[stack->n];
}

tk_side tk_stack_side(const tk_stack *stack)
{
    return (tk_side){stack->arch, tk_stack_rank(stack), stack->data};
}

size_t tk_stack_width(const tk_stack *stack)
{
    return stack->stages * tk_stack_rank(stack);
}

size_t tk_stack_widest(const tk_stack *stack)
{
    size_t rank = 0;
    for (size_t i = 0; i < stack->n; i++)
        if (rank_of(stack, i) > rank) rank = rank_of(stack, i);
    return stack->features + stack->stages * rank;
}

void tk_stack_mark(const tk_stack *stack, size_t i, bool *rows)
{
    for (size_t r = stack->first[i]; r < stack->first[i + 1]; r++)
        rows[r] = true;
}

/* The two places of adapter i in a stage: in the stack, and by itself. */
typedef struct part {
    float *weight, *bias; /* in the stack */
    size_t at, rank, channels;
} part;

static part part_of(const tk_stack *s, size_t i, size_t stage)
{
    const size_t all = tk_stack_rank(s), rank = rank_of(s, i);
    const size_t c = tk_arch_channels(s->arch, stage);
    float *weight = s->data + tk_side_at(s->arch, all, stage);
    return (part){weight + s->first[i] * c, weight + all * c + s->first[i],
                  tk_side_at(s->arch, rank, stage), rank, c};
}

void tk_stack_put(tk_stack *stack, size_t i, const float *adapter)
{
    for (size_t s = 0; s < stack->stages; s++) {
        const part p = part_of(stack, i, s);
        memcpy(p.weight, adapter + p.at, p.rank * p.channels * sizeof *adapter);
        memcpy(p.bias, adapter + p.at + p.rank * p.channels, p.rank * sizeof *adapter);
    }
}

void tk_stack_take(const tk_stack *stack, size_t i, float *adapter)
{
    for (size_t s = 0; s < stack->stages; s++) {
        const part p = part_of(stack, i, s);
        memcpy(adapter + p.at, p.weight, p.rank * p.channels * sizeof *adapter);
        memcpy(adapter + p.at + p.rank * p.channels, p.bias, p.rank * sizeof *adapter);
    }
}

const float *tk_stack_input(const tk_stack *stack, size_t i, size_t n, const float *features,
                            const float *z, float *x)
{
    const size_t f = stack->features, rank = rank_of(stack, i), all = tk_stack_rank(stack);
    if (rank == 0) return features;
    float *to = x;
    for (size_t k = 0; k < n; k++) {
        memcpy(to, features + k * f, f * sizeof *to);
        to += f;
        for (size_t s = 0; s < stack->stages; s++, to += rank)
            memcpy(to, z + (k * stack->stages + s) * all + stack->first[i], rank * sizeof *to);
    }
    return x;
}

static void add(size_t n, float *y, const float *x)
{
    for (size_t j = 0; j < n; j++)
        y[j] += x[j];
}

void tk_stack_spread(const tk_stack *stack, size_t i, size_t n, const float *dx, float *dfeatures,
                     float *dz)
{
    const size_t f = stack->features, rank = rank_of(stack, i), all = tk_stack_rank(stack);
    for (size_t k = 0; k < n; k++) {
        add(f, dfeatures + k * f, dx);
        dx += f;
        for (size_t s = 0; s < stack->stages; s++, dx += rank)
            add(rank, dz + (k * stack->stages + s) * all + stack->first[i], dx);
    }
}
