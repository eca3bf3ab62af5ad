/* The store when the power goes: a child works on a store and says what was acknowledged; it is
 * killed at a moment nobody chose; what it said must be there, whole, and nothing else. And the
 * store when the disk is full. */
#define _DEFAULT_SOURCE /* mount */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <openssl/evp.h>

#include "engine/file.h"
#include "engine/mem.h"
#include "store_fixture.h"

enum { ROUNDS = 30, KEPT = 6 };

/* -- the child -- */

static void child_check(tk_err err, const tk_diag *diag)
{
    if (err == TK_OK) return;
    (void)fprintf(stderr, "child: %s\n", diag->text);
    _exit(1);
}

static uint64_t add_data_set(tk_store *store, int64_t tenant, unsigned seed)
{
    tk_diag diag;
    tk_data_set set;
    const tk_label_count labels[] = {{(char[]){"red"}, 3}, {(char[]){"blue"}, 2}};
    char *path = fixture_file(store, 20000, seed);
    child_check(tk_store_data_set_add(store, tenant, "cars", path, 5, labels, 2, &set, &diag),
                &diag);
    const uint64_t id = set.id;
    tk_data_set_fini(&set);
    tk_free(path);
    return id;
}

static void commit_version(tk_store *store, int64_t tenant, uint64_t number, unsigned seed)
{
    tk_diag diag;
    tk_object file;
    char *labels[] = {(char[]){"red"}, (char[]){"blue"}};
    char *path = fixture_file(store, 20000, seed);
    child_check(tk_store_stage(store, path, false, &file, &diag), &diag);
    tk_free(path);
    tk_version_head head = {.id = "alice/type",
                            .tenant = tenant,
                            .name = "type",
                            .n_labels = 2,
                            .labels = labels,
                            .tolerance = 1,
                            .best = 0.5,
                            .accuracy = 0.5,
                            .top5 = 1,
                            .n = 10};
    const tk_commit commit = {.expect_current = number - 1,
                              .number = number,
                              .model = &file,
                              .reason = "round",
                              .heads = &head,
                              .n_heads = 1};
    child_check(tk_store_version_commit(store, &commit, &diag), &diag);
    tk_store_unstage(store, &file);
}

/* Works for ever; every line on `ack` is a promise: "D id", "X id" (deleted), "V number", "T
 * token". */
static void work(const char *dir, int ack, unsigned seed)
{
    tk_diag diag;
    tk_store *store;
    tk_tenant alice;
    uint64_t number, sets[KEPT] = {0};
    child_check(tk_store_open(&store, dir, NULL, &diag), &diag);
    child_check(tk_store_tenant_find(store, "alice", &alice, &diag), &diag);
    for (unsigned i = 0;; i++) {
        const uint64_t gone = sets[i % KEPT];
        sets[i % KEPT] = add_data_set(store, alice.id, seed + i);
        (void)dprintf(ack, "D %llu\n", (unsigned long long)sets[i % KEPT]);
        if (gone) {
            (void)dprintf(ack, "B %llu\n", (unsigned long long)gone);
            child_check(tk_store_data_set_delete(store, alice.id, gone, &diag), &diag);
            (void)dprintf(ack, "X %llu\n", (unsigned long long)gone);
        }
        child_check(tk_store_version_next(store, &number, &diag), &diag);
        commit_version(store, alice.id, number, seed + i + 1000000);
        (void)dprintf(ack, "V %llu\n", (unsigned long long)number);
        tk_token token;
        child_check(tk_store_token_issue(store, "alice", &token, &diag), &diag);
        (void)dprintf(ack, "T %s\n", token.secret);
    }
}

/* -- the checks -- */

static void assert_whole(tk_store *store, const char *sha, uint64_t bytes)
{
    tk_diag diag;
    tk_map map;
    unsigned char hash[EVP_MAX_MD_SIZE];
    char hex[TK_SHA_SIZE];
    char *path = tk_store_object_path(store, sha);
    assert_ok(tk_map_open(&map, path, &diag));
    assert_int_equal(map.size, bytes);
    assert_true(EVP_Digest(map.data, map.size, hash, NULL, EVP_sha256(), NULL));
    for (size_t i = 0; i < 32; i++)
        (void)snprintf(hex + 2 * i, 3, "%02x", hash[i]);
    assert_string_equal(hex, sha);
    tk_map_close(&map);
    tk_free(path);
}

