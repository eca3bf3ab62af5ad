/* Durable files. A file is written under a temporary name in the folder it will live in, so that
 * the rename stays within one file system; the name carries the process and a counter, so that two
 * writers of one path do not meet. */
#include "engine/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/mem.h"

static tk_err map_fd(tk_map *out, int fd, const char *path, tk_diag *diag)
{
    struct stat st;
    if (fstat(fd, &st) != 0) return tk_fail_errno(diag, "%s", path);
    if (!S_ISREG(st.st_mode)) return tk_fail(diag, TK_BADARG, "%s: not a regular file", path);
    if (st.st_size == 0) return TK_OK;
    size_t size = (size_t)st.st_size;
    void *data = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) return tk_fail_errno(diag, "%s: cannot map %zu bytes", path, size);
    *out = (tk_map){.data = data, .size = size};
    return TK_OK;
}

tk_err tk_map_open(tk_map *out, const char *path, tk_diag *diag)
{
    *out = (tk_map){0};
    /* O_NONBLOCK: a fifo in the place of a file must not hang the open. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return tk_fail_errno(diag, "%s", path);
    tk_err err = map_fd(out, fd, path, diag);
    (void)close(fd);
    return err;
}

void tk_map_close(tk_map *map)
{
    if (!map) return;
    if (map->data) {
        void *data; /* a copy, since a cast that drops const is a warning */
        memcpy(&data, &map->data, sizeof data);
        (void)munmap(data, map->size);
    }
    *map = (tk_map){0};
}

static void forget(tk_file *file)
{
    tk_free(file->path);
    tk_free(file->temp);
    *file = (tk_file){0};
}

static char *temp_name(const char *path)
{
    static atomic_ulong serial;
    size_t size = strlen(path) + 64;
    char *name = tk_calloc(size, 1);
    if (name)
        (void)snprintf(name, size, "%s.%ld.%lu.tmp", path, (long)getpid(),
                       atomic_fetch_add_explicit(&serial, 1, memory_order_relaxed));
    return name;
}

tk_err tk_file_create(tk_file *out, const char *path, tk_diag *diag)
{
    *out = (tk_file){.path = tk_strdup(path), .temp = temp_name(path)};
    if (!out->path || !out->temp) {
        forget(out);
        return tk_fail(diag, TK_NOMEM, "%s: out of memory", path);
    }
    int fd = open(out->temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    out->stream = fd < 0 ? NULL : fdopen(fd, "wb");
    if (!out->stream) {
        tk_err err = tk_fail_errno(diag, "%s: cannot create", path);
        if (fd >= 0) {
            (void)close(fd);
            (void)unlink(out->temp);
        }
        forget(out);
        return err;
    }
    return TK_OK;
}

void tk_file_abort(tk_file *file)
{
    if (file->stream) (void)fclose(file->stream);
    if (file->temp) (void)unlink(file->temp);
    forget(file);
}

tk_err tk_file_commit(tk_file *file, tk_diag *diag)
{
    /* A write that failed before left its mark in the stream. What is still buffered is tried
     * again, which tells why; when nothing is, the reason is lost. */
    bool kept = fflush(file->stream) == 0;
    if (kept && ferror(file->stream)) {
        kept = false;
        errno = EIO;
    }
    kept = kept && fsync(fileno(file->stream)) == 0;
    int code = errno;
    if (fclose(file->stream) != 0 && kept) {
        kept = false;
        code = errno;
    }
    file->stream = NULL;
    errno = code;
    if (!kept || rename(file->temp, file->path) != 0) {
        tk_err err = tk_fail_errno(diag, "%s: cannot write", file->path);
        tk_file_abort(file);
        return err;
    }
    tk_err err = tk_file_sync_parent(file->path, diag);
    forget(file);
    return err;
}

tk_err tk_file_write(const char *path, const void *data, size_t size, tk_diag *diag)
{
    tk_file file;
    tk_err err = tk_file_create(&file, path, diag);
    if (err != TK_OK) return err;
    if (size > 0 && fwrite(data, 1, size, file.stream) != size) {
        err = tk_fail_errno(diag, "%s: cannot write %zu bytes", path, size);
        tk_file_abort(&file);
        return err;
    }
    return tk_file_commit(&file, diag);
}

tk_err tk_file_sync_parent(const char *path, tk_diag *diag)
{
    char *folder = tk_strdup(path);
    if (!folder) return tk_fail(diag, TK_NOMEM, "%s: out of memory", path);
    char *slash = strrchr(folder, '/');
    if (slash) slash[slash == folder ? 1 : 0] = '\0';
    int fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    tk_err err = TK_OK;
    if (fd < 0 || fsync(fd) != 0) err = tk_fail_errno(diag, "%s: cannot sync the folder", path);
    if (fd >= 0) (void)close(fd);
    tk_free(folder);
    return err;
}
