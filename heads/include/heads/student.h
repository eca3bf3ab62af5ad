/* What training changes: the trunk and the new head with its adapter, each with its momentum. */
#ifndef HEADS_STUDENT_H
#define HEADS_STUDENT_H

#include "heads/model.h"

typedef struct tk_student {
    tk_params *trunk;
    float *velocity; /* [trunk->trained] */
    size_t classes, features;
    size_t rank, width; /* as in tk_head */
    size_t head_size;
    float *head;          /* [classes][width] weights, [classes] biases, then the adapter */
    float *head_velocity; /* the same */
} tk_student;

/* A copy of `trunk`, a zero head with an adapter of `rank` (0: none), no momentum. */
TK_MUST tk_err tk_student_init(tk_student *out, const tk_params *trunk, size_t classes,
                               size_t rank);
void tk_student_fini(tk_student *student); /* zeroed is fine */
/* Weights only; the momentum of `to` stays. Same shapes. */
void tk_student_copy_weights(tk_student *to, const tk_student *from);
void tk_student_stop(tk_student *student); /* no momentum */
/* The adapter's numbers, as tk_side.data. */
float *tk_student_adapter(const tk_student *student);
/* The head of a student without adapter into one with, whose own inputs get no weight; and its
 * adapter at random: A_s ~ N(0, 2/c_s) (He et al. 2015, 1502.01852), b_s = 0. */
void tk_student_start_adapter(tk_student *to, const tk_student *plain, uint64_t seed);
/* Scales each A_s so that z [n][S][rank] gets the root mean square of `features` [n][features],
 * which are of the same images: the trunk's maps come in any size, and a step has one rate
 * (data-dependent initialisation: Salimans & Kingma 2016, 1602.07868, section 3). b_s must be 0. */
void tk_student_level_adapter(tk_student *student, size_t n, const float *features, const float *z);
/* Writes the head's weights into a tk_head of the same shape. */
void tk_student_to_head(const tk_student *student, tk_head *head);
/* U(-1/sqrt(f), 1/sqrt(f)), PyTorch's default for a linear layer. */
void tk_student_random_head(tk_student *student, uint64_t seed);

#endif
