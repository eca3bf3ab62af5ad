/* The pack file: what goes in comes out; damage of any byte is found or harmless. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/mem.h"
#include "fixture.h"
#include "heads/pack.h"

static void write_small(const char *path)
{
    tk_pack_writer *w;
    uint32_t cat, dog;
    assert_int_equal(tk_pack_create(&w, path, NULL), TK_OK);
    assert_int_equal(tk_pack_label(w, "cat", &cat, NULL), TK_OK);
    assert_int_equal(tk_pack_label(w, "d\xc3\xb6g", &dog, NULL), TK_OK);
    assert_int_equal(tk_pack_add(w, dog, "b.png", "BBBB", 4, NULL), TK_OK);
    assert_int_equal(tk_pack_add(w, cat, "", "A", 1, NULL), TK_OK);
    assert_int_equal(tk_pack_add(w, dog, "c", "CC", 2, NULL), TK_OK);
    assert_int_equal(tk_pack_writer_count(w), 3);
    assert_int_equal(tk_pack_commit(w, NULL), TK_OK);
}

static void items_come_out_in_order(void **state)
{
    (void)state;
    const char *path = fixture_path("small.pack");
    tk_pack *pack;
    write_small(path);
    assert_int_equal(tk_pack_open(&pack, path, NULL), TK_OK);
    assert_int_equal(tk_pack_count(pack), 3);
    assert_int_equal(tk_pack_classes(pack), 2);
    assert_string_equal(tk_pack_label_name(pack, 1), "d\xc3\xb6g");
    tk_pack_item item = tk_pack_get(pack, 0);
    assert_int_equal(item.label, 1);
    assert_string_equal(item.name, "b.png");
    assert_int_equal(item.size, 4);
    assert_memory_equal(item.data, "BBBB", 4);
    item = tk_pack_get(pack, 1);
    assert_string_equal(item.name, "");
    assert_memory_equal(item.data, "A", 1);
    assert_int_equal(tk_pack_get(pack, 2).size, 2);
    tk_pack_close(pack);
}

static void an_empty_pack_is_a_pack(void **state)
{
    (void)state;
    const char *path = fixture_path("empty.pack");
    tk_pack_writer *w;
    tk_pack *pack;
    assert_int_equal(tk_pack_create(&w, path, NULL), TK_OK);
    assert_int_equal(tk_pack_commit(w, NULL), TK_OK);
    assert_int_equal(tk_pack_open(&pack, path, NULL), TK_OK);
    assert_int_equal(tk_pack_count(pack), 0);
    tk_pack_close(pack);
}

static void nothing_appears_before_commit(void **state)
{
    (void)state;
    const char *path = fixture_path("aborted.pack");
    tk_pack_writer *w;
    assert_int_equal(tk_pack_create(&w, path, NULL), TK_OK);
    assert_int_equal(access(path, F_OK), -1);
    tk_pack_abort(w);
    assert_int_equal(access(path, F_OK), -1);
}

static void many_labels_keep_their_index_up_to_the_limit(void **state)
{
    (void)state;
    tk_pack_writer *w;
    tk_diag diag;
    char name[32];
    uint32_t index;
    assert_int_equal(tk_pack_create(&w, fixture_path("labels.pack"), NULL), TK_OK);
    for (int pass = 0; pass < 2; pass++)
        for (uint32_t i = 0; i < TK_HEAD_MAX_CLASSES; i++) {
            snprintf(name, sizeof name, "label %u", i);
            assert_int_equal(tk_pack_label(w, name, &index, NULL), TK_OK);
            assert_int_equal(index, i);
        }
    assert_int_equal(tk_pack_label(w, "one more", &index, &diag), TK_LIMIT);
    assert_non_null(strstr(diag.text, "10000"));
    tk_pack_abort(w);
}

static void bad_labels_and_images_are_refused_by_name(void **state)
{
    (void)state;
    tk_pack_writer *w;
    tk_diag diag;
    uint32_t index;
    char longest[TK_LABEL_MAX + 2];
    memset(longest, 'x', sizeof longest);
    longest[sizeof longest - 1] = 0;
    assert_int_equal(tk_pack_create(&w, fixture_path("bad.pack"), NULL), TK_OK);
    const char *const bad[] = {"", "a\nb", "\xff", "\xc0\x80", "\xed\xa0\x80", "a\x7f", longest};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(tk_pack_label(w, bad[i], &index, &diag), TK_BADARG);
    assert_non_null(strstr(diag.text, "257 bytes"));
    assert_int_equal(tk_pack_label(w, longest + 1, &index, NULL), TK_OK);
    assert_int_equal(tk_pack_add(w, 1, "a", "x", 1, NULL), TK_BADARG);
    assert_int_equal(tk_pack_add(w, 0, "a\rb", "x", 1, NULL), TK_BADARG);
    assert_int_equal(tk_pack_add(w, 0, "a", "", 0, NULL), TK_BADARG);
    assert_int_equal(tk_pack_writer_count(w), 0);
    tk_pack_abort(w);
}

/* Reads everything that an accepted pack offers, so that a sanitizer sees a bad pointer. */
static size_t walk(const tk_pack *pack)
{
    size_t sum = 0;
    for (size_t i = 0; i < tk_pack_count(pack); i++) {
        const tk_pack_item item = tk_pack_get(pack, i);
        sum += strlen(item.name) + strlen(tk_pack_label_name(pack, item.label));
        for (size_t k = 0; k < item.size; k++)
            sum += item.data[k];
    }
    return sum;
}

