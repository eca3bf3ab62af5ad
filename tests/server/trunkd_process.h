/* The real trunkd in a process of its own, for tests: a store prepared through the store's own
 * functions, the program that lies beside the test, and clients of it. */
#ifndef TESTS_SERVER_TRUNKD_PROCESS_H
#define TESTS_SERVER_TRUNKD_PROCESS_H

#include <stdbool.h>
#include <sys/types.h>

#include "fixture.h"
#include "rpc_client.h"
#include "trunkd/v1/admin.pb-c.h"
#include "trunkd/v1/classifier.pb-c.h"
#include "trunkd/v1/datasets.pb-c.h"
#include "trunkd/v1/heads.pb-c.h"
#include "trunkd/v1/jobs.pb-c.h"

typedef struct trunkd {
    char dir[256], log[300], port_file[300];
    char admin_token[64], alice_token[64], bob_token[64];
    pid_t pid; /* 0: not running */
    int port;
    tk_client *admin, *alice, *bob, *nobody;
} trunkd;

/* Makes a folder for the store. `models` versions are committed, fixture_model(1),
 * fixture_model(2), ..., the last one current, with tenants alice and bob. Aborts on failure. */
void trunkd_prepare(trunkd *t, unsigned models);
/* The same with make(1), make(2), ...: models with the heads of fixture_model(). */
void trunkd_prepare_with(trunkd *t, unsigned models, tk_model *(*make)(uint64_t number));
/* Starts the program with these flags besides --store, --listen, --port-file (NULL-terminated, may
 * be NULL), waits until it answers, opens the clients. */
void trunkd_start(trunkd *t, const char *const *flags);
/* Sends the signal, waits for the end, closes the clients; gives the exit status, or 128 + the
 * signal. */
int trunkd_end(trunkd *t, int signal);
/* Removes the folder. */
void trunkd_remove(trunkd *t);
/* Runs the program to its end with flags only; gives the exit status. Its standard error goes to
 * t->log. */
int trunkd_run(trunkd *t, const char *const *flags);
/* How many lines of the log have this text, and whether any has. */
size_t trunkd_log_lines(const trunkd *t, const char *text);
bool trunkd_logged(const trunkd *t, const char *text);
/* The port of --http, as the log tells it. */
int trunkd_http_port(const trunkd *t);

/* One request, its answer (or NULL) and status. The answer is for tk_client_free_message. */
typedef struct answer {
    ProtobufCMessage *message;
    tk_client_status status;
} answer;
answer ask(tk_client *client, const char *path, const void *request,
           const ProtobufCMessageDescriptor *type);

/* Classifies n images with one head (NULL: all) and the given top_k. */
answer classify(tk_client *client, const fixture_bytes *images, size_t n, const char *head,
                unsigned top_k);

/* Uploads n images with their labels; *id is the data set's, 0 on failure. */
tk_client_status upload(tk_client *client, const char *name, const fixture_bytes *images,
                        const char *const *labels, size_t n, uint64_t *id);

/* Rollback; the new version's number. Aborts on failure. */
uint64_t trunkd_roll_back(const trunkd *t, uint64_t to);

/* GetStatus, for tk_client_free_message. */
Trunkd__V1__GetStatusResponse *trunkd_status(const trunkd *t);

/* ExportVersion into memory, for free(). */
fixture_bytes export_version(tk_client *client, uint64_t number, tk_client_status *status);
/* ImportTrunk of a file; *version (may be NULL) is for tk_client_free_message, or NULL. */
tk_client_status import_trunk(tk_client *client, fixture_bytes file, const char *arch,
                              Trunkd__V1__Version **version);

#endif
