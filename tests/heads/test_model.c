/* A version's file: what goes in comes out; a damaged one is refused; serving need not read EWC's
 * part. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "engine/mem.h"
#include "engine/rng.h"
#include "fixture.h"

static const char *const ids[] = {"alice/type", "bob/colour"};

static void give_adapter(tk_head *head)
{
    enum { RANK = 5 };
    assert_int_equal(tk_head_add_adapter(head, TK_RESNET20, RANK, NULL), TK_OK);
    for (size_t i = 0; i < tk_side_size(TK_RESNET20, RANK); i++)
        head->adapter[i] = tk_rng_normal(4, 0, i);
    for (size_t i = 0; i < head->classes * head->width; i++)
        head->weight[i] += 0.1f * tk_rng_normal(4, 1, i);
}

/* Alice's head is plain, Bob's has an adapter. */
static tk_model *make(bool with_ewc)
{
    tk_model *m = fixture_model(3, 2, ids);
    m->heads[0]->best = 0.8125;
    m->heads[1]->tolerance = 0.5;
    give_adapter(m->heads[1]);
    if (!with_ewc) return m;
    m->fisher_scale = 1e-5;
    m->fisher = tk_aligned_calloc(m->trunk->trained, sizeof(float));
    m->anchor = tk_aligned_calloc(m->trunk->trained, sizeof(float));
    assert_true(m->fisher && m->anchor);
    for (size_t t = 0; t < m->trunk->tensors; t++) {
        const tk_param *p = &m->trunk->table[t];
        for (size_t i = 0; p->offset < m->trunk->trained && i < p->count; i++) {
            m->fisher[p->offset + i] = tk_rng_uniform(1, t, i);
            m->anchor[p->offset + i] = tk_rng_normal(2, t, i);
        }
    }
    m->heads[0]->covered = true;
    assert_int_equal(tk_covariance_create(&m->inputs, m->trunk, 1 << 16), TK_OK);
    m->inputs->images = 400;
    for (size_t i = 0; i < m->inputs->floats; i++)
        m->inputs->data[i] = tk_rng_uniform(3, 0, i);
    return m;
}

static void assert_same_inputs(const tk_covariance *a, const tk_covariance *b)
{
    assert_true(a && b && a->images == b->images && a->limit == b->limit);
    assert_int_equal(a->layers, b->layers);
    assert_int_equal(a->floats, b->floats);
    assert_memory_equal(a->data, b->data, a->floats * sizeof(float));
}

static void assert_same_head(const tk_head *a, const tk_head *b)
{
    assert_string_equal(a->id, b->id);
    assert_int_equal(a->classes, b->classes);
    for (size_t c = 0; c < a->classes; c++)
        assert_string_equal(a->labels[c], b->labels[c]);
    assert_int_equal(a->rank, b->rank);
    assert_int_equal(a->width, b->width);
    if (a->rank > 0)
        assert_memory_equal(a->adapter, b->adapter, tk_side_size(a->arch, a->rank) * sizeof(float));
    assert_memory_equal(a->weight, b->weight, a->classes * a->width * sizeof(float));
    assert_memory_equal(a->bias, b->bias, a->classes * sizeof(float));
    assert_true(a->tolerance == b->tolerance);
    assert_true(a->best == b->best || (isnan(a->best) && isnan(b->best)));
}

/* The heads' shares are all of the Fisher. */
static void share_out(tk_model *m)
{
    const size_t n = m->trunk->trained;
    memset(m->fisher, 0, n * sizeof(float));
    for (size_t h = 0; h < m->n_heads; h++) {
        float *part = tk_aligned_calloc(n, sizeof(float));
        assert_non_null(part);
        for (size_t j = 0; j < n; j++)
            part[j] = tk_rng_uniform(30 + h, 1, j);
        assert_int_equal(tk_ewc_share_create(&m->heads[h]->share, n, part), TK_OK);
        m->heads[h]->share.weight = h == 0 ? 0.5 : 1;
        tk_ewc_share_add(&m->heads[h]->share, 1, m->fisher);
        tk_free(part);
    }
}

