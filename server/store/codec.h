/* The store's JSON columns: lists that SQL never looks into. */
#ifndef SERVER_STORE_CODEC_H
#define SERVER_STORE_CODEC_H

#include "store/store.h"

/* Encoders return text for free(), or NULL when a string is not UTF-8 or memory is out. */

char *tk__encode_label_counts(const tk_label_count *labels, size_t n);
TK_MUST tk_err tk__decode_label_counts(const char *text, tk_label_count **out, size_t *n,
                                       tk_diag *diag);
void tk__label_counts_free(tk_label_count *labels, size_t n);

char *tk__encode_labels(char *const *labels, size_t n);
TK_MUST tk_err tk__decode_labels(const char *text, char ***out, size_t *n, tk_diag *diag);
void tk__labels_free(char **labels, size_t n);

char *tk__encode_settings(const tk_setting *set, size_t n);
TK_MUST tk_err tk__decode_settings(const char *text, tk_setting **out, size_t *n, tk_diag *diag);

char *tk__encode_measures(const tk_measure *heads, size_t n);
TK_MUST tk_err tk__decode_measures(const char *text, tk_measure **out, size_t *n, tk_diag *diag);

char *tk__encode_event(const tk_job_event *event);
TK_MUST tk_err tk__decode_event(const char *text, tk_job_event *out, tk_diag *diag);

char *tk__encode_preproc(const tk_preproc *preproc);
TK_MUST tk_err tk__decode_preproc(const char *text, tk_preproc *out, tk_diag *diag);

#endif
