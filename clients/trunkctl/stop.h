/* Ctrl-C for commands that run long: the first SIGINT or SIGTERM asks to stop and cancels the call
 * in hand, the second ends the program at once. */
#ifndef TRUNKCTL_STOP_H
#define TRUNKCTL_STOP_H

#include <stdbool.h>

#include "rpc_client.h"

/* Blocks the signals and starts the thread that waits for them. Before the first connection, so
 * that the gRPC library's threads inherit the mask. */
void tk__stop_begin(void);
bool tk__stop_asked(void);
/* The call to cancel; NULL before it is finished. */
void tk__stop_call(tk_client_call *call);

#endif
