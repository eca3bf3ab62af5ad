/* Content-addressed files: objects/ab/cdef..., named by SHA-256, written once, never changed.
 *
 * A file comes in by rename (or link) after fsync, so what has a name here is whole. It goes when
 * no record names it: checked and unlinked under the store's lock, together with the pins of files
 * that are staged but not yet named. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/evp.h>

#include "engine/file.h"
#include "engine/mem.h"
#include "store/store_internal.h"

enum { CHUNK = 1 << 16 };

static tk_err no_memory(tk_diag *diag)
{
    return tk_fail(diag, TK_NOMEM, "store: out of memory");
}

char *tk_store_object_path(const tk_store *store, const char *sha)
{
    char name[TK_SHA_SIZE + 16];
    (void)snprintf(name, sizeof name, "objects/%.2s/%.62s", sha, sha + (sha[0] && sha[1] ? 2 : 0));
    return tk__store_path(store, name);
}

bool tk__object_exists(const tk_store *store, const char *sha)
{
    char *path = tk_store_object_path(store, sha);
    const bool there = path && access(path, R_OK) == 0;
    tk_free(path);
    return there;
}

tk_err tk__objects_init(tk_store *store, tk_diag *diag)
{
    tk_err err = TK_OK;
    for (unsigned i = 0; i < 256 && err == TK_OK; i++) {
        char name[32];
        (void)snprintf(name, sizeof name, "objects/%02x", i);
        char *path = tk__store_path(store, name);
        if (!path) return no_memory(diag);
        if (mkdir(path, 0700) != 0 && errno != EEXIST) err = tk_fail_errno(diag, "%s", path);
        if (err == TK_OK && i == 255) err = tk_file_sync_parent(path, diag);
        tk_free(path);
    }
    return err;
}

void tk__objects_fini(tk_store *store)
{
    tk_free(store->pins);
}

/* -- pins -- */

static tk_pin *find_pin_locked(const tk_store *store, const char *sha)
{
    for (size_t i = 0; i < store->n_pins; i++)
        if (strcmp(store->pins[i].sha, sha) == 0) return &store->pins[i];
    return NULL;
}

static tk_err pin(tk_store *store, const char *sha, tk_diag *diag)
{
    (void)pthread_mutex_lock(&store->lock);
    tk_err err = TK_OK;
    tk_pin *found = find_pin_locked(store, sha);
    if (!found && store->n_pins == store->cap_pins) {
        const size_t cap = store->cap_pins ? 2 * store->cap_pins : 8;
        tk_pin *pins = tk_realloc(store->pins, cap * sizeof *pins);
        if (pins) {
            store->pins = pins;
            store->cap_pins = cap;
        } else {
            err = no_memory(diag);
        }
    }
    if (err == TK_OK && !found) {
        found = &store->pins[store->n_pins++];
        *found = (tk_pin){0};
        (void)snprintf(found->sha, sizeof found->sha, "%s", sha);
    }
    if (err == TK_OK) found->count++;
    (void)pthread_mutex_unlock(&store->lock);
    return err;
}

static void unpin_locked(tk_store *store, const char *sha)
{
    tk_pin *found = find_pin_locked(store, sha);
    if (found && --found->count == 0) *found = store->pins[--store->n_pins];
}

/* -- collection -- */

static bool referenced_locked(tk_store *store, const char *sha)
{
    int64_t named;
    const tk_err err = tk__db_int(store->db, &named, 1, NULL,
                                  "SELECT EXISTS(SELECT 1 FROM data_sets WHERE sha = ?1)"
                                  " OR EXISTS(SELECT 1 FROM versions WHERE sha = ?1)"
                                  " OR EXISTS(SELECT 1 FROM version_heads WHERE pack = ?1)",
                                  "t", sha);
    return err != TK_OK || named; /* in doubt, keep */
}

void tk__object_collect_locked(tk_store *store, const char *sha)
{
    if (!sha[0] || find_pin_locked(store, sha) || referenced_locked(store, sha)) return;
    char *path = tk_store_object_path(store, sha);
    if (path && unlink(path) == 0) {
        const tk_err err = tk_file_sync_parent(path, NULL);
        (void)err; /* the file has no name any more; a crash may bring it back, the next start
                      removes it */
    }
    tk_free(path);
}

static tk_err sweep_folder_locked(tk_store *store, unsigned number, tk_diag *diag)
{
    char name[32], sha[300];
    (void)snprintf(name, sizeof name, "objects/%02x", number);
    char *path = tk__store_path(store, name);
    DIR *dir = path ? opendir(path) : NULL;
    bool removed = false;
    tk_err err = TK_OK;
    if (!dir) err = path ? tk_fail_errno(diag, "%s", path) : no_memory(diag);
    const struct dirent *entry;
    while (dir && (entry = readdir(dir))) {
        if (entry->d_name[0] == '.') continue;
        (void)snprintf(sha, sizeof sha, "%02x%s", number, entry->d_name);
        if (find_pin_locked(store, sha) || referenced_locked(store, sha)) continue;
        if (unlinkat(dirfd(dir), entry->d_name, 0) == 0) removed = true;
    }
    if (removed && fsync(dirfd(dir)) != 0) err = tk_fail_errno(diag, "%s: cannot sync", path);
    if (dir) (void)closedir(dir);
    tk_free(path);
    return err;
}

