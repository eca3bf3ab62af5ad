/* trunkctl's parts, one by one: the command line, the config file, text made harmless, the tally,
 * frames, load. */
#include <math.h>
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

#include "chart.h"
#include "config.h"
#include "csv.h"
#include "ctl.h"
#include "frames.h"
#include "json.h"
#include "load.h"
#include "quantile.h"
#include "tally.h"
#include "term.h"
#include "trunkd/v1/jobs.pb-c.h"

static int no_run(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    (void)ctl, (void)cmd, (void)argc, (void)argv;
    return TK__DONE;
}

static const tk__cmd demo_cmd = {"demo", "FILE", "for tests", "  trunkctl demo", no_run};

typedef struct parsed {
    bool flag;
    const char *text;
    uint64_t number;
    double real;
    tk__list many, rest;
    tk__ctl ctl;
    int code;
} parsed;

/* Parses one line split at blanks, with between 1 and 2 arguments allowed. */
static parsed parse(const char *line)
{
    static char words[512];
    static char *argv[32];
    parsed p = {0};
    int argc = 0;
    snprintf(words, sizeof(words), "%s", line);
    for (char *word = strtok(words, " "); word && argc < 31; word = strtok(NULL, " "))
        argv[argc++] = word;
    argv[argc] = NULL;
    const tk__opt opts[] = {
        {"flag", 'f', TK__FLAG, &p.flag, NULL, ""},    {"text", 't', TK__TEXT, &p.text, "T", ""},
        {"number", 0, TK__NUMBER, &p.number, "N", ""}, {"real", 0, TK__REAL, &p.real, "R", ""},
        {"many", 0, TK__MANY, &p.many, "M", ""},
    };
    p.code = tk__args_parse(&p.ctl, &demo_cmd, opts, 5, argc, argv, &p.rest, 1, 2);
    return p;
}

static void release(parsed *p)
{
    tk__list_free(&p->many);
    tk__list_free(&p->rest);
}

static void options_and_arguments_mix_in_any_order(void **state)
{
    (void)state;
    parsed p =
        parse("demo a --number 7 -f --server=host:1 b --many x --many y --real -2.5 -t z --json");
    assert_int_equal(p.code, TK__GO);
    assert_int_equal(p.rest.n, 2);
    assert_string_equal(p.rest.items[0], "a");
    assert_string_equal(p.rest.items[1], "b");
    assert_true(p.flag && p.ctl.json && !p.ctl.quiet);
    assert_int_equal(p.number, 7);
    assert_true(fabs(p.real + 2.5) < 1e-12);
    assert_string_equal(p.text, "z");
    assert_string_equal(p.ctl.server, "host:1");
    assert_int_equal(p.many.n, 2);
    assert_string_equal(p.many.items[1], "y");
    release(&p);
}

static void wrong_command_lines_are_usage_errors(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "demo",
        "demo a b c",
        "demo a --bogus",
        "demo a --number",
        "demo a --number x",
        "demo a --number -1",
        "demo a --number 1x",
        "demo a --real nan",
        "demo a --real 1e999",
        "demo a --number 99999999999999999999999",
    };
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        parsed p = parse(lines[i]);
        if (p.code != TK__USAGE) fail_msg("\"%s\" gave %d", lines[i], p.code);
        assert_int_equal(p.rest.n, 0);
        release(&p);
    }
}

static void a_list_of_names_is_split_at_commas(void **state)
{
    (void)state;
    tk__list list = tk__list_split("type,,colour,");
    assert_int_equal(list.n, 2);
    assert_string_equal(list.items[0], "type");
    assert_string_equal(list.items[1], "colour");
    tk__list_free_deep(&list);
    list = tk__list_split(NULL);
    assert_int_equal(list.n, 0);
}

/* -- the config file -- */

typedef struct place {
    char dir[64], file[96];
} place;

static int make_place(void **state)
{
    place *p = calloc(1, sizeof(*p));
    if (!p) return -1;
    snprintf(p->dir, sizeof(p->dir), "/tmp/trunkctl-test-XXXXXX");
    if (!mkdtemp(p->dir)) return -1;
    snprintf(p->file, sizeof(p->file), "%s/config", p->dir);
    *state = p;
    return 0;
}

static int drop_place(void **state)
{
    place *p = *state;
    unlink(p->file);
    rmdir(p->dir);
    free(p);
    return 0;
}

