/* A folder of its own for a test: cmocka fixtures that make and remove it; *state is its
 * path, below the working directory. */
#ifndef TESTS_SCRATCH_H
#define TESTS_SCRATCH_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static inline int scratch_make(void **state)
{
    static char folder[] = "scratch-XXXXXX";
    memcpy(folder + sizeof folder - 7, "XXXXXX", 6);
    *state = mkdtemp(folder);
    return *state ? 0 : -1;
}

/* Borrowed until the next call. */
static inline const char *scratch_path(const void *state, const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", (const char *)state, name);
    return path;
}

/* Files in the folder; with `remove_them`, removed while counting. */
static inline int scratch_walk(const void *state, int remove_them)
{
    DIR *dir = opendir((const char *)state);
    if (!dir) return -1;
    int count = 0;
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (entry->d_name[0] == '.') continue;
        count++;
        if (remove_them) unlink(scratch_path(state, entry->d_name));
    }
    closedir(dir);
    return count;
}

static inline int scratch_count(const void *state)
{
    return scratch_walk(state, 0);
}

static inline int scratch_remove(void **state)
{
    scratch_walk(*state, 1);
    return rmdir((const char *)*state);
}

#endif
