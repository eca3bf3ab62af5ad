/* job.json: every field is checked, and what is wrong is said by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "fixture.h"
#include "job_file.h"

static tk_err read_text(job_file *file, const char *text, tk_diag *diag)
{
    const char *path = fixture_path("job.json");
    fixture_write(path, text, strlen(text));
    *diag = (tk_diag){0};
    return job_file_read(file, path, diag);
}

static void a_full_job_is_read(void **state)
{
    (void)state;
    job_file f;
    tk_diag diag;
    const tk_err err = read_text(
        &f,
        "{\"job\":\"17\",\"base\":\"/v\",\"data\":\"/d\",\"head\":\"a/b\",\"tolerance\":0.5,"
        "\"retention\":\"nothing\",\"validations\":[{\"head\":\"x/y\",\"pack\":\"/p\"}],"
        "\"recipe\":\"kd\",\"set\":{\"kappa\":2,\"rate\":0.01},\"fallback\":\"reject\",\"seed\":7,"
        "\"threads\":2,\"memory_limit\":1000000}",
        &diag);
    assert_int_equal(err, TK_OK);
    assert_string_equal(f.job, "17");
    assert_string_equal(f.opts.base, "/v");
    assert_string_equal(f.opts.head, "a/b");
    assert_true(f.opts.tolerance == 0.5);
    assert_false(f.opts.keep_validation);
    assert_false(f.opts.fallback_probe);
    assert_true(f.opts.gate);
    assert_int_equal(f.opts.n_validations, 1);
    assert_string_equal(f.opts.validations[0].path, "/p");
    assert_int_equal(f.opts.n_set, 2);
    assert_string_equal(f.opts.set[1].name, "rate");
    assert_int_equal(f.opts.seed, 7);
    assert_int_equal(f.threads, 2);
    job_file_fini(&f);
}

static void absent_fields_have_defaults(void **state)
{
    (void)state;
    job_file f;
    tk_diag diag;
    assert_int_equal(read_text(&f, "{\"base\":\"/v\",\"data\":\"/d\",\"head\":\"a\"}", &diag),
                     TK_OK);
    assert_string_equal(f.opts.recipe, "kd+ewc");
    assert_true(f.opts.keep_validation && f.opts.fallback_probe && f.opts.tolerance == 1);
    job_file_fini(&f);
    assert_int_equal(
        read_text(&f, "{\"base\":null,\"arch\":\"resnet20\",\"data\":\"/d\",\"head\":\"a\"}",
                  &diag),
        TK_OK);
    assert_string_equal(f.opts.recipe, "scratch");
    assert_int_equal(f.opts.preproc.crop, 32);
    job_file_fini(&f);
}

static void what_is_wrong_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "line"},
        {"[]", "not an object"},
        {"{\"data\":\"/d\",\"data\":\"/e\"}", "duplicate"},
        {"{\"base\":\"/v\",\"head\":\"a\"}", "data: missing"},
        {"{\"base\":\"/v\",\"data\":\"/d\"}", "head: missing"},
        {"{\"data\":\"/d\",\"head\":\"a\"}", "arch: missing"},
        {"{\"arch\":\"vgg\",\"data\":\"/d\",\"head\":\"a\"}", "vgg"},
        {"{\"base\":7,\"data\":\"/d\",\"head\":\"a\"}", "base: not a string"},
        {"{\"base\":\"/v\",\"data\":\"\",\"head\":\"a\"}", "data: not a string, or empty"},
        {"{\"base\":\"/v\",\"data\":\"/d\",\"head\":\"a\",\"lamda\":1}",
         "\"lamda\": no such field"},
        {"{\"base\":\"/v\",\"data\":\"/d\",\"head\":\"a\",\"seed\":-1}", "seed: -1"},
        {"{\"base\":\"/v\",\"data\":\"/d\",\"head\":\"a\",\"seed\":1.5}", "seed: not an integer"},
        {"{\"base\":\"/v\",\"data\":\"/d\",\"head\":\"a\",\"threads\":1000}", "threads: 1000"},
        {"{\"base\":\"/v\",\"data\":\"/d\",\"head\":\"a\",\"tolerance\":101}", "tolerance"},
        {"{\"base\":\"/v\",\"data\":\"/d\",\"head\":\"a\",\"tolerance\":\"1\"}", "tolerance"},
        {"{\"base\":\"/v\",\"data\":\"/d\",\"head\":\"a\",\"retention\":\"all\"}", "\"all\""},
        {"{\"base\":\"/v\",\"data\":\"/d\",\"head\":\"a\",\"fallback\":\"no\"}", "\"no\""},
        {"{\"base\":\"/v\",\"data\":\"/d\",\"head\":\"a\",\"set\":[1]}", "set: not an object"},
        {"{\"base\":\"/v\",\"data\":\"/d\",\"head\":\"a\",\"set\":{\"rate\":\"x\"}}", "\"rate\""},
        {"{\"base\":\"/v\",\"data\":\"/d\",\"head\":\"a\",\"validations\":{}}", "validations"},
        {"{\"base\":\"/v\",\"data\":\"/d\",\"head\":\"a\",\"validations\":[1]}", "head: missing"},
        {"{\"base\":\"/v\",\"data\":\"/d\",\"head\":\"a\",\"gate\":0}", "gate"},
        {"{\"arch\":\"resnet20\",\"preproc\":{\"crop\":-5},\"data\":\"/d\",\"head\":\"a\"}",
         "crop: -5"},
        {"{\"arch\":\"resnet20\",\"preproc\":{\"mode\":\"x\"},\"data\":\"/d\",\"head\":\"a\"}",
         "mode"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        job_file f;
        tk_diag diag;
        const tk_err err = read_text(&f, cases[i].text, &diag);
        if (err != TK_BADDATA || !strstr(diag.text, cases[i].says))
            fail_msg("%s: %s, \"%s\"", cases[i].text, tk_err_text(err), diag.text);
        assert_null(f.root);
    }
}

/* A thousand brackets are refused by the parser, not by the stack. */
static void deep_nesting_is_refused(void **state)
{
    (void)state;
    static char text[200001];
    job_file f;
    tk_diag diag;
    memset(text, '[', sizeof text - 1);
    assert_int_equal(read_text(&f, text, &diag), TK_BADDATA);
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
        cmocka_unit_test(a_full_job_is_read),
        cmocka_unit_test(absent_fields_have_defaults),
        cmocka_unit_test(what_is_wrong_is_named),
        cmocka_unit_test(deep_nesting_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, clean);
}
