/* Properties that hold for whatever tenants do. A chain of small random jobs (random data, among it
 * random, swapped and contradictory labels; random recipes, overrides, tolerances and retentions;
 * heads that are replaced, refreshed and deleted) grows versions one on another. After each job, by
 * measurements of this file's own, which share nothing with the gate but the engine:
 *
 *   - no other head with held-out images falls below its best committed accuracy less its
 *     tolerance, nor does a head that is refreshed, on the images that it had before;
 *   - a job that ends with the probe leaves the other heads' logits as they were, bit by bit; one
 *     that is rejected leaves nothing that could be committed;
 *   - the Fisher sum protects the heads that are there and none that is gone;
 *   - a job that was killed or stopped at random moments, any number of times, ends with the same
 *     files and the same report as one that was left in peace.
 *
 *     test_properties [--jobs N | --seconds N] [--seed S]
 *
 * ctest runs some jobs of a fixed seed; --seconds 600 --seed 7 is for a night. A failure prints the
 * seed and the job's number, which repeat it. Each attempt at a job is a process of its own, so
 * that it can be killed. */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/linear.h"
#include "engine/mem.h"
#include "engine/plan.h"
#include "engine/rng.h"
#include "fixture.h"
#include "heads/job.h"
#include "heads/stack.h"

enum { MAX_HEADS = 5, MAX_SET = 24, PATH = 512, FIXED = 4, CLASSES = FIXTURE_CLASSES };
enum { MOST = 2 * CLASSES }; /* of a head: the first one's, and the others' after a refresh */
enum { DIED = -1, DONE = 0, FAILED = 1, STOPPED = 3 }; /* how an attempt ended */

static size_t jobs = 14;
static double seconds; /* 0: `jobs` of them */
static uint64_t seed = 1;

/* ---- what was promised ---- */

typedef struct promise {
    char id[32], pack[PATH]; /* of held-out images; empty: the owner keeps none */
    double tolerance, best;  /* points; fraction, by our own measurement */
    bool adapter;
    float logits[FIXED][MOST];
} promise;

typedef struct chain {
    size_t job;      /* number of the present one */
    uint64_t drawn;  /* random numbers so far */
    char base[PATH]; /* the current version */
    size_t n;
    promise heads[MAX_HEADS];
    size_t outcomes[3], kills, stops, deletions, asked, refreshed; /* for the last line */
} chain;

static uint32_t below(chain *c, uint32_t n)
{
    return tk_rng_below(seed, tk_rng_stream("properties"), c->drawn++, n);
}

static double between(chain *c, double low, double high)
{
    const uint64_t i = c->drawn++;
    return low + (high - low) * (double)tk_rng_uniform(seed, tk_rng_stream("properties"), i);
}

#define BROKEN(c, ...)                                                                             \
    do {                                                                                           \
        print_error("seed %llu, job %zu: ", (unsigned long long)seed, (c)->job);                   \
        fail_msg(__VA_ARGS__);                                                                     \
    } while (0)

/* ---- our own measurements: image by image, as a client would ask ---- */

typedef struct witness {
    tk_model *model;
    tk_pool *pool;
    tk_plan *plan;
    tk_stack stack; /* of all heads */
    uint8_t *canvas;
    float *x, *features, *z, *inputs;
} witness;

