/* What rpc_client.c needs for TLS. */
#ifndef CLIENTS_RPC_CLIENT_TLS_H
#define CLIENTS_RPC_CLIENT_TLS_H

#include <grpc/grpc_security.h>

#include "rpc_client.h"

/* NULL: *why names the file and says what is wrong with it. */
grpc_channel_credentials *tk__client_tls_credentials(const tk_client_tls *tls,
                                                     tk_client_status *why);
/* After a connection that did not come about: makes one more and looks where its handshake ends,
 * since the core tells neither an expired certificate from a stranger's nor that the server wants
 * one of the client. True: `text` is a sentence. No token is sent. Takes a few seconds at most. */
bool tk__client_tls_explain(const char *address, const tk_client_tls *tls, char *text, size_t size);

#endif