static void a_dropped_head_takes_its_share_of_the_fisher_along(void **state)
{
    (void)state;
    const char *path = fixture_path("shares.safetensors");
    tk_model *m = make(true), *back;
    const size_t n = m->trunk->trained;
    share_out(m);
    assert_int_equal(tk_model_save(m, path, NULL), TK_OK);
    assert_int_equal(tk_model_load(&back, path, true, NULL), TK_OK);
    for (size_t h = 0; h < 2; h++) {
        const tk_ewc_share *a = &m->heads[h]->share, *b = &back->heads[h]->share;
        assert_int_equal(b->n, n);
        assert_memory_equal(b->codes, a->codes, n);
        assert_true(a->largest == b->largest && a->weight == b->weight);
    }
    float *alone = tk_aligned_calloc(n, sizeof(float));
    assert_non_null(alone);
    tk_ewc_share_add(&m->heads[1]->share, 1, alone);
    assert_true(tk_model_drop_head(back, ids[0]));
    for (size_t j = 0; j < n; j++)
        assert_true(fabsf(back->fisher[j] - alone[j]) <= 4e-7f * m->fisher[j]);
    assert_int_equal(tk_model_save(back, path, NULL), TK_OK); /* and the file is sound without */
    tk_model_destroy(back);
    assert_int_equal(tk_model_load(&back, path, true, NULL), TK_OK);
    assert_true(tk_model_drop_head(back, ids[1]));
    assert_null(back->fisher); /* nobody is left to protect */
    tk_free(alone);
    tk_model_destroy(back);
    assert_int_equal(tk_model_load(&back, path, false, NULL), TK_OK);
    assert_int_equal(back->heads[0]->share.n, 0); /* serving does without */
    tk_model_destroy(back);
    tk_model_destroy(m);
}

static void a_share_of_the_wrong_size_is_refused(void **state)
{
    (void)state;
    const char *path = fixture_path("share.safetensors");
    tk_model *m = make(true), *back;
    tk_diag diag;
    share_out(m);
    m->heads[1]->share.n--;
    assert_int_equal(tk_model_save(m, path, NULL), TK_OK);
    assert_int_equal(tk_model_load(&back, path, true, &diag), TK_BADDATA);
    assert_non_null(strstr(diag.text, "ewc.share.bob/colour"));
    m->heads[1]->share.n++;
    m->heads[1]->share.weight = 2; /* more than once in the sum */
    assert_int_equal(tk_model_save(m, path, NULL), TK_OK);
    assert_int_equal(tk_model_load(&back, path, true, &diag), TK_BADDATA);
    assert_non_null(strstr(diag.text, "share"));
    tk_model_destroy(m);
}

static void a_model_survives_the_file(void **state)
{
    (void)state;
    const char *path = fixture_path("model.safetensors");
    tk_model *m = make(true), *back;
    assert_int_equal(tk_model_save(m, path, NULL), TK_OK);
    assert_int_equal(tk_model_load(&back, path, true, NULL), TK_OK);
    assert_int_equal(back->trunk->arch, m->trunk->arch);
    assert_memory_equal(back->trunk->data, m->trunk->data, m->trunk->count * sizeof(float));
    assert_memory_equal(back->fisher, m->fisher, m->trunk->trained * sizeof(float));
    assert_memory_equal(back->anchor, m->anchor, m->trunk->trained * sizeof(float));
    assert_true(back->fisher_scale == m->fisher_scale);
    assert_same_inputs(back->inputs, m->inputs);
    assert_memory_equal(&back->preproc, &m->preproc, sizeof m->preproc);
    assert_int_equal(back->n_heads, 2);
    for (size_t h = 0; h < 2; h++)
        assert_same_head(back->heads[h], m->heads[h]);
    tk_model_destroy(back);
    assert_int_equal(tk_model_load(&back, path, false, NULL), TK_OK);
    assert_null(back->fisher);
    assert_null(back->anchor);
    assert_null(back->inputs);
    tk_model_destroy(back);
    tk_model_destroy(m);
}

static void a_clone_is_equal_and_independent(void **state)
{
    (void)state;
    tk_model *m = make(true), *copy;
    assert_int_equal(tk_model_clone(&copy, m), TK_OK);
    for (size_t h = 0; h < 2; h++)
        assert_same_head(copy->heads[h], m->heads[h]);
    assert_memory_equal(copy->fisher, m->fisher, m->trunk->trained * sizeof(float));
    assert_same_inputs(copy->inputs, m->inputs);
    assert_ptr_not_equal(copy->inputs->layer[3].c, m->inputs->layer[3].c);
    copy->trunk->data[0] += 1;
    copy->heads[0]->weight[0] += 1;
    assert_true(copy->trunk->data[0] != m->trunk->data[0]);
    assert_true(copy->heads[0]->weight[0] != m->heads[0]->weight[0]);
    tk_model_destroy(copy);
    tk_model_destroy(m);
}

