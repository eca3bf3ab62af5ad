/* The thread pool: one job at a time, its tasks claimed from a shared counter.
 *
 * `state` opens and closes a job: bit 0 says open, the bits above it count the workers inside, and
 * the upper half numbers the jobs. A worker may enter only an open job that it has not yet worked
 * on, by a compare-and-swap that counts it in; so once the caller has closed the job and seen the
 * count at zero, no worker reads the job's fields, and a worker that wakes too late finds the door
 * shut. Workers that find nothing spin, then yield, then sleep on `wake`.
 *
 * Ordering: the job's fields are written before `state` is opened (release) and read after entering
 * (acquire); what tasks wrote is released by leaving and acquired by the caller's wait for zero.
 * The hand-off between "publish, then look for sleepers" and "announce sleep, then look for a job"
 * needs sequential consistency on `state` and `sleepers`. */
#include "engine/pool.h"

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

#include "engine/mem.h"

/* A pass is hundreds of jobs, a fraction of a millisecond apart. A thread that sleeps in between
 * halts its core, and on a virtual machine it is long in coming back. So it stays awake that long, but lets anybody else have the core. */
enum { MAX_THREADS = 256, SPIN_CHECK = 32, SPIN_NS = 25000, YIELD_NS = 1000000 };

#define OPEN        1u
#define INSIDE_ONE  2u
#define INSIDE_MASK 0xfffffffeu
#define JOB_ONE     (UINT64_C(1) << 32)

typedef struct worker {
    tk_pool *pool;
    size_t thread; /* 1.. */
    pthread_t id;
} worker;

struct tk_pool {
    unsigned threads;
    unsigned started; /* workers whose thread exists */
    worker *workers;
    tk_pool_fn *fn; /* of the open job; guarded by `state` as told above, like ctx and tasks */
    void *ctx;
    size_t tasks;
    atomic_size_t next; /* first task not yet claimed */
    _Atomic uint64_t state;
    atomic_uint sleepers; /* workers in wake's wait, or about to be */
    atomic_bool stop;
    bool caller_waits; /* lock */
    pthread_mutex_t lock;
    pthread_cond_t wake; /* a job was opened, or stop */
    pthread_cond_t left; /* the last worker left a closed job */
};

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static int64_t now_ns(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Of a thread that has waited since `begun`; it may let others run before it answers. */
static bool worth_staying_awake(int64_t begun)
{
    const int64_t waited = now_ns() - begun;
    if (waited > SPIN_NS) (void)sched_yield();
    return waited < YIELD_NS;
}

static void work(tk_pool *p, size_t thread)
{
    for (;;) {
        const size_t task = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed);
        if (task >= p->tasks) return;
        p->fn(p->ctx, task, thread);
    }
}

/* Enters the open job unless it is `last`, the one this worker did before. */
static bool enter(tk_pool *p, uint64_t *last)
{
    uint64_t s = atomic_load(&p->state);
    while ((s & OPEN) != 0 && s >> 32 != *last) {
        if (!atomic_compare_exchange_weak(&p->state, &s, s + INSIDE_ONE)) continue;
        *last = s >> 32;
        return true;
    }
    return false;
}

/* Counts the worker out; the last one out of a closed job tells the caller, if that sleeps. */
static void leave(tk_pool *p)
{
    const uint64_t s = atomic_fetch_sub(&p->state, INSIDE_ONE);
    if ((s & OPEN) != 0 || (s & INSIDE_MASK) != INSIDE_ONE) return;
    pthread_mutex_lock(&p->lock);
    if (p->caller_waits) pthread_cond_signal(&p->left);
    pthread_mutex_unlock(&p->lock);
}

/* Waits for a job; false means stop. */
static bool await_job(tk_pool *p, uint64_t *last)
{
    const int64_t begun = now_ns();
    do {
        for (int i = 0; i < SPIN_CHECK; i++) {
            if (enter(p, last)) return true;
            cpu_relax();
        }
    } while (worth_staying_awake(begun));
    bool entered = false;
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (!(entered = enter(p, last)) && !atomic_load(&p->stop))
        pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
    return entered;
}

static void *worker_main(void *arg)
{
    worker *w = arg;
    uint64_t last = 0;
    while (await_job(w->pool, &last)) {
        work(w->pool, w->thread);
        leave(w->pool);
    }
    return NULL;
}

tk_err tk_pool_create(tk_pool **out, unsigned threads)
{
    *out = NULL;
    if (threads == 0) {
        const long online = sysconf(_SC_NPROCESSORS_ONLN);
        threads = online < 1 ? 1 : online > MAX_THREADS ? MAX_THREADS : (unsigned)online;
    }
    if (threads > MAX_THREADS) return TK_BADARG;
    tk_pool *p = tk_calloc(1, sizeof *p);
    if (p == NULL) return TK_NOMEM;
    p->threads = threads;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->left, NULL);
    p->workers = tk_calloc(threads, sizeof *p->workers);
    bool ok = p->workers != NULL;
    while (ok && p->started + 1 < threads) {
        worker *w = &p->workers[p->started];
        *w = (worker){.pool = p, .thread = p->started + 1};
        ok = pthread_create(&w->id, NULL, worker_main, w) == 0;
        p->started += ok;
    }
    if (!ok) {
        tk_pool_destroy(p);
        return TK_NOMEM;
    }
    *out = p;
    return TK_OK;
}

void tk_pool_destroy(tk_pool *pool)
{
    if (pool == NULL) return;
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->stop, true);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->started; i++)
        pthread_join(pool->workers[i].id, NULL);
    pthread_cond_destroy(&pool->left);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    tk_free(pool->workers);
    tk_free(pool);
}

unsigned tk_pool_threads(const tk_pool *pool)
{
    return pool->threads;
}

static bool empty(tk_pool *p)
{
    return (atomic_load(&p->state) & INSIDE_MASK) == 0;
}

/* Shuts the door and waits until the workers inside have left. */
static void close_job(tk_pool *p)
{
    atomic_fetch_and(&p->state, ~(uint64_t)OPEN);
    if (empty(p)) return;
    const int64_t begun = now_ns();
    do {
        for (int i = 0; i < SPIN_CHECK; i++) {
            if (empty(p)) return;
            cpu_relax();
        }
    } while (worth_staying_awake(begun));
    pthread_mutex_lock(&p->lock);
    p->caller_waits = true;
    while (!empty(p))
        pthread_cond_wait(&p->left, &p->lock);
    p->caller_waits = false;
    pthread_mutex_unlock(&p->lock);
}

void tk_pool_run(tk_pool *pool, size_t tasks, tk_pool_fn *fn, void *ctx)
{
    if (tasks <= 1 || pool->started == 0) {
        for (size_t task = 0; task < tasks; task++)
            fn(ctx, task, 0);
        return;
    }
    pool->fn = fn;
    pool->ctx = ctx;
    pool->tasks = tasks;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    /* the job's number wraps; a worker would have to sleep through 2^32 jobs to mistake one */
    atomic_fetch_add(&pool->state, JOB_ONE + OPEN);
    if (atomic_load(&pool->sleepers) > 0) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
    work(pool, 0);
    close_job(pool);
}