static void witness_init(witness *w, const char *version)
{
    tk_diag diag;
    *w = (witness){0};
    if (tk_model_load(&w->model, version, true, &diag) != TK_OK) fail_msg("%s", diag.text);
    const unsigned px = w->model->preproc.crop;
    assert_int_equal(tk_pool_create(&w->pool, 1), TK_OK); /* no thread: this process forks */
    assert_int_equal(tk_plan_create(&w->plan, w->model->trunk, px, 1, w->pool, NULL), TK_OK);
    const tk_model *m = w->model;
    assert_int_equal(
        tk_stack_of_heads(&w->stack, m->trunk->arch, m->n_heads, (const tk_head *const *)m->heads),
        TK_OK);
    const tk_side side = tk_stack_side(&w->stack);
    assert_int_equal(tk_plan_set_side(w->plan, &side, NULL), TK_OK);
    w->z = tk_aligned_calloc(tk_stack_width(&w->stack) + 1, sizeof(float));
    w->inputs = tk_aligned_calloc(tk_stack_widest(&w->stack), sizeof(float));
    w->canvas = tk_calloc((size_t)px * px, 3);
    w->x = tk_aligned_calloc((size_t)px * px * 3, sizeof(float));
    w->features = tk_aligned_calloc(64, sizeof(float));
    assert_true(w->canvas && w->x && w->features && w->z && w->inputs);
}

static void witness_fini(witness *w)
{
    tk_plan_destroy(w->plan);
    tk_pool_destroy(w->pool);
    tk_stack_fini(&w->stack);
    tk_model_destroy(w->model);
    tk_free(w->z);
    tk_free(w->inputs);
    tk_free(w->canvas);
    tk_free(w->x);
    tk_free(w->features);
}

/* False: the image cannot be read. */
static bool answer(witness *w, const tk_head *head, const void *png, size_t size, float *logits)
{
    const tk_preproc *p = &w->model->preproc;
    tk_image image;
    if (tk_image_decode(&image, png, size, NULL, p->resize, NULL) != TK_OK) return false;
    assert_int_equal(tk_preproc_canvas(p, &image, p->crop, w->canvas, NULL), TK_OK);
    tk_image_fini(&image);
    const tk_view view = tk_view_centre(p, p->crop);
    tk_view_render(p, w->canvas, p->crop, &view, w->x);
    tk_plan_run_side(w->plan, 1, w->x, w->features, tk_stack_rank(&w->stack) > 0 ? w->z : NULL,
                     NULL);
    size_t h = 0;
    while (w->model->heads[h] != head)
        h++;
    const float *in = tk_stack_input(&w->stack, h, 1, w->features, w->z, w->inputs);
    assert_true(head->classes <= MOST);
    tk_linear_forward(1, head->width, head->classes, in, head->weight, head->bias, logits);
    return true;
}

static double accuracy(witness *w, const tk_head *head, const char *path)
{
    size_t right = 0, n = 0;
    float logits[MOST];
    tk_pack *pack;
    assert_int_equal(tk_pack_open(&pack, path, NULL), TK_OK);
    for (size_t i = 0; i < tk_pack_count(pack); i++) {
        const tk_pack_item item = tk_pack_get(pack, i);
        if (!answer(w, head, item.data, item.size, logits)) continue;
        size_t best = 0;
        for (size_t k = 1; k < head->classes; k++)
            if (logits[k] > logits[best]) best = k;
        right += strcmp(head->labels[best], tk_pack_label_name(pack, item.label)) == 0;
        n++;
    }
    tk_pack_close(pack);
    return n ? (double)right / (double)n : 0;
}

/* The head's logits on the same few images, at any version. */
static void fixed_logits(witness *w, const tk_head *head, float out[FIXED][MOST])
{
    static uint8_t png[FIXTURE_PNG_MAX];
    memset(out, 0, FIXED * sizeof *out);
    for (unsigned i = 0; i < FIXED; i++) {
        const size_t size =
            fixture_png(png, i % 2 ? FIXTURE_STRIPES : FIXTURE_COLOUR, i % CLASSES, seed, 1000 + i);
        assert_true(answer(w, head, png, size, out[i]));
    }
}

/* ---- a random job ---- */

typedef struct trial {
    char head[32], data[PATH];
    const char *base, *recipe;
    tk_setting set[MAX_SET];
    size_t n_set;
    double tolerance, checkpoint_seconds;
    bool keep, fallback, refresh;
    uint64_t seed;
} trial;

static void set(trial *t, const char *name, double value)
{
    assert_true(t->n_set < MAX_SET);
    t->set[t->n_set++] = (tk_setting){name, value};
}

