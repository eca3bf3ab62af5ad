/* What tests/bench/serving.sh serves: a store with one version, of a trunk and a head for each of
 * many tenants, all with random weights, as they do not matter for speed; and pictures as large as
 * photographs for the web (20 to 60 KB).
 *
 *     serving_store DIR resnet18 224 32      trunk, input size, tenants
 *
 * DIR must be there; it gets store/, tokens (a line for each tenant), token (the first of them) and
 * pictures/. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../server/fixture.h"
#include "engine/mem.h"
#include "store/store.h"

enum { CLASSES = 50, TENANTS_MAX = 1000, PICTURES = 64, WIDTH = 640, HEIGHT = 480 };

static void must(tk_err err, const tk_diag *diag)
{
    if (err == TK_OK) return;
    fprintf(stderr, "serving_store: %s: %s\n", tk_err_text(err), diag->text);
    exit(1);
}

static void give_up(const char *what)
{
    perror(what);
    exit(1);
}

static FILE *open_file(const char *name)
{
    FILE *file = fopen(name, "wb");
    if (!file) give_up(name);
    return file;
}

static void close_file(FILE *file)
{
    const bool failed = ferror(file) != 0;
    if (fclose(file) != 0 || failed) give_up("serving_store");
}

static void write_pictures(void)
{
    if (mkdir("pictures", 0700) != 0) give_up("pictures");
    for (unsigned i = 0; i < PICTURES; i++) {
        char name[32];
        snprintf(name, sizeof name, "pictures/%02u.jpg", i);
        const fixture_bytes picture = fixture_jpeg(WIDTH, HEIGHT, i + 1);
        FILE *file = open_file(name);
        fwrite(picture.data, 1, picture.size, file);
        close_file(file);
        free(picture.data);
    }
}

/* The tenants, their tokens in files, and a head of each in the model. */
static void add_tenants(tk_store *store, tk_model *model, int64_t *tenants, unsigned n)
{
    FILE *all = open_file("tokens"), *first = open_file("token");
    for (unsigned i = 0; i < n; i++) {
        char name[32], id[64];
        tk_diag diag = {{0}};
        tk_token token;
        snprintf(name, sizeof name, "tenant-%u", i);
        snprintf(id, sizeof id, "%s/type", name);
        must(tk_store_tenant_create(store, name, &tenants[i], &token, &diag), &diag);
        fprintf(all, "%s\n", token.secret);
        if (i == 0) fprintf(first, "%s\n", token.secret);
        fixture_add_head(model, id, CLASSES, "type", i + 1);
    }
    close_file(all);
    close_file(first);
}

static void commit(tk_store *store, const tk_model *model, const int64_t *tenants, const char *arch)
{
    tk_diag diag = {{0}};
    tk_version_head *heads = calloc(model->n_heads, sizeof *heads);
    if (!heads) must(TK_NOMEM, &diag);
    for (size_t i = 0; i < model->n_heads; i++) {
        heads[i] = (tk_version_head){.tenant = tenants[i],
                                     .n_labels = model->heads[i]->classes,
                                     .labels = model->heads[i]->labels,
                                     .tolerance = 1,
                                     .best = 0.5,
                                     .accuracy = 0.5,
                                     .change = (double)NAN,
                                     .top5 = (double)NAN};
        snprintf(heads[i].id, sizeof heads[i].id, "%s", model->heads[i]->id);
        snprintf(heads[i].name, sizeof heads[i].name, "type");
    }
    tk_trunk trunk = {.preproc = model->preproc};
    snprintf(trunk.arch, sizeof trunk.arch, "%s", arch);
    tk_object object;
    tk_commit version = {.model = &object,
                         .reason = "prepared",
                         .heads = heads,
                         .n_heads = model->n_heads,
                         .trunk = &trunk};
    char *path = tk_store_temp_path(store);
    must(tk_model_save(model, path, &diag), &diag);
    must(tk_store_stage(store, path, false, &object, &diag), &diag);
    must(tk_store_version_next(store, &version.number, &diag), &diag);
    must(tk_store_version_commit(store, &version, &diag), &diag);
    tk_store_unstage(store, &object);
    tk_free(path);
    free(heads);
}

int main(int argc, char **argv)
{
    tk_diag diag = {{0}};
    tk_arch arch;
    static int64_t tenants[TENANTS_MAX];
    const unsigned long px = argc == 5 ? strtoul(argv[3], NULL, 10) : 0;
    const unsigned long n = argc == 5 ? strtoul(argv[4], NULL, 10) : 0;
    if (argc != 5 || px < 32 || px > 448 || n < 1 || n > TENANTS_MAX) {
        fprintf(stderr,
                "usage: serving_store DIR ARCH PX TENANTS (PX 32 to 448, TENANTS 1 to %d)\n",
                TENANTS_MAX);
        return 2;
    }
    must(tk_arch_parse(argv[2], &arch, &diag), &diag);
    must(tk_arch_check_px(arch, (unsigned)px, &diag), &diag);
    if (chdir(argv[1]) != 0) give_up(argv[1]);
    tk_store *store;
    must(tk_store_open(&store, "store", NULL, &diag), &diag);
    const tk_preproc preproc = tk_preproc_default((unsigned)px);
    tk_model *model;
    must(tk_model_create(&model, arch, &preproc, &diag), &diag);
    tk_params_init(model->trunk, 1);
    add_tenants(store, model, tenants, (unsigned)n);
    commit(store, model, tenants, tk_arch_name(arch));
    tk_model_destroy(model);
    tk_store_close(store);
    write_pictures();
    return 0;
}
