/* Classifier.ClassifyStream over the wire: order, settings, errors that end nothing, flow control,
 * and every way to end. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <png.h>

#include "trunkd_process.h"

typedef Trunkd__V1__ClassifyStreamRequest request;
typedef Trunkd__V1__ClassifyStreamResponse response;

enum { IMAGES = 4, SLOW = 24, MANY = 1500 };

static trunkd server;
static fixture_bytes images[IMAGES]; /* small ones, each another */
static fixture_bytes slow;           /* takes a while to decode */

/* All black, so a small file; but millions of pixels. */
static fixture_bytes large_png(void)
{
    png_image png = {.version = PNG_IMAGE_VERSION, .width = 2500, .height = 2500};
    png.format = PNG_FORMAT_GRAY;
    uint8_t *black = calloc(png.width, png.height);
    assert_non_null(black);
    fixture_bytes out = {NULL, PNG_IMAGE_PNG_SIZE_MAX(png)};
    out.data = malloc(out.size);
    assert_non_null(out.data);
    assert_true(png_image_write_to_memory(&png, out.data, &out.size, 0, black, 0, NULL));
    free(black);
    return out;
}

static int prepare(void **state)
{
    (void)state;
    trunkd_prepare(&server, 2);
    for (unsigned i = 0; i < IMAGES; i++)
        images[i] = fixture_png(40, 40, i + 1);
    slow = large_png();
    return 0;
}

static int clean_up(void **state)
{
    (void)state;
    for (size_t i = 0; i < IMAGES; i++)
        free(images[i].data);
    free(slow.data);
    trunkd_remove(&server);
    return 0;
}

static tk_client_call *begin(tk_client *client, unsigned timeout_ms)
{
    tk_client_call *call =
        tk_client_start(client, "/trunkd.v1.Classifier/ClassifyStream",
                        &trunkd__v1__classify_stream_response__descriptor, timeout_ms);
    assert_non_null(call);
    return call;
}

/* n images, and settings when `head` or `top_k` is given. */
static bool say(tk_client_call *call, const char *id, const fixture_bytes *which, size_t n,
                const char *head, unsigned top_k)
{
    Trunkd__V1__ClassifySettings settings;
    trunkd__v1__classify_settings__init(&settings);
    char id_copy[600], head_copy[600], *heads[] = {head_copy};
    snprintf(id_copy, sizeof id_copy, "%s", id);
    snprintf(head_copy, sizeof head_copy, "%s", head ? head : "");
    settings.n_heads = head != NULL;
    settings.heads = heads;
    settings.top_k = top_k;
    ProtobufCBinaryData data[300];
    assert_true(n <= 300);
    for (size_t i = 0; i < n; i++)
        data[i] = (ProtobufCBinaryData){which[i].size, which[i].data};
    request in;
    trunkd__v1__classify_stream_request__init(&in);
    in.id = id_copy;
    if (head || top_k) in.settings = &settings;
    in.n_images = n;
    in.images = data;
    return tk_client_send(call, &in.base);
}

/* The next answer, which is this id's; for tk_client_free_message(). */
static response *hear(tk_client_call *call, const char *id)
{
    response *out = (response *)tk_client_receive(call);
    if (!out) {
        tk_client_status status;
        tk_client_finish(call, &status);
        fail_msg("no answer for %s: %s", id, status.text);
        return NULL;
    }
    assert_string_equal(out->id, id);
    return out;
}

static void hear_ok(tk_client_call *call, const char *id, size_t n)
{
    response *out = hear(call, id);
    assert_int_equal(out->code, TK_CLIENT_OK);
    assert_string_equal(out->error, "");
    assert_int_equal(out->version, 2);
    assert_int_equal(out->n_images, n);
    tk_client_free_message(&out->base);
}

static void hear_refusal(tk_client_call *call, const char *id, int code, const char *words)
{
    response *out = hear(call, id);
    assert_int_equal(out->code, code);
    assert_int_equal(out->n_images, 0);
    assert_int_equal(out->version, 0);
    if (!strstr(out->error, words)) fail_msg("expected \"%s\" in: %s", words, out->error);
    tk_client_free_message(&out->base);
}

