/* See process.h. */
#include "process.h"

#include <dirent.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

/* Second number of /proc/self/statm, in pages. */
static uint64_t resident_bytes(void)
{
    unsigned long long total = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f) return 0;
    const int n = fscanf(f, "%llu %llu", &total, &resident);
    fclose(f);
    const long page = sysconf(_SC_PAGESIZE);
    return n == 2 && page > 0 ? resident * (uint64_t)page : 0;
}

static uint64_t open_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    if (!dir) return 0;
    uint64_t n = 0;
    for (const struct dirent *e; (e = readdir(dir));)
        n += e->d_name[0] != '.';
    closedir(dir);
    return n > 0 ? n - 1 : 0; /* less the one that reads them */
}

static double seconds(struct timeval t)
{
    return (double)t.tv_sec + (double)t.tv_usec * 1e-6;
}

void tk_process_read(tk_process *out)
{
    *out = (tk_process){.resident_bytes = resident_bytes(), .open_fds = open_fds()};
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) == 0)
        out->cpu_seconds = seconds(usage.ru_utime) + seconds(usage.ru_stime);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) out->max_fds = (uint64_t)files.rlim_cur;
}

void tk_process_thread(const char *name, tk_thread_place place)
{
    enum { NICER_BY = 2 };
    prctl(PR_SET_NAME, name);
    if (place == TK_THREAD_FIRST) return;
    const int as_started = getpriority(PRIO_PROCESS, 0); /* on Linux a thread's */
    (void)setpriority(PRIO_PROCESS, 0, as_started + NICER_BY);
}
