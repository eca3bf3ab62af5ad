/* Opening and closing the store: directory, lock, schema, clean-up of what a crash left, numbers
 * about it. */
#define _XOPEN_SOURCE 700 /* realpath */
#include "store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "engine/file.h"
#include "engine/mem.h"
#include "store/files.h"
#include "store/store_internal.h"

/* Each script makes the next schema of the one before; a fresh store runs them all. */
static const char schema_1[] =
    "CREATE TABLE tenants(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,"
    " created INTEGER NOT NULL);"
    /* tenant NULL: an admin's */
    "CREATE TABLE tokens(id TEXT PRIMARY KEY, tenant INTEGER REFERENCES tenants(id),"
    " hash BLOB NOT NULL UNIQUE, created INTEGER NOT NULL, revoked INTEGER NOT NULL DEFAULT 0);"
    "CREATE TABLE trunk(one INTEGER PRIMARY KEY CHECK(one = 1), arch TEXT NOT NULL,"
    " preproc TEXT NOT NULL);"
    /* labels: JSON [["name", images], ...] */
    "CREATE TABLE data_sets(id INTEGER PRIMARY KEY AUTOINCREMENT,"
    " tenant INTEGER NOT NULL REFERENCES tenants(id), name TEXT NOT NULL, images INTEGER NOT NULL,"
    " bytes INTEGER NOT NULL, labels TEXT NOT NULL, sha TEXT NOT NULL, created INTEGER NOT NULL);"
    "CREATE INDEX data_sets_tenant ON data_sets(tenant);"
    "CREATE INDEX data_sets_sha ON data_sets(sha);"
    "CREATE TABLE versions(number INTEGER PRIMARY KEY, job INTEGER NOT NULL, reason TEXT NOT NULL,"
    " sha TEXT NOT NULL, bytes INTEGER NOT NULL, created INTEGER NOT NULL);"
    "CREATE INDEX versions_sha ON versions(sha);"
    "CREATE TABLE current(one INTEGER PRIMARY KEY CHECK(one = 1),"
    " version INTEGER NOT NULL REFERENCES versions(number));"
    "CREATE TABLE heads(id INTEGER PRIMARY KEY AUTOINCREMENT,"
    " tenant INTEGER NOT NULL REFERENCES tenants(id), name TEXT NOT NULL, born INTEGER NOT NULL,"
    " created INTEGER NOT NULL, UNIQUE(tenant, name));"
    /* labels: JSON ["name", ...]; confusion: uint32 little endian, rows of truth; pack: sha or ''
     */
    "CREATE TABLE version_heads(version INTEGER NOT NULL REFERENCES versions(number),"
    " head INTEGER NOT NULL REFERENCES heads(id), tolerance REAL NOT NULL, best REAL, accuracy "
    "REAL,"
    " change REAL, top5 REAL, n INTEGER NOT NULL, agreement INTEGER NOT NULL, pack TEXT NOT NULL,"
    " pack_bytes INTEGER NOT NULL, classes INTEGER NOT NULL, labels TEXT NOT NULL, confusion BLOB, "
    "UNIQUE(version, head));"
    "CREATE INDEX version_heads_head ON version_heads(head);"
    "CREATE INDEX version_heads_pack ON version_heads(pack);"
    /* settings: JSON {"name": value}; heads: JSON, codec.c; record: result.json */
    "CREATE TABLE jobs(id INTEGER PRIMARY KEY AUTOINCREMENT, state INTEGER NOT NULL,"
    " tenant INTEGER NOT NULL REFERENCES tenants(id), head TEXT NOT NULL, data_set INTEGER NOT "
    "NULL,"
    " recipe TEXT NOT NULL, settings TEXT NOT NULL, fallback INTEGER NOT NULL,"
    " retention INTEGER NOT NULL, tolerance REAL NOT NULL, seed INTEGER NOT NULL,"
    " outcome TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '',"
    " base INTEGER NOT NULL DEFAULT 0, version INTEGER NOT NULL DEFAULT 0,"
    " submitted INTEGER NOT NULL, started INTEGER NOT NULL DEFAULT 0, ended INTEGER NOT NULL "
    "DEFAULT 0,"
    " heads TEXT NOT NULL DEFAULT '[]', attempts INTEGER NOT NULL DEFAULT 0,"
    " failures INTEGER NOT NULL DEFAULT 0, cancel INTEGER NOT NULL DEFAULT 0, record TEXT,"
    " next_event INTEGER NOT NULL DEFAULT 1);"
    "CREATE INDEX jobs_tenant ON jobs(tenant);"
    "CREATE INDEX jobs_live ON jobs(state) WHERE state < 2;"
    "CREATE TABLE events(job INTEGER NOT NULL REFERENCES jobs(id), sequence INTEGER NOT NULL,"
    " body TEXT NOT NULL, PRIMARY KEY(job, sequence)) WITHOUT ROWID;"
    "PRAGMA user_version = 1;";

