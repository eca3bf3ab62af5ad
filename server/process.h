/* What the system says about this process. Any thread. */
#ifndef SERVER_PROCESS_H
#define SERVER_PROCESS_H

#include <stdint.h>

typedef struct tk_process {
    uint64_t resident_bytes, open_fds, max_fds; /* 0: cannot be read */
    double cpu_seconds;
} tk_process;

void tk_process_read(tk_process *out);

#endif
