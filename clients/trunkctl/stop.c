/* Ctrl-C for commands that run long: see stop.h. */
#include "stop.h"

#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool asked;               /* lock */
static tk_client_call *the_call; /* lock */

static void *wait_for_signals(void *arg)
{
    sigset_t *signals = arg;
    for (int signal_number = 0; sigwait(signals, &signal_number) == 0;) {
        pthread_mutex_lock(&lock);
        const bool again = asked;
        asked = true;
        if (the_call) tk_client_cancel(the_call);
        pthread_mutex_unlock(&lock);
        if (again) _exit(128 + signal_number);
    }
    return NULL;
}

void tk__stop_begin(void)
{
    static sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    pthread_t thread;
    if (pthread_sigmask(SIG_BLOCK, &signals, NULL) != 0) return;
    if (pthread_create(&thread, NULL, wait_for_signals, &signals) == 0)
        pthread_detach(thread);
    else
        pthread_sigmask(SIG_UNBLOCK, &signals, NULL);
}

bool tk__stop_asked(void)
{
    pthread_mutex_lock(&lock);
    const bool is = asked;
    pthread_mutex_unlock(&lock);
    return is;
}

void tk__stop_call(tk_client_call *call)
{
    pthread_mutex_lock(&lock);
    the_call = call;
    if (call && asked) tk_client_cancel(call);
    pthread_mutex_unlock(&lock);
}
