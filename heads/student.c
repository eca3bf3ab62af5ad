/* See student.h. */
#include "heads/student.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "engine/mem.h"
#include "engine/rng.h"

tk_err tk_student_init(tk_student *out, const tk_params *trunk, size_t classes, size_t rank)
{
    *out =
        (tk_student){.classes = classes, .features = tk_arch_features(trunk->arch), .rank = rank};
    out->width = out->features + tk_arch_stages(trunk->arch) * rank;
    out->head_size = classes * (out->width + 1) + tk_side_size(trunk->arch, rank);
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

float *tk_student_adapter(const tk_student *student)
{
    return student->head + student->classes * (student->width + 1);
}

void tk_student_start_adapter(tk_student *to, const tk_student *plain, uint64_t seed)
{
    const size_t c = plain->classes, f = plain->features;
    const tk_arch arch = to->trunk->arch;
    memset(to->head, 0, to->head_size * sizeof(float));
    for (size_t k = 0; k < c; k++)
        memcpy(to->head + k * to->width, plain->head + k * f, f * sizeof(float));
    memcpy(to->head + c * to->width, plain->head + c * f, c * sizeof(float));
    for (size_t s = 0; s < tk_arch_stages(arch); s++) {
        const size_t n = tk_arch_channels(arch, s);
        float *weight = tk_student_adapter(to) + tk_side_at(arch, to->rank, s);
        for (size_t i = 0; i < to->rank * n; i++)
            weight[i] = sqrtf(2 / (float)n) * tk_rng_normal(seed, tk_rng_stream("adapter") + s, i);
    }
}

static double mean_square(size_t n, size_t c, const float *x, size_t pitch)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < c; j++)
            sum += (double)x[i * pitch + j] * (double)x[i * pitch + j];
    return sum / (double)(n * c);
}

void tk_student_level_adapter(tk_student *student, size_t n, const float *features, const float *z)
{
    const tk_arch arch = student->trunk->arch;
    const size_t r = student->rank, stages = tk_arch_stages(arch), f = student->features;
    const double wanted = mean_square(n, f, features, f);
    for (size_t s = 0; s < stages; s++) {
        const double have = mean_square(n, r, z + s * r, stages * r);
        float *weight = tk_student_adapter(student) + tk_side_at(arch, r, s);
        for (size_t i = 0; have > 0 && i < r * tk_arch_channels(arch, s); i++)
            weight[i] = (float)((double)weight[i] * sqrt(wanted / have));
    }
}

void tk_student_to_head(const tk_student *student, tk_head *head)
{
    assert(head->rank == student->rank && head->classes == student->classes);
    const size_t weights = student->classes * student->width;
    memcpy(head->weight, student->head, weights * sizeof(float));
    memcpy(head->bias, student->head + weights, student->classes * sizeof(float));
    if (head->rank > 0)
        memcpy(head->adapter, tk_student_adapter(student),
               tk_side_size(head->arch, head->rank) * sizeof(float));
}

void tk_student_random_head(tk_student *student, uint64_t seed)
{
    const float bound = 1 / sqrtf((float)student->features);
    const uint64_t stream = tk_rng_stream("head");
    for (size_t i = 0; i < student->head_size; i++)
        student->head[i] = bound * (2 * tk_rng_uniform(seed, stream, i) - 1);
}
