/* bench: how much a server bears, and how fast it answers. The load itself is generator.c's, the
 * report bench_report.c's; here are the options, the images, the tokens and the connections. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ask.h"
#include "bench_report.h"
#include "config.h"
#include "ctl.h"
#include "grpc/health/v1/health.pb-c.h"
#include "images.h"
#include "json.h"
#include "stop.h"
#include "term.h"

enum {
    CONNECTIONS_MAX = 1024,
    CALLS_PER_CONNECTION = 64, /* trunkd takes 100 at a time on each; others would wait here */
    OPEN_CONNECTIONS = 16,
    TOKENS_MAX = 100000,
    REQUEST_MAX = 60 << 20, /* bytes: what fits into a message */
};
static const size_t images_max = (size_t)1 << 30; /* bytes in memory */

typedef enum what_call { CLASSIFY, HEALTH, STATUS } what_call;

typedef struct bench {
    tk__ctl *ctl;
    const tk__cmd *cmd;
    tk__list images, heads;
    const char *call_name, *tokens_file, *admin_token, *admin_token_file, *csv;
    uint64_t concurrency, batch, calls, connections, deadline_ms, seed;
    double rate, seconds, warm_up;
    what_call call;
    /* what is made of them */
    tk__images list;
    ProtobufCBinaryData *data; /* [n_data], the images, owned */
    size_t n_data;
    tk_client_packed **requests;
    size_t n_requests;
    tk_client **clients; /* [n_clients] */
    size_t n_clients;
    tk__gen_tenant *tenants;
    size_t n_tenants;
    tk__ctl admin; /* a connection of its own */
    bool watch;    /* GetStatus, too */
    tk__bench found;
} bench;

/* -- what is sent -- */

/* Reads the images, as many as there is room for. False: printed why. */
static bool read_images(bench *b)
{
    size_t bytes = 0;
    for (size_t i = 0; i < b->images.n; i++) {
        if (tk__images_plain(&b->list, b->images.items[i])) continue;
        tk__fail("--images: %s", b->list.why);
        return false;
    }
    b->data = tk__alloc(b->list.n, sizeof(*b->data));
    for (; b->n_data < b->list.n && bytes < images_max; b->n_data++) {
        uint8_t *data = NULL;
        size_t capacity = 0, size = 0;
        char why[600];
        const bool fine = tk__read_image(b->list.items[b->n_data].path, &data, &capacity, &size,
                                         why, sizeof(why));
        if (!fine) {
            free(data);
            tk__fail("--images: %s", why);
            return false;
        }
        b->data[b->n_data] = (ProtobufCBinaryData){.len = size, .data = data};
        bytes += size;
    }
    if (b->n_data < b->list.n)
        fprintf(stderr, "trunkctl: the first %zu of %zu images are a GiB; the others stay out\n",
                b->n_data, b->list.n);
    return true;
}

/* Packs --batch images from image `first` on, beginning again behind the last one. */
static tk_client_packed *pack_images(const bench *b, size_t first)
{
    Trunkd__V1__ClassifyRequest request;
    trunkd__v1__classify_request__init(&request);
    ProtobufCBinaryData images[TK__BATCH_MAX];
    for (size_t i = 0; i < b->batch; i++)
        images[i] = b->data[(first + i) % b->n_data];
    request.n_images = b->batch;
    request.images = images;
    request.n_heads = b->heads.n;
    request.heads = b->heads.items;
    request.top_k = 1;
    return tk_client_pack(&request.base);
}

static bool keep_request(bench *b, tk_client_packed *packed)
{
    if (!packed) {
        tk__fail("out of memory");
        return false;
    }
    b->requests[b->n_requests++] = packed;
    if (tk_client_packed_size(packed) <= REQUEST_MAX) return true;
    tk__fail("--batch %llu: a request of %zu bytes; it has at most %d",
             (unsigned long long)b->batch, tk_client_packed_size(packed), REQUEST_MAX);
    return false;
}

