/* A server on a loopback port whose methods echo, wait or stream, with counters of what their
 * callbacks saw. The messages are trunkd's own; the paths of the waiting ones are not. */
#ifndef TESTS_SERVER_RPC_FIXTURE_H
#define TESTS_SERVER_RPC_FIXTURE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "rpc/rpc.h"
#include "rpc_client.h"
#include "trunkd/v1/admin.pb-c.h"
#include "trunkd/v1/classifier.pb-c.h"
#include "trunkd/v1/datasets.pb-c.h"
#include "trunkd/v1/jobs.pb-c.h"

/* Unary. Classify answers from its callback, LATER from another thread, WORK on a worker, PARK when
 * the gate is open or when told. The answer: version = bytes of all images, images[0].error =
 * heads[0], and images[0].heads holds the caller's name, or "deadline" if the call has one. */
#define CLASSIFY "/trunkd.v1.Classifier/Classify"
#define OPEN     "/test.Echo/Open" /* no token needed */
#define LATER    "/test.Echo/Later"
#define WORK     "/test.Echo/Work"
#define PARK     "/test.Echo/Park"
#define STATUS   "/trunkd.v1.Admin/GetStatus" /* for admins */
/* Client streams: the answer counts images and bytes. On a worker, or not. */
#define UPLOAD      "/trunkd.v1.DataSets/Upload"
#define UPLOAD_FAST "/test.Echo/Upload"
/* Server streams: `after` events of `id` bytes, in order. On a worker, or not. */
#define WATCH      "/trunkd.v1.Jobs/Watch"
#define WATCH_WORK "/test.Echo/Watch"
/* Bidirectional streams: one event of `id` bytes with sequence `after` for each message; from the
 * callback, on a worker, from another thread, or there when the gate is open. */
#define CHAT       "/test.Echo/Chat"
#define CHAT_WORK  "/test.Echo/ChatWork"
#define CHAT_LATER "/test.Echo/ChatLater"
#define CHAT_PARK  "/test.Echo/ChatPark"
/* One event, and then two threads end the stream at once: well, and with TK_BUSY. */
#define CHAT_ENDS "/test.Echo/ChatEnds"

enum { SMALL_LIMIT = 4096, LARGE_LIMIT = 8 << 20 };

/* What is counted. BEGUN and FREED must be equal in the end. */
typedef enum rpc_event {
    EV_BEGUN,     /* calls that had a callback */
    EV_FREED,     /* on_free */
    EV_CANCELLED, /* on_cancel */
    EV_PARKED,    /* calls waiting at the gate */
    EV_MESSAGE,   /* upload messages taken */
    EV_FULL,      /* sends refused by a full queue */
    EV_QUEUED,    /* sends taken */
    EV_OVERLAP,   /* callbacks of one call that ran at once: never */
    EV_ENDED,     /* calls that the layer said were over */
    EV_COUNT,
} rpc_event;

typedef struct rpc_fixture {
    tk_rpc_server *server;
    char address[128];
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned long seen[EV_COUNT]; /* lock */
    bool gate;                    /* lock; open: nobody waits */
    unsigned long sent_chunks;    /* lock; what an uploading test has got rid of */
    unsigned long most_ahead;     /* lock; of sent_chunks before EV_MESSAGE */
    pthread_t later;
    struct rpc_job *jobs; /* lock; for the thread that answers LATER, PARK and the like */
    bool stop;            /* lock */
    long live_before;
} rpc_fixture;

/* `opts` may be NULL; address, token check and methods are the fixture's. */
void rpc_fixture_start(rpc_fixture *f, const tk_rpc_opts *opts);
/* Stops the server unless the test did, and asserts that every call was freed once and no memory is
 * left. */
void rpc_fixture_stop(rpc_fixture *f);
/* Waits until `event` was seen `n` times; false after 30 s. */
bool rpc_fixture_wait(rpc_fixture *f, rpc_event event, unsigned long n);
unsigned long rpc_fixture_seen(rpc_fixture *f, rpc_event event);
void rpc_fixture_gate(rpc_fixture *f, bool open);

/* A client with a tenant's token ("alice"), an admin's, or the token given. */
tk_client *rpc_fixture_tenant(const rpc_fixture *f);
tk_client *rpc_fixture_admin(const rpc_fixture *f);

/* Calls `path` with `n_bytes` of image and the head name `head`; returns the code, and checks the
 * echo when OK. */
int rpc_fixture_classify(tk_client *client, const char *path, size_t n_bytes, const char *head,
                         unsigned timeout_ms, tk_client_status *status);

#endif