/* Covariances are a sum: with a head whose images are in it all of it goes, with another nothing.
 */
static void covariances_go_with_the_head_whose_images_they_hold(void **state)
{
    (void)state;
    const char *path = fixture_path("covered.safetensors");
    for (size_t h = 0; h < 2; h++) {
        tk_model *m = make(true), *back;
        assert_int_equal(tk_model_save(m, path, NULL), TK_OK);
        assert_int_equal(tk_model_load(&back, path, true, NULL), TK_OK);
        assert_true(back->heads[0]->covered);
        assert_false(back->heads[1]->covered);
        assert_true(tk_model_drop_head(back, ids[h]));
        assert_int_equal(back->inputs == NULL, h == 0);
        assert_int_equal(back->heads[0]->covered, h == 1);
        tk_model_destroy(back);
        tk_model_destroy(m);
    }
}

static void heads_are_added_once_and_dropped_by_id(void **state)
{
    (void)state;
    tk_model *m = make(false);
    tk_head *again;
    assert_int_equal(tk_head_clone(&again, m->heads[0]), TK_OK);
    assert_int_equal(tk_model_add_head(m, again), TK_EXISTS);
    tk_head_destroy(again);
    assert_true(tk_model_drop_head(m, "alice/type"));
    assert_false(tk_model_drop_head(m, "alice/type"));
    assert_null(tk_model_head(m, "alice/type"));
    assert_ptr_equal(tk_model_head(m, "bob/colour"), m->heads[0]);
    tk_model_destroy(m);
}

static void a_head_needs_unique_clean_labels(void **state)
{
    (void)state;
    tk_diag diag;
    tk_head *head;
    assert_int_equal(tk_head_create(&head, "x", 2, 8, (const char *const[]){"a", "a"}, &diag),
                     TK_BADARG);
    assert_non_null(strstr(diag.text, "\"a\" appears twice"));
    assert_int_equal(tk_head_create(&head, "x", 2, 8, (const char *const[]){"a", "\n"}, &diag),
                     TK_BADARG);
    assert_int_equal(tk_head_create(&head, "", 1, 8, (const char *const[]){"a"}, &diag), TK_BADARG);
    assert_int_equal(tk_head_create(&head, "x", 0, 8, NULL, &diag), TK_BADARG);
    assert_null(head);
}

static void an_adapter_is_added_once_and_changes_no_answer(void **state)
{
    (void)state;
    tk_model *m = fixture_model(3, 1, ids);
    tk_head *head = m->heads[0], *before;
    tk_diag diag = {{0}};
    assert_int_equal(tk_head_clone(&before, head), TK_OK);
    assert_int_equal(tk_head_add_adapter(head, TK_RESNET18, 4, &diag), TK_BADARG);
    assert_int_equal(tk_head_add_adapter(head, TK_RESNET20, 0, &diag), TK_BADARG);
    assert_int_equal(tk_head_add_adapter(head, TK_RESNET20, 257, &diag), TK_BADARG);
    assert_same_head(head, before);
    assert_int_equal(tk_head_add_adapter(head, TK_RESNET20, 4, &diag), TK_OK);
    assert_int_equal(head->width, 64 + 3 * 4);
    for (size_t c = 0; c < head->classes; c++) {
        assert_memory_equal(head->weight + c * 76, before->weight + c * 64, 64 * sizeof(float));
        for (size_t k = 64; k < 76; k++)
            assert_true(head->weight[c * 76 + k] == 0);
    }
    assert_int_equal(tk_head_add_adapter(head, TK_RESNET20, 4, &diag), TK_BADARG);
    tk_head_destroy(before);
    tk_model_destroy(m);
}