/* What class an image is said to have, in some ways of going wrong. */
static unsigned say_class(chain *c, unsigned how, unsigned truth)
{
    switch (how) {
    case 1:
        return below(c, CLASSES); /* noise */
    case 2:
        return (truth + 1) % CLASSES; /* another tenant's, permuted */
    case 3:
        return below(c, 8) ? 0 : below(c, CLASSES); /* unbalanced */
    default:
        return truth;
    }
}

/* Every class has an image, the rest is chance; one data set in six has one image many times. */
static void random_data(chain *c, const char *path)
{
    static const char *const names[CLASSES] = {"a", "b", "c"};
    static uint8_t png[FIXTURE_PNG_MAX];
    const unsigned how = below(c, 5);
    const bool same = below(c, 6) == 0, broken = below(c, 6) == 0;
    const fixture_task task = below(c, 2) ? FIXTURE_STRIPES : FIXTURE_COLOUR;
    const size_t n = 6 + below(c, 24);
    const uint64_t look = 2 + below(c, 1000);
    tk_pack_writer *w;
    uint32_t label;
    assert_int_equal(tk_pack_create(&w, path, NULL), TK_OK);
    for (unsigned l = 0; l < CLASSES; l++)
        assert_int_equal(tk_pack_label(w, names[l], &label, NULL), TK_OK);
    for (size_t i = 0; i < n; i++) {
        const unsigned truth = i < CLASSES ? (unsigned)i : below(c, CLASSES);
        const size_t size = fixture_png(png, task, same ? 0 : truth, look, same ? 0 : i);
        label = i < CLASSES ? (uint32_t)i : say_class(c, how, truth);
        const bool cut = broken && i >= CLASSES && below(c, 3) == 0;
        assert_int_equal(tk_pack_add(w, label, "", png, cut ? 40 : size, NULL), TK_OK);
    }
    assert_int_equal(tk_pack_commit(w, NULL), TK_OK);
}

/* Cheap, and about as often harmful as harmless. */
static void random_recipe(chain *c, trial *t)
{
    static const char *const recipes[] = {"kd+ewc",   "kd+ewc",          "kd",    "ewc",
                                          "finetune", "finetune-low-lr", "probe", "adapter"};
    t->recipe = recipes[below(c, sizeof recipes / sizeof *recipes)];
    set(t, "batch", 4 + below(c, 8));
    set(t, "views", 1 + below(c, 3));
    set(t, "epochs", 1 + below(c, 4));
    set(t, "warm_up", below(c, 10));
    set(t, "fisher_samples", below(c, 6));
    set(t, "line_search", below(c, 4));
    set(t, "trials", 1 + below(c, 3));
    if (below(c, 2)) set(t, "rate", pow(10, between(c, -2, 2.5)));
    if (below(c, 3) == 0) set(t, "kappa", pow(10, between(c, -2, 3)));
    if (below(c, 3) == 0) set(t, "lambda", pow(10, between(c, -2, 6)));
    if (below(c, 3) == 0) set(t, "clip", below(c, 2) ? 0 : between(c, 0.1, 5));
    if (below(c, 4) == 0) set(t, "batch_norm", below(c, 2));
    if (below(c, 3) == 0) set(t, "policy", below(c, 4));
    if (below(c, 4) == 0) set(t, "fisher_collapse", below(c, 2));
    if (below(c, 4) == 0) set(t, "fisher_labels", below(c, 3));
    if (below(c, 4) == 0) set(t, "gate_sigma", between(c, 0, 2));
    if (below(c, 4) == 0) set(t, "validate_every", 1 + below(c, 3));
    if (below(c, 4) == 0) set(t, "validation", between(c, 0.05, 0.5));
}

static promise *find(chain *c, const char *id)
{
    for (size_t h = 0; h < c->n; h++)
        if (strcmp(c->heads[h].id, id) == 0) return &c->heads[h];
    return NULL;
}

