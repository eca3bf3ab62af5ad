/* The daemon put together: store, serving, jobs, services, RPC.
 *
 * Threads, in the order in which they start:
 *   main              starts and stops everything, waits for signals
 *   http              http.c, if asked for: /metrics, /livez, /readyz, from memory
 *   pool workers      engine/pool, one pool per version in memory: kernels for the executor
 *                     (while a version is made: for whoever makes it, packing weights)
 *   executor          serving/batcher: forms batches, runs the trunk, answers Classify calls
 *   decoders          serving/batcher: decode images of Classify calls and of uploads
 *   shelf             serving/shelf: loads versions for labels and pins, and goes on with the
 *                     requests that waited for them
 *   supervisor        jobs/jobs: one job at a time, the trainer's pipe, commits
 *   pump              api/pump: moves Watch and ExportVersion streams on
 *   completion queues rpc: every call's events; handlers that touch memory only (Classify)
 *   RPC workers       rpc: handlers that touch disk or data base
 *   the gRPC core's own few
 *
 * Locks. One that is taken while another is held stands below it here; most are leaves.
 *   jobs' version lock  > hooks (this file) > shelf's lock > tk_current's lock
 *   shelf's admin lock  > store's mutex; shelf's lock
 *   jobs' watch list    > pump.lock
 *   rpc's idle streams  > a ClassifyStream's lock, a call's lock
 *   batcher.lock        > tk_rpc_cancelled (an atomic flag), nothing else
 *   tk_metrics.lock     > the probe (server.c): batcher.lock, shelf's lock
 *   store's mutex (SQL), tk_api.streams, pump.lock, tk_current's lock, rpc's locks: leaves
 * No lock is held across a kernel, a call into the gRPC core, or `done` of a request.
 *
 * Ends in reverse: Watch streams end, calls are drained, the trainer is told, threads join. */
#ifndef SERVER_SERVER_H
#define SERVER_SERVER_H

#include "config.h"

typedef struct tk_server tk_server;

/* Starts everything and serves; logs what it does. The configuration is borrowed until stop.
 * Signals that the caller wants to wait for must be blocked before. On failure nothing is left, and
 * the sentence says why. */
TK_MUST tk_err tk_server_start(tk_server **out, const tk_config *config, tk_diag *diag);
/* The configuration was changed by tk_config_adopt(): takes that over. The starting thread. */
void tk_server_reload(tk_server *server);
/* Comes back when the queue of images can be looked at: a server that hangs there does not. A slow
 * disk does not count, as killing the server would not mend it. Any thread. */
void tk_server_pulse(tk_server *server);
int tk_server_port(const tk_server *server); /* 1 for a unix socket */
/* Graceful; returns when all is written, joined and freed. NULL is fine. */
void tk_server_stop(tk_server *server);

#endif
