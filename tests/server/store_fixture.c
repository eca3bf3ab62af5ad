/* See store_fixture.h. */
#define _GNU_SOURCE /* mkdtemp */
#include "store_fixture.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/mem.h"
#include "store/files.h"

void assert_ok_(tk_err err, const tk_diag *diag, const char *what, const char *file, int line)
{
    if (err == TK_OK) return;
    print_error("%s: %s: %s\n", what, tk_err_text(err), diag->text);
    _fail(file, line);
}

void assert_err_(tk_err err, tk_err want, const tk_diag *diag, const char *words, const char *what,
                 const char *file, int line)
{
    if (err == want && (!words || strstr(diag->text, words))) return;
    print_error("%s: %s (\"%s\"), expected %s (\"%s\")\n", what, tk_err_text(err),
                err ? diag->text : "", tk_err_text(want), words ? words : "");
    _fail(file, line);
}

void fixture_dir(char *dir, size_t size)
{
    /* In memory where that is possible: thousands of fsyncs take minutes on a slow disk. */
    (void)snprintf(dir, size, "%s/trunkd-XXXXXX",
                   access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    assert_non_null(mkdtemp(dir));
}

void fixture_open(store_fixture *f, const tk_store_opts *opts)
{
    tk_diag diag;
    *f = (store_fixture){.store = NULL};
    fixture_dir(f->dir, sizeof f->dir);
    assert_ok(tk_store_open(&f->store, f->dir, opts, &diag));
    assert_ok(tk_store_tenant_create(f->store, "alice", &f->alice, &f->alice_token, &diag));
    assert_ok(tk_store_tenant_create(f->store, "bob", &f->bob, &f->bob_token, &diag));
}

void fixture_reopen(store_fixture *f, const tk_store_opts *opts)
{
    tk_diag diag;
    tk_store_close(f->store);
    f->store = NULL;
    assert_ok(tk_store_open(&f->store, f->dir, opts, &diag));
}

void fixture_close(store_fixture *f)
{
    tk_diag diag;
    tk_store_close(f->store);
    assert_ok(tk_files_remove_tree(f->dir, true, &diag));
}

char *fixture_file(tk_store *store, size_t size, unsigned seed)
{
    char *path = tk_store_temp_path(store);
    assert_non_null(path);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    uint32_t x = seed * 2654435761u + 1;
    for (size_t i = 0; i < size; i++) {
        x = x * 1664525u + 1013904223u;
        (void)fputc((int)(x >> 24), file);
    }
    (void)fclose(file); /* a full disk shows itself when the store takes the file */
    return path;
}

uint64_t fixture_data_set(tk_store *store, int64_t tenant, size_t size, unsigned seed)
{
    tk_diag diag;
    tk_data_set set;
    const tk_label_count labels[] = {{(char[]){"red"}, 3}, {(char[]){"blue"}, 2}};
    char *path = fixture_file(store, size, seed);
    assert_ok(tk_store_data_set_add(store, tenant, "cars", path, 5, labels, 2, &set, &diag));
    const uint64_t id = set.id;
    tk_data_set_fini(&set);
    tk_free(path);
    return id;
}

tk_model *fixture_net(const char *const *heads, size_t n, uint64_t seed)
{
    tk_diag diag;
    tk_model *model;
    const tk_preproc preproc = tk_preproc_default(32);
    const char *const labels[] = {"red", "blue"};
    assert_ok(tk_model_create(&model, TK_RESNET20, &preproc, &diag));
    tk_params_init(model->trunk, seed);
    for (size_t i = 0; i < n; i++) {
        tk_head *head;
        assert_ok(tk_head_create(&head, heads[i], 2, tk_arch_features(TK_RESNET20), labels, &diag));
        assert_int_equal(tk_model_add_head(model, head), TK_OK);
    }
    return model;
}

void fixture_model(tk_store *store, const char *const *heads, size_t n, uint64_t seed,
                   tk_object *out)
{
    tk_diag diag;
    tk_model *model = fixture_net(heads, n, seed);
    char *path = tk_store_temp_path(store);
    assert_ok(tk_model_save(model, path, &diag));
    tk_model_destroy(model);
    assert_ok(tk_store_stage(store, path, false, out, &diag));
    tk_free(path);
}

size_t fixture_entries(const char *dir, const char *name)
{
    char path[512];
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    DIR *d = opendir(path);
    assert_non_null(d);
    size_t n = 0;
    for (const struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.';
    (void)closedir(d);
    return n;
}

size_t fixture_objects(const tk_store *store)
{
    size_t n = 0;
    for (unsigned i = 0; i < 256; i++) {
        char name[32];
        (void)snprintf(name, sizeof name, "objects/%02x", i);
        n += fixture_entries(tk_store_dir(store), name);
    }
    return n;
}
