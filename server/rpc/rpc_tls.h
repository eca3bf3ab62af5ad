/* Certificates: the server's own, read again when their files change, and the tenant that a
 * client's names.
 *
 * A tenant is named by a URI among the certificate's subject alternative names,
 * "trunkd:tenant:NAME"; where there is none with "trunkd:tenant:", by the common name. */
#ifndef SERVER_RPC_RPC_TLS_H
#define SERVER_RPC_RPC_TLS_H

#include <grpc/grpc_security.h>

#include "rpc/rpc.h"

typedef struct tk__rpc_tls tk__rpc_tls;

/* Reads and checks the files; TK_BADDATA or TK_IO with a sentence that names the file. Logs what
 * they hold, and warns about a key that everybody may read. The paths are copied. */
TK_MUST tk_err tk__rpc_tls_create(tk__rpc_tls **out, const tk_rpc_tls *files, tk_diag *diag);
/* After the server that uses its credentials is gone. NULL is fine. */
void tk__rpc_tls_destroy(tk__rpc_tls *tls);
/* For grpc_server_credentials_release(). Each new connection asks whether the files have changed;
 * a set that does not hold together is logged once, and the last good one stays. */
grpc_server_credentials *tk__rpc_tls_credentials(tk__rpc_tls *tls);
/* Whether clients are asked for certificates, so that those that came are verified. */
bool tk__rpc_tls_verifies(const tk__rpc_tls *tls);

typedef struct tk__rpc_named {
    char name[64]; /* "": no tenant is named */
    bool by_uri;   /* it is a tenant's name for certain; a common name may be anything */
} tk__rpc_named;

/* What the certificate of the call's connection says; only where tk__rpc_tls_verifies().
 * TK_UNAUTHENTICATED: it names two tenants, or none that could be one. */
TK_MUST tk_err tk__rpc_tls_named(grpc_call *call, tk__rpc_named *out, tk_diag *diag);

#endif
