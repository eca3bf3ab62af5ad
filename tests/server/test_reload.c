/* The real trunkd under a service manager: its configuration file read again on SIGHUP, and what it
 * tells the manager, whose place a socket of the test takes. */
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "trunkd_process.h"

enum { PATIENCE_MS = 60000 };

static trunkd server;
static fixture_bytes image;
static char file[300];

static int prepare(void **state)
{
    (void)state;
    trunkd_prepare(&server, 1);
    snprintf(file, sizeof file, "%s/trunkd.conf", server.dir);
    image = fixture_png(40, 40, 1);
    return 0;
}

static int clean_up(void **state)
{
    (void)state;
    free(image.data);
    trunkd_remove(&server);
    return 0;
}

static void write_file(const char *text)
{
    FILE *f = fopen(file, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void wait_for_line(const char *text)
{
    for (int ms = 0; ms < PATIENCE_MS; ms += 10) {
        if (trunkd_log_lines(&server, text) > 0) return;
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    }
    fail_msg("the log has no \"%s\"", text);
}

static void start(void)
{
    unlink(server.log);
    trunkd_start(&server, (const char *const[]){"--config", file, NULL});
}

static int ask_one(void)
{
    const answer a = classify(server.alice, &image, 1, "type", 1);
    tk_client_free_message(a.message);
    return a.status.code;
}

/* Answers of three requests in a row: at one image a second not all of them can be OK. */
static size_t answered_of_three(void)
{
    size_t n = 0;
    for (int i = 0; i < 3; i++)
        n += ask_one() == TK_CLIENT_OK;
    return n;
}

/* -- the file -- */

static void what_can_change_does_and_the_rest_is_named(void **state)
{
    (void)state;
    write_file("# a comment\n\n  tenant-queue = 300 # and another\nbatch = 8\nlog-level=warn\n");
    start();
    assert_int_equal(answered_of_three(), 3);
    assert_int_equal(trunkd_log_lines(&server, "event=call"), 0);

    write_file("tenant-queue = 400\nbatch = 4\nthreads = 3\ntenant-rate = 1\naccess-log = yes\n");
    kill(server.pid, SIGHUP);
    wait_for_line("event=\"configuration reloaded\"");
    assert_int_equal(trunkd_log_lines(&server,
                                      "changed=\"tenant-queue=400 tenant-rate=1 access-log=yes "
                                      "log-level=info\" needs-restart=\"threads batch\""),
                     1);
    assert_in_range(answered_of_three(), 1, 2); /* a new second may begin among them */
    wait_for_line("event=call method=trunkd.v1.Classifier/Classify");
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

static void a_broken_file_changes_nothing_and_is_one_line(void **state)
{
    (void)state;
    static const char *const broken[][2] = {
        {"tenant-rate = 1\nqueue = 12\n", ":2: queue is \\\"12\\\", but must be a whole number"},
        {"tenant-rate = 1\nqueue 2000\n", ":2: \\\"queue 2000\\\" is not \\\"name = value\\\""},
        {"tenant-rate = 1\nqeue = 2000\n", ":2: there is no setting \\\"qeue\\\""},
        {"config = x\n", ":1: there is no setting \\\"config\\\""},
        {"tenant-rate = 1\n\ntenant-rate = 2\n", ":3: tenant-rate is given in line 1 already"},
        {"log-level = \"warn\"\n", ":1: log-level: values stand without quotes"},
        {"tenant-rate = 1\ntls-cert = c\n", "--tls-cert is given without --tls-key"},
    };
    write_file("");
    start();
    for (size_t i = 0; i < sizeof broken / sizeof broken[0]; i++) {
        write_file(broken[i][0]);
        kill(server.pid, SIGHUP);
        wait_for_line(broken[i][1]);
        assert_int_equal(trunkd_log_lines(&server, "level=error"), i + 1);
    }
    unlink(file);
    kill(server.pid, SIGHUP);
    wait_for_line("trunkd.conf: No such file");
    assert_int_equal(trunkd_log_lines(&server, "configuration reloaded"), 0);
    assert_int_equal(answered_of_three(), 3);
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

static void a_flag_wins_over_the_file(void **state)
{
    (void)state;
    write_file("tenant-rate = 1\nlog-format = json\n");
    unlink(server.log);
    trunkd_start(&server, (const char *const[]){"--config", file, "--tenant-rate=1000", NULL});
    assert_int_equal(answered_of_three(), 3);
    assert_true(trunkd_log_lines(&server, "{\"time\"") > 0);
    write_file("tenant-rate = 2\n");
    kill(server.pid, SIGHUP);
    wait_for_line("changed=\"log-format=logfmt\""); /* and the line is in that format */
    assert_int_equal(answered_of_three(), 3);
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

static void without_a_file_a_hangup_stops_nothing(void **state)
{
    (void)state;
    unlink(server.log);
    trunkd_start(&server, NULL);
    kill(server.pid, SIGHUP);
    wait_for_line("there is no --config to read again");
    assert_int_equal(ask_one(), TK_CLIENT_OK);
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

static void a_bad_file_does_not_start(void **state)
{
    (void)state;
    write_file("\nbatch = 0\n");
    unlink(server.log);
    assert_int_equal(trunkd_run(&server, (const char *const[]){"--config", file, NULL}), 2);
    assert_true(trunkd_logged(&server, "trunkd.conf:2: batch is \"0\", but must be"));
}

/* -- the manager -- */

static int manager = -1;
static char manager_path[300];

static void listen_as_manager(void)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    snprintf(manager_path, sizeof manager_path, "%s/m", server.dir);
    assert_true(strlen(manager_path) < sizeof at.sun_path);
    strcpy(at.sun_path, manager_path);
    unlink(manager_path);
    manager = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    assert_true(manager >= 0);
    assert_int_equal(bind(manager, (const struct sockaddr *)&at, sizeof at), 0);
    const struct timeval patience = {.tv_sec = PATIENCE_MS / 1000};
    assert_int_equal(setsockopt(manager, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience), 0);
    setenv("NOTIFY_SOCKET", manager_path, 1);
}

/* The next message but signs of life, which are counted; "" when there is none now. */
static void told(char out[1024], int flags, size_t *alive)
{
    for (;;) {
        const ssize_t n = recv(manager, out, 1023, flags);
        out[n > 0 ? n : 0] = '\0';
        if (strcmp(out, "WATCHDOG=1") != 0) return;
        ++*alive;
    }
}

static void start_with_manager(void)
{
    listen_as_manager();
    start();
    unsetenv("NOTIFY_SOCKET");
}

static void the_manager_hears_of_start_reload_and_stop(void **state)
{
    (void)state;
    char text[1024];
    size_t alive = 0;
    write_file("tenant-rate = 1000\n");
    start_with_manager();
    assert_int_equal(ask_one(), TK_CLIENT_OK);
    told(text, 0, &alive);
    assert_string_equal(text, "READY=1\nSTATUS=serving");
    told(text, MSG_DONTWAIT, &alive);
    assert_string_equal(text, "");

    kill(server.pid, SIGHUP);
    told(text, 0, &alive);
    unsigned long long at = 0;
    assert_int_equal(sscanf(text, "RELOADING=1\nMONOTONIC_USEC=%llu\n", &at), 1);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    const unsigned long long now_us =
        (unsigned long long)now.tv_sec * 1000000 + (unsigned long long)now.tv_nsec / 1000;
    assert_in_range(at, now_us - PATIENCE_MS * 1000ULL, now_us);
    told(text, 0, &alive);
    assert_string_equal(text, "READY=1\nSTATUS=serving");

    write_file("tenant-rate = x\n");
    kill(server.pid, SIGHUP);
    told(text, 0, &alive);
    assert_non_null(strstr(text, "RELOADING=1"));
    told(text, 0, &alive);
    assert_non_null(strstr(text, "READY=1\nSTATUS=serving; not reloaded: "));
    assert_non_null(strstr(text, "trunkd.conf:1: tenant-rate is"));

    assert_int_equal(alive, 0); /* nobody asked for it */
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
    told(text, MSG_DONTWAIT, &alive);
    assert_non_null(strstr(text, "STOPPING=1"));
    close(manager);
}

/* Waits for the first message, and at that moment connects to the port. */
static void *connect_when_told(void *out)
{
    char text[1024];
    int port = 0, *connected = out;
    *connected = -1;
    if (recv(manager, text, sizeof text, 0) < 7 || strncmp(text, "READY=1", 7) != 0) return NULL;
    FILE *f = fopen(server.port_file, "r");
    if (!f) return NULL;
    if (fscanf(f, "%d", &port) == 1) {
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
        to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        *connected = connect(fd, (const struct sockaddr *)&to, sizeof to);
        close(fd);
    }
    fclose(f);
    return NULL;
}

static void ready_is_told_once_the_port_answers(void **state)
{
    (void)state;
    char text[1024], store[300];
    size_t alive = 0;
    int connected;
    pthread_t thread;
    write_file("");
    listen_as_manager();
    unlink(server.port_file);
    assert_int_equal(pthread_create(&thread, NULL, connect_when_told, &connected), 0);
    start();
    pthread_join(thread, NULL);
    assert_int_equal(connected, 0);
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
    told(text, 0, &alive);
    assert_non_null(strstr(text, "STOPPING=1"));
    /* One that does not get so far tells nothing. */
    snprintf(store, sizeof store, "%s/no/such/store", server.dir);
    unlink(server.log);
    assert_int_equal(trunkd_run(&server, (const char *const[]){"--store", store, NULL}), 1);
    told(text, MSG_DONTWAIT, &alive);
    assert_string_equal(text, "");
    unsetenv("NOTIFY_SOCKET");
    close(manager);
}

static void the_watchdog_gets_signs_of_life(void **state)
{
    (void)state;
    char text[1024];
    size_t alive = 0;
    write_file("");
    setenv("WATCHDOG_USEC", "100000", 1);
    start_with_manager();
    unsetenv("WATCHDOG_USEC");
    told(text, 0, &alive);
    assert_string_equal(text, "READY=1\nSTATUS=serving");
    for (int i = 0; i < 3; i++) {
        const ssize_t n = recv(manager, text, sizeof text, 0);
        assert_int_equal(n, strlen("WATCHDOG=1"));
    }
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
    close(manager);

    setenv("WATCHDOG_USEC", "100000", 1);
    setenv("WATCHDOG_PID", "1", 1); /* meant for another process */
    start_with_manager();
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
    alive = 0;
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
    told(text, 0, &alive);
    told(text, 0, &alive);
    assert_non_null(strstr(text, "STOPPING=1"));
    assert_int_equal(alive, 0);
    close(manager);
}

static void a_senseless_environment_does_not_start(void **state)
{
    (void)state;
    unlink(server.log);
    write_file("");
    setenv("NOTIFY_SOCKET", "relative", 1);
    const char *const flags[] = {"--config", file, "--store", "/no/such/folder", NULL};
    assert_int_equal(trunkd_run(&server, flags), 1);
    assert_true(trunkd_logged(&server, "NOTIFY_SOCKET is \\\"relative\\\""));
    setenv("NOTIFY_SOCKET", "@trunkd-test", 1);
    setenv("WATCHDOG_USEC", "-1", 1);
    assert_int_equal(trunkd_run(&server, flags), 1);
    assert_true(trunkd_logged(&server, "WATCHDOG_USEC is -1") ||
                trunkd_logged(&server, "WATCHDOG_USEC is \\\"-1\\\""));
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_can_change_does_and_the_rest_is_named),
        cmocka_unit_test(a_broken_file_changes_nothing_and_is_one_line),
        cmocka_unit_test(a_flag_wins_over_the_file),
        cmocka_unit_test(without_a_file_a_hangup_stops_nothing),
        cmocka_unit_test(a_bad_file_does_not_start),
        cmocka_unit_test(the_manager_hears_of_start_reload_and_stop),
        cmocka_unit_test(ready_is_told_once_the_port_answers),
        cmocka_unit_test(the_watchdog_gets_signs_of_life),
        cmocka_unit_test(a_senseless_environment_does_not_start),
    };
    return cmocka_run_group_tests(tests, prepare, clean_up);
}