static void write_file(const char *path, const char *text, mode_t mode)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    assert_int_equal(chmod(path, mode), 0);
}

static void config_of_mode_0600_is_read(void **state)
{
    const place *p = *state;
    tk__config config;
    char *why = NULL;
    write_file(p->file, "# mine\n\n server = example:7700 \r\ntoken=abc=def\n", 0600);
    assert_true(tk__config_read(&config, p->file, &why));
    assert_null(why);
    assert_string_equal(config.server, "example:7700");
    assert_string_equal(config.token, "abc=def");
    tk__config_free(&config);
    write_file(p->file,
               "tls = yes\ntls-ca = /a b.pem\ntls-client-cert=c\ntls-client-key=k\ntls-name=n\n",
               0600);
    assert_true(tk__config_read(&config, p->file, &why));
    assert_string_equal(config.tls, "yes");
    assert_string_equal(config.tls_ca, "/a b.pem");
    assert_string_equal(config.tls_client_cert, "c");
    assert_string_equal(config.tls_client_key, "k");
    assert_string_equal(config.tls_name, "n");
    tk__config_free(&config);
    write_file(p->file, "", 0400);
    assert_true(tk__config_read(&config, p->file, &why));
    assert_null(config.token);
}

static void config_that_others_may_reach_is_refused(void **state)
{
    const place *p = *state;
    static const mode_t modes[] = {0604, 0640, 0660, 0644, 0666, 0610, 0601, 0602};
    for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        tk__config config;
        char *why = NULL;
        write_file(p->file, "token = secret\n", modes[i]);
        assert_false(tk__config_read(&config, p->file, &why));
        assert_null(config.token);
        assert_non_null(strstr(why, "chmod 600"));
        assert_null(strstr(why, "secret"));
        free(why);
    }
}

static void config_mistakes_name_file_and_line(void **state)
{
    const place *p = *state;
    tk__config config;
    char *why = NULL;
    write_file(p->file, "server = a:1\ntokn = x\n", 0600);
    assert_false(tk__config_read(&config, p->file, &why));
    assert_null(config.server);
    assert_non_null(strstr(why, "/config:2:"));
    free(why);
}

static void config_that_is_not_there_is_empty(void **state)
{
    const place *p = *state;
    tk__config config;
    char *why = NULL;
    assert_true(tk__config_read(&config, p->file, &why));
    assert_null(config.server);
    assert_null(config.token);
}

static void token_file_gives_its_first_line(void **state)
{
    const place *p = *state;
    char *why = NULL;
    write_file(p->file, "  tok-1 \nmore\n", 0600);
    char *token = tk__token_read(p->file, &why);
    assert_string_equal(token, "tok-1");
    free(token);
    write_file(p->file, "\n", 0600);
    assert_null(tk__token_read(p->file, &why));
    assert_non_null(strstr(why, "empty"));
    free(why);
    unlink(p->file);
    assert_null(tk__token_read(p->file, &why));
    assert_non_null(strstr(why, "No such file"));
    free(why);
}

/* -- text for people -- */

static void assert_cleaned(const char *in, const char *out)
{
    char *clean = tk__clean(in);
    assert_string_equal(clean, out);
    free(clean);
}

static void terminal_escapes_are_neutralised(void **state)
{
    (void)state;
    assert_cleaned("plain", "plain");
    assert_cleaned("\033[2Jgone\007", "?[2Jgone?");
    assert_cleaned("two\nlines\r\ttab", "two?lines??tab");
    assert_cleaned("\302\233"
                   "31m",
                   "?31m");                            /* C1 CSI in UTF-8 */
    assert_cleaned("\342\200\256exe.jpg", "?exe.jpg"); /* right-to-left override */
    assert_cleaned("K\303\274he \360\237\220\204", "K\303\274he \360\237\220\204");
}

static void bytes_that_are_not_utf8_become_question_marks(void **state)
{
    (void)state;
    assert_cleaned("a\377b\200", "a?b?");
    assert_cleaned("\300\257", "??");           /* overlong */
    assert_cleaned("\355\240\200", "???");      /* surrogate */
    assert_cleaned("\342\202", "??");           /* cut short */
    assert_cleaned("\364\220\200\200", "????"); /* beyond U+10FFFF */
}

static void width_counts_columns_not_bytes(void **state)
{
    (void)state;
    assert_int_equal(tk__width("gr\303\274n"), 4);
    assert_int_equal(tk__width("\350\265\244"), 2); /* a wide character */
    assert_int_equal(tk__width("e\314\201"), 1);    /* a combining one */
}