static bool make_classify(bench *b)
{
    tk__gen_opts *load = &b->found.load;
    load->path = "/trunkd.v1.Classifier/Classify";
    load->out_type = &trunkd__v1__classify_response__descriptor;
    bool fine = read_images(b);
    const size_t n = (b->n_data + b->batch - 1) / b->batch;
    b->requests = tk__alloc(n, sizeof(*b->requests));
    for (size_t i = 0; i < n && fine; i++)
        fine = keep_request(b, pack_images(b, i * b->batch));
    for (size_t i = 0; i < b->n_data; i++)
        free(b->data[i].data); /* the requests have them */
    free(b->data);
    b->data = NULL;
    return fine;
}

static bool make_requests(bench *b)
{
    tk__gen_opts *load = &b->found.load;
    if (b->call == CLASSIFY) return make_classify(b);
    b->requests = tk__alloc(1, sizeof(*b->requests));
    if (b->call == STATUS) {
        Trunkd__V1__Empty request;
        trunkd__v1__empty__init(&request);
        load->path = "/trunkd.v1.Admin/GetStatus";
        load->out_type = &trunkd__v1__get_status_response__descriptor;
        return keep_request(b, tk_client_pack(&request.base));
    }
    Grpc__Health__V1__HealthCheckRequest request;
    grpc__health__v1__health_check_request__init(&request);
    load->path = "/grpc.health.v1.Health/Check";
    load->out_type = &grpc__health__v1__health_check_response__descriptor;
    return keep_request(b, tk_client_pack(&request.base));
}

static void look(const ProtobufCMessage *answer, uint64_t *images, uint64_t *unreadable)
{
    if (answer->descriptor != &trunkd__v1__classify_response__descriptor) return;
    const Trunkd__V1__ClassifyResponse *typed = (const Trunkd__V1__ClassifyResponse *)answer;
    for (size_t i = 0; i < typed->n_images; i++)
        *(typed->images[i]->error[0] ? unreadable : images) += 1;
}

/* -- who sends it -- */

/* "TOKEN" or "TOKEN WEIGHT"; nothing of an empty line or a comment. False: printed why. */
static bool take_token(bench *b, char *line, unsigned long number)
{
    static const char blanks[] = " \t\r\n";
    char *rest = NULL;
    const char *token = strtok_r(line, blanks, &rest), *weight = strtok_r(NULL, blanks, &rest);
    if (!token || token[0] == '#') return true;
    tk__gen_tenant tenant = {.weight = 1};
    if (strtok_r(NULL, blanks, &rest)) {
        tk__fail("--tokens %s:%lu: more than a token and a weight", b->tokens_file, number);
        return false;
    }
    if (weight &&
        !(tk__parse_real(weight, &tenant.weight) && tenant.weight > 0 && tenant.weight <= 1e9)) {
        tk__fail("--tokens %s:%lu: the weight is \"%s\", but must be above 0 and at most 1e9",
                 b->tokens_file, number, weight);
        return false;
    }
    if (b->n_tenants == TOKENS_MAX) {
        tk__fail("--tokens %s:%lu: more than %d tokens", b->tokens_file, number, TOKENS_MAX);
        return false;
    }
    tenant.token = tk__copy(token);
    b->tenants = tk__grow(b->tenants, b->n_tenants + 1, sizeof(*b->tenants));
    b->tenants[b->n_tenants++] = tenant;
    return true;
}

static bool read_tokens(bench *b)
{
    if (!b->tokens_file) { /* the connection's own */
        b->tenants = tk__alloc(1, sizeof(*b->tenants));
        b->tenants[b->n_tenants++] = (tk__gen_tenant){.weight = 1};
        return true;
    }
    char line[4096];
    FILE *file = fopen(b->tokens_file, "re");
    bool fine = file != NULL;
    if (!fine) tk__fail("--tokens %s: %s", b->tokens_file, strerror(errno));
    for (unsigned long number = 1; fine && fgets(line, sizeof(line), file); number++)
        fine = take_token(b, line, number);
    if (fine && (ferror(file) || b->n_tenants == 0)) {
        tk__fail("--tokens %s: %s", b->tokens_file,
                 ferror(file) ? strerror(errno) : "no token in it");
        fine = false;
    }
    if (file) fclose(file);
    return fine;
}