/* A refresh where one is possible. */
static void random_refresh(chain *c, trial *t)
{
    static const char *const recipes[] = {"kd+ewc", "kd", "finetune"};
    const promise *p = find(c, t->head);
    if (!p->pack[0] || p->adapter) return;
    t->recipe = recipes[below(c, 3)];
    t->refresh = true;
    c->asked++;
    if (below(c, 2)) set(t, "rate", 1e-3);
    set(t, "refresh", 1);
    set(t, "policy", TK_POLICY_SHARED);
}

static trial random_trial(chain *c)
{
    trial t = {.base = c->base,
               .tolerance = below(c, 3) ? between(c, 0, 30) : 0,
               .checkpoint_seconds = below(c, 4) ? 1e9 : 0,
               .keep = below(c, 8) != 0,
               .fallback = below(c, 2),
               .seed = below(c, 1000)};
    const bool again = c->n == MAX_HEADS || (c->n > 1 && below(c, 4) == 0);
    if (again)
        memcpy(t.head, c->heads[below(c, (uint32_t)c->n)].id, sizeof t.head);
    else
        snprintf(t.head, sizeof t.head, "tenant/%zu", c->job);
    char name[32];
    snprintf(name, sizeof name, "%zu.pack", c->job);
    snprintf(t.data, sizeof t.data, "%s", fixture_path(name));
    random_data(c, t.data);
    random_recipe(c, &t);
    if (again && below(c, 3)) random_refresh(c, &t);
    return t;
}

/* ---- one attempt, in a process of its own ---- */

typedef struct fate {
    long questions; /* callbacks until it strikes; negative: never */
    bool kill;      /* kill -9, else the job is asked to stop */
} fate;

static void strike(void *ctx)
{
    fate *f = ctx;
    if (f->kill && f->questions >= 0 && f->questions-- == 0) (void)raise(SIGKILL);
}

static bool ask(void *ctx)
{
    fate *f = ctx;
    if (!f->kill) return f->questions >= 0 && f->questions-- == 0;
    strike(f);
    return false;
}

static void on_progress(void *ctx, const tk_job_progress *p)
{
    (void)p;
    strike(ctx);
}

static void on_validation(void *ctx, const tk_job_validation *v)
{
    (void)v;
    strike(ctx);
}

/* What the job says of itself, for the parent and to compare two runs. */
static bool write_report(const char *dir, const tk_job_result *r)
{
    char path[PATH];
    snprintf(path, sizeof path, "%s/report", dir);
    FILE *f = fopen(path, "w");
    if (!f) return false;
    fprintf(f, "%d %s\n%a %a %a %zu %zu\n", (int)r->outcome, r->reason, r->probe_accuracy,
            r->joint_accuracy, r->alpha, r->best_epoch, r->restarts);
    for (size_t h = 0; h <= r->n_others; h++)
        fprintf(f, "%s %zu %zu\n", r->after[h].head, r->after[h].correct, r->after[h].n);
    return fclose(f) == 0;
}

static int run_here(const chain *c, const trial *t, const char *dir, fate *f)
{
    tk_validator_pack packs[MAX_HEADS];
    tk_job_opts o = tk_job_defaults();
    o.dir = dir, o.base = t->base, o.data = t->data, o.head = t->head;
    o.tolerance = t->tolerance, o.keep_validation = t->keep;
    o.recipe = t->recipe, o.set = t->set, o.n_set = t->n_set, o.seed = t->seed;
    o.fallback_probe = t->fallback, o.checkpoint_seconds = t->checkpoint_seconds;
    o.validations = packs;
    for (size_t h = 0; h < c->n; h++)
        if (c->heads[h].pack[0])
            packs[o.n_validations++] = (tk_validator_pack){c->heads[h].id, c->heads[h].pack};
    if (!t->base) {
        o.arch = TK_RESNET20;
        o.preproc = fixture_preproc();
    }
    o.ctx = f, o.cancelled = ask, o.progress = on_progress, o.validation = on_validation;
    tk_job_result r;
    tk_diag diag = {0};
    if (tk_pool_create(&o.pool, 1) != TK_OK) return FAILED;
    const tk_err err = tk_job_run(&o, &r, &diag);
    const bool written = err == TK_OK && write_report(dir, &r);
    if (err != TK_OK && err != TK_CANCELLED)
        fprintf(stderr, "%s: %s\n", tk_err_text(err), diag.text);
    tk_job_result_fini(&r);
    tk_pool_destroy(o.pool);
    return written ? DONE : err == TK_CANCELLED ? STOPPED : FAILED;
}