/* An adapter that reads another trunk's maps has no place in a model. */
static void an_adapter_of_another_trunk_is_refused(void **state)
{
    (void)state;
    static const char *const labels[] = {"a", "b"};
    tk_model *m = fixture_model(3, 0, NULL);
    tk_head *head;
    assert_int_equal(tk_head_create(&head, "x", 2, 64, labels, NULL), TK_OK);
    assert_int_equal(tk_head_add_adapter(head, TK_RESNET56, 4, NULL), TK_OK);
    assert_int_equal(tk_model_add_head(m, head), TK_BADARG);
    tk_head_destroy(head);
    tk_model_destroy(m);
}

/* The metadata's rank decides what the file must hold; every other number of it is refused. */
static void an_adapter_that_is_not_as_the_metadata_says_is_refused(void **state)
{
    (void)state;
    const char *path = fixture_path("adapter.safetensors");
    tk_model *m = make(false), *back;
    tk_diag diag = {{0}};
    m->heads[1]->adapter[7] = NAN;
    assert_int_equal(tk_model_save(m, path, NULL), TK_OK);
    assert_int_equal(tk_model_load(&back, path, true, &diag), TK_BADDATA);
    assert_non_null(strstr(diag.text, "adapter.bob/colour.0.weight"));
    m->heads[1]->adapter[7] = 0;
    assert_int_equal(tk_model_save(m, path, NULL), TK_OK);
    assert_int_equal(tk_model_outline(&back, path, NULL), TK_OK);
    assert_int_equal(back->heads[0]->rank, 0);
    assert_int_equal(back->heads[1]->rank, 5);
    tk_model_destroy(back);
    size_t size;
    static const char key[] = "adapter_rank\\\":";
    uint8_t *bytes = fixture_read(path, &size);
    uint8_t *rank = bytes;
    while (rank < bytes + size - sizeof key && memcmp(rank, key, sizeof key - 1) != 0)
        rank++;
    rank += sizeof key - 1;
    for (uint8_t digit = '0'; digit <= '9'; digit++) {
        assert_true(*rank >= '0' && *rank <= '9');
        *rank = digit;
        fixture_write(path, bytes, size);
        const tk_err err = tk_model_load(&back, path, true, NULL);
        assert_int_equal(err, digit == '5' ? TK_OK : TK_BADDATA);
        tk_model_destroy(back);
    }
    tk_free(bytes);
    tk_model_destroy(m);
}

static void weights_that_are_not_finite_are_refused(void **state)
{
    (void)state;
    const char *path = fixture_path("nan.safetensors");
    tk_diag diag;
    tk_model *m = make(false), *back;
    m->heads[1]->bias[0] = NAN;
    assert_int_equal(tk_model_save(m, path, NULL), TK_OK);
    assert_int_equal(tk_model_load(&back, path, true, &diag), TK_BADDATA);
    assert_non_null(strstr(diag.text, "head.bob/colour.bias"));
    m->heads[1]->bias[0] = 0;
    m->trunk->data[5] = INFINITY;
    assert_int_equal(tk_model_save(m, path, NULL), TK_OK);
    assert_int_equal(tk_model_load(&back, path, true, &diag), TK_BADDATA);
    assert_null(back);
    tk_model_destroy(m);
}

/* Numbers that no covariance has; what is said of it; and a version without any. */
static void covariances_are_not_believed(void **state)
{
    (void)state;
    const char *path = fixture_path("inputs.safetensors");
    tk_diag diag;
    tk_model *m = make(true), *back;
    tk_covariance *inputs = m->inputs;
    float *square = &inputs->layer[2].c[2]; /* (1, 1) */
    const float kept = *square, bad[] = {-1, NAN, INFINITY};
    for (size_t i = 0; i < 3; i++) {
        *square = bad[i];
        assert_int_equal(tk_model_save(m, path, NULL), TK_OK);
        assert_int_equal(tk_model_load(&back, path, true, &diag), TK_BADDATA);
        assert_null(back);
        assert_non_null(strstr(diag.text, "inputs.layer1.0.conv2.weight"));
    }
    *square = kept;
    inputs->images = 0;
    assert_int_equal(tk_model_save(m, path, NULL), TK_OK);
    assert_int_equal(tk_model_load(&back, path, true, &diag), TK_BADDATA);
    assert_non_null(strstr(diag.text, "limit and images"));
    inputs->images = 400;
    inputs->limit = (size_t)1 << 30; /* of another form than the tensors */
    assert_int_equal(tk_model_save(m, path, NULL), TK_OK);
    assert_int_equal(tk_model_load(&back, path, true, &diag), TK_BADDATA);
    assert_non_null(strstr(diag.text, "wrong shape"));
    m->inputs = NULL;
    assert_int_equal(tk_model_save(m, path, NULL), TK_OK);
    assert_int_equal(tk_model_load(&back, path, true, NULL), TK_OK);
    assert_null(back->inputs);
    tk_model_destroy(back);
    tk_covariance_destroy(inputs);
    tk_model_destroy(m);
}