/* One more connection as `ctl` says, with ctl->client not yet set. */
static bool connect_as(tk__ctl *ctl)
{
    ctl->client = NULL;
    ctl->address = NULL;
    return tk__connect(ctl) != NULL;
}

static bool connect_all(bench *b)
{
    b->clients = tk__alloc(b->connections, sizeof(*b->clients));
    if (!tk__connect(b->ctl)) return false;
    b->clients[b->n_clients++] = b->ctl->client;
    while (b->n_clients < b->connections) {
        tk__ctl one = *b->ctl;
        const bool fine = connect_as(&one);
        free(one.address);
        if (!fine) return false;
        b->clients[b->n_clients++] = one.client;
    }
    if (!b->watch) return true;
    b->admin = *b->ctl;
    b->admin.token = b->admin_token;
    b->admin.token_file = b->admin_token_file;
    return connect_as(&b->admin);
}

/* One call as a tenant; its code, and a sentence. */
static int ask_once(const bench *b, tk_client_queue *queue, const tk__gen_tenant *tenant,
                    tk_client_status *status)
{
    const tk_client_ask ask = {.path = b->found.load.path,
                               .in = b->requests[0],
                               .out_type = b->found.load.out_type,
                               .token = tenant->token,
                               .timeout_ms = (unsigned)b->ctl->timeout_ms};
    tk_client_done done;
    if (!tk_client_queue_start(queue, b->ctl->client, &ask)) {
        *status = (tk_client_status){.code = TK_CLIENT_INVALID_ARGUMENT,
                                     .text = "the token has bytes that no token has"};
        return status->code;
    }
    while (!tk_client_queue_next(queue, 100, &done))
        if (tk__stop_asked()) tk_client_queue_cancel(queue);
    *status = done.status;
    tk_client_free_message(done.answer);
    return status->code;
}

/* Each token once, so that a mistake is a sentence and not a million failures. */
static bool try_tokens(const bench *b)
{
    tk_client_queue *queue = tk_client_queue_create();
    tk_client_status status = {.code = TK_CLIENT_OK};
    size_t at = 0;
    for (; queue && at < b->n_tenants; at++) {
        const int code = ask_once(b, queue, &b->tenants[at], &status);
        if (code != TK_CLIENT_OK && code != TK_CLIENT_RESOURCE_EXHAUSTED) break;
    }
    tk_client_queue_destroy(queue);
    if (at == b->n_tenants) return true;
    if (!queue) {
        tk__fail("out of memory");
        return false;
    }
    if (b->tokens_file) tk__fail("--tokens %s, token %zu:", b->tokens_file, at + 1);
    tk__rpc_failed(b->ctl, &status);
    return false;
}

/* -- the run -- */

static Trunkd__V1__GetStatusResponse *ask_status(bench *b)
{
    Trunkd__V1__Empty request;
    trunkd__v1__empty__init(&request);
    return tk__call(&b->admin, "/trunkd.v1.Admin/GetStatus", &request.base,
                    &trunkd__v1__get_status_response__descriptor);
}

static void at_window(void *arg, bool end)
{
    bench *b = arg;
    if (!b->watch) return;
    if (end && !b->found.before) return;
    *(end ? &b->found.after : &b->found.before) = ask_status(b);
}

static int report(bench *b)
{
    tk__bench *found = &b->found;
    if (b->ctl->json)
        tk__json_print(tk__bench_json(found), false);
    else if (b->ctl->quiet)
        printf("%.1f\n", tk__bench_goodput(found));
    else
        tk__bench_print(found);
    if (b->csv && !tk__bench_csv(found, b->csv))
        return tk__fail("--csv %s: %s", b->csv, strerror(errno));
    return found->result.latency[TK__GEN_OK].n ? TK__DONE : TK__FAILED;
}

