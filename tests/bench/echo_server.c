/* The C core alone, for tests/bench/serving.sh: a server that answers every unary call with the
 * call's own message, with as many completion-queue threads as trunkd has (a quarter of the cores)
 * and none of its checks. What it answers in a second is what the library can do here.
 *
 *     echo_server PORT-FILE      until a signal ends it */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/support/time.h>

enum { SLOTS = 256 }; /* calls in hand on each queue */

typedef struct slot {
    enum { WAITING, RECEIVING, ANSWERING } state;
    grpc_call *call;
    grpc_call_details details;
    grpc_metadata_array metadata;
    grpc_byte_buffer *message;
    int cancelled;
} slot;

typedef struct queue {
    grpc_server *server;
    grpc_completion_queue *events;
    slot slots[SLOTS];
} queue;

static void wait_for_call(queue *q, slot *s)
{
    s->state = WAITING;
    s->message = NULL;
    grpc_call_details_init(&s->details);
    grpc_metadata_array_init(&s->metadata);
    grpc_server_request_call(q->server, &s->call, &s->details, &s->metadata, q->events, q->events,
                             s);
}

static void receive(slot *s)
{
    s->state = RECEIVING;
    const grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &s->message};
    grpc_call_start_batch(s->call, &op, 1, s, NULL);
}

static void answer(slot *s)
{
    s->state = ANSWERING;
    grpc_slice fine = grpc_empty_slice();
    grpc_op ops[4] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_SEND_STATUS_FROM_SERVER,
         .data.send_status_from_server = {.status = GRPC_STATUS_OK, .status_details = &fine}},
        {.op = GRPC_OP_RECV_CLOSE_ON_SERVER, .data.recv_close_on_server.cancelled = &s->cancelled},
    };
    size_t n = 3;
    if (s->message)
        ops[n++] =
            (grpc_op){.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = s->message};
    grpc_call_start_batch(s->call, ops, n, s, NULL);
}

static void end(slot *s)
{
    if (s->message) grpc_byte_buffer_destroy(s->message);
    grpc_call_unref(s->call);
    grpc_call_details_destroy(&s->details);
    grpc_metadata_array_destroy(&s->metadata);
}

static void *serve(void *arg)
{
    queue *q = arg;
    for (size_t i = 0; i < SLOTS; i++)
        wait_for_call(q, &q->slots[i]);
    for (;;) {
        const grpc_event event =
            grpc_completion_queue_next(q->events, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        if (event.type != GRPC_OP_COMPLETE) return NULL;
        slot *s = event.tag;
        switch (s->state) {
        case WAITING:
            receive(s);
            break;
        case RECEIVING:
            answer(s);
            break;
        case ANSWERING:
            end(s);
            wait_for_call(q, s);
            break;
        }
    }
}

static void tell_port(const char *path, int port)
{
    char temp[1024];
    snprintf(temp, sizeof temp, "%s.new", path);
    FILE *file = fopen(temp, "w");
    if (!file || fprintf(file, "%d\n", port) < 0 || fclose(file) != 0 || rename(temp, path) != 0) {
        perror(path);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: echo_server PORT-FILE\n");
        return 2;
    }
    grpc_init();
    grpc_server *server = grpc_server_create(NULL, NULL);
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    const size_t n = cores < 8 ? 1 : (size_t)cores / 4;
    queue *queues = calloc(n, sizeof *queues);
    if (!queues) return 1;
    for (size_t i = 0; i < n; i++) {
        queues[i].server = server;
        queues[i].events = grpc_completion_queue_create_for_next(NULL);
        grpc_server_register_completion_queue(server, queues[i].events, NULL);
    }
    grpc_server_credentials *plain = grpc_insecure_server_credentials_create();
    const int port = grpc_server_add_http2_port(server, "127.0.0.1:0", plain);
    grpc_server_credentials_release(plain);
    if (port == 0) {
        fprintf(stderr, "echo_server: no port\n");
        return 1;
    }
    grpc_server_start(server);
    tell_port(argv[1], port);
    pthread_t thread;
    for (size_t i = 1; i < n; i++) {
        if (pthread_create(&thread, NULL, serve, &queues[i]) != 0) return 1;
    }
    serve(&queues[0]);
    return 0;
}
