/* What the parity tests share: golden numbers that tests/golden/make_golden.py took from PyTorch in
 * double precision, the networks and images they belong to, and the loss. Every function asserts:
 * a file that is missing or lacks a key fails the test. */
#ifndef TESTS_PARITY_H
#define TESTS_PARITY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/net.h"
#include "engine/pool.h"

/* One golden file: keys with their numbers. */
typedef struct golden golden;

golden *golden_open(const char *name); /* tests/golden/<name>.txt */
void golden_close(golden *g);
/* The numbers of a key, borrowed, and how many; NULL and 0 when the key is not there. */
const double *golden_find(const golden *g, const char *key, size_t *n);
double golden_number(const golden *g, const char *key);

/* How far a tensor (torchvision's element order, as on disk) is from the golden entry
 * "<prefix><name>": the larger of the relative errors of its norm and of its sampled elements. */
double golden_distance(const golden *g, const char *prefix, const char *name, const float *disk,
                       size_t count);

/* A network with a linear head in the golden file's start state, its images and labels. */
typedef struct parity_net {
    unsigned px;
    size_t batch, classes, features;
    tk_params *trunk;
    float *fc_w, *fc_b; /* [classes][features], [classes] */
    size_t images;
    float *x;    /* [images][px][px][3] */
    uint32_t *y; /* [images] */
} parity_net;

parity_net parity_net_make(const golden *g, tk_arch arch, size_t images);
void parity_net_fini(parity_net *net);

/* Mean cross-entropy against (1 - smoothing) one-hot + smoothing / c, and its gradient. */
double parity_cross_entropy(size_t n, size_t c, const float *logits, const uint32_t *y,
                            double smoothing, float *dlogits);

/* Calls `run` once under each instruction set that the CPU has, and then selects the best again. */
void parity_each_isa(void (*run)(void *ctx), void *ctx);

/* Is this a build with sanitizers, where large cases take too long? */
bool parity_slow_build(void);

/* A pool of two threads. */
tk_pool *parity_pool(void);

#endif
