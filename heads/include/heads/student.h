/* What training changes: the trunk and the new head, each with its momentum. */
#ifndef HEADS_STUDENT_H
#define HEADS_STUDENT_H

#include "heads/model.h"

typedef struct tk_student {
    tk_params *trunk;
    float *velocity; /* [trunk->trained] */
    size_t classes, features, head_size;
    float *head;          /* [classes][features] weights, then [classes] biases */
    float *head_velocity; /* the same */
} tk_student;

/* A copy of `trunk`, a zero head, no momentum. */
TK_MUST tk_err tk_student_init(tk_student *out, const tk_params *trunk, size_t classes);
void tk_student_fini(tk_student *student); /* zeroed is fine */
/* Weights only; the momentum of `to` stays. Same shapes. */
void tk_student_copy_weights(tk_student *to, const tk_student *from);
void tk_student_stop(tk_student *student); /* no momentum */
/* Writes the head's weights into a tk_head of the same shape. */
void tk_student_to_head(const tk_student *student, tk_head *head);
/* U(-1/sqrt(f), 1/sqrt(f)), PyTorch's default for a linear layer. */
void tk_student_random_head(tk_student *student, uint64_t seed);

#endif
