/* What trunkctl takes as images: CSV files in all their forms, folders per class, and the sentences
 * for mistakes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "csv.h"
#include "images.h"

typedef struct place {
    char dir[64];
} place;

static int make_place(void **state)
{
    place *p = calloc(1, sizeof(*p));
    if (!p) return -1;
    snprintf(p->dir, sizeof(p->dir), "/tmp/trunkctl-test-XXXXXX");
    if (!mkdtemp(p->dir)) return -1;
    *state = p;
    return 0;
}

static int drop_place(void **state)
{
    place *p = *state;
    char *command = tk__format("rm -rf '%s'", p->dir);
    const int code = system(command);
    free(command);
    free(p);
    return code;
}

/* A path below the place, valid until the next call but one. */
static const char *at(const place *p, const char *name)
{
    static char paths[2][512];
    static int which;
    which = !which;
    snprintf(paths[which], sizeof(paths[which]), "%s/%s", p->dir, name);
    return paths[which];
}

static void write_bytes(const char *path, const char *bytes, size_t size)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    fclose(file);
}

static void write_text(const char *path, const char *text)
{
    write_bytes(path, text, strlen(text));
}

static void make_dir(const char *path)
{
    assert_int_equal(mkdir(path, 0700), 0);
}

/* -- CSV -- */

/* Reads a CSV from `text` and joins its records as "a|b;c|d;"; a mistake ends it with "!why". */
static char *records(const place *p, const char *text, size_t size)
{
    const char *path = at(p, "t.csv");
    write_bytes(path, text, size);
    tk__csv csv;
    char *all = tk__copy("");
    bool fine = tk__csv_open(&csv, path);
    while (fine && tk__csv_next(&csv)) {
        for (size_t i = 0; i < csv.n; i++) {
            char *longer = tk__format("%s%s%s", all, csv.fields[i], i + 1 < csv.n ? "|" : ";");
            free(all);
            all = longer;
        }
    }
    if (csv.why[0]) {
        char *longer = tk__format("%s!%s", all, csv.why + strlen(path));
        free(all);
        all = longer;
    }
    tk__csv_close(&csv);
    return all;
}

static void csv_forms_are_understood(void **state)
{
    static const struct {
        const char *text, *records;
    } forms[] = {
        {"a,b\nc,d\n", "a|b;c|d;"},
        {"a,b\r\nc,d", "a|b;c|d;"},                    /* CRLF, no line feed at the end */
        {"\357\273\277a,b\n", "a|b;"},                 /* byte order mark */
        {"\"a,b\",\"c \"\"d\"\"\"\n", "a,b|c \"d\";"}, /* commas and quotes in quotes */
        {"\"a\nb\",c\n", "a\nb|c;"},                   /* a line feed in quotes */
        {"a,\n,b\n", "a|;|b;"},                        /* empty fields */
        {"\n\na\n\n", "a;"},                           /* blank lines */
        {"\"\",x\n", "|x;"},                           /* an empty quoted field */
        {"K\303\274he,\346\235\261\n", "K\303\274he|\346\235\261;"},
        {"", ""},
    };
    for (size_t i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
        char *got = records(*state, forms[i].text, strlen(forms[i].text));
        assert_string_equal(got, forms[i].records);
        free(got);
    }
}

static void csv_mistakes_name_their_line(void **state)
{
    char *got = records(*state, "a,b\n\"c,d\ne,f\n", 13);
    assert_string_equal(got, "a|b;!:2: a quote is opened and never closed");
    free(got);
    got = records(*state, "a\n\"b\"c\n", 8);
    assert_non_null(strstr(got, "!:2: text after a closing quote"));
    free(got);
    got = records(*state, "a\n\0b\n", 5);
    assert_non_null(strstr(got, "!:2: a zero byte"));
    free(got);
}

static void csv_records_are_bounded(void **state)
{
    const size_t size = 3 << 20;
    char *text = tk__alloc(size, 1);
    memset(text, 'x', size);
    char *got = records(*state, text, size);
    assert_non_null(strstr(got, "!:1: the record is too long"));
    free(got);
    free(text);
}

/* -- labelled images -- */

/* A folder with a few files and "labels.csv" of that text; reads it. */
static bool read_labels(const place *p, const char *csv, const tk__csv_opts *opts,
                        tk__images *images)
{
    write_text(at(p, "b.jpg"), "b");
    write_text(at(p, "a.jpg"), "a");
    write_text(at(p, "labels.csv"), csv);
    const bool fine = tk__images_labelled(images, at(p, "labels.csv"), opts);
    return fine;
}

static void csv_images_are_found_beside_it_and_sorted(void **state)
{
    tk__images images;
    assert_true(read_labels(*state, "label,file\nz,a.jpg\ny,b.jpg\n", &(tk__csv_opts){0}, &images));
    assert_int_equal(images.n, 2);
    assert_string_equal(images.items[0].label, "y");
    assert_string_equal(images.items[0].name, "b.jpg");
    assert_string_equal(images.items[0].path, at(*state, "b.jpg"));
    tk__images_free(&images);
}

static void csv_columns_and_rows_can_be_chosen(void **state)
{
    tk__images images;
    char bob[] = "part=bob", *items[] = {bob};
    const tk__list where = {.n = 1, .items = items};
    const tk__csv_opts opts = {.file_column = "path", .label_column = "colour", .where = &where};
    assert_true(
        read_labels(*state, "path,part,colour\na.jpg,bob,red\nb.jpg,eve,blue\n", &opts, &images));
    assert_int_equal(images.n, 1);
    assert_string_equal(images.items[0].label, "red");
    tk__images_free(&images);
}

