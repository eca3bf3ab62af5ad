/* foreign_store: prepares what a test in another language needs, in a new folder under TMPDIR: a
 * store with VERSIONS (2) and two tenants (tests/server/trunkd_process.h), and two pictures, each
 * as a file and as its RGB pixels; and certificates: ca.pem's authority has signed server, alice
 * (for the tenant) and late (expired), while stranger comes from another one. Prints NAME=VALUE
 * lines. */
#include <stdio.h>
#include <stdlib.h>

#include "certs.h"
#include "engine/image.h"
#include "fixture.h"
#include "trunkd_process.h"

static void write_file(const trunkd *t, const char *name, const void *data, size_t size)
{
    char path[300];
    snprintf(path, sizeof path, "%s/%s", t->dir, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0) {
        perror(path);
        exit(1);
    }
}

static void write_picture(const trunkd *t, const char *name, fixture_bytes picture)
{
    tk_diag diag = {{0}};
    tk_image rgb;
    if (tk_image_decode(&rgb, picture.data, picture.size, NULL, 0, &diag) != TK_OK) {
        fprintf(stderr, "%s: %s\n", name, diag.text);
        exit(1);
    }
    char pixels[64];
    snprintf(pixels, sizeof pixels, "%s.rgb", name);
    write_file(t, name, picture.data, picture.size);
    write_file(t, pixels, rgb.rgb, (size_t)rgb.w * rgb.h * 3);
    tk_image_fini(&rgb);
    free(picture.data);
}

static void issue(const trunkd *t, const authority *ca, const char *name, const cert_wish *wish)
{
    char cert[300], key[300];
    snprintf(cert, sizeof cert, "%s/%s.pem", t->dir, name);
    snprintf(key, sizeof key, "%s/%s.key", t->dir, name);
    authority_issue(ca, wish, cert, key);
}

static void write_certificates(const trunkd *t)
{
    char path[300];
    snprintf(path, sizeof path, "%s/ca.pem", t->dir);
    authority *ca = authority_make("the authority", path);
    snprintf(path, sizeof path, "%s/other-ca.pem", t->dir);
    authority *other = authority_make("another authority", path);
    const char alice[] = "URI:trunkd:tenant:alice";
    const cert_wish server = {.common_name = "server", .names = "DNS:localhost,IP:127.0.0.1"};
    issue(t, ca, "server", &server);
    issue(t, ca, "alice", &(cert_wish){.names = alice});
    issue(t, ca, "late", &(cert_wish){.names = alice, .from_days = -30, .to_days = -1});
    issue(t, other, "stranger", &(cert_wish){.names = alice});
    authority_free(ca);
    authority_free(other);
}

int main(int argc, char **argv)
{
    const long versions = argc > 1 ? strtol(argv[1], NULL, 10) : 2;
    if (argc > 2 || versions < 0 || versions > 100) {
        fprintf(stderr, "usage: foreign_store [VERSIONS]\n");
        return 2;
    }
    trunkd t;
    trunkd_prepare(&t, (unsigned)versions);
    write_picture(&t, "picture.png", fixture_png(48, 40, 1)); /* width, height, seed */
    write_picture(&t, "picture.jpg", fixture_jpeg(64, 32, 2));
    write_certificates(&t);
    printf("dir=%s\nadmin=%s\nalice=%s\nbob=%s\n", t.dir, t.admin_token, t.alice_token,
           t.bob_token);
    return 0;
}