static int run(bench *b)
{
    tk__stop_begin();
    if (!read_tokens(b) || !make_requests(b) || !connect_all(b) || !try_tokens(b))
        return TK__FAILED;
    tk__gen_opts *load = &b->found.load;
    load->clients = b->clients;
    load->n_clients = b->n_clients;
    load->tenants = b->tenants;
    load->n_tenants = b->n_tenants;
    load->requests = b->requests;
    load->n_requests = b->n_requests;
    load->concurrency = b->concurrency;
    load->rate = b->rate;
    load->warm_up_s = b->warm_up;
    load->seconds = b->seconds;
    load->calls = b->calls;
    load->timeout_ms = (unsigned)(b->deadline_ms ? b->deadline_ms : b->ctl->timeout_ms);
    load->deadline_ms = (unsigned)b->deadline_ms;
    load->seed = b->seed;
    load->progress = !b->ctl->quiet && isatty(STDERR_FILENO);
    load->look = look;
    load->at_window = at_window;
    load->arg = b;
    b->found.call = b->call_name;
    b->found.batch = b->call == CLASSIFY ? b->batch : 0;
    if (!tk__generate(load, &b->found.result)) return tk__fail("out of memory or threads");
    return report(b);
}

/* -- options -- */

/* TK__GO, or the exit code. */
static int check_load(bench *b)
{
    if (b->rate != 0 && b->concurrency)
        return tk__usage(b->cmd, "--concurrency and --rate exclude each other");
    if (b->rate != 0 && !(b->rate > 0 && b->rate <= 1e6))
        return tk__usage(b->cmd, "--rate is %g, but must be above 0 and at most 1e6", b->rate);
    if (b->rate == 0 && !b->concurrency) b->concurrency = 8;
    if (b->concurrency > TK__GEN_IN_FLIGHT_MAX)
        return tk__usage(b->cmd, "--concurrency is %llu, but must be 1 to %d",
                         (unsigned long long)b->concurrency, TK__GEN_IN_FLIGHT_MAX);
    if (isnan(b->seconds)) b->seconds = b->calls ? 86400 : 10;
    if (!(b->seconds >= 0.1 && b->seconds <= 86400))
        return tk__usage(b->cmd, "--seconds is %g, but must be 0.1 to 86400", b->seconds);
    if (!(b->warm_up >= 0 && b->warm_up <= 3600))
        return tk__usage(b->cmd, "--warm-up is %g, but must be 0 to 3600 seconds", b->warm_up);
    if (b->deadline_ms > 3600000)
        return tk__usage(b->cmd, "--deadline-ms is %llu, but must be at most 3600000",
                         (unsigned long long)b->deadline_ms);
    if (b->ctl->timeout_ms < 1 || b->ctl->timeout_ms > 3600000)
        return tk__usage(b->cmd, "--timeout is %llu, but must be 1 to 3600000",
                         (unsigned long long)b->ctl->timeout_ms);
    if (b->connections > CONNECTIONS_MAX)
        return tk__usage(b->cmd, "--connections is %llu, but must be 1 to %d",
                         (unsigned long long)b->connections, CONNECTIONS_MAX);
    const uint64_t enough = (b->concurrency + CALLS_PER_CONNECTION - 1) / CALLS_PER_CONNECTION;
    if (!b->connections) b->connections = b->concurrency ? enough : OPEN_CONNECTIONS;
    return TK__GO;
}

static int check_call(bench *b)
{
    static const char *const names[] = {"classify", "health", "status"};
    size_t i = 0;
    while (i < 3 && strcmp(names[i], b->call_name) != 0)
        i++;
    if (i == 3)
        return tk__usage(b->cmd, "--call is \"%s\", but must be classify, health or status",
                         b->call_name);
    b->call = (what_call)i;
    if (b->call != CLASSIFY && (b->images.n || b->heads.n))
        return tk__usage(b->cmd, "--images and --head go with --call classify");
    if (b->call == CLASSIFY && b->images.n == 0)
        return tk__usage(b->cmd, "--images is missing: the images to send");
    if (b->batch < 1 || b->batch > TK__BATCH_MAX)
        return tk__usage(b->cmd, "--batch is %llu, but must be 1 to %d",
                         (unsigned long long)b->batch, TK__BATCH_MAX);
    if (b->tokens_file && (b->ctl->token || b->ctl->token_file))
        return tk__usage(b->cmd, "--tokens takes the place of --token and --token-file");
    if (b->admin_token && b->admin_token_file)
        return tk__usage(b->cmd, "--admin-token and --admin-token-file exclude each other");
    b->watch = b->admin_token || b->admin_token_file;
    return TK__GO;
}

