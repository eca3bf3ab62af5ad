/* Allocation behind two counters: how many blocks live, and how many calls may still succeed. Both
 * are process wide atomics; relaxed order is enough, since they guard no other memory. */
#define _DEFAULT_SOURCE /* madvise() */
#include "engine/mem.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define TK_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TK_ASAN 1
#endif
#endif
#ifdef TK_ASAN
#include <sanitizer/asan_interface.h>
#endif

enum { ALIGNMENT = 64, HUGE_PAGE = 2 << 20 };

static atomic_long live_blocks;
static atomic_long calls_allowed = -1; /* < 0: no limit */

/* Takes one call off the allowance of a test; false when it is used up. */
static bool allowed(void)
{
    long left = atomic_load_explicit(&calls_allowed, memory_order_relaxed);
    while (left > 0) {
        if (atomic_compare_exchange_weak_explicit(&calls_allowed, &left, left - 1,
                                                  memory_order_relaxed, memory_order_relaxed))
            return true;
    }
    return left < 0;
}

static void *counted(void *p)
{
    if (p) atomic_fetch_add_explicit(&live_blocks, 1, memory_order_relaxed);
    return p;
}

bool tk_mul_size(size_t a, size_t b, size_t *out)
{
    if (b != 0 && a > SIZE_MAX / b) {
        *out = 0;
        return false;
    }
    *out = a * b;
    return true;
}

void *tk_calloc(size_t n, size_t size)
{
    size_t bytes;
    if (!tk_mul_size(n, size, &bytes) || !allowed()) return NULL;
    return counted(calloc(1, bytes ? bytes : 1));
}

void *tk_realloc(void *p, size_t size)
{
    if (!allowed()) return NULL;
    void *q = realloc(p, size ? size : 1);
    return p ? q : counted(q);
}

char *tk_strdup(const char *s)
{
    size_t size = strlen(s) + 1;
    char *copy = tk_calloc(size, 1);
    if (copy) memcpy(copy, s, size);
    return copy;
}

/* A map is read at strides that touch a page per row: large pages take fewer entries of the address
 * cache. A hint; where the system has none to give, all is as before. */
static void ask_huge_pages(void *p, size_t bytes)
{
#ifdef MADV_HUGEPAGE
    if (bytes >= HUGE_PAGE) (void)madvise(p, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#else
    (void)p, (void)bytes;
#endif
}

void *tk_aligned_calloc(size_t n, size_t size)
{
    size_t bytes;
    if (!tk_mul_size(n, size, &bytes) || bytes > SIZE_MAX - ALIGNMENT || !allowed()) return NULL;
    size_t rounded = bytes ? (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT : ALIGNMENT;
    void *p;
    if (posix_memalign(&p, rounded < HUGE_PAGE ? ALIGNMENT : HUGE_PAGE, rounded) != 0) return NULL;
    ask_huge_pages(p, rounded);
    memset(p, 0, rounded);
    return counted(p);
}

void tk_free(const void *p)
{
    if (p) atomic_fetch_sub_explicit(&live_blocks, 1, memory_order_relaxed);
    void *block; /* a copy, since a cast that drops const is a warning */
    memcpy(&block, &p, sizeof block);
    free(block);
}

void tk_test_alloc_fail_after(long n)
{
    atomic_store_explicit(&calls_allowed, n, memory_order_relaxed);
}

long tk_test_alloc_live(void)
{
    return atomic_load_explicit(&live_blocks, memory_order_relaxed);
}

/* Under AddressSanitizer the unused part of an arena is poisoned, so that a pointer kept over a
 * reset is caught. */
static void poison(unsigned char *p, size_t n)
{
#ifdef TK_ASAN
    __asan_poison_memory_region(p, n);
#else
    (void)p, (void)n;
#endif
}

static void unpoison(unsigned char *p, size_t n)
{
#ifdef TK_ASAN
    __asan_unpoison_memory_region(p, n);
#else
    (void)p, (void)n;
#endif
}

bool tk_arena_init(tk_arena *a, size_t size)
{
    *a = (tk_arena){.base = tk_aligned_calloc(size, 1)};
    if (!a->base) return false;
    a->size = size;
    poison(a->base, size);
    return true;
}

void *tk_arena_alloc(tk_arena *a, size_t n, size_t size)
{
    size_t bytes;
    size_t start = (a->used + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (!tk_mul_size(n, size, &bytes) || start > a->size || bytes > a->size - start) return NULL;
    a->used = start + bytes;
    if (a->used > a->peak) a->peak = a->used;
    unpoison(a->base + start, bytes);
    return a->base + start;
}

void tk_arena_reset(tk_arena *a)
{
    a->used = 0;
    poison(a->base, a->size);
}

void tk_arena_fini(tk_arena *a)
{
    if (a->base) unpoison(a->base, a->size);
    tk_free(a->base);
    *a = (tk_arena){0};
}