#define DECISIONS_GUARD                                                                            \
    "CREATE TRIGGER decisions_change BEFORE UPDATE ON decisions"                                   \
    " BEGIN SELECT RAISE(ABORT, 'a decision of the gate cannot be changed'); END;"                 \
    "CREATE TRIGGER decisions_delete BEFORE DELETE ON decisions"                                   \
    " BEGIN SELECT RAISE(ABORT, 'a decision of the gate cannot be deleted'); END;"

static const char schema_2[] =
    /* judged: JSON, judgement.c */
    "CREATE TABLE decisions(job INTEGER PRIMARY KEY REFERENCES jobs(id), base INTEGER NOT NULL,"
    " base_sha TEXT NOT NULL, version INTEGER NOT NULL, sha TEXT NOT NULL, outcome TEXT NOT NULL,"
    " reason TEXT NOT NULL, decided INTEGER NOT NULL, judged TEXT NOT NULL);" DECISIONS_GUARD
    /* body: JSON of an event that has heads, codec.c */
    "CREATE TABLE curves(job INTEGER NOT NULL REFERENCES jobs(id), sequence INTEGER NOT NULL,"
    " stage TEXT NOT NULL, step INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY(job, sequence))"
    " WITHOUT ROWID;"
    /* the lowest accuracy of each head while a job trained, from its curve; head: "tenant/name" */
    "CREATE TABLE lows(job INTEGER NOT NULL REFERENCES jobs(id), head TEXT NOT NULL,"
    " accuracy REAL NOT NULL, PRIMARY KEY(job, head)) WITHOUT ROWID;"
    "PRAGMA user_version = 2;";

static const char schema_3[] =
    /* percent: of the requests that name no version; the index lets one label have any */
    "CREATE TABLE labels(name TEXT PRIMARY KEY, version INTEGER NOT NULL REFERENCES "
    "versions(number),"
    " percent INTEGER NOT NULL CHECK(percent BETWEEN 0 AND 100)) WITHOUT ROWID;"
    "CREATE UNIQUE INDEX labels_share ON labels(percent > 0) WHERE percent > 0;"
    "PRAGMA user_version = 3;";

static const char schema_4[] =
    /* 0: what everybody has */
    "CREATE TABLE tenant_limits(tenant INTEGER PRIMARY KEY REFERENCES tenants(id),"
    " weight REAL NOT NULL, rate REAL NOT NULL, images INTEGER NOT NULL, bytes INTEGER NOT NULL);"
    "PRAGMA user_version = 4;";

static const char *const schemas[] = {schema_1, schema_2, schema_3, schema_4};
enum { SCHEMA = sizeof schemas / sizeof *schemas };

tk_err tk__decisions_guard_locked(tk_store *store, bool on, tk_diag *diag)
{
    return tk__db_script(store->db,
                         on ? DECISIONS_GUARD
                            : "DROP TRIGGER decisions_change; DROP TRIGGER decisions_delete;",
                         diag);
}

int64_t tk__now_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