/* Every record names a whole file, and every file is named: no more, no less. */
static void assert_consistent(tk_store *store)
{
    tk_diag diag;
    tk_data_sets sets;
    tk_versions versions;
    assert_ok(tk_store_data_set_list(store, TK_ALL, &sets, &diag));
    assert_ok(tk_store_version_list(store, TK_ALL, 0, 0, &versions, &diag));
    for (size_t i = 0; i < sets.n; i++)
        assert_whole(store, sets.items[i].sha, sets.items[i].bytes);
    for (size_t i = 0; i < versions.n; i++) {
        assert_whole(store, versions.items[i].sha, versions.items[i].bytes);
        assert_int_equal(versions.items[i].current, i == 0);
        assert_int_equal(versions.items[i].n_heads, 1);
    }
    assert_int_equal(fixture_objects(store), sets.n + versions.n);
    assert_int_equal(fixture_entries(tk_store_dir(store), "tmp"), 0);
    tk_data_sets_fini(&sets);
    tk_versions_fini(&versions);
}

static void assert_kept(tk_store *store, char *acks)
{
    tk_diag diag;
    tk_data_set set;
    tk_version version;
    tk_principal who;
    char *rest = NULL;
    for (char *line = strtok_r(acks, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        const uint64_t id = strtoull(line + 2, NULL, 10);
        char after[40];
        (void)snprintf(after, sizeof after, "B %llu",
                       (unsigned long long)id); /* its deletion had begun */
        if (line[0] == 'D' && (!rest || !strstr(rest, after))) {
            assert_ok(tk_store_data_set_get(store, TK_ALL, id, &set, &diag));
            tk_data_set_fini(&set);
        } else if (line[0] == 'X') {
            assert_int_equal(tk_store_data_set_get(store, TK_ALL, id, &set, &diag), TK_NOTFOUND);
        } else if (line[0] == 'V') {
            assert_ok(tk_store_version_get(store, TK_ALL, id, 0, &version, &diag));
            tk_version_fini(&version);
        } else if (line[0] == 'T') {
            assert_ok(tk_store_authenticate(store, line + 2, strlen(line + 2), &who, &diag));
        }
    }
}

/* Runs the child for about `us` after its first word, kills it, and returns whole lines of what it
 * said. */
static char *run_and_kill(const char *dir, unsigned seed, long us)
{
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        (void)close(fds[0]);
        work(dir, fds[1], seed);
        _exit(0);
    }
    (void)close(fds[1]);
    struct pollfd fd = {.fd = fds[0], .events = POLLIN};
    assert_int_equal(poll(&fd, 1, 30000), 1);
    const struct timespec pause = {.tv_nsec = us * 1000};
    (void)nanosleep(&pause, NULL);
    assert_int_equal(kill(pid, SIGKILL), 0);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status)); /* it had not failed by itself */
    size_t used = 0, cap = 1 << 20;
    char *acks = calloc(cap, 1);
    assert_non_null(acks);
    for (ssize_t n; used < cap - 1 && (n = read(fds[0], acks + used, cap - 1 - used)) > 0;)
        used += (size_t)n;
    (void)close(fds[0]);
    while (used > 0 && acks[used - 1] != '\n')
        acks[--used] = '\0';
    return acks;
}

static void kill_at_any_moment_loses_nothing_acknowledged(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    fixture_open(&f, NULL);
    for (unsigned round = 0; round < ROUNDS; round++) {
        tk_store_close(f.store);
        f.store = NULL;
        /* Spread over a few operations, finer at the beginning. */
        char *acks = run_and_kill(f.dir, round * 10000, (long)(round * round * 37 + round * 11));
        assert_ok(tk_store_open(&f.store, f.dir, NULL, &diag));
        assert_kept(f.store, acks);
        assert_consistent(f.store);
        free(acks);
    }
    fixture_close(&f);
}

/* -- full disks -- */

static uint64_t try_add(store_fixture *f, size_t size, unsigned seed, tk_err *err, tk_diag *diag)
{
    tk_data_set set;
    const tk_label_count labels[] = {{(char[]){"red"}, 3}, {(char[]){"blue"}, 2}};
    char *path = fixture_file(f->store, size, seed);
    struct stat st;
    uint64_t id = 0;
    *err = stat(path, &st) == 0 && (size_t)st.st_size == size ? TK_OK : TK_NOSPACE;
    if (*err == TK_OK) {
        *err = tk_store_data_set_add(f->store, f->alice, "cars", path, 5, labels, 2, &set, diag);
        if (*err == TK_OK) id = set.id;
        tk_data_set_fini(&set);
    }
    (void)unlink(path);
    tk_free(path);
    return id;
}