static int attempt(const chain *c, const trial *t, const char *dir, fate f)
{
    int status;
    fflush(NULL);
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) _exit(run_here(c, t, dir, &f));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : DIED;
}

/* Killed and stopped at random moments until it is done. */
static void run_disturbed(chain *c, const trial *t, const char *dir)
{
    for (uint32_t patience = 12;; patience += 6) {
        const fate f = {.questions = (long)below(c, patience), .kill = below(c, 2)};
        const int end = attempt(c, t, dir, f);
        if (end == DONE) return;
        if (end == FAILED) BROKEN(c, "a disturbed job fails");
        c->kills += end == DIED;
        c->stops += end == STOPPED;
    }
}

static void same_file(chain *c, const char *a, const char *b, const char *name)
{
    char path_a[PATH], path_b[PATH];
    size_t size_a, size_b;
    snprintf(path_a, sizeof path_a, "%s/%s", a, name);
    snprintf(path_b, sizeof path_b, "%s/%s", b, name);
    const bool there = access(path_a, F_OK) == 0;
    if (there != (access(path_b, F_OK) == 0)) BROKEN(c, "%s: in one run only", name);
    if (!there) return;
    uint8_t *bytes_a = fixture_read(path_a, &size_a), *bytes_b = fixture_read(path_b, &size_b);
    if (size_a != size_b || memcmp(bytes_a, bytes_b, size_a) != 0)
        BROKEN(c, "%s: a disturbed job ends with other bytes", name);
    tk_free(bytes_a);
    tk_free(bytes_b);
}

/* ---- the properties ---- */

/* The job's own numbers are not taken on trust, but they have to be ours. */
static void check_report(chain *c, const char *dir, const char *id, double measured)
{
    char path[PATH], line[1200], head[64];
    size_t correct, n;
    snprintf(path, sizeof path, "%s/report", dir);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "%63s %zu %zu", head, &correct, &n) == 3 && strcmp(head, id) == 0 &&
            n > 0 && fabs((double)correct / (double)n - measured) > 1e-12)
            BROKEN(c, "head %s: the job says %zu of %zu, it is %g", id, correct, n, measured);
    fclose(f);
}

static void check_other(chain *c, witness *w, promise *p, const char *dir, tk_outcome outcome)
{
    float logits[FIXED][MOST];
    const tk_head *head = tk_model_head(w->model, p->id);
    if (!head) BROKEN(c, "head %s is gone", p->id);
    fixed_logits(w, head, logits);
    if (outcome == TK_OUTCOME_PROBE && memcmp(logits, p->logits, sizeof logits) != 0)
        BROKEN(c, "head %s: the probe changed its logits", p->id);
    memcpy(p->logits, logits, sizeof logits);
    if (head->tolerance != p->tolerance) BROKEN(c, "head %s: another tolerance", p->id);
    if (!p->pack[0]) return;
    const double now = accuracy(w, head, p->pack), floor = p->best - p->tolerance / 100;
    if (now < floor - 1e-9)
        BROKEN(c, "head %s: %.4f is below its floor %.4f (best %.4f, %.2f points)", p->id, now,
               floor, p->best, p->tolerance);
    check_report(c, dir, p->id, now);
    p->best = fmax(p->best, now);
    if (fabs(head->best - p->best) > 1e-12)
        BROKEN(c, "head %s: the version says best %.4f, it is %.4f", p->id, head->best, p->best);
}

