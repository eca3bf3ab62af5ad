/* The only place that maps a tk_err to a gRPC status code. The switch has no default, so that
 * -Wswitch-enum names the error that was added and not mapped. */
#include "rpc/status.h"

grpc_status_code tk__status_code(tk_err err)
{
    switch (err) {
    case TK_OK:
        return GRPC_STATUS_OK;
    case TK_BADARG:
    case TK_BADDATA:
        return GRPC_STATUS_INVALID_ARGUMENT;
    case TK_NOTFOUND:
        return GRPC_STATUS_NOT_FOUND;
    case TK_EXISTS:
        return GRPC_STATUS_ALREADY_EXISTS;
    case TK_DENIED:
        return GRPC_STATUS_PERMISSION_DENIED;
    case TK_UNAUTHENTICATED:
        return GRPC_STATUS_UNAUTHENTICATED;
    case TK_PRECONDITION:
        return GRPC_STATUS_FAILED_PRECONDITION;
    case TK_LIMIT:
    case TK_NOSPACE:
    case TK_NOMEM:
        return GRPC_STATUS_RESOURCE_EXHAUSTED;
    case TK_BUSY:
        return GRPC_STATUS_UNAVAILABLE; /* not ready or shutting down: try again, elsewhere or later
                                         */
    case TK_CANCELLED:
        return GRPC_STATUS_CANCELLED;
    case TK_DEADLINE:
        return GRPC_STATUS_DEADLINE_EXCEEDED;
    case TK_DIVERGED:
        return GRPC_STATUS_ABORTED;
    case TK_IO:
    case TK_INTERNAL:
        return GRPC_STATUS_INTERNAL;
    }
    return GRPC_STATUS_UNKNOWN;
}