char *tk__store_path(const tk_store *store, const char *a)
{
    const size_t size = strlen(store->dir) + strlen(a) + 2;
    char *path = tk_calloc(size, 1);
    if (path) (void)snprintf(path, size, "%s/%s", store->dir, a);
    return path;
}

static tk_err no_memory(tk_diag *diag)
{
    return tk_fail(diag, TK_NOMEM, "store: out of memory");
}

tk_err tk_name_check(const char *name, const char *what, tk_diag *diag)
{
    const size_t n = name ? strnlen(name, TK_NAME_SIZE) : 0;
    bool good = n >= 1 && n <= TK_NAME_MAX && name[0] != '.' && name[0] != '_' && name[0] != '-';
    for (size_t i = 0; i < n && good; i++) {
        const char c = name[i];
        good = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
    }
    if (good) return TK_OK;
    return tk_fail(
        diag, TK_BADARG,
        "%s name: 1 to %d characters of a-z, 0-9, '.', '_', '-', the first a letter or digit", what,
        (int)TK_NAME_MAX);
}

/* Waits a second for a server that was just killed: a child that it was starting holds its
 * descriptors up to exec. */
static bool lock_file(int fd)
{
    const struct timespec tick = {.tv_nsec = 20000000};
    for (int i = 0; i < 50; i++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0) return true;
        if (errno != EWOULDBLOCK && errno != EINTR) return false;
        (void)nanosleep(&tick, NULL);
    }
    errno = EWOULDBLOCK;
    return false;
}

static tk_err take_lock(tk_store *store, tk_diag *diag)
{
    char *path = tk__store_path(store, "lock");
    if (!path) return no_memory(diag);
    store->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    tk_err err = TK_OK;
    if (store->lock_fd < 0)
        err = tk_fail_errno(diag, "%s", path);
    else if (!lock_file(store->lock_fd))
        err = errno == EWOULDBLOCK
                  ? tk_fail(diag, TK_BUSY, "%s: the store is in use by another server", store->dir)
                  : tk_fail_errno(diag, "%s: cannot lock", path);
    tk_free(path);
    return err;
}

static tk_err make_folders(tk_store *store, tk_diag *diag)
{
    static const char *const names[] = {"tmp", "jobs", "objects"};
    tk_err err = TK_OK;
    for (size_t i = 0; i < sizeof names / sizeof names[0] && err == TK_OK; i++) {
        char *path = tk__store_path(store, names[i]);
        err = path ? tk_files_make_dir(path, diag) : no_memory(diag);
        if (err == TK_OK && i == 0) err = tk_files_remove_tree(path, false, diag);
        if (err == TK_OK) err = tk_file_sync_parent(path, diag);
        tk_free(path);
    }
    return err == TK_OK ? tk__objects_init(store, diag) : err;
}

static tk_err open_records(tk_store *store, tk_diag *diag)
{
    char *path = tk__store_path(store, "trunkd.sqlite");
    if (!path) return no_memory(diag);
    tk_err err = tk__db_open(&store->db, path, diag);
    tk_free(path);
    if (err != TK_OK) return err;
    int64_t version;
    err = tk__db_int(store->db, &version, 0, diag, "PRAGMA user_version", "");
    if (err != TK_OK) return err;
    if (version < 0 || version > SCHEMA)
        return tk_fail(diag, TK_PRECONDITION,
                       "%s: the store has schema %lld; this server knows %d. Use a newer one",
                       store->dir, (long long)version, (int)SCHEMA);
    if (version == SCHEMA) return TK_OK;
    err = tk__db_begin(store->db, diag);
    if (err != TK_OK) return err;
    for (; version < SCHEMA && err == TK_OK; version++)
        err = tk__db_script(store->db, schemas[version], diag);
    return tk__db_end(store->db, err, diag);
}

