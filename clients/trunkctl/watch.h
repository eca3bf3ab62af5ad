/* Following a job until it ends: see watch.c. */
#ifndef TRUNKCTL_WATCH_H
#define TRUNKCTL_WATCH_H

#include <stdio.h>

#include "ctl.h"
#include "trunkd/v1/jobs.pb-c.h"

/* "running" and so on. */
const char *tk__job_state(int state);
/* A table of heads: now, change since the job began, tolerance. `fresh` names the caller's head
 * that the job makes (or NULL): it has nothing to have changed from. Returns the lines printed. */
size_t tk__print_job_heads(size_t n, Trunkd__V1__HeadAccuracy *const *heads, const char *fresh,
                           FILE *out);
/* Shows the job's events until its end, over restarts of the server. TK__DONE when it has
 * committed. */
int tk__watch(tk__ctl *ctl, uint64_t job);

#endif