/* Fills the disk of the store to its last page with a file. */
static void fill(const char *dir, bool on)
{
    char path[128], block[4096];
    (void)snprintf(path, sizeof path, "%s/filler", dir);
    if (!on) {
        assert_int_equal(unlink(path), 0);
        return;
    }
    memset(block, 1, sizeof block);
    const int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    while (write(fd, block, sizeof block) > 0) {
    }
    (void)close(fd);
}

static void a_full_disk_refuses_and_goes_on(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f = {.store = NULL};
    tk_token token;
    tk_principal who;
    int64_t carol;
    tk_err err;
    fixture_dir(f.dir, sizeof f.dir);
    if (mount("tmpfs", f.dir, "tmpfs", 0, "size=6m") != 0) {
        print_message("no right to mount a small disk (%s): skipped\n", strerror(errno));
        (void)rmdir(f.dir);
        skip();
    }
    assert_ok(tk_store_open(&f.store, f.dir, NULL, &diag));
    assert_ok(tk_store_tenant_create(f.store, "alice", &f.alice, &f.alice_token, &diag));
    const uint64_t first = try_add(&f, 500000, 1, &err, &diag);
    assert_int_equal(err, TK_OK);
    fill(f.dir, true);
    for (unsigned i = 0; i < 3; i++) {
        (void)try_add(&f, 500000, 2 + i, &err, &diag);
        assert_int_equal(err, TK_NOSPACE);
    }
    /* Small records still find room in the log's own pages, until they do not. */
    unsigned issued = 0;
    do
        err = tk_store_token_issue(f.store, "alice", &token, &diag);
    while (err == TK_OK && ++issued < 10000);
    assert_err(err, TK_NOSPACE, "full");
    assert_int_equal(tk_store_tenant_create(f.store, "carol", &carol, &token, &diag), TK_NOSPACE);
    assert_ok(tk_store_authenticate(f.store, f.alice_token.secret, 46, &who, &diag));
    assert_int_equal(fixture_entries(f.dir, "tmp"), 0);
    assert_int_equal(fixture_objects(f.store), 1);
    fill(f.dir, false);
    assert_ok(tk_store_tenant_create(f.store, "carol", &carol, &token, &diag));
    assert_ok(tk_store_data_set_delete(f.store, f.alice, first, &diag));
    assert_int_equal(fixture_objects(f.store), 0);
    (void)try_add(&f, 500000, 9, &err, &diag);
    assert_int_equal(err, TK_OK);
    tk_store_close(f.store);
    assert_int_equal(umount(f.dir), 0);
    assert_int_equal(rmdir(f.dir), 0);
}

/* Without the right to mount: files that cannot grow. In a child, for the limit holds for a whole
 * process. */
static void a_data_base_that_cannot_grow_refuses_and_goes_on(void **state)
{
    (void)state;
    store_fixture f;
    fixture_open(&f, NULL);
    tk_store_close(f.store);
    f.store = NULL;
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        tk_diag diag;
        tk_token token;
        tk_principal who;
        (void)signal(SIGXFSZ, SIG_IGN);
        if (tk_store_open(&f.store, f.dir, NULL, &diag) != TK_OK) _exit(2);
        const struct rlimit full = {.rlim_cur = 200000, .rlim_max = RLIM_INFINITY};
        const struct rlimit room = {.rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY};
        (void)setrlimit(RLIMIT_FSIZE, &full);
        tk_err err = TK_OK;
        for (unsigned i = 0; i < 10000 && err == TK_OK; i++)
            err = tk_store_token_issue(f.store, "alice", &token, &diag);
        if (err != TK_NOSPACE && err != TK_IO) _exit(3); /* SQLite knows ENOSPC only */
        if (tk_store_authenticate(f.store, f.alice_token.secret, 46, &who, &diag) != TK_OK)
            _exit(4);
        (void)setrlimit(RLIMIT_FSIZE, &room);
        if (tk_store_token_issue(f.store, "alice", &token, &diag) != TK_OK) _exit(5);
        if (tk_store_authenticate(f.store, token.secret, 46, &who, &diag) != TK_OK) _exit(6);
        tk_store_close(f.store);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    fixture_reopen(&f, NULL);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kill_at_any_moment_loses_nothing_acknowledged),
        cmocka_unit_test(a_full_disk_refuses_and_goes_on),
        cmocka_unit_test(a_data_base_that_cannot_grow_refuses_and_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