/* Flips in the header (names, shapes, offsets, metadata) and cuts: an error or a sound model, never
 * more. What is read is destroyed again: a sanitizer sees the rest. */
static void a_damaged_file_is_refused_or_sound(void **state)
{
    (void)state;
    const char *path = fixture_path("damaged.safetensors");
    size_t size, refused = 0;
    tk_model *m = make(true), *back;
    assert_int_equal(tk_model_save(m, path, NULL), TK_OK);
    tk_model_destroy(m);
    uint8_t *good = fixture_read(path, &size);
    for (uint64_t trial = 0; trial < 150; trial++) {
        const size_t at = tk_rng_below(7, 0, trial, 12000);
        const uint8_t kept = good[at];
        good[at] = (uint8_t)tk_rng_u64(7, 1, trial);
        fixture_write(path, good, size);
        good[at] = kept;
        const tk_err err = tk_model_load(&back, path, true, NULL);
        if (err != TK_OK) {
            assert_int_equal(err, TK_BADDATA);
            assert_null(back);
            refused++;
        }
        tk_model_destroy(back);
    }
    assert_true(refused > 50);
    for (uint64_t trial = 0; trial < 20; trial++) {
        fixture_write(path, good, tk_rng_below(7, 2, trial, (uint32_t)size));
        assert_int_equal(tk_model_load(&back, path, true, NULL), TK_BADDATA);
    }
    tk_free(good);
}

static tk_err round_trip(const tk_model *m, const char *path)
{
    tk_model *back = NULL, *copy = NULL;
    tk_err err = tk_model_save(m, path, NULL);
    if (err == TK_OK) err = tk_model_load(&back, path, true, NULL);
    if (err == TK_OK) err = tk_model_clone(&copy, back);
    tk_model_destroy(back);
    tk_model_destroy(copy);
    return err;
}

static void running_out_of_memory_anywhere_leaves_nothing(void **state)
{
    (void)state;
    const char *path = fixture_path("oom.safetensors");
    tk_model *m = make(true);
    const long live = tk_test_alloc_live();
    /* Every allocation at first, later ones in steps: there are some hundreds, each of the same
     * kind. */
    for (long n = 0;; n += n < 40 ? 1 : 7) {
        tk_test_alloc_fail_after(n);
        const tk_err err = round_trip(m, path);
        tk_test_alloc_fail_after(-1);
        assert_int_equal(tk_test_alloc_live(), live);
        if (err == TK_OK) break;
        assert_int_equal(err, TK_NOMEM);
        assert_true(n < 100000);
    }
    tk_model_destroy(m);
}

static int clean(void **state)
{
    (void)state;
    fixture_clean();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_model_survives_the_file),
        cmocka_unit_test(a_share_of_the_wrong_size_is_refused),
        cmocka_unit_test(a_dropped_head_takes_its_share_of_the_fisher_along),
        cmocka_unit_test(a_clone_is_equal_and_independent),
        cmocka_unit_test(covariances_go_with_the_head_whose_images_they_hold),
        cmocka_unit_test(heads_are_added_once_and_dropped_by_id),
        cmocka_unit_test(a_head_needs_unique_clean_labels),
        cmocka_unit_test(an_adapter_is_added_once_and_changes_no_answer),
        cmocka_unit_test(an_adapter_of_another_trunk_is_refused),
        cmocka_unit_test(an_adapter_that_is_not_as_the_metadata_says_is_refused),
        cmocka_unit_test(weights_that_are_not_finite_are_refused),
        cmocka_unit_test(covariances_are_not_believed),
        cmocka_unit_test(a_damaged_file_is_refused_or_sound),
        cmocka_unit_test(running_out_of_memory_anywhere_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, clean);
}
