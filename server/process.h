/* What the system says about this process, and what the process says to the system. Any thread. */
#ifndef SERVER_PROCESS_H
#define SERVER_PROCESS_H

#include <stdint.h>

typedef struct tk_process {
    uint64_t resident_bytes, open_fds, max_fds; /* 0: cannot be read */
    double cpu_seconds;
} tk_process;

void tk_process_read(tk_process *out);

/* How a thread competes for the cores. Inference waits for nothing but a core, and every answer
 * waits for inference; a thread that gives way takes a little less of a core that both want (by 2
 * nicer, which needs no privilege), and still gets most of one that is free. */
typedef enum tk_thread_place { TK_THREAD_FIRST, TK_THREAD_GIVES_WAY } tk_thread_place;

/* The calling thread's name in `top -H` and core dumps (15 bytes) and its place. Best effort. */
void tk_process_thread(const char *name, tk_thread_place place);

#endif
