/* job.json, read and checked. See protocol.md. */
#ifndef TRAINER_JOB_FILE_H
#define TRAINER_JOB_FILE_H

#include "heads/job.h"

typedef struct job_file {
    void *root; /* owns the strings below */
    const char *job;
    tk_job_opts opts; /* without dir, pool and callbacks */
    tk_validator_pack *validations;
    tk_setting *set;
    unsigned threads;
    unsigned long long memory_limit;
} job_file;

/* TK_BADDATA with a sentence that names the field, the limit and the value. */
TK_MUST tk_err job_file_read(job_file *out, const char *path, tk_diag *diag);
void job_file_fini(job_file *file);

#endif