tk_err tk__objects_sweep_locked(tk_store *store, tk_diag *diag)
{
    tk_err err = TK_OK;
    for (unsigned i = 0; i < 256 && err == TK_OK; i++)
        err = sweep_folder_locked(store, i, diag);
    return err;
}

/* -- staging -- */

static tk_err digest(int fd, EVP_MD_CTX *ctx, unsigned char *buffer, tk_object *out,
                     const char *path, tk_diag *diag)
{
    unsigned char hash[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    if (!EVP_DigestInit_ex(ctx, EVP_sha256(), NULL))
        return tk_fail(diag, TK_INTERNAL, "%s: SHA-256", path);
    for (;;) {
        const ssize_t n = read(fd, buffer, CHUNK);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return tk_fail_errno(diag, "%s: cannot read", path);
        if (n == 0) break;
        if (!EVP_DigestUpdate(ctx, buffer, (size_t)n))
            return tk_fail(diag, TK_INTERNAL, "%s: SHA-256", path);
        out->bytes += (uint64_t)n;
    }
    if (!EVP_DigestFinal_ex(ctx, hash, &size) || size != TK_HASH_BYTES)
        return tk_fail(diag, TK_INTERNAL, "%s: SHA-256", path);
    for (size_t i = 0; i < TK_HASH_BYTES; i++)
        (void)snprintf(out->sha + 2 * i, 3, "%02x", hash[i]);
    return TK_OK;
}

/* SHA-256 and size of a file, made durable on the way. */
static tk_err hash_file(const char *path, tk_object *out, tk_diag *diag)
{
    *out = (tk_object){0};
    const int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return tk_fail_errno(diag, "%s", path);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    unsigned char *buffer = tk_calloc(CHUNK, 1);
    struct stat st;
    tk_err err = ctx && buffer ? TK_OK : no_memory(diag);
    if (err == TK_OK && (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)))
        err = tk_fail(diag, TK_BADARG, "%s: not a regular file", path);
    if (err == TK_OK) err = digest(fd, ctx, buffer, out, path, diag);
    if (err == TK_OK && fsync(fd) != 0) err = tk_fail_errno(diag, "%s: cannot sync", path);
    tk_free(buffer);
    EVP_MD_CTX_free(ctx);
    (void)close(fd);
    return err;
}

static tk_err copy_stream(FILE *from, tk_file *to, const char *path, tk_diag *diag)
{
    unsigned char *buffer = tk_calloc(CHUNK, 1);
    if (!buffer) return no_memory(diag);
    tk_err err = TK_OK;
    size_t n;
    while (err == TK_OK && (n = fread(buffer, 1, CHUNK, from)) > 0)
        if (fwrite(buffer, 1, n, to->stream) != n)
            err = tk_fail_errno(diag, "%s: cannot copy", path);
    if (err == TK_OK && ferror(from)) err = tk_fail_errno(diag, "%s: cannot read", path);
    tk_free(buffer);
    return err;
}

static tk_err copy_file(const char *path, const char *to, tk_diag *diag)
{
    FILE *from = fopen(path, "rbe");
    if (!from) return tk_fail_errno(diag, "%s", path);
    tk_file file;
    tk_err err = tk_file_create(&file, to, diag);
    if (err == TK_OK) {
        err = copy_stream(from, &file, path, diag);
        if (err == TK_OK)
            err = tk_file_commit(&file, diag);
        else
            tk_file_abort(&file);
    }
    (void)fclose(from);
    return err;
}

/* Gives the file at `path` its name in objects/, durably. */
static tk_err bring_in(const char *path, const char *object, bool keep, tk_diag *diag)
{
    if (!keep && rename(path, object) != 0)
        return tk_fail_errno(diag, "%s: cannot move into the store", path);
    if (keep && link(path, object) != 0 && errno != EEXIST) {
        if (errno != EXDEV && errno != EPERM && errno != EMLINK && errno != EOPNOTSUPP &&
            errno != ENOSYS)
            return tk_fail_errno(diag, "%s: cannot link into the store", path);
        const tk_err err = copy_file(path, object, diag);
        if (err != TK_OK) return err;
    }
    return tk_file_sync_parent(object, diag);
}

tk_err tk_store_stage(tk_store *store, const char *path, bool keep, tk_object *out, tk_diag *diag)
{
    tk_err err = hash_file(path, out, diag);
    /* Pinned before it gets its name: a collector that looks in between leaves it. */
    if (err == TK_OK) err = pin(store, out->sha, diag);
    if (err != TK_OK) {
        *out = (tk_object){0};
        return err;
    }
    char *object = tk_store_object_path(store, out->sha);
    err = object ? bring_in(path, object, keep, diag) : no_memory(diag);
    tk_free(object);
    if (err != TK_OK) tk_store_unstage(store, out);
    return err;
}

void tk_store_unstage(tk_store *store, tk_object *object)
{
    if (object->sha[0]) {
        (void)pthread_mutex_lock(&store->lock);
        unpin_locked(store, object->sha);
        tk__object_collect_locked(store, object->sha);
        (void)pthread_mutex_unlock(&store->lock);
    }
    *object = (tk_object){0};
}
