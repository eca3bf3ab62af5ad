/* Memory: counted and failable allocation, 64-byte aligned blocks, and a bump arena. */
#ifndef ENGINE_MEM_H
#define ENGINE_MEM_H

#include <stdbool.h>
#include <stddef.h>

/* Zeroed memory; NULL when out of memory or when n * size overflows. Free with tk_free(). */
void *tk_calloc(size_t n, size_t size);
/* Grows or shrinks; the new tail is not zeroed. */
void *tk_realloc(void *p, size_t size);
char *tk_strdup(const char *s);
/* 64-byte aligned, zeroed; free with tk_free(). From 2 MiB on the system is asked for huge pages.
 */
void *tk_aligned_calloc(size_t n, size_t size);
void tk_free(const void *p); /* NULL is fine */

/* *out = a * b; false on overflow. The one place where products of untrusted sizes are made. */
bool tk_mul_size(size_t a, size_t b, size_t *out);

/* For tests: the n-th allocation from now fails (and every later one) until called with -1. */
void tk_test_alloc_fail_after(long n);
/* For tests: allocations not yet freed, process wide. */
long tk_test_alloc_live(void);

/* A bump arena, sized once and never grown. One thread at a time. */
typedef struct tk_arena {
    unsigned char *base;
    size_t size, used, peak;
} tk_arena;

bool tk_arena_init(tk_arena *a, size_t size);
void *tk_arena_alloc(tk_arena *a, size_t n,
                     size_t size); /* 64-byte aligned, not zeroed; NULL when full */
void tk_arena_reset(tk_arena *a);
void tk_arena_fini(tk_arena *a);

#endif