/* The version that is served must be there. */
static tk_err check_current(tk_store *store, tk_diag *diag)
{
    char sha[TK_SHA_SIZE] = "";
    tk_rows rows;
    tk_err err = tk__rows_open(&rows, store->db, diag,
                               "SELECT sha FROM versions JOIN current ON number = version", "");
    if (err == TK_OK && tk__rows_next(&rows))
        (void)snprintf(sha, sizeof sha, "%s", tk__col_text(&rows, 0));
    err = tk__rows_close(&rows, err, diag);
    if (err == TK_OK && sha[0] && !tk__object_exists(store, sha))
        err = tk_fail(diag, TK_BADDATA, "%s: the current version's file %s is missing", store->dir,
                      sha);
    return err;
}

/* Directories of jobs that have ended, or that never were. */
static tk_err sweep_jobs(tk_store *store, tk_diag *diag)
{
    tk_err err = TK_OK;
    int64_t last, live;
    err = tk__db_int(store->db, &last, 0, diag,
                     "SELECT seq FROM sqlite_sequence WHERE name = 'jobs'", "");
    for (int64_t id = 1; err == TK_OK && id <= last; id++) {
        char *path = tk_store_job_dir(store, (uint64_t)id);
        if (!path) return no_memory(diag);
        if (access(path, F_OK) == 0) {
            err = tk__db_int(store->db, &live, 0, diag,
                             "SELECT count(*) FROM jobs WHERE id = ? AND state < 2", "i", id);
            if (err == TK_OK && !live) err = tk_files_remove_tree(path, true, diag);
        }
        tk_free(path);
    }
    return err;
}

/* Absolute: paths go to another process. */
static tk_err set_dir(tk_store *store, const char *dir, tk_diag *diag)
{
    char *real = realpath(dir, NULL);
    if (!real) return tk_fail_errno(diag, "%s", dir);
    store->dir = tk_strdup(real);
    free(real);
    return store->dir ? TK_OK : no_memory(diag);
}

static void set_limits_locked(tk_store *store, const tk_store_opts *opts)
{
    store->opts = *opts;
    if (!store->opts.max_tenant_bytes) store->opts.max_tenant_bytes = UINT64_C(16) << 30;
    if (!store->opts.max_tenant_data_sets) store->opts.max_tenant_data_sets = 1000;
    if (!store->opts.max_tenant_heads) store->opts.max_tenant_heads = 64;
    if (!store->opts.max_tenant_jobs) store->opts.max_tenant_jobs = 16;
}

void tk_store_set_limits(tk_store *store, const tk_store_opts *opts)
{
    (void)pthread_mutex_lock(&store->lock);
    set_limits_locked(store, opts);
    (void)pthread_mutex_unlock(&store->lock);
}

tk_err tk_store_open(tk_store **out, const char *dir, const tk_store_opts *opts, tk_diag *diag)
{
    *out = NULL;
    tk_store *store = tk_calloc(1, sizeof *store);
    if (!store) return no_memory(diag);
    store->lock_fd = -1;
    set_limits_locked(store, opts ? opts : &(tk_store_opts){0});
    (void)pthread_mutex_init(&store->lock, NULL);
    (void)pthread_rwlock_init(&store->tokens_lock, NULL);
    tk_err err = tk_files_make_dir(dir, diag);
    if (err == TK_OK) err = set_dir(store, dir, diag);
    if (err == TK_OK) err = take_lock(store, diag);
    if (err == TK_OK) err = make_folders(store, diag);
    if (err == TK_OK) err = open_records(store, diag);
    if (err == TK_OK) err = check_current(store, diag);
    if (err == TK_OK) err = tk__objects_sweep_locked(store, diag);
    if (err == TK_OK) err = tk__store_purge_locked(store, diag);
    if (err == TK_OK) err = sweep_jobs(store, diag);
    if (err == TK_OK) err = tk__tokens_open(store, diag);
    if (err != TK_OK) {
        tk_store_close(store);
        return err;
    }
    *out = store;
    return TK_OK;
}

void tk_store_close(tk_store *store)
{
    if (!store) return;
    tk__db_close(store->db);
    tk__tokens_fini(store);
    tk__objects_fini(store);
    if (store->lock_fd >= 0) (void)close(store->lock_fd); /* the lock goes with it */
    (void)pthread_rwlock_destroy(&store->tokens_lock);
    (void)pthread_mutex_destroy(&store->lock);
    tk_free(store->dir);
    tk_free(store);
}

