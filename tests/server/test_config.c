/* Flags, their environment twins, and the lines of the log. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "config.h"
#include "log.h"

static char value_of_px[] = "64";

static char *environment(const char *name)
{
    static char home[] = "/home/someone";
    if (strcmp(name, "HOME") == 0) return home;
    return strcmp(name, "TRUNKD_PX") == 0 ? value_of_px : NULL;
}

static tk_err parse(tk_config *c, tk_diag *diag, const char *first, const char *second)
{
    static char program[] = "trunkd", a[128], b[128]; /* the config points into them */
    char *argv[] = {program, a, b, NULL};
    snprintf(a, sizeof a, "%s", first ? first : "");
    snprintf(b, sizeof b, "%s", second ? second : "");
    return tk_config_parse(c, 1 + (first != NULL) + (second != NULL), argv, environment, diag);
}

static void a_flag_wins_over_its_variable(void **state)
{
    (void)state;
    tk_config c;
    tk_diag diag;
    assert_int_equal(parse(&c, &diag, NULL, NULL), TK_OK);
    assert_int_equal(c.px, 64);
    assert_int_equal(c.batch, 16);
    assert_float_equal(c.delay_ms, 2, 0);
    assert_string_equal(c.listen, "127.0.0.1:7700");
    assert_null(c.http); /* names of tenants are told only where somebody asked for it */
    assert_string_equal(c.access_log, "no");
    assert_true(c.store && strstr(c.store, "trunkd"));
    assert_int_equal(parse(&c, &diag, "--px", "32"), TK_OK);
    assert_int_equal(c.px, 32);
    assert_int_equal(parse(&c, &diag, "--px=128", "--delay-ms=0.5"), TK_OK);
    assert_int_equal(c.px, 128);
    assert_float_equal(c.delay_ms, 0.5, 0);
}

static void a_tenants_limits_are_off_or_given(void **state)
{
    (void)state;
    tk_config c;
    tk_diag diag;
    assert_int_equal(parse(&c, &diag, NULL, NULL), TK_OK);
    assert_int_equal(c.tenant_queue, 0); /* half of the queue: the server's business */
    assert_float_equal(c.tenant_rate, 0, 0);
    assert_int_equal(parse(&c, &diag, "--tenant-queue=300", "--tenant-rate=12.5"), TK_OK);
    assert_int_equal(c.tenant_queue, 300);
    assert_float_equal(c.tenant_rate, 12.5, 0);
}

static void sizes_take_units(void **state)
{
    (void)state;
    tk_config c;
    tk_diag diag;
    assert_int_equal(parse(&c, &diag, "--max-upload-bytes", "3g"), TK_OK);
    assert_int_equal(c.max_upload_bytes, UINT64_C(3) << 30);
    assert_int_equal(parse(&c, &diag, "--max-upload-bytes", "1.5K"), TK_OK);
    assert_int_equal(c.max_upload_bytes, 1536);
    assert_int_equal(parse(&c, &diag, "--max-upload-bytes", "3 g"), TK_BADARG);
    assert_int_equal(parse(&c, &diag, "--max-upload-bytes", "3gb"), TK_BADARG);
}

static void a_bad_value_is_named_with_what_is_allowed(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"--batch", "0"},
        {"--batch", "-1"},
        {"--batch", "1e99"},
        {"--batch", "2.5"},
        {"--batch", ""},
        {"--batch", "nan"},
        {"--delay-ms", "x"},
        {"--arch", "resnet"},
        {"--arch", ""},
        {"--isa", "avx"},
        {"--log-level", "i"},
        {"--log-format", ""},
        {"--tenant-queue", "255"},
        {"--tenant-queue", "many"},
        {"--tenant-rate", "0"},
        {"--tenant-rate", "-5"},
        {"--tenant-rate", "1e7"},
        {"--resize-mode", ":"},
        {"--listen", ""},
        {"--precision", "fp16"},
        {"--precision", ""},
        {"--http", ""},
        {"--access-log", "1"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        tk_config c;
        tk_diag diag = {{0}};
        assert_int_equal(parse(&c, &diag, bad[i][0], bad[i][1]), TK_BADARG);
        assert_non_null(strstr(diag.text, bad[i][0]));
    }
    tk_config c;
    tk_diag diag = {{0}};
    assert_int_equal(parse(&c, &diag, "--arch", "vgg"), TK_BADARG);
    assert_non_null(strstr(diag.text, "resnet50|resnet20"));
    assert_int_equal(parse(&c, &diag, "--port-file", NULL), TK_BADARG);
    assert_non_null(strstr(diag.text, "needs a value"));
    assert_int_equal(parse(&c, &diag, "--portfile", "x"), TK_BADARG);
    assert_int_equal(parse(&c, &diag, "stray", NULL), TK_BADARG);
    assert_non_null(strstr(diag.text, "\"stray\""));
}

