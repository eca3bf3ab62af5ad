/* From our errors to gRPC status codes. */
#ifndef SERVER_RPC_STATUS_H
#define SERVER_RPC_STATUS_H

#include <grpc/status.h>

#include "engine/err.h"

grpc_status_code tk__status_code(tk_err err);

#endif