static void numbers_read_well(void **state)
{
    (void)state;
    char buf[32];
    assert_string_equal(tk__percent(0.8367, buf, sizeof(buf)), "83.7 %");
    assert_string_equal(tk__points(-0.0041, buf, sizeof(buf)), "-0.4");
    assert_string_equal(tk__points(-0.0001, buf, sizeof(buf)), "+0.0");
    assert_string_equal(tk__bytes(1536, buf, sizeof(buf)), "1.5 KiB");
    assert_string_equal(tk__seconds(65, buf, sizeof(buf)), "65 s");
    assert_string_equal(tk__seconds(185, buf, sizeof(buf)), "3 min 5 s");
    assert_string_equal(tk__seconds((double)NAN, buf, sizeof(buf)), "?");
}

/* -- JSON of messages -- */

static void messages_become_json_by_their_fields(void **state)
{
    (void)state;
    char head[] = "colour \033", reason[] = "";
    Trunkd__V1__HeadAccuracy accuracy, *heads[] = {&accuracy};
    trunkd__v1__head_accuracy__init(&accuracy);
    accuracy.head = head;
    accuracy.accuracy = 0.5;
    accuracy.own = 1;
    Trunkd__V1__Job job;
    trunkd__v1__job__init(&job);
    job.id = 17;
    job.state = TRUNKD__V1__JOB_STATE__COMMITTED;
    job.reason = reason;
    job.n_heads = 1;
    job.heads = heads;
    json_t *json = tk__json_of(&job.base);
    assert_int_equal(json_integer_value(json_object_get(json, "id")), 17);
    assert_string_equal(json_string_value(json_object_get(json, "state")), "COMMITTED");
    const json_t *first = json_array_get(json_object_get(json, "heads"), 0);
    assert_string_equal(json_string_value(json_object_get(first, "head")), "colour \033");
    assert_true(json_is_true(json_object_get(first, "own")));
    assert_int_equal(json_array_size(json_object_get(json, "set")), 0);
    json_decref(json);
}

/* -- tally -- */

static void tally_counts_and_sorts(void **state)
{
    (void)state;
    static const char *const seen[] = {"car", "bus", "car", "van", "car", "bus", "tram"};
    tk__tally tally = {.head = tk__copy("type")};
    for (size_t i = 0; i < 7; i++)
        tk__tally_add(&tally, seen[i], 0.5);
    tk__tally_sort(&tally);
    assert_int_equal(tally.total, 7);
    assert_int_equal(tally.n, 4);
    assert_string_equal(tally.rows[0].label, "car");
    assert_int_equal(tally.rows[0].count, 3);
    assert_string_equal(tally.rows[1].label, "bus");
    assert_string_equal(tally.rows[2].label, "tram"); /* a tie: by name */
    json_t *json = tk__tally_json(&tally);
    const json_t *row = json_array_get(json_object_get(json, "tally"), 0);
    assert_true(fabs(json_real_value(json_object_get(row, "share")) - 3.0 / 7) < 1e-12);
    json_decref(json);
    tk__tally_free(&tally);
}

/* -- frames -- */

/* A stream from bytes; closed by the caller. */
static tk__frames stream_of(const void *bytes, size_t size)
{
    FILE *file = tmpfile();
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    rewind(file);
    return (tk__frames){.file = file};
}

/* SOI, a segment that holds a whole JPEG's SOI and EOI (a thumbnail), a scan with a stuffed FF and
 * a restart, EOI. */
static const unsigned char frame_bytes[] = {0xff, 0xd8, 0xff, 0xe1, 0x00, 0x08, 0xff, 0xd8, 0xff,
                                            0xd9, 0xff, 0xd9, 0xff, 0xda, 0x00, 0x03, 0x01, 0x12,
                                            0xff, 0x00, 0x34, 0xff, 0xd0, 0x56, 0xff, 0xff, 0xd9};

