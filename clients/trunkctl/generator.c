/* A load generator: see generator.h. */
#include "generator.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "ctl.h"
#include "stop.h"
#include "term.h"

enum { TICK_MS = 50, DRAIN_MS = 2000 };

/* Chooses by weight. */
typedef struct dice {
    uint64_t state;
    double *up_to; /* [n]: sum of the weights so far */
    size_t n;
} dice;

typedef struct generator {
    const tk__gen_opts *opts;
    tk__gen_result *result; /* but for `unsent` and `lag` the receiver's */
    tk_client_queue *queue;
    int64_t begun_ns, counted_ns; /* the load begins, and counting */
    pthread_mutex_t lock;
    int64_t end_ns;                        /* lock; no call starts after it */
    uint64_t in_flight, answered, refused; /* lock; the latter two for the progress line */
    uint64_t counted;                      /* lock; calls, however they ended */
    bool sent_all;                         /* lock */
    /* of whoever starts calls: one thread at a time */
    dice tenants;
    uint64_t chance; /* state of the arrivals' random numbers */
    uint64_t started;
} generator;

/* What comes back with a call. */
typedef struct flight {
    int64_t meant_ns, sent_ns;
    size_t tenant;
} flight;

/* -- chance -- */

static uint64_t splitmix(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

static double unit(uint64_t *state) /* (0, 1] */
{
    return ((double)(splitmix(state) >> 11) + 1) * 0x1p-53;
}

static void load_dice(dice *d, const tk__gen_opts *opts)
{
    *d = (dice){.state = opts->seed ^ 0x7465, .n = opts->n_tenants};
    d->up_to = tk__alloc(d->n, sizeof(*d->up_to));
    for (size_t i = 0; i < d->n; i++)
        d->up_to[i] = (i ? d->up_to[i - 1] : 0) + opts->tenants[i].weight;
}

static size_t roll(dice *d)
{
    const double at = unit(&d->state) * d->up_to[d->n - 1];
    size_t low = 0, high = d->n - 1;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (at <= d->up_to[middle])
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* -- starting calls -- */

static int64_t end_of(generator *g)
{
    pthread_mutex_lock(&g->lock);
    const int64_t end = g->end_ns;
    pthread_mutex_unlock(&g->lock);
    return end;
}

/* Takes a place among the calls in flight. */
static bool take_place(generator *g)
{
    pthread_mutex_lock(&g->lock);
    const bool is = g->in_flight < TK__GEN_IN_FLIGHT_MAX;
    g->in_flight += is;
    pthread_mutex_unlock(&g->lock);
    return is;
}

static void leave_place(generator *g)
{
    pthread_mutex_lock(&g->lock);
    g->in_flight--;
    pthread_mutex_unlock(&g->lock);
}

/* False: it could not be sent. */
static bool start_call(generator *g, int64_t meant_ns)
{
    const tk__gen_opts *opts = g->opts;
    if (!take_place(g)) return false;
    flight *f = tk__alloc(1, sizeof(*f));
    *f = (flight){.meant_ns = meant_ns, .tenant = roll(&g->tenants)};
    const uint64_t number = g->started++;
    const tk_client_ask ask = {.path = opts->path,
                               .in = opts->requests[number % opts->n_requests],
                               .out_type = opts->out_type,
                               .token = opts->tenants[f->tenant].token,
                               .timeout_ms = opts->timeout_ms,
                               .tag = f};
    f->sent_ns = tk__now_ns();
    if (!tk_client_queue_start(g->queue, opts->clients[number % opts->n_clients], &ask)) {
        free(f);
        leave_place(g);
        return false;
    }
    return true;
}

static void sleep_until(int64_t ns)
{
    const int64_t left = ns - tk__now_ns(), most = (int64_t)TICK_MS * 1000000;
    if (left > 0) nanosleep(&(struct timespec){.tv_nsec = (long)(left < most ? left : most)}, NULL);
}

/* Open loop: the thread that starts calls at their times. */
static void *send_open(void *arg)
{
    generator *g = arg;
    tk__gen_result *result = g->result;
    for (double next = (double)g->begun_ns;;) {
        next += -log(unit(&g->chance)) * 1e9 / g->opts->rate;
        const int64_t meant = (int64_t)next;
        while (tk__now_ns() < meant && meant < end_of(g))
            sleep_until(meant);
        if (meant >= end_of(g)) break;
        const int64_t lag = tk__now_ns() - meant;
        const bool sent = start_call(g, meant);
        if (meant < g->counted_ns) continue;
        tk__histogram_add(&result->lag, lag);
        result->unsent += !sent;
    }
    pthread_mutex_lock(&g->lock);
    g->sent_all = true;
    pthread_mutex_unlock(&g->lock);
    return NULL;
}

/* -- taking answers -- */

static tk__gen_end kind_of(const generator *g, int code, int64_t since_sent_ns)
{
    if (code == TK_CLIENT_OK) return TK__GEN_OK;
    if (code == TK_CLIENT_RESOURCE_EXHAUSTED) return TK__GEN_REFUSED;
    /* The client's own timer cannot have been it, so it is the server's forecast. */
    const bool early = since_sent_ns < (int64_t)g->opts->timeout_ms * 1000000;
    return code == TK_CLIENT_DEADLINE_EXCEEDED && early ? TK__GEN_REFUSED : TK__GEN_FAILED;
}

static void count(generator *g, const flight *f, const tk_client_done *done, tk__gen_end kind,
                  int64_t now)
{
    tk__gen_result *r = g->result;
    const int code = done->status.code;
    const int64_t took = now - f->meant_ns;
    r->codes[code >= 0 && code < TK__GEN_CODES ? code : TK_CLIENT_UNKNOWN]++;
    r->by_tenant[f->tenant][kind]++;
    tk__histogram_add(&r->latency[kind], took);
    if (kind == TK__GEN_FAILED && !r->failure[0])
        snprintf(r->failure, sizeof(r->failure), "%s: %.200s", tk_client_code_text(code),
                 done->status.text);
    if (kind != TK__GEN_OK) return;
    uint64_t images = 0, unreadable = 0;
    g->opts->look(done->answer, &images, &unreadable);
    const unsigned deadline = g->opts->deadline_ms;
    const bool good = deadline == 0 || took <= (int64_t)deadline * 1000000;
    r->images += images;
    r->unreadable += unreadable;
    r->good += good;
    if (good) r->good_images += images;
}

static void take(generator *g, tk_client_done *done)
{
    flight *f = done->tag;
    const int64_t now = tk__now_ns();
    const tk__gen_end kind = kind_of(g, done->status.code, now - f->sent_ns);
    const int64_t when = g->opts->concurrency ? now : f->meant_ns;
    const bool counts = when >= g->counted_ns && when < end_of(g);
    if (counts) count(g, f, done, kind, now);
    tk_client_free_message(done->answer);
    free(f);
    pthread_mutex_lock(&g->lock);
    g->in_flight--;
    g->answered += kind == TK__GEN_OK;
    g->refused += kind == TK__GEN_REFUSED;
    g->counted += counts;
    if (g->opts->calls && g->counted >= g->opts->calls && now < g->end_ns) g->end_ns = now;
    pthread_mutex_unlock(&g->lock);
}

/* Closed loop: as many in flight as there should be, until the end. */
static void fill(generator *g)
{
    bool room = true;
    while (room) {
        const int64_t now = tk__now_ns();
        pthread_mutex_lock(&g->lock);
        g->sent_all = now >= g->end_ns;
        room = !g->sent_all && g->in_flight < g->opts->concurrency;
        pthread_mutex_unlock(&g->lock);
        if (room && !start_call(g, now)) return; /* out of memory: again at the next answer */
    }
}

static bool all_done(generator *g)
{
    pthread_mutex_lock(&g->lock);
    const bool is = g->sent_all && g->in_flight == 0;
    pthread_mutex_unlock(&g->lock);
    return is;
}

static void *receive(void *arg)
{
    generator *g = arg;
    tk_client_done done;
    while (!all_done(g)) {
        if (g->opts->concurrency) fill(g);
        if (tk_client_queue_next(g->queue, TICK_MS, &done)) take(g, &done);
    }
    return NULL;
}

/* -- watching -- */

static void show(generator *g)
{
    if (!g->opts->progress) return;
    pthread_mutex_lock(&g->lock);
    const unsigned long long answered = g->answered, refused = g->refused, flying = g->in_flight;
    const uint64_t counted = g->counted;
    const int64_t end = g->end_ns;
    pthread_mutex_unlock(&g->lock);
    const int64_t now = tk__now_ns();
    const double total = g->opts->warm_up_s + g->opts->seconds;
    const double at = (double)(now - g->begun_ns) * 1e-9;
    const double calls = g->opts->calls ? (double)counted / (double)g->opts->calls : 0;
    fputs("\r\033[K", stderr);
    tk__bar(stderr, fmin(1, fmax(calls, at / total)), 30);
    fprintf(stderr, " %s: %llu answered, %llu refused, %llu in flight",
            now < g->counted_ns ? "warming up"
            : now < end         ? "measuring"
                                : "waiting for the rest",
            answered, refused, flying);
    fflush(stderr);
}

/* Waits for `until_ns`, the end, should that come first, or Ctrl-C, which moves the end to now. */
static void wait_until(generator *g, int64_t until_ns)
{
    int64_t shown = 0;
    for (int64_t now; (now = tk__now_ns()) < until_ns && now < end_of(g) && !tk__stop_asked();) {
        if (now - shown >= 200000000) {
            show(g);
            shown = now;
        }
        sleep_until(until_ns);
    }
    const int64_t now = tk__now_ns();
    pthread_mutex_lock(&g->lock);
    if (tk__stop_asked() && now < g->end_ns) g->end_ns = now;
    pthread_mutex_unlock(&g->lock);
}

/* Until all have come back; after Ctrl-C not for long. */
static void drain(generator *g)
{
    int64_t asked = 0;
    for (unsigned ticks = 0; !all_done(g); ticks++) {
        const int64_t now = tk__now_ns();
        if (tk__stop_asked() && !asked) asked = now;
        if (asked && now - asked > (int64_t)DRAIN_MS * 1000000) tk_client_queue_cancel(g->queue);
        if (ticks % 4 == 0) show(g);
        sleep_until(now + (int64_t)TICK_MS * 1000000);
    }
    if (g->opts->progress) fputs("\r\033[K", stderr);
}

static double cpu_seconds(void)
{
    struct rusage use;
    if (getrusage(RUSAGE_SELF, &use) != 0) return 0;
    return (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
           (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1e-6;
}

/* The caller's thread, while the others work. */
static void watch_over(generator *g)
{
    const tk__gen_opts *opts = g->opts;
    wait_until(g, g->counted_ns);
    const double cpu = cpu_seconds();
    if (!tk__stop_asked()) opts->at_window(opts->arg, false);
    wait_until(g, g->end_ns);
    const int64_t took = end_of(g) - g->counted_ns; /* it has passed: nobody moves it any more */
    g->result->seconds = took > 0 ? (double)took * 1e-9 : 0;
    if (took > 0) g->result->client_cpus = (cpu_seconds() - cpu) / g->result->seconds;
    if (took > 0) opts->at_window(opts->arg, true);
    drain(g);
}

/* False: no threads. */
static bool run(generator *g)
{
    const bool open_loop = g->opts->concurrency == 0;
    pthread_t receiver, sender;
    g->begun_ns = tk__now_ns();
    g->counted_ns = g->begun_ns + (int64_t)(g->opts->warm_up_s * 1e9);
    g->end_ns = g->counted_ns + (int64_t)(g->opts->seconds * 1e9);
    if (pthread_create(&receiver, NULL, receive, g) != 0) return false;
    const bool fine = !open_loop || pthread_create(&sender, NULL, send_open, g) == 0;
    if (fine) {
        watch_over(g);
    } else {
        pthread_mutex_lock(&g->lock);
        g->sent_all = true;
        pthread_mutex_unlock(&g->lock);
    }
    pthread_join(receiver, NULL);
    if (fine && open_loop) pthread_join(sender, NULL);
    return fine;
}

bool tk__generate(const tk__gen_opts *opts, tk__gen_result *result)
{
    memset(result, 0, sizeof(*result)); /* too large for a copy on the stack */
    result->by_tenant = tk__alloc(opts->n_tenants, sizeof(*result->by_tenant));
    generator g = {.opts = opts, .result = result, .chance = opts->seed};
    g.queue = tk_client_queue_create();
    if (!g.queue) return false;
    bool fine = pthread_mutex_init(&g.lock, NULL) == 0;
    if (fine) {
        load_dice(&g.tenants, opts);
        fine = run(&g);
        free(g.tenants.up_to);
        pthread_mutex_destroy(&g.lock);
    }
    tk_client_queue_destroy(g.queue);
    result->requests = result->unsent;
    for (size_t i = 0; i < TK__GEN_ENDS; i++)
        result->requests += result->latency[i].n;
    return fine;
}

void tk__gen_free(tk__gen_result *result)
{
    free(result->by_tenant);
    result->by_tenant = NULL;
}
