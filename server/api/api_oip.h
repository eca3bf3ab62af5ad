/* What the files of the Open Inference Protocol share. A model is a head, seen by its caller under
 * the name that Heads.List shows; its version is the number of the snapshot. */
#ifndef SERVER_API_OIP_H
#define SERVER_API_OIP_H

#include "api/api_internal.h"
#include "inference/open_inference_grpc.pb-c.h"

enum { TK_OIP_IMAGES_MAX = 256 };

typedef enum tk_oip_output {
    TK_OIP_PROBABILITIES,
    TK_OIP_LOGITS,
    TK_OIP_FEATURES,
    TK_OIP_OUTPUTS,
} tk_oip_output;

/* "probabilities", "logits", "features". */
extern const char *const tk__oip_output_names[TK_OIP_OUTPUTS];
/* Values per image. */
size_t tk__oip_output_width(const tk_head *head, tk_oip_output output);

/* The snapshot (a reference) and in it the head that the caller calls `name`, at `version`: empty,
 * or the number that is served. TK_NOTFOUND alike for what is not there and for what is another's.
 */
TK_MUST tk_err tk__oip_find(tk_rpc_call *call, const char *name, const char *version,
                            tk_snapshot **snapshot, const tk_head **head, tk_diag *diag);

#endif
