/* status and health. */
#include <stdio.h>
#include <time.h>

#include "ctl.h"
#include "grpc/health/v1/health.pb-c.h"
#include "term.h"
#include "trunkd/v1/admin.pb-c.h"

/* "precision bf16 (asked: auto; admitted: fp32, bf16)" */
static void print_precision(const Trunkd__V1__GetStatusResponse *s)
{
    if (!s->precision[0]) return;
    fputs("precision ", stdout);
    tk__put(stdout, s->precision);
    fputs(" (asked: ", stdout);
    tk__put(stdout, s->precision_asked);
    fputs("; admitted: ", stdout);
    for (size_t i = 0; i < s->n_precisions_admitted; i++) {
        if (i) fputs(", ", stdout);
        tk__put(stdout, s->precisions_admitted[i]);
    }
    puts(")");
}

static void print_status(const Trunkd__V1__GetStatusResponse *s)
{
    char buf[64];
    fputs("server    trunkd ", stdout);
    tk__put(stdout, s->server_version);
    printf(", up %s\n", tk__seconds((double)s->uptime_ms * 1e-3, buf, sizeof(buf)));
    if (s->version)
        printf("version   %llu\n", (unsigned long long)s->version);
    else
        puts("version   none yet");
    fputs("trunk     ", stdout);
    tk__put(stdout, s->arch);
    printf(", %u px, ", s->px);
    tk__put(stdout, s->isa);
    printf(", %u thread%s\n", s->threads, s->threads == 1 ? "" : "s");
    print_precision(s);
    printf("tenants   %llu with %llu heads\n", (unsigned long long)s->tenants,
           (unsigned long long)s->heads);
    printf("served    %llu requests, %llu failed, %llu refused, %llu dropped; %llu images in %llu "
           "batches",
           (unsigned long long)s->requests, (unsigned long long)s->failures,
           (unsigned long long)s->refused, (unsigned long long)s->dropped,
           (unsigned long long)s->images, (unsigned long long)s->batches);
    if (s->batches) printf(" (%.1f each)", (double)s->images / (double)s->batches);
    printf("\nwaiting   %llu images\n", (unsigned long long)s->queue);
    if (s->running_job)
        printf("jobs      %llu runs, %llu wait\n", (unsigned long long)s->running_job,
               (unsigned long long)s->queued_jobs);
    else
        printf("jobs      none runs, %llu wait\n", (unsigned long long)s->queued_jobs);
    printf("store     %s on disk\n", tk__bytes(s->store_bytes, buf, sizeof(buf)));
    printf("memory    %s\n", tk__bytes(s->resident_bytes, buf, sizeof(buf)));
}

int tk__cmd_status(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    tk__list rest;
    const int code = tk__args_parse(ctl, cmd, NULL, 0, argc, argv, &rest, 0, 0);
    if (code != TK__GO) return code;
    Trunkd__V1__Empty request;
    trunkd__v1__empty__init(&request);
    Trunkd__V1__GetStatusResponse *answer =
        tk__call(ctl, "/trunkd.v1.Admin/GetStatus", &request.base,
                 &trunkd__v1__get_status_response__descriptor);
    if (!answer) return TK__FAILED;
    if (ctl->json)
        tk__print_json(&answer->base);
    else if (ctl->quiet)
        printf("%llu\n", (unsigned long long)answer->version);
    else
        print_status(answer);
    tk_client_free_message(&answer->base);
    return TK__DONE;
}

/* One question. SERVING, another of the protocol's states, or -1 with the reason in *status. */
static int ask_health(tk__ctl *ctl, tk_client_status *status)
{
    Grpc__Health__V1__HealthCheckRequest request;
    grpc__health__v1__health_check_request__init(&request);
    ProtobufCMessage *message = NULL;
    if (!tk_client_unary(ctl->client, "/grpc.health.v1.Health/Check", &request.base,
                         &grpc__health__v1__health_check_response__descriptor, 5000, &message,
                         status))
        return -1;
    const int is = (int)((const Grpc__Health__V1__HealthCheckResponse *)message)->status;
    tk_client_free_message(message);
    return is;
}

int tk__cmd_health(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    double wait = 0;
    const tk__opt opts[] = {{"wait", 0, TK__REAL, &wait, "SECONDS", "try again for so long"}};
    tk__list rest;
    const int code = tk__args_parse(ctl, cmd, opts, 1, argc, argv, &rest, 0, 0);
    if (code != TK__GO) return code;
    if (!tk__connect(ctl)) return TK__FAILED;
    const int64_t end = tk__now_ns() + (int64_t)((wait < 1e6 ? wait : 1e6) * 1e9);
    tk_client_status status = {0};
    int is = ask_health(ctl, &status);
    while (is != GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING &&
           tk__now_ns() < end) {
        const struct timespec pause = {.tv_nsec = 50000000};
        nanosleep(&pause, NULL);
        is = ask_health(ctl, &status);
    }
    if (is < 0) return tk__rpc_failed(ctl, &status);
    static const char *const states[] = {"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"};
    const char *text = is < 4 ? states[is] : "?";
    if (ctl->json)
        printf("{\"status\": \"%s\"}\n", text);
    else if (!ctl->quiet)
        puts(text);
    return is == GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING ? TK__DONE
                                                                                  : TK__FAILED;
}
