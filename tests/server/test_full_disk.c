/* A store on a small disk that gets full, at an upload and at a commit. Needs root, for a tmpfs of
 * its own. */
#define _DEFAULT_SOURCE /* mount */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "trunkd_process.h"

#define PB(name)                                                                                   \
    &trunkd__v1__##name##__descriptor /* generated names: only the preprocessor can join them */

enum { COUNT = 16 }; /* images of the upload that does not fit */

static trunkd server;
static char disk[128];
static fixture_bytes image;

static void assert_still_serving(void)
{
    const answer a = classify(server.alice, &image, 1, "type", 1);
    if (!a.message) fail_msg("%s: %s", tk_client_code_text(a.status.code), a.status.text);
    tk_client_free_message(a.message);
}

/* Leaves `left` bytes, rounded to pages, free on the disk. */
static void fill_disk(const char *path, size_t left)
{
    static char page[4096];
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    setvbuf(f, NULL, _IONBF, 0);
    long size = 0;
    while (fwrite(page, sizeof page, 1, f) == 1)
        size += (long)sizeof page;
    fclose(f);
    assert_int_equal(truncate(path, size - (long)left), 0);
}

static void a_full_disk_refuses_an_upload_and_keeps_nothing(void **state)
{
    (void)state;
    fixture_bytes large[COUNT];
    const char *labels[COUNT];
    size_t bytes = 0;
    for (unsigned i = 0; i < COUNT; i++) {
        large[i] = fixture_png(900, 700, i);
        bytes += large[i].size;
        labels[i] = i % 2 ? "a" : "b";
    }
    assert_true(bytes > 10 << 20); /* on a disk of 8 MB */
    uint64_t id;
    tk_client_status status = upload(server.alice, "large", large, labels, COUNT, &id);
    assert_int_equal(status.code, TK_CLIENT_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(status.text, "o space left"));
    assert_still_serving();
    /* What it had written is gone: a small one fits. */
    status = upload(server.alice, "small", large, labels, 4, &id);
    if (status.code != TK_CLIENT_OK)
        fail_msg("%s: %s", tk_client_code_text(status.code), status.text);
    for (unsigned i = 0; i < COUNT; i++)
        free(large[i].data);
}

static void a_full_disk_refuses_a_commit_and_the_old_version_goes_on(void **state)
{
    (void)state;
    char ballast[160], name[] = "type";
    snprintf(ballast, sizeof ballast, "%s/ballast", disk);
    fill_disk(ballast, 256 << 10);
    /* Deleting a head writes a new version of some 1.1 MB. */
    Trunkd__V1__DeleteHeadRequest in;
    trunkd__v1__delete_head_request__init(&in);
    in.name = name;
    answer a = ask(server.alice, "/trunkd.v1.Heads/Delete", &in, PB(empty));
    assert_null(a.message);
    assert_int_equal(a.status.code, TK_CLIENT_RESOURCE_EXHAUSTED);
    assert_still_serving();
    assert_int_equal(unlink(ballast), 0);
    a = ask(server.alice, "/trunkd.v1.Heads/Delete", &in, PB(empty));
    if (!a.message) fail_msg("%s: %s", tk_client_code_text(a.status.code), a.status.text);
    tk_client_free_message(a.message);
    a = classify(server.alice, &image, 1, "type", 1);
    assert_int_equal(a.status.code, TK_CLIENT_NOT_FOUND);
}

int main(void)
{
    snprintf(disk, sizeof disk, "/tmp/trunkd-disk-XXXXXX");
    if (!mkdtemp(disk)) return 1;
    if (mount("tmpfs", disk, "tmpfs", 0, "size=8m,mode=0700") != 0) {
        rmdir(disk);
        puts("skipped: a small disk cannot be mounted here (it takes root)");
        return 77;
    }
    setenv("TMPDIR", disk, 1);
    image = fixture_jpeg(60, 50, 1);
    trunkd_prepare(&server, 1);
    trunkd_start(&server, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_disk_refuses_an_upload_and_keeps_nothing),
        cmocka_unit_test(a_full_disk_refuses_a_commit_and_the_old_version_goes_on),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    failed += trunkd_end(&server, SIGTERM) != 0;
    umount(disk);
    rmdir(disk);
    free(image.data);
    return failed;
}