/* The Fisher sum is that of the heads that are there, to the rounding of floats. */
static void check_fisher(chain *c, const tk_model *m)
{
    if (!m->fisher) return;
    const size_t n = m->trunk->trained;
    float *sum = tk_aligned_calloc(n, sizeof(float)), largest = 1;
    assert_non_null(sum);
    for (size_t h = 0; h < m->n_heads; h++) {
        tk_ewc_share_add(&m->heads[h]->share, 1, sum);
        largest = fmaxf(largest, m->heads[h]->share.largest);
    }
    for (size_t j = 0; j < n; j++)
        if (fabsf(m->fisher[j] - sum[j]) > 1e-5f * largest)
            BROKEN(c, "the Fisher is %g where its shares are %g", (double)m->fisher[j],
                   (double)sum[j]);
    tk_free(sum);
}

/* The promise of a refreshed head is kept on the images that it had. */
static void check_refreshed(chain *c, witness *w, const promise *p)
{
    const tk_head *head = tk_model_head(w->model, p->id);
    const double now = accuracy(w, head, p->pack), floor = p->best - p->tolerance / 100;
    if (now < floor - 1e-9)
        BROKEN(c, "refreshed head %s: %.4f is below its floor %.4f", p->id, now, floor);
    c->refreshed++;
}

static void adopt(chain *c, witness *w, const trial *t, const char *dir)
{
    promise *p = find(c, t->head);
    if (t->refresh) check_refreshed(c, w, p);
    if (!p) p = &c->heads[c->n++];
    *p = (promise){.tolerance = t->tolerance};
    memcpy(p->id, t->head, sizeof p->id);
    const tk_head *head = tk_model_head(w->model, t->head);
    if (!head) BROKEN(c, "the new head is missing");
    fixed_logits(w, head, p->logits);
    p->adapter = head->rank > 0;
    snprintf(p->pack, sizeof p->pack, "%s/validation.pack", dir);
    if (access(p->pack, F_OK) != 0) {
        p->pack[0] = 0;
        return;
    }
    p->best = accuracy(w, head, p->pack);
    check_report(c, dir, p->id, p->best);
}

static void judge(chain *c, const trial *t, const char *dir)
{
    char path[PATH];
    int outcome = -1;
    snprintf(path, sizeof path, "%s/report", dir);
    FILE *f = fopen(path, "r");
    assert_true(f && fscanf(f, "%d", &outcome) == 1 && outcome >= 0 && outcome <= 2);
    fclose(f);
    c->outcomes[outcome]++;
    snprintf(path, sizeof path, "%s/candidate.safetensors", dir);
    if (outcome == TK_OUTCOME_REJECT) {
        if (access(path, F_OK) == 0) BROKEN(c, "rejected, but there is a candidate");
        return;
    }
    witness w;
    witness_init(&w, path);
    memcpy(c->base, path, sizeof path);
    for (size_t h = 0; h < c->n; h++)
        if (strcmp(c->heads[h].id, t->head) != 0)
            check_other(c, &w, &c->heads[h], dir, (tk_outcome)outcome);
    adopt(c, &w, t, dir);
    check_fisher(c, w.model);
    if (w.model->n_heads != c->n) BROKEN(c, "%zu heads are there", w.model->n_heads);
    witness_fini(&w);
}