/* Only image bytes and the letters of a file name may change unnoticed: 4 + 1 + 2 and 5 + 1. */
static void every_flipped_byte_is_found_or_harmless(void **state)
{
    (void)state;
    const char *path = fixture_path("flip.pack");
    size_t size, accepted = 0;
    write_small(path);
    uint8_t *good = fixture_read(path, &size);
    for (size_t i = 0; i < size; i++) {
        tk_pack *pack;
        good[i] ^= 0x01;
        fixture_write(path, good, size);
        good[i] ^= 0x01;
        const tk_err err = tk_pack_open(&pack, path, NULL);
        if (err == TK_OK)
            accepted++, (void)walk(pack);
        else
            assert_int_equal(err, TK_BADDATA);
        tk_pack_close(pack);
    }
    assert_int_equal(accepted, 4 + 1 + 2 + 5 + 1);
    tk_free(good);
}

static void every_cut_is_found(void **state)
{
    (void)state;
    const char *path = fixture_path("cut.pack");
    size_t size;
    write_small(path);
    uint8_t *good = fixture_read(path, &size);
    for (size_t n = 0; n < size; n++) {
        tk_pack *pack;
        fixture_write(path, good, n);
        assert_int_equal(tk_pack_open(&pack, path, NULL), TK_BADDATA);
        assert_null(pack);
    }
    tk_free(good);
}

static tk_err write_and_read(const char *path)
{
    tk_pack_writer *w;
    uint32_t label;
    tk_err err = tk_pack_create(&w, path, NULL);
    if (err != TK_OK) return err;
    for (int i = 0; i < 40 && err == TK_OK; i++) {
        char name[16];
        snprintf(name, sizeof name, "l%d", i);
        err = tk_pack_label(w, name, &label, NULL);
        if (err == TK_OK) err = tk_pack_add(w, label, name, name, 2, NULL);
    }
    if (err != TK_OK) {
        tk_pack_abort(w);
        return err;
    }
    err = tk_pack_commit(w, NULL);
    if (err != TK_OK) return err;
    tk_pack *pack;
    err = tk_pack_open(&pack, path, NULL);
    if (err == TK_OK) assert_int_equal(tk_pack_count(pack), 40);
    tk_pack_close(pack);
    return err;
}

static void running_out_of_memory_anywhere_leaves_nothing(void **state)
{
    (void)state;
    const char *path = fixture_path("oom.pack");
    const long live = tk_test_alloc_live();
    for (long n = 0;; n++) {
        tk_test_alloc_fail_after(n);
        const tk_err err = write_and_read(path);
        tk_test_alloc_fail_after(-1);
        assert_int_equal(tk_test_alloc_live(), live);
        if (err == TK_OK) break;
        assert_int_equal(err, TK_NOMEM);
        assert_true(n < 1000);
    }
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
        cmocka_unit_test(items_come_out_in_order),
        cmocka_unit_test(an_empty_pack_is_a_pack),
        cmocka_unit_test(nothing_appears_before_commit),
        cmocka_unit_test(many_labels_keep_their_index_up_to_the_limit),
        cmocka_unit_test(bad_labels_and_images_are_refused_by_name),
        cmocka_unit_test(every_flipped_byte_is_found_or_harmless),
        cmocka_unit_test(every_cut_is_found),
        cmocka_unit_test(running_out_of_memory_anywhere_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, clean);
}