static void plain_text_stays_on_this_machine(void **state)
{
    (void)state;
    static const char *const fine[] = {"127.0.0.1:0",   "127.9.9.9:7700", "[::1]:7700",
                                       "localhost:700", "unix:/run/x",    "unix-abstract:x"};
    static const char *const open[] = {
        "0.0.0.0:7700", "[::]:7700",      ":7700",       "10.0.0.1:7700",      "example.org:7700",
        "127.1:7700",   "127.0.0.1.x:77", "[::2]:7700",  "ipv4:127.0.0.1:770", "localhost.x:7700",
        "*:7700",       "dns:localhost",  "UNIX:/run/x", "[127.0.0.1]:7700",   "::1:7700",
    };
    tk_config c;
    tk_diag diag;
    for (size_t i = 0; i < sizeof fine / sizeof *fine; i++)
        assert_int_equal(parse(&c, &diag, "--listen", fine[i]), TK_OK);
    for (size_t i = 0; i < sizeof open / sizeof *open; i++) {
        diag.text[0] = '\0';
        if (parse(&c, &diag, "--listen", open[i]) != TK_BADARG) fail_msg("%s is taken", open[i]);
        assert_non_null(strstr(diag.text, open[i]));
        assert_non_null(strstr(diag.text, "--tls-cert")); /* the two ways out */
        assert_non_null(strstr(diag.text, "--allow-plaintext"));
        char listen[64];
        snprintf(listen, sizeof listen, "--listen=%s", open[i]);
        assert_int_equal(parse(&c, &diag, listen, "--allow-plaintext=yes"), TK_OK);
        assert_int_equal(parse(&c, &diag, listen, "--allow-plaintext=no"), TK_BADARG);
        assert_int_equal(parse(&c, &diag, listen, "--help"), TK_OK);
    }
}

static void flags_of_tls_belong_together(void **state)
{
    (void)state;
    static const char *const bad[][3] = {
        {"--tls-cert=c", NULL, "without --tls-key"},
        {"--tls-key=k", NULL, "without --tls-cert"},
        {"--tls-client-ca=a", NULL, "without --tls-cert and --tls-key"},
        {"--tls-client=required", NULL, "no --tls-client-ca"},
        {"--tls-client=maybe", NULL, "required|optional"},
        {"--allow-plaintext=", NULL, "yes|no"},
    };
    tk_config c;
    tk_diag diag;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(parse(&c, &diag, bad[i][0], bad[i][1]), TK_BADARG);
        assert_non_null(strstr(diag.text, bad[i][2]));
    }
    assert_int_equal(parse(&c, &diag, "--tls-cert=c", "--tls-key=k"), TK_OK);
    assert_string_equal(c.tls_cert, "c");
    assert_string_equal(c.tls_key, "k");
}

/* Logs to a pipe in place of standard error and reads the line back. */
static void logged(bool json, const char *value, char *out, size_t size)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    const int before = dup(STDERR_FILENO);
    dup2(ends[1], STDERR_FILENO);
    tk_log_init(json, TK_LOG_INFO);
    tk_log(TK_LOG_DEBUG, "unseen", (tk_log_field[]){tk_log_end()});
    tk_log(TK_LOG_WARN, "an event",
           (tk_log_field[]){tk_log_str("value", value), tk_log_int("n", -7), tk_log_end()});
    dup2(before, STDERR_FILENO);
    close(before);
    close(ends[1]);
    const ssize_t n = read(ends[0], out, size - 1);
    close(ends[0]);
    assert_true(n > 0);
    out[n] = '\0';
}

static void a_value_cannot_forge_a_line_or_a_field(void **state)
{
    (void)state;
    char line[16384];
    logged(false, "x\ntime=1 level=info", line, sizeof line);
    assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1); /* one line */
    assert_non_null(
        strstr(line, " level=warn event=\"an event\" value=\"x\\u000atime=1 level=info\" n=-7\n"));
    logged(false, "plain", line, sizeof line);
    assert_non_null(strstr(line, " value=plain n=-7\n"));
    logged(false, "", line, sizeof line);
    assert_non_null(strstr(line, " value=\"\" n=-7\n"));
}

static void json_lines_are_json_whatever_the_value(void **state)
{
    (void)state;
    static char longest[20000];
    memset(longest, '"', sizeof longest - 1);
    const char *const values[] = {"plain", "quote \" and \\ and \n", "\xff\xfe broken \xc3",
                                  "ü € 𝄞", longest};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        char line[16384];
        logged(true, values[i], line, sizeof line);
        json_t *parsed = json_loads(line, 0, NULL);
        assert_non_null(parsed);
        assert_string_equal(json_string_value(json_object_get(parsed, "level")), "warn");
        if (i < 2 || i == 3)
            assert_string_equal(json_string_value(json_object_get(parsed, "value")), values[i]);
        json_decref(parsed);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_flag_wins_over_its_variable),
        cmocka_unit_test(a_tenants_limits_are_off_or_given),
        cmocka_unit_test(sizes_take_units),
        cmocka_unit_test(a_bad_value_is_named_with_what_is_allowed),
        cmocka_unit_test(plain_text_stays_on_this_machine),
        cmocka_unit_test(flags_of_tls_belong_together),
        cmocka_unit_test(a_value_cannot_forge_a_line_or_a_field),
        cmocka_unit_test(json_lines_are_json_whatever_the_value),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