static void a_stream_is_cut_into_its_frames(void **state)
{
    (void)state;
    unsigned char bytes[3 * sizeof(frame_bytes) + 2];
    memcpy(bytes, frame_bytes, sizeof(frame_bytes));
    memcpy(bytes + sizeof(frame_bytes), "\r\n", 2); /* between frames */
    memcpy(bytes + sizeof(frame_bytes) + 2, frame_bytes, sizeof(frame_bytes));
    memcpy(bytes + 2 * sizeof(frame_bytes) + 2, frame_bytes, sizeof(frame_bytes) - 1); /* cut off */
    tk__frames frames = stream_of(bytes, sizeof(bytes) - 1);
    for (int i = 0; i < 2; i++) {
        assert_true(tk__frames_next(&frames));
        assert_int_equal(frames.size, sizeof(frame_bytes));
        assert_memory_equal(frames.data, frame_bytes, sizeof(frame_bytes));
    }
    assert_false(tk__frames_next(&frames));
    assert_int_equal(frames.count, 2);
    assert_true(frames.dropped >= 2);
    fclose(frames.file);
    tk__frames_free(&frames);
}

static void garbage_has_no_frames(void **state)
{
    (void)state;
    static const unsigned char garbage[] = {0, 1, 0xff, 0xff, 0xd8, 0x00, 0xff, 0xd8, 0xff};
    tk__frames frames = stream_of(garbage, sizeof(garbage));
    assert_false(tk__frames_next(&frames));
    fclose(frames.file);
    tk__frames_free(&frames);
}

/* -- load -- */

static void load_counts_requests_failures_and_versions(void **state)
{
    (void)state;
    tk__load load;
    tk__load_begin(&load);
    for (int i = 0; i < 98; i++)
        tk__load_count(&load, true, 1000000, i < 50 ? 1 : 2, 4);
    tk__load_count(&load, true, 64000000, 2, 4);
    tk__load_count(&load, false, 5000000, 0, 4);
    assert_int_equal(load.requests, 100);
    assert_int_equal(load.failed, 1);
    assert_int_equal(load.images, 4 * 99);
    assert_int_equal(load.first_version, 1);
    assert_int_equal(load.last_version, 2);
    assert_int_equal(load.changes, 1);
    assert_true(fabs(tk__load_quantile(&load, 0.5) - 1) < 0.06);
    assert_true(fabs(tk__load_quantile(&load, 1.0) - 64) < 4);
}

/* -- charts and CSV -- */

/* Every element is closed, in order, and nothing stands in text that XML reserves. */
static bool well_formed(const char *xml)
{
    char open[8][16];
    size_t depth = 0;
    for (const char *p = xml; (p = strchr(p, '<')) != NULL;) {
        const char *end = strchr(p, '>');
        if (!end || memchr(p + 1, '<', (size_t)(end - p) - 1)) return false;
        const size_t n = strcspn(p + 1, " />");
        if (p[1] == '/') {
            const size_t name = strcspn(p + 2, ">");
            if (depth-- == 0 || strlen(open[depth]) != name ||
                strncmp(open[depth], p + 2, name) != 0)
                return false;
        } else if (p[1] != '?' && end[-1] != '/') {
            if (depth == 8 || n >= sizeof(open[0])) return false;
            snprintf(open[depth++], sizeof(open[0]), "%.*s", (int)n, p + 1);
        }
        p = end;
    }
    return depth == 0;
}

static size_t occurrences(const char *text, const char *word)
{
    size_t n = 0;
    for (; (text = strstr(text, word)) != NULL; text++)
        n++;
    return n;
}

static char *draw(const tk__chart *chart)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    assert_non_null(out);
    assert_true(tk__chart_write(chart, out));
    fclose(out);
    return text;
}

static void a_chart_is_xml_whatever_its_names(void **state)
{
    (void)state;
    double x[] = {0, 1, 2, 3}, y[] = {0.5, 0.25, 0.75, 0.8};
    const tk__series series[] = {{"a<b>&\"c\"]]>\033[2J", "", 4, x, y, 0.45},
                                 {"plain", " (agreement)", 3, x, y + 1, (double)NAN}};
    const tk__chart chart = {.title = "1 < 2 & 3",
                             .x_label = "epoch",
                             .y_label = "accuracy, %",
                             .x_max = 3,
                             .until = 2,
                             .rest = "gate",
                             .n = 2,
                             .series = series};
    char *svg = draw(&chart);
    assert_true(well_formed(svg));
    assert_non_null(strstr(svg, "a&lt;b&gt;&amp;&quot;c&quot;]]&gt;?[2J</text>"));
    assert_non_null(strstr(svg, ">1 &lt; 2 &amp; 3</text>"));
    assert_non_null(strstr(svg, ">plain (agreement)</text>"));
    assert_int_equal(occurrences(svg, "<polyline"), 2);
    assert_int_equal(occurrences(svg, "<circle"), 7);
    assert_int_equal(occurrences(svg, "stroke-dasharray"), 2); /* one floor, and the legend's */
    assert_null(strstr(svg, "nan"));
    free(svg);
}