static void free_bench(bench *b)
{
    for (size_t i = 1; i < b->n_clients; i++) /* the first one is ctl's */
        tk_client_close(b->clients[i]);
    if (b->watch) {
        tk_client_close(b->admin.client);
        free(b->admin.address);
    }
    for (size_t i = 0; i < b->n_requests; i++)
        tk_client_packed_free(b->requests[i]);
    for (size_t i = 0; i < b->n_tenants; i++)
        free(b->tenants[i].token);
    if (b->found.before) tk_client_free_message(&b->found.before->base);
    if (b->found.after) tk_client_free_message(&b->found.after->base);
    tk__gen_free(&b->found.result);
    free(b->clients);
    free(b->requests);
    free(b->tenants);
    tk__images_free(&b->list);
    tk__list_free(&b->images);
    tk__list_free_deep(&b->heads);
    free(b);
}

int tk__cmd_bench(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    bench *b = tk__alloc(1, sizeof(*b));
    *b = (bench){.ctl = ctl,
                 .cmd = cmd,
                 .call_name = "classify",
                 .batch = 1,
                 .seed = 1,
                 .seconds = NAN, /* not given */
                 .warm_up = 1};
    const char *heads = NULL;
    tk__list rest;
    const tk__opt opts[] = {
        {"images", 'i', TK__MANY, &b->images, "DIR|FILE", "what to send, in turn; again for more"},
        {"concurrency", 'c', TK__NUMBER, &b->concurrency, "N",
         "closed loop: N calls in flight at any time (default 8)"},
        {"rate", 'r', TK__REAL, &b->rate, "R",
         "open loop: R calls a second at random (Poisson), whatever the server does"},
        {"seconds", 0, TK__REAL, &b->seconds, "S",
         "how long to measure (default 10; with --calls: until they are counted)"},
        {"calls", 'n', TK__NUMBER, &b->calls, "N",
         "measure until so many calls have ended (default: as long as --seconds says)"},
        {"warm-up", 0, TK__REAL, &b->warm_up, "S", "seconds before that (default 1)"},
        {"batch", 0, TK__NUMBER, &b->batch, "N", "images in one call (default 1, at most 256)"},
        {"head", 0, TK__TEXT, &heads, "A,B", "only these heads (default: all of the tenant)"},
        {"deadline-ms", 0, TK__NUMBER, &b->deadline_ms, "MS",
         "of each call; goodput counts what was answered within it (default: none)"},
        {"connections", 0, TK__NUMBER, &b->connections, "N",
         "over which calls go in turn (default: one for each 64 in flight; open loop: 16)"},
        {"tokens", 0, TK__TEXT, &b->tokens_file, "FILE",
         "many tenants: a token a line, after it its weight in the mix (default 1)"},
        {"admin-token-file", 0, TK__TEXT, &b->admin_token_file, "FILE",
         "an admin's token: report what the server saw, too"},
        {"admin-token", 0, TK__TEXT, &b->admin_token, "TOKEN",
         "the same; other users see it in ps"},
        {"call", 0, TK__TEXT, &b->call_name, "NAME",
         "classify (default); health or status (admin): what a call costs without images"},
        {"seed", 0, TK__NUMBER, &b->seed, "N", "of arrivals and of the mix (default 1)"},
        {"csv", 0, TK__TEXT, &b->csv, "FILE", "append the report as a line, for many runs"},
    };
    int code =
        tk__args_parse(ctl, cmd, opts, sizeof(opts) / sizeof(opts[0]), argc, argv, &rest, 0, 0);
    if (code == TK__GO) {
        tk__list_free(&rest);
        b->heads = tk__list_split(heads);
        code = check_call(b);
        if (code == TK__GO) code = check_load(b);
        if (code == TK__GO) code = run(b);
    }
    free_bench(b);
    return code;
}
