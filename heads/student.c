/* See student.h. */
#include "heads/student.h"

#include <math.h>
#include <string.h>

#include "engine/mem.h"
#include "engine/rng.h"

tk_err tk_student_init(tk_student *out, const tk_params *trunk, size_t classes)
{
    *out = (tk_student){.classes = classes, .features = tk_arch_features(trunk->arch)};
    out->head_size = classes * out->features + classes;
    tk_err err = tk_params_clone(&out->trunk, trunk);
    out->velocity = tk_aligned_calloc(trunk->trained, sizeof(float));
    out->head = tk_aligned_calloc(out->head_size, sizeof(float));
    out->head_velocity = tk_aligned_calloc(out->head_size, sizeof(float));
    if (err == TK_OK && (!out->velocity || !out->head || !out->head_velocity)) err = TK_NOMEM;
    if (err != TK_OK) tk_student_fini(out);
    return err;
}

void tk_student_fini(tk_student *student)
{
    tk_params_destroy(student->trunk);
    tk_free(student->velocity);
    tk_free(student->head);
    tk_free(student->head_velocity);
    *student = (tk_student){0};
}

void tk_student_copy_weights(tk_student *to, const tk_student *from)
{
    tk_params_copy(to->trunk, from->trunk);
    memcpy(to->head, from->head, from->head_size * sizeof(float));
}

void tk_student_stop(tk_student *student)
{
    memset(student->velocity, 0, student->trunk->trained * sizeof(float));
    memset(student->head_velocity, 0, student->head_size * sizeof(float));
}

void tk_student_to_head(const tk_student *student, tk_head *head)
{
    const size_t weights = student->classes * student->features;
    memcpy(head->weight, student->head, weights * sizeof(float));
    memcpy(head->bias, student->head + weights, student->classes * sizeof(float));
}

void tk_student_random_head(tk_student *student, uint64_t seed)
{
    const float bound = 1 / sqrtf((float)student->features);
    const uint64_t stream = tk_rng_stream("head");
    for (size_t i = 0; i < student->head_size; i++)
        student->head[i] = bound * (2 * tk_rng_uniform(seed, stream, i) - 1);
}
