/* The process's accept4(); see accept_guard.h for why. It works for every listener of the process,
 * which does no harm to the others. */
#define _GNU_SOURCE /* accept4 */
#include "rpc/accept_guard.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    RESERVE = 64, /* descriptors kept for the store, logs and listeners */
    SPARES = 4,   /* places kept: another thread may take one in the moment that it is free */
    TRIES = 8,    /* at shedding, before the caller is told that nothing waits */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int spare[SPARES] = {-1, -1, -1, -1}; /* lock */
static atomic_int highest =
    0; /* a connection's descriptor may have this number; 0: any. Relaxed: a bound */
static atomic_ullong shed, seen; /* relaxed: counters */

/* Takes the places that are not held, as far as there are any. Holds the lock. */
static void refill(void)
{
    for (size_t i = 0; i < SPARES; i++)
        if (spare[i] < 0) spare[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

void tk__accept_guard_init(unsigned max_connections)
{
    const unsigned most = max_connections < 1u << 20 ? max_connections : 1u << 20;
    const int limit = (int)most + RESERVE;
    pthread_mutex_lock(&lock);
    refill();
    if (limit > atomic_load_explicit(&highest, memory_order_relaxed))
        atomic_store_explicit(&highest, limit, memory_order_relaxed);
    pthread_mutex_unlock(&lock);
}

uint64_t tk__accept_guard_shed(void)
{
    return atomic_load_explicit(&shed, memory_order_relaxed);
}

uint64_t tk__accept_guard_calls(void)
{
    return atomic_load_explicit(&seen, memory_order_relaxed);
}

static int system_accept(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
    return (int)syscall(SYS_accept4, fd, addr, len, flags);
}

static void drop(int fd)
{
    atomic_fetch_add_explicit(&shed, 1, memory_order_relaxed);
    close(fd); /* last: whoever sees it closed finds it counted */
}

static bool is_shortage(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

/* Takes one waiting connection with a spare's place and closes it. Returns 0, or the error of
 * accepting: EAGAIN when none waits (the kernel looks for a free descriptor first, so that shows
 * only now). */
static int shed_one(int fd)
{
    int error = EMFILE;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < SPARES && is_shortage(error); i++) {
        if (spare[i] < 0) continue;
        close(spare[i]);
        spare[i] = -1;
        const int victim = system_accept(fd, NULL, NULL, SOCK_CLOEXEC);
        error = victim < 0 ? errno : 0;
        if (victim >= 0) drop(victim);
    }
    refill();
    pthread_mutex_unlock(&lock);
    return error;
}

/* Exported: libgrpc's calls resolve to it. */
__attribute__((visibility("default"))) int accept4(int fd, struct sockaddr *addr, socklen_t *len,
                                                   int flags)
{
    const socklen_t room = len ? *len : 0;
    atomic_fetch_add_explicit(&seen, 1, memory_order_relaxed);
    for (int failed = 0; failed < TRIES;) {
        if (len) *len = room;
        const int connection = system_accept(fd, addr, len, flags);
        if (connection < 0) {
            if (!is_shortage(errno)) return -1;
            const int error = shed_one(fd);
            if (error == EAGAIN) break;
            failed += error != 0;
            continue;
        }
        const int limit = atomic_load_explicit(&highest, memory_order_relaxed);
        if (limit == 0 || connection <= limit) return connection;
        drop(connection);
    }
    errno = EAGAIN;
    return -1;
}
