/* Folders: made and removed so that it lasts. */
#include "store/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/file.h"
#include "engine/mem.h"

tk_err tk_files_make_dir(const char *path, tk_diag *diag)
{
    if (mkdir(path, 0700) == 0) return tk_file_sync_parent(path, diag);
    struct stat st;
    if (errno == EEXIST && stat(path, &st) == 0) {
        if (S_ISDIR(st.st_mode)) return TK_OK;
        errno = ENOTDIR;
    }
    return tk_fail_errno(diag, "%s: cannot make the folder", path);
}

static tk_err remove_entry(int dir, const char *name, const char *path, tk_diag *diag)
{
    if (unlinkat(dir, name, 0) == 0 || errno == ENOENT) return TK_OK;
    if (errno != EISDIR && errno != EPERM)
        return tk_fail_errno(diag, "%s/%s: cannot remove", path, name);
    const size_t size = strlen(path) + strlen(name) + 2;
    char *below = tk_calloc(size, 1);
    if (!below) return tk_fail(diag, TK_NOMEM, "%s: out of memory", path);
    (void)snprintf(below, size, "%s/%s", path, name);
    const tk_err err = tk_files_remove_tree(below, true, diag);
    tk_free(below);
    return err;
}

tk_err tk_files_remove_tree(const char *path, bool self, tk_diag *diag)
{
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        if (fd < 0 && errno == ENOENT) return TK_OK;
        const tk_err err = tk_fail_errno(diag, "%s: cannot open", path);
        if (fd >= 0) (void)close(fd);
        return err;
    }
    tk_err err = TK_OK;
    const struct dirent *entry;
    while (err == TK_OK && (entry = readdir(dir)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            err = remove_entry(dirfd(dir), entry->d_name, path, diag);
    if (err == TK_OK && fsync(dirfd(dir)) != 0) err = tk_fail_errno(diag, "%s: cannot sync", path);
    (void)closedir(dir);
    if (err != TK_OK || !self) return err;
    if (rmdir(path) != 0) return tk_fail_errno(diag, "%s: cannot remove", path);
    return tk_file_sync_parent(path, diag);
}