/* An owner deletes its head: a version without it, whose other heads answer as before. */
static void delete_head(chain *c)
{
    char name[64];
    const size_t gone = below(c, (uint32_t)c->n);
    witness w;
    tk_model *model;
    assert_int_equal(tk_model_load(&model, c->base, true, NULL), TK_OK);
    assert_true(tk_model_drop_head(model, c->heads[gone].id));
    snprintf(name, sizeof name, "%zu.without", c->job);
    snprintf(c->base, sizeof c->base, "%s", fixture_path(name));
    assert_int_equal(tk_model_save(model, c->base, NULL), TK_OK);
    tk_model_destroy(model);
    c->heads[gone] = c->heads[--c->n];
    c->deletions++;
    witness_init(&w, c->base);
    check_fisher(c, w.model);
    for (size_t h = 0; h < c->n; h++) {
        float logits[FIXED][MOST];
        fixed_logits(&w, tk_model_head(w.model, c->heads[h].id), logits);
        if (memcmp(logits, c->heads[h].logits, sizeof logits) != 0)
            BROKEN(c, "head %s answers differently without another one", c->heads[h].id);
    }
    witness_fini(&w);
}

static void one_job(chain *c)
{
    char name[32], peace[PATH], disturbed[PATH];
    const trial t = random_trial(c);
    snprintf(name, sizeof name, "%zu", c->job);
    snprintf(peace, sizeof peace, "%s", fixture_folder(name));
    if (attempt(c, &t, peace, (fate){.questions = -1}) != DONE) BROKEN(c, "the job fails");
    if (below(c, 2)) {
        snprintf(name, sizeof name, "%zu.disturbed", c->job);
        snprintf(disturbed, sizeof disturbed, "%s", fixture_folder(name));
        run_disturbed(c, &t, disturbed);
        same_file(c, peace, disturbed, "report");
        same_file(c, peace, disturbed, "candidate.safetensors");
        same_file(c, peace, disturbed, "validation.pack");
        tk_job_clean(disturbed);
    }
    judge(c, &t, peace);
    tk_job_clean(peace);
    if (c->n > 1 && below(c, 8) == 0) delete_head(c);
}

static void first_head(chain *c)
{
    trial t = {.head = "tenant/0",
               .recipe = "scratch",
               .tolerance = 10,
               .checkpoint_seconds = 1e9,
               .keep = true,
               .seed = seed};
    snprintf(t.data, sizeof t.data, "%s", fixture_path("0.pack"));
    fixture_pack(t.data, FIXTURE_COLOUR, 60, 1);
    set(&t, "batch", 8);
    set(&t, "epochs", 6);
    set(&t, "fisher_samples", 8);
    char dir[PATH];
    snprintf(dir, sizeof dir, "%s", fixture_folder("0"));
    if (attempt(c, &t, dir, (fate){.questions = -1}) != DONE) BROKEN(c, "the first job fails");
    judge(c, &t, dir);
}

static void whatever_tenants_do_no_promise_is_broken(void **state)
{
    (void)state;
    chain c = {0};
    const time_t began = time(NULL);
    first_head(&c);
    do {
        c.job++;
        one_job(&c);
    } while (seconds > 0 ? difftime(time(NULL), began) < seconds : c.job < jobs);
    print_message("seed %llu, %zu jobs: %zu committed, %zu probes, %zu rejected; %zu kills, %zu "
                  "stops, %zu heads deleted, %zu of %zu refreshed\n",
                  (unsigned long long)seed, c.job, c.outcomes[0] - 1, c.outcomes[1], c.outcomes[2],
                  c.kills, c.stops, c.deletions, c.refreshed, c.asked);
    if (seconds > 0 || jobs < 10) return;
    /* The chain is worth nothing when all jobs end alike. */
    assert_true(c.outcomes[0] > 1 && c.outcomes[1] > 0 && c.outcomes[2] > 0);
    assert_true(c.kills > 0 && c.refreshed > 0);
}

static int clean(void **state)
{
    (void)state;
    fixture_clean();
    return 0;
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc) return 2;
        if (strcmp(argv[i], "--jobs") == 0)
            jobs = (size_t)strtoul(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--seconds") == 0)
            seconds = strtod(argv[i + 1], NULL);
        else if (strcmp(argv[i], "--seed") == 0)
            seed = strtoull(argv[i + 1], NULL, 10);
        else
            return 2;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(whatever_tenants_do_no_promise_is_broken)};
    return cmocka_run_group_tests(tests, NULL, clean);
}
