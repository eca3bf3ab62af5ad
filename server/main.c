/* trunkd: reads the configuration, prepares the process, runs the server until a signal; SIGHUP
 * reads the configuration again. */
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "clock.h"
#include "log.h"
#include "notify.h"
#include "server.h"

static tk_log_level level_of(const char *name)
{
    switch (name[0]) {
    case 'd':
        return TK_LOG_DEBUG;
    case 'w':
        return TK_LOG_WARN;
    case 'e':
        return TK_LOG_ERROR;
    default:
        return TK_LOG_INFO;
    }
}

/* Before any thread: signals are waited for below, in one place. */
static void block_signals(sigset_t *wanted)
{
    sigemptyset(wanted);
    sigaddset(wanted, SIGTERM);
    sigaddset(wanted, SIGINT);
    sigaddset(wanted, SIGHUP);
    sigset_t all = *wanted;
    sigaddset(&all, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
}

static void prepare_process(void)
{
    /* Messages of some 50 KB come and go all the time: giving their pages back each time costs more
     * than the rest of the call. */
    mallopt(M_TRIM_THRESHOLD, 256 << 20);
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    /* Whichever thread loads a version or takes an upload leaves its peak in its own arena; by
     * default there are eight for each core, and under load none of them ever shrinks. */
    mallopt(M_ARENA_MAX, 2);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files); /* no harm when refused: fewer connections */
    }
}

static void init_log(const tk_config *c)
{
    tk_log_init(c->log_format[0] == 'j', level_of(c->log_level));
}

/* Reads the configuration again: all of it is good and taken over, or nothing changes. */
static tk_err reload(tk_server *server, tk_config *config, int argc, char **argv, tk_diag *diag)
{
    static tk_config next;
    tk_config_changes changes;
    if (!config->file)
        return tk_fail(diag, TK_PRECONDITION,
                       "there is no --config to read again; flags and variables are read at the "
                       "start only");
    const tk_err err = tk_config_parse(&next, argc, argv, getenv, diag);
    if (err != TK_OK) return err;
    tk_config_adopt(config, &next, &changes);
    tk_config_fini(&next);
    init_log(config);
    tk_server_reload(server);
    tk_log(TK_LOG_INFO, "configuration reloaded",
           (tk_log_field[]){tk_log_str("file", config->file), tk_log_str("changed", changes.taken),
                            tk_log_str("needs-restart", changes.restart), tk_log_end()});
    return TK_OK;
}

static void on_hangup(const tk_notify *manager, tk_server *server, tk_config *config, int argc,
                      char **argv)
{
    tk_diag diag = {{0}};
    tk_notify_send(manager, "RELOADING=1\nMONOTONIC_USEC=%lld\nSTATUS=reloading",
                   (long long)(tk_now_ns() / 1000));
    const tk_err err = reload(server, config, argc, argv, &diag);
    if (err != TK_OK)
        tk_log(TK_LOG_ERROR, "configuration not reloaded, nothing changed",
               (tk_log_field[]){tk_log_str("reason", diag.text), tk_log_end()});
    tk_notify_send(manager, "READY=1\nSTATUS=%s%s",
                   err == TK_OK ? "serving" : "serving; not reloaded: ", diag.text);
}

/* The next signal. Meanwhile the watchdog, if there is one, is told that the server lives. */
static int next_signal(const sigset_t *wanted, const tk_notify *manager, tk_server *server)
{
    const uint64_t us = manager->watchdog_us ? manager->watchdog_us / 2 : 3600000000;
    const struct timespec pause = {.tv_sec = (time_t)(us / 1000000),
                                   .tv_nsec = (long)(us % 1000000) * 1000};
    int signal;
    do {
        if (manager->watchdog_us) {
            tk_server_pulse(server);
            tk_notify_send(manager, "WATCHDOG=1");
        }
        signal = sigtimedwait(wanted, NULL, &pause);
    } while (signal < 0);
    return signal;
}

static tk_err open_manager(tk_notify *manager, tk_diag *diag)
{
    const tk_err err = tk_notify_open(manager, getenv("NOTIFY_SOCKET"), getenv("WATCHDOG_USEC"),
                                      getenv("WATCHDOG_PID"), diag);
    unsetenv("NOTIFY_SOCKET"); /* none of the trainer's business */
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
    return err;
}

/* Serves until a signal says stop. */
static tk_err serve(tk_config *config, int argc, char **argv, tk_diag *diag)
{
    sigset_t wanted;
    block_signals(&wanted);
    prepare_process();
    tk_notify manager;
    tk_server *server;
    tk_err err = open_manager(&manager, diag);
    if (err != TK_OK) return err;
    err = tk_server_start(&server, config, diag);
    if (err == TK_OK) {
        tk_notify_send(&manager, "READY=1\nSTATUS=serving");
        int signal;
        while ((signal = next_signal(&wanted, &manager, server)) == SIGHUP)
            on_hangup(&manager, server, config, argc, argv);
        tk_log(TK_LOG_INFO, "stopping",
               (tk_log_field[]){tk_log_int("signal", signal), tk_log_end()});
        tk_notify_send(&manager, "STOPPING=1\nSTATUS=finishing calls");
        tk_server_stop(server);
        tk_log(TK_LOG_INFO, "stopped", (tk_log_field[]){tk_log_end()});
    }
    tk_notify_close(&manager);
    return err;
}

int main(int argc, char **argv)
{
    static tk_config config;
    tk_diag diag = {{0}};
    if (tk_config_parse(&config, argc, argv, getenv, &diag) != TK_OK) {
        fprintf(stderr, "trunkd: %s\n", diag.text);
        return 2;
    }
    if (config.help) {
        tk_config_help(stdout);
        return 0;
    }
    if (config.version) {
        puts("trunkd " TRUNKD_VERSION);
        return 0;
    }
    init_log(&config);
    const tk_err err = serve(&config, argc, argv, &diag);
    if (err != TK_OK)
        tk_log(TK_LOG_ERROR, "cannot start",
               (tk_log_field[]){tk_log_str("error", tk_err_text(err)),
                                tk_log_str("reason", diag.text), tk_log_end()});
    tk_config_fini(&config);
    return err == TK_OK ? 0 : 1;
}