const char *tk_store_dir(const tk_store *store)
{
    return store->dir;
}

bool tk__list_grow(void **items, size_t n, size_t *cap, size_t size)
{
    if (n < *cap) return true;
    const size_t more = *cap ? 2 * *cap : 8;
    void *grown = tk_realloc(*items, more * size);
    if (!grown) return false;
    *items = grown;
    *cap = more;
    return true;
}

tk_err tk__store_begin(tk_store *store, tk_diag *diag)
{
    (void)pthread_mutex_lock(&store->lock);
    const tk_err err = tk__db_begin(store->db, diag);
    if (err != TK_OK) (void)pthread_mutex_unlock(&store->lock);
    return err;
}

tk_err tk__store_end(tk_store *store, tk_err err, tk_diag *diag)
{
    err = tk__db_end(store->db, err, diag);
    (void)pthread_mutex_unlock(&store->lock);
    return err;
}

char *tk_store_temp_path(tk_store *store)
{
    char name[64];
    (void)snprintf(name, sizeof name, "tmp/%lu", atomic_fetch_add(&store->serial, 1));
    return tk__store_path(store, name);
}

char *tk_store_job_dir(const tk_store *store, uint64_t job)
{
    char name[64];
    (void)snprintf(name, sizeof name, "jobs/%llu", (unsigned long long)job);
    return tk__store_path(store, name);
}

tk_err tk__store_current_locked(tk_store *store, uint64_t *out, tk_diag *diag)
{
    int64_t number;
    const tk_err err = tk__db_int(store->db, &number, 0, diag, "SELECT version FROM current", "");
    *out = (uint64_t)number;
    return err;
}

tk_err tk__store_tenant_bytes_locked(tk_store *store, int64_t tenant, uint64_t *out, tk_diag *diag)
{
    int64_t bytes;
    const tk_err err = tk__db_int(
        store->db, &bytes, 0, diag,
        "SELECT ifnull((SELECT sum(bytes) FROM data_sets WHERE tenant = ?1), 0) +"
        " ifnull((SELECT sum(pack_bytes) FROM (SELECT DISTINCT pack, pack_bytes FROM version_heads"
        "  JOIN heads ON heads.id = version_heads.head WHERE heads.tenant = ?1)), 0)",
        "i", tenant);
    *out = (uint64_t)bytes;
    return err;
}

tk_err tk_store_stat(tk_store *store, tk_store_stats *out, tk_diag *diag)
{
    *out = (tk_store_stats){0};
    tk_store_stats s = {0};
    (void)pthread_mutex_lock(&store->lock);
    tk_rows rows;
    tk_err err =
        tk__rows_open(&rows, store->db, diag,
                      "SELECT (SELECT count(*) FROM tenants),"
                      " (SELECT count(*) FROM version_heads JOIN current USING(version)),"
                      " (SELECT version FROM current), (SELECT count(*) FROM jobs WHERE state = 0),"
                      " (SELECT id FROM jobs WHERE state = 1),"
                      " (SELECT sum(bytes) FROM (SELECT sha, bytes FROM data_sets UNION SELECT "
                      "sha, bytes FROM versions"
                      "  UNION SELECT pack, pack_bytes FROM version_heads))",
                      "");
    if (err == TK_OK && tk__rows_next(&rows))
        s = (tk_store_stats){.tenants = (uint64_t)tk__col_int(&rows, 0),
                             .heads = (uint64_t)tk__col_int(&rows, 1),
                             .current = (uint64_t)tk__col_int(&rows, 2),
                             .queued_jobs = (uint64_t)tk__col_int(&rows, 3),
                             .running_job = (uint64_t)tk__col_int(&rows, 4),
                             .bytes = (uint64_t)tk__col_int(&rows, 5)};
    err = tk__rows_close(&rows, err, diag);
    (void)pthread_mutex_unlock(&store->lock);
    if (err == TK_OK) *out = s;
    return err;
}
