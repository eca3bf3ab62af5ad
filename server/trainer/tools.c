/* See tools.h. */
#include "tools.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/file.h"
#include "engine/mem.h"
#include "heads/pack.h"
#include "heads/precision_gate.h"
#include "heads/validator.h"
#include "report.h"

enum { PATH = 4096 };

static int fail(const char *what, tk_err err, const tk_diag *diag)
{
    fprintf(stderr, "trunkd-trainer: %s: %s\n", what,
            diag->text[0] ? diag->text : tk_err_text(err));
    return 1;
}

static tk_err join(char out[PATH], const char *dir, const char *name, tk_diag *diag)
{
    const int n = snprintf(out, PATH, "%s/%s", dir, name);
    return n > 0 && n < PATH ? TK_OK : tk_fail(diag, TK_BADARG, "%s: path too long", name);
}

static int visible(const struct dirent *e)
{
    return e->d_name[0] != '.';
}

/* Byte order, whatever the locale. */
static int by_bytes(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static void free_list(struct dirent **list, int n)
{
    for (int i = 0; i < n; i++)
        free(list[i]);
    free(list);
}

static tk_err add_image(tk_pack_writer *w, uint32_t label, const char *dir, const char *name,
                        tk_diag *diag)
{
    char path[PATH];
    struct stat st;
    tk_map map;
    tk_err err = join(path, dir, name, diag);
    if (err != TK_OK || (stat(path, &st) == 0 && !S_ISREG(st.st_mode))) return err;
    err = tk_map_open(&map, path, diag);
    if (err != TK_OK) return err;
    err = tk_pack_add(w, label, name, map.data, map.size, diag);
    tk_map_close(&map);
    return err;
}

static tk_err add_class(tk_pack_writer *w, const char *root, const char *name, tk_diag *diag)
{
    char dir[PATH];
    struct stat st;
    struct dirent **list;
    uint32_t label;
    tk_err err = join(dir, root, name, diag);
    if (err != TK_OK || stat(dir, &st) != 0 || !S_ISDIR(st.st_mode)) return err;
    err = tk_pack_label(w, name, &label, diag);
    if (err != TK_OK) return err;
    const int n = scandir(dir, &list, visible, by_bytes);
    if (n < 0) return tk_fail_errno(diag, "%s", dir);
    for (int i = 0; i < n && err == TK_OK; i++)
        err = add_image(w, label, dir, list[i]->d_name, diag);
    free_list(list, n);
    return err;
}

int tool_pack(const char *dir, const char *out)
{
    tk_diag diag = {0};
    tk_pack_writer *w;
    struct dirent **list;
    tk_err err = tk_pack_create(&w, out, &diag);
    if (err != TK_OK) return fail("pack", err, &diag);
    const int n = scandir(dir, &list, visible, by_bytes);
    if (n < 0) {
        tk_pack_abort(w);
        return fail("pack", tk_fail_errno(&diag, "%s", dir), &diag);
    }
    for (int i = 0; i < n && err == TK_OK; i++)
        err = add_class(w, dir, list[i]->d_name, &diag);
    free_list(list, n);
    const size_t images = tk_pack_writer_count(w);
    if (err == TK_OK && images == 0)
        err = tk_fail(&diag, TK_BADDATA, "%s: no DIR/CLASS/image", dir);
    if (err == TK_OK)
        err = tk_pack_commit(w, &diag);
    else
        tk_pack_abort(w);
    if (err != TK_OK) return fail("pack", err, &diag);
    printf("{\"images\":%zu}\n", images);
    return 0;
}

/* The head `at` of the validator in a precision, against its validation in fp32. A version without
 * ranges is calibrated on the pack itself. */
static tk_err compare(tk_validator *v, const tk_model *model, size_t at, tk_precision precision,
                      tk_diag *diag)
{
    const size_t n = tk_validator_others(v);
    const tk_head *head = tk_validator_heads(v)[at];
    const tk_gate_rule rule = {.tolerance = head->tolerance};
    tk_calibration ranges = model->ranges;
    tk_gate_record record;
    tk_precision_check check;
    tk_validation *now = tk_calloc(n + 1, sizeof *now);
    tk_err err = now ? TK_OK : tk_fail(diag, TK_NOMEM, "out of memory");
    if (err == TK_OK && precision == TK_PRECISION_INT8 && ranges.maps == 0)
        err = tk_validator_calibrate(v, model->trunk, SIZE_MAX, &ranges, diag);
    if (err == TK_OK)
        err = tk_validator_run_as(v, model->trunk, head, precision, &ranges, now, diag);
    if (err == TK_OK)
        err =
            tk_precision_judge(&tk_validator_before(v)[at], &now[at], &rule, &record, &check, diag);
    if (err == TK_OK) report_eval(&now[at], precision, &check);
    for (size_t h = 0; now && h <= n; h++)
        tk_validation_fini(&now[h]);
    tk_free(now);
    return err;
}

static tk_err evaluate(const tk_model *model, const char *pack, const char *head,
                       tk_precision precision, const char *dir, tk_pool *pool, tk_diag *diag)
{
    const tk_validator_opts opts = {.base = model,
                                    .new_head = "",
                                    .n_packs = 1,
                                    .packs = &(tk_validator_pack){head, pack},
                                    .dir = dir,
                                    .pool = pool};
    tk_validator *v;
    tk_err err = tk_validator_create(&v, &opts, diag);
    if (err != TK_OK) return err;
    for (size_t h = 0; h < tk_validator_others(v) && err == TK_OK; h++) {
        if (strcmp(tk_validator_before(v)[h].head, head) != 0) continue;
        if (precision == TK_PRECISION_FP32)
            report_eval(&tk_validator_before(v)[h], precision, NULL);
        else
            err = compare(v, model, h, precision, diag);
    }
    tk_validator_destroy(v);
    return err;
}

int tool_eval(const char *version, const char *pack, const char *head, tk_precision precision)
{
    tk_diag diag = {0};
    tk_model *model = NULL;
    tk_pool *pool = NULL;
    char dir[] = "/tmp/trunkd-eval-XXXXXX", path[PATH];
    tk_err err = tk_pool_create(&pool, 0);
    if (err == TK_OK) err = tk_model_load(&model, version, false, &diag);
    /* tk_validator names its file by the head's place in the model. */
    for (size_t h = 0; err == TK_OK && h < model->n_heads; h++) {
        if (strcmp(model->heads[h]->id, head) != 0) continue;
        if (!mkdtemp(dir)) err = tk_fail_errno(&diag, "%s", dir);
        if (err == TK_OK) err = evaluate(model, pack, head, precision, dir, pool, &diag);
        snprintf(path, sizeof path, "%s/canvases.%zu", dir, h);
        unlink(path);
        rmdir(dir);
        head = NULL;
        break;
    }
    if (err == TK_OK && head) err = tk_fail(&diag, TK_NOTFOUND, "no head \"%s\"", head);
    tk_model_destroy(model);
    tk_pool_destroy(pool);
    return err == TK_OK ? 0 : fail("eval", err, &diag);
}
