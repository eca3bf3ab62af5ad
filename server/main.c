/* trunkd: reads the configuration, prepares the process, runs the server until a signal. */
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "log.h"
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
static void block_signals(sigset_t *stop)
{
    sigemptyset(stop);
    sigaddset(stop, SIGTERM);
    sigaddset(stop, SIGINT);
    sigaddset(stop, SIGHUP);
    sigset_t all = *stop;
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
    tk_log_init(config.log_format[0] == 'j', level_of(config.log_level));
    sigset_t stop;
    block_signals(&stop);
    prepare_process();
    tk_server *server;
    const tk_err err = tk_server_start(&server, &config, &diag);
    if (err != TK_OK) {
        tk_log(TK_LOG_ERROR, "cannot start",
               (tk_log_field[]){tk_log_str("error", tk_err_text(err)),
                                tk_log_str("reason", diag.text), tk_log_end()});
        return 1;
    }
    int signal = 0;
    while (sigwait(&stop, &signal) != 0) {
    }
    tk_log(TK_LOG_INFO, "stopping", (tk_log_field[]){tk_log_int("signal", signal), tk_log_end()});
    tk_server_stop(server);
    tk_log(TK_LOG_INFO, "stopped", (tk_log_field[]){tk_log_end()});
    return 0;
}