/* No answer follows; the stream's code, and words of its sentence. */
static void ends(tk_client_call *call, int code, const char *words)
{
    tk_client_status status;
    assert_null(tk_client_receive(call));
    tk_client_finish(call, &status);
    if (status.code != code || !strstr(status.text, words))
        fail_msg("ended with %s: %s", tk_client_code_text(status.code), status.text);
}

static void ends_well(tk_client_call *call)
{
    tk_client_send_end(call);
    ends(call, TK_CLIENT_OK, "");
}

static void pause_ms(long ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

/* -- answers -- */

static void assert_same(const Trunkd__V1__ImageAnswer *a, const Trunkd__V1__ImageAnswer *b)
{
    assert_int_equal(a->n_heads, b->n_heads);
    for (size_t h = 0; h < a->n_heads; h++) {
        assert_string_equal(a->heads[h]->head, b->heads[h]->head);
        assert_int_equal(a->heads[h]->n_top, b->heads[h]->n_top);
        for (size_t k = 0; k < a->heads[h]->n_top; k++) {
            assert_string_equal(a->heads[h]->top[k]->label, b->heads[h]->top[k]->label);
            assert_memory_equal(&a->heads[h]->top[k]->score, &b->heads[h]->top[k]->score,
                                sizeof(float));
        }
    }
}

/* Sent at once, of one to three images, and each as Classify answers it, to the bit. */
static void answers_come_in_order_and_are_classifys_own(void **state)
{
    enum { MESSAGES = 60 };
    (void)state;
    trunkd_start(&server, NULL);
    const answer alone = classify(server.alice, images, IMAGES, "type", 3);
    assert_non_null(alone.message);
    const Trunkd__V1__ClassifyResponse *expected = (Trunkd__V1__ClassifyResponse *)alone.message;
    tk_client_call *call = begin(server.alice, 60000);
    char id[32];
    for (size_t i = 0; i < MESSAGES; i++) {
        snprintf(id, sizeof id, "image %zu", i);
        const size_t first = i % 2, n = 1 + i % 3;
        assert_true(say(call, id, images + first, n, i == 0 ? "type" : NULL, i == 0 ? 3 : 0));
    }
    for (size_t i = 0; i < MESSAGES; i++) {
        snprintf(id, sizeof id, "image %zu", i);
        response *out = hear(call, id);
        assert_int_equal(out->version, expected->version);
        assert_int_equal(out->n_images, 1 + i % 3);
        for (size_t k = 0; k < out->n_images; k++)
            assert_same(out->images[k], expected->images[i % 2 + k]);
        tk_client_free_message(&out->base);
    }
    ends_well(call);
    tk_client_free_message(alone.message);
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

static void settings_come_first_or_not_at_all(void **state)
{
    (void)state;
    char longest[300];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    trunkd_start(&server, NULL);

    tk_client_call *call = begin(server.bob, 60000); /* none: all heads, the best class */
    assert_true(say(call, "1", images, 1, NULL, 0));
    response *out = hear(call, "1");
    assert_int_equal(out->images[0]->n_heads, 1);
    assert_string_equal(out->images[0]->heads[0]->head, "colour");
    assert_int_equal(out->images[0]->heads[0]->n_top, 1);
    tk_client_free_message(&out->base);
    assert_true(say(call, "2", images, 1, "colour", 1));
    ends(call, TK_CLIENT_INVALID_ARGUMENT, "message 2: settings came again");

    call = begin(server.bob, 60000); /* by themselves: no answer */
    assert_true(say(call, "", NULL, 0, "colour", 2));
    assert_true(say(call, "2", images, 1, NULL, 0));
    out = hear(call, "2");
    assert_int_equal(out->images[0]->heads[0]->n_top, 2);
    tk_client_free_message(&out->base);
    ends_well(call);

    call = begin(server.bob, 60000);
    assert_true(say(call, "1", images, 1, "type", 1)); /* alice's */
    ends(call, TK_CLIENT_NOT_FOUND, "you have no head \"type\"");
    call = begin(server.bob, 60000);
    assert_true(say(call, "1", images, 1, longest, 1));
    ends(call, TK_CLIENT_NOT_FOUND, "settings.heads[0] has 299 bytes");
    call = begin(server.admin, 60000);
    ends(call, TK_CLIENT_PERMISSION_DENIED, "tenant");
    call = begin(server.nobody, 60000);
    ends(call, TK_CLIENT_UNAUTHENTICATED, "token");
    call = begin(server.bob, 60000);
    ends_well(call); /* nothing asked */
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

static void a_bad_image_or_message_does_not_end_the_stream(void **state)
{
    (void)state;
    char longest[300];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    uint8_t rubbish[] = "no image";
    const fixture_bytes pair[] = {images[0], {rubbish, sizeof rubbish}};
    fixture_bytes crowd[257];
    for (size_t i = 0; i < 257; i++)
        crowd[i] = images[0];
    trunkd_start(&server, NULL);
    tk_client_call *call = begin(server.alice, 60000);
    assert_true(say(call, "good", images, 1, NULL, 0));
    assert_true(say(call, "half", pair, 2, NULL, 0));
    assert_true(say(call, "bad", pair + 1, 1, NULL, 0));
    assert_true(say(call, "empty", NULL, 0, NULL, 0));
    assert_true(say(call, "crowd", crowd, 257, NULL, 0));
    assert_true(say(call, longest, images, 1, NULL, 0));
    assert_true(say(call, "good again", images, 1, NULL, 0));
    hear_ok(call, "good", 1);
    response *out = hear(call, "half");
    assert_int_equal(out->code, TK_CLIENT_OK);
    assert_string_equal(out->images[0]->error, "");
    assert_int_equal(out->images[0]->n_heads, 1);
    assert_true(out->images[1]->error[0]);
    assert_int_equal(out->images[1]->n_heads, 0);
    tk_client_free_message(&out->base);
    out = hear(call, "bad");
    assert_int_equal(out->code, TK_CLIENT_OK);
    assert_true(out->images[0]->error[0]);
    tk_client_free_message(&out->base);
    hear_refusal(call, "empty", TK_CLIENT_INVALID_ARGUMENT, "images is empty");
    hear_refusal(call, "crowd", TK_CLIENT_INVALID_ARGUMENT, "257 entries, the limit is 256");
    hear_refusal(call, longest, TK_CLIENT_INVALID_ARGUMENT, "id has 299 bytes, the limit is 256");
    hear_ok(call, "good again", 1);
    ends_well(call);
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

/* The rate is one message's matter, with a hint; the stream lives. */
static void a_limit_is_told_with_the_time_to_wait(void **state)
{
    (void)state;
    fixture_bytes crowd[256];
    for (size_t i = 0; i < 256; i++)
        crowd[i] = images[0];
    trunkd_start(&server, (const char *const[]){"--tenant-rate", "1", NULL});
    tk_client_call *call = begin(server.alice, 60000);
    assert_true(say(call, "all", crowd, 256, NULL, 0));
    hear_ok(call, "all", 256);
    assert_true(say(call, "one more", images, 1, NULL, 0));
    response *out = hear(call, "one more");
    assert_int_equal(out->code, TK_CLIENT_RESOURCE_EXHAUSTED);
    assert_true(out->retry_after_ms > 1000);
    tk_client_free_message(&out->base);
    ends_well(call);
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

/* -- flow control -- */

/* Nothing that can be read: small to send, quick to answer, and answered at length, so that the
 * windows of HTTP/2 hold few answers. */
static void *send_many(void *arg)
{
    tk_client_call *call = arg;
    uint8_t rubbish[] = "?";
    fixture_bytes crowd[256];
    for (size_t i = 0; i < 256; i++)
        crowd[i] = (fixture_bytes){rubbish, 1};
    for (size_t i = 0; i < MANY; i++) {
        char id[32];
        snprintf(id, sizeof id, "%zu", i);
        if (!say(call, id, crowd, 256, NULL, 0)) return arg;
    }
    tk_client_send_end(call);
    return NULL;
}

/* A client that sends but does not read comes to a halt; then it reads, and nothing is missing. */
static void who_does_not_read_is_not_read(void **state)
{
    (void)state;
    trunkd_start(&server, NULL);
    tk_client_call *call = begin(server.alice, 0);
    pthread_t sender;
    assert_int_equal(pthread_create(&sender, NULL, send_many, call), 0);
    uint64_t before, now = 0;
    do { /* until nothing moves */
        before = now;
        pause_ms(500);
        Trunkd__V1__GetStatusResponse *s = trunkd_status(&server);
        now = s->requests;
        tk_client_free_message(&s->base);
    } while (now == 0 || now != before);
    assert_in_range(now, 1, MANY - 200);
    char id[32];
    for (size_t i = 0; i < MANY; i++) {
        snprintf(id, sizeof id, "%zu", i);
        hear_ok(call, id, 256);
    }
    void *failed;
    pthread_join(sender, &failed);
    assert_null(failed);
    ends(call, TK_CLIENT_OK, "");
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

/* -- ends -- */

static void send_slow(tk_client_call *call)
{
    char id[32];
    for (size_t i = 0; i < SLOW; i++) {
        snprintf(id, sizeof id, "%zu", i);
        if (!say(call, id, &slow, 1, NULL, 0)) break; /* over its deadline */
    }
}

/* Once the queue is empty. */
static uint64_t dropped(void)
{
    for (;;) {
        Trunkd__V1__GetStatusResponse *s = trunkd_status(&server);
        const uint64_t waiting = s->queue, n = s->dropped;
        tk_client_free_message(&s->base);
        if (waiting == 0) return n;
        pause_ms(10);
    }
}

static void wait_for_drops(void)
{
    for (int i = 0; i < 6000; i++) {
        if (dropped() > 0) return;
        pause_ms(10);
    }
    fail_msg("none was dropped");
}

/* The stream ends by its deadline, with images waiting if the server has read any by then. */
static void outlive_a_stream(unsigned timeout_ms)
{
    tk_client_status status;
    tk_client_call *call = begin(server.alice, timeout_ms);
    send_slow(call);
    response *out;
    while ((out = (response *)tk_client_receive(call)))
        tk_client_free_message(&out->base);
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_DEADLINE_EXCEEDED);
}

static void what_nobody_waits_for_leaves_the_queue(void **state)
{
    (void)state;
    tk_client_status status;
    const char *const flags[] = {"--decode-threads", "1", "--grace-s", "60", NULL};
    trunkd_start(&server, flags);
    tk_client_call *call = begin(server.alice, 0);
    send_slow(call);
    hear_ok(call, "0", 1);
    tk_client_cancel(call);
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_CANCELLED);
    wait_for_drops();
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
    trunkd_start(&server, flags);                      /* which counts from nothing */
    for (unsigned ms = 100; dropped() == 0; ms *= 2) { /* long enough for this machine */
        assert_true(ms < 60000);
        outlive_a_stream(ms);
    }
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

/* What was read is answered, then the stream says why it ends. */
static void a_stop_answers_what_was_read(void **state)
{
    (void)state;
    char id[32];
    trunkd_start(&server, (const char *const[]){"--decode-threads", "1", "--grace-s", "60", NULL});
    tk_client_call *idle = begin(server.bob, 0);
    assert_true(say(idle, "1", images, 1, NULL, 0));
    hear_ok(idle, "1", 1);
    tk_client_call *busy = begin(server.alice, 0);
    send_slow(busy);
    for (uint64_t read = 0; read < SLOW;) { /* all of them */
        Trunkd__V1__GetStatusResponse *s = trunkd_status(&server);
        read = s->queue + s->requests - 1;
        tk_client_free_message(&s->base);
        pause_ms(5);
    }
    kill(server.pid, SIGTERM);
    ends(idle, TK_CLIENT_UNAVAILABLE, "shutting down");
    for (size_t i = 0; i < SLOW; i++) {
        snprintf(id, sizeof id, "%zu", i);
        hear_ok(busy, id, 1);
    }
    ends(busy, TK_CLIENT_UNAVAILABLE, "what has no answer here was not classified");
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

/* What came before is answered, in order; then the stream ends and says which message it was. */
static void a_message_that_is_no_good_ends_the_stream_after_the_answers(void **state)
{
    (void)state;
    static const char garbage[] = "\x0a\xff\xff\xff"; /* a field longer than the message */
    char id[32];
    trunkd_start(&server, (const char *const[]){"--decode-threads", "1", NULL});
    for (int again = 0; again < 2; again++) { /* settings that come again are no better */
        tk_client_call *call = begin(server.alice, 60000);
        for (size_t i = 0; i < 6; i++) {
            snprintf(id, sizeof id, "%zu", i);
            assert_true(say(call, id, &slow, 1, i == 0 ? "type" : NULL, 0));
        }
        if (again)
            assert_true(say(call, "settings", &slow, 1, "type", 0));
        else
            assert_true(tk_client_send_bytes(call, garbage, sizeof garbage - 1));
        (void)say(call, "after", images, 1, NULL, 0); /* nobody reads it */
        for (size_t i = 0; i < 6; i++) {
            snprintf(id, sizeof id, "%zu", i);
            hear_ok(call, id, 1);
        }
        ends(call, TK_CLIENT_INVALID_ARGUMENT,
             again ? "message 7: settings came again"
                   : "message 7: not a valid trunkd.v1.ClassifyStreamRequest");
    }
    tk_client_call *call = begin(server.alice, 60000); /* the first of all */
    assert_true(tk_client_send_bytes(call, garbage, sizeof garbage - 1));
    ends(call, TK_CLIENT_INVALID_ARGUMENT, "message 1: not a valid");
    call = begin(server.alice, 60000); /* who goes away meanwhile */
    assert_true(say(call, "1", &slow, 1, NULL, 0));
    assert_true(tk_client_send_bytes(call, garbage, sizeof garbage - 1));
    tk_client_status status;
    tk_client_cancel(call);
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_CANCELLED);
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

/* -- trunkctl -- */

enum { FILES = 40 };

static void write_files(const char *folder)
{
    char path[400];
    assert_int_equal(mkdir(folder, 0700), 0);
    for (size_t i = 0; i < FILES; i++) {
        snprintf(path, sizeof path, "%s/%02zu.png", folder, i);
        FILE *f = fopen(path, "w");
        assert_non_null(f);
        const fixture_bytes *image = &images[i % IMAGES];
        const size_t size = i == 7 ? image->size / 2 : image->size; /* one is cut */
        assert_int_equal(fwrite(image->data, 1, size, f), size);
        assert_int_equal(fclose(f), 0);
    }
}

/* One line of JSON for each file, in order; the exit status is 1 for the one that is cut. */
static void classify_folder(const char *folder)
{
    char program[512], command[2048], line[4096], name[16];
    const ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    assert_true(n > 0);
    program[n] = '\0';
    *strrchr(program, '/') = '\0';
    snprintf(command, sizeof command,
             "env XDG_CONFIG_HOME=%s TRUNKD_SERVER=127.0.0.1:%d TRUNKD_TOKEN=%s '%s/trunkctl' "
             "classify %s --batch 3 --json",
             server.dir, server.port, server.alice_token, program, folder);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    for (size_t i = 0; i < FILES; i++) {
        snprintf(name, sizeof name, "%02zu.png", i);
        if (!fgets(line, sizeof line, f)) fail_msg("no line for %s", name);
        assert_non_null(strstr(line, name));
        assert_non_null(strstr(line, i == 7 ? "\"error\":" : "\"type\":[{\"label\":"));
    }
    assert_null(fgets(line, sizeof line, f));
    const int status = pclose(f);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 1);
}

static void trunkctl_sends_a_folder_as_a_stream(void **state)
{
    (void)state;
    char folder[300];
    snprintf(folder, sizeof folder, "%s/photos", server.dir);
    write_files(folder);
    unlink(server.log);
    trunkd_start(&server, (const char *const[]){"--access-log", "yes", NULL});
    classify_folder(folder);
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
    assert_true(trunkd_logged(&server, "Classifier/ClassifyStream tenant=alice code=OK"));
    assert_false(trunkd_logged(&server, "Classifier/Classify tenant=alice"));
    /* Too fast for its rate, it waits as long as it is told. */
    trunkd_start(&server, (const char *const[]){"--tenant-rate", "8", "--access-log", "yes", NULL});
    classify_folder(folder);
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
    assert_true(trunkd_logged(&server, "Classifier/Classify tenant=alice code=OK"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_come_in_order_and_are_classifys_own),
        cmocka_unit_test(settings_come_first_or_not_at_all),
        cmocka_unit_test(a_bad_image_or_message_does_not_end_the_stream),
        cmocka_unit_test(a_limit_is_told_with_the_time_to_wait),
        cmocka_unit_test(who_does_not_read_is_not_read),
        cmocka_unit_test(what_nobody_waits_for_leaves_the_queue),
        cmocka_unit_test(a_stop_answers_what_was_read),
        cmocka_unit_test(a_message_that_is_no_good_ends_the_stream_after_the_answers),
        cmocka_unit_test(trunkctl_sends_a_folder_as_a_stream),
    };
    return cmocka_run_group_tests(tests, prepare, clean_up);
}