/* One value, or equal ones, must not make an axis without length; nor a full mark. */
static void a_chart_of_one_value_has_an_axis(void **state)
{
    (void)state;
    static const double values[] = {0, 0.5, 1};
    for (size_t i = 0; i < 3; i++) {
        double x[] = {0}, y[] = {values[i]};
        const tk__series series = {"head", "", 1, x, y, (double)NAN};
        const tk__chart chart = {.title = "t",
                                 .x_label = "x",
                                 .y_label = "y",
                                 .x_max = 1,
                                 .until = 1,
                                 .rest = "",
                                 .n = 1,
                                 .series = &series};
        char *svg = draw(&chart);
        assert_true(well_formed(svg));
        assert_null(strstr(svg, "nan"));
        assert_null(strstr(svg, "inf"));
        assert_true(occurrences(svg, "text-anchor=\"end\"") >= 2);
        free(svg);
    }
}

static void a_field_of_csv_is_quoted_when_it_must_be(void **state)
{
    (void)state;
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    static const char *const fields[] = {"plain", "a,b", "say \"x\"", "two\nlines", ""};
    for (size_t i = 0; i < 5; i++) {
        tk__csv_put(out, fields[i]);
        fputc('|', out);
    }
    fclose(out);
    assert_string_equal(text, "plain|\"a,b\"|\"say \"\"x\"\"\"|\"two\nlines\"||");
    free(text);
}

static void quantiles_lie_within_their_bucket(void **state)
{
    (void)state;
    static const double bounds[] = {1, 2, 4};
    static const uint64_t none[4] = {0}, even[4] = {2, 2, 2, 0}, last[4] = {0, 0, 0, 5},
                          gap[4] = {1, 0, 1, 0};
    assert_true(isnan(tk__quantile(3, bounds, none, 0.5)));
    assert_true(isnan(tk__quantile(0, bounds, even, 0.5)));
    assert_float_equal(tk__quantile(3, bounds, even, 0.5), 1.5, 1e-12);
    assert_float_equal(tk__quantile(3, bounds, even, 0), 0, 1e-12);
    assert_float_equal(tk__quantile(3, bounds, even, 1), 4, 1e-12);
    assert_float_equal(tk__quantile(3, bounds, even, 0.99), 3.94F, 1e-6);
    assert_float_equal(tk__quantile(3, bounds, gap, 0.5), 1, 1e-12);
    assert_float_equal(tk__quantile(3, bounds, gap, 0.75), 3, 1e-12);
    assert_float_equal(tk__quantile(3, bounds, last, 0.5), 4, 1e-12); /* beyond the last bound */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_chart_is_xml_whatever_its_names),
        cmocka_unit_test(a_chart_of_one_value_has_an_axis),
        cmocka_unit_test(a_field_of_csv_is_quoted_when_it_must_be),
        cmocka_unit_test(options_and_arguments_mix_in_any_order),
        cmocka_unit_test(wrong_command_lines_are_usage_errors),
        cmocka_unit_test(a_list_of_names_is_split_at_commas),
        cmocka_unit_test_setup_teardown(config_of_mode_0600_is_read, make_place, drop_place),
        cmocka_unit_test_setup_teardown(config_that_others_may_reach_is_refused, make_place,
                                        drop_place),
        cmocka_unit_test_setup_teardown(config_mistakes_name_file_and_line, make_place, drop_place),
        cmocka_unit_test_setup_teardown(config_that_is_not_there_is_empty, make_place, drop_place),
        cmocka_unit_test_setup_teardown(token_file_gives_its_first_line, make_place, drop_place),
        cmocka_unit_test(terminal_escapes_are_neutralised),
        cmocka_unit_test(bytes_that_are_not_utf8_become_question_marks),
        cmocka_unit_test(width_counts_columns_not_bytes),
        cmocka_unit_test(numbers_read_well),
        cmocka_unit_test(messages_become_json_by_their_fields),
        cmocka_unit_test(tally_counts_and_sorts),
        cmocka_unit_test(a_stream_is_cut_into_its_frames),
        cmocka_unit_test(garbage_has_no_frames),
        cmocka_unit_test(load_counts_requests_failures_and_versions),
        cmocka_unit_test(quantiles_lie_within_their_bucket),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