static void csv_mistakes_are_told(void **state)
{
    static const struct {
        const char *csv, *sentence;
    } mistakes[] = {
        {"a.jpg,red\nb.jpg,blue\n", "labels.csv:1: no column \"file\""}, /* no header */
        {"file,colour\na.jpg,red\n", "labels.csv:1: no column \"label\""},
        {"file,label\na.jpg,red\nc.jpg,blue\n", "labels.csv:3: "}, /* a file that is not there */
        {"file,label\na.jpg\n", "labels.csv:2: 1 fields where the header has 2"},
        {"file,label\na.jpg,\n", "labels.csv:2: no label"},
        {"file,label\n", "no image is named"},
        {"", "empty"},
    };
    for (size_t i = 0; i < sizeof(mistakes) / sizeof(mistakes[0]); i++) {
        tk__images images;
        assert_false(read_labels(*state, mistakes[i].csv, &(tk__csv_opts){0}, &images));
        if (!strstr(images.why, mistakes[i].sentence)) fail_msg("%s", images.why);
        tk__images_free(&images);
    }
}

static void folders_per_class_are_read_in_order(void **state)
{
    const place *p = *state;
    make_dir(at(p, "t"));
    make_dir(at(p, "t/gr\303\274n"));
    make_dir(at(p, "t/blue"));
    make_dir(at(p, "t/blue/deep"));
    write_text(at(p, "t/gr\303\274n/x.JPG"), "1");
    write_text(at(p, "t/blue/b.png"), "2");
    write_text(at(p, "t/blue/deep/a.jpeg"), "3");
    write_text(at(p, "t/blue/Thumbs.db"), "4");
    write_text(at(p, "t/blue/.hidden.jpg"), "5");
    tk__images images;
    assert_true(tk__images_labelled(&images, at(p, "t/"), &(tk__csv_opts){0}));
    assert_int_equal(images.n, 3);
    assert_string_equal(images.items[0].name, "blue/b.png");
    assert_string_equal(images.items[1].name, "blue/deep/a.jpeg");
    assert_string_equal(images.items[2].label, "gr\303\274n");
    assert_int_equal(images.passed_over, 1);
    tk__images_free(&images);
}

static void folder_mistakes_are_told(void **state)
{
    const place *p = *state;
    tk__images images;
    make_dir(at(p, "t"));
    assert_false(tk__images_labelled(&images, at(p, "t"), &(tk__csv_opts){0}));
    assert_non_null(strstr(images.why, "each class is a folder"));
    tk__images_free(&images);
    make_dir(at(p, "t/train"));
    make_dir(at(p, "t/test"));
    assert_false(tk__images_labelled(&images, at(p, "t"), &(tk__csv_opts){0}));
    assert_non_null(strstr(images.why, "did you mean"));
    tk__images_free(&images);
    make_dir(at(p, "t/red"));
    assert_false(tk__images_labelled(&images, at(p, "t"), &(tk__csv_opts){0}));
    assert_non_null(strstr(images.why, "no image in it"));
    tk__images_free(&images);
    assert_false(tk__images_labelled(&images, at(p, "nowhere"), &(tk__csv_opts){0}));
    assert_non_null(strstr(images.why, "No such file"));
    tk__images_free(&images);
    write_text(at(p, "x.txt"), "");
    assert_false(tk__images_labelled(&images, at(p, "x.txt"), &(tk__csv_opts){0}));
    assert_non_null(strstr(images.why, "neither a folder nor a .csv"));
    tk__images_free(&images);
}

static void links_in_a_circle_end(void **state)
{
    const place *p = *state;
    tk__images images;
    make_dir(at(p, "t"));
    make_dir(at(p, "t/red"));
    write_text(at(p, "t/red/a.jpg"), "1");
    assert_int_equal(symlink("..", at(p, "t/red/up")), 0);
    assert_false(tk__images_labelled(&images, at(p, "t"), &(tk__csv_opts){0}));
    assert_non_null(strstr(images.why, "nested more than"));
    tk__images_free(&images);
}

static void a_file_is_read_whole(void **state)
{
    const place *p = *state;
    const size_t n = 200000;
    char *bytes = tk__alloc(n, 1), why[256] = "";
    for (size_t i = 0; i < n; i++)
        bytes[i] = (char)(i * 7);
    write_bytes(at(p, "big.jpg"), bytes, n);
    uint8_t *data = NULL;
    size_t capacity = 0, size = 0;
    assert_true(tk__read_image(at(p, "big.jpg"), &data, &capacity, &size, why, sizeof(why)));
    assert_int_equal(size, n);
    assert_memory_equal(data, bytes, n);
    assert_false(tk__read_image(at(p, "none.jpg"), &data, &capacity, &size, why, sizeof(why)));
    assert_non_null(strstr(why, "none.jpg: No such file"));
    free(data);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(csv_forms_are_understood, make_place, drop_place),
        cmocka_unit_test_setup_teardown(csv_mistakes_name_their_line, make_place, drop_place),
        cmocka_unit_test_setup_teardown(csv_records_are_bounded, make_place, drop_place),
        cmocka_unit_test_setup_teardown(csv_images_are_found_beside_it_and_sorted, make_place,
                                        drop_place),
        cmocka_unit_test_setup_teardown(csv_columns_and_rows_can_be_chosen, make_place, drop_place),
        cmocka_unit_test_setup_teardown(csv_mistakes_are_told, make_place, drop_place),
        cmocka_unit_test_setup_teardown(folders_per_class_are_read_in_order, make_place,
                                        drop_place),
        cmocka_unit_test_setup_teardown(folder_mistakes_are_told, make_place, drop_place),
        cmocka_unit_test_setup_teardown(links_in_a_circle_end, make_place, drop_place),
        cmocka_unit_test_setup_teardown(a_file_is_read_whole, make_place, drop_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
