/* What the files of the Open Inference Protocol share. A model is a head, seen by its caller under
 * the name that Heads.List shows; its version is the number of the snapshot. */
#ifndef SERVER_API_OIP_H
#define SERVER_API_OIP_H

#include "api/api_internal.h"
#include "inference/open_inference_grpc.pb-c.h"

enum {
    TK_OIP_IMAGES_MAX = 256,
    TK_OIP_PLACES_MAX = 10000, /* versions of a model, and lines of the index: the newest */
};

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

/* The head's name as the caller knows it. Borrowed from the head. */
char *tk__oip_shown(const tk_rpc_call *call, const tk_head *head);
/* The head that the caller calls `name` in the snapshot that was picked (tk__picked_fn) for
 * `version`. TK_NOTFOUND alike for what is not there and for what is another's. */
TK_MUST tk_err tk__oip_find(const tk_rpc_call *call, tk_err picked, const tk_snapshot *snapshot,
                            const char *name, const char *version, const tk_head **head,
                            tk_diag *diag);

/* One request under way. */
typedef struct tk__oip_query {
    tk_rpc_call *call;
    bool stream;
    const Inference__ModelInferRequest *in;
    const tk_head *head; /* of the snapshot that the tk_infer holds */
    uint64_t version;
    bool raw; /* contents, there and back */
    size_t n; /* images */
    tk_image_form form;
    size_t w, h;         /* of pixels */
    size_t image_size;   /* bytes, of pixels and planes */
    const uint8_t *data; /* of pixels and planes; NULL: files */
    uint8_t *own;        /* `data`, when it was made here */
    size_t n_outputs;
    struct {
        tk_oip_output what;
        size_t k; /* of a classification; 0: all values */
    } outputs[TK_OIP_OUTPUTS];
    size_t top_k;
    float *values[TK_OIP_OUTPUTS]; /* [n][width], those that are wanted */
} tk__oip_query;

/* -- api_oip_input.c -- */
/* Checks the input but for its contents, and notes form and number of the images. */
TK_MUST tk_err tk__oip_check_input(tk__oip_query *q, const tk_snapshot *snapshot, tk_diag *diag);
/* Checks the contents, and points the images of `infer` at their bytes. */
TK_MUST tk_err tk__oip_take_contents(tk__oip_query *q, tk_infer *infer, tk_diag *diag);

/* Text of the client's, for an error. */
typedef struct tk__oip_quote {
    char text[80];
} tk__oip_quote;

static inline tk__oip_quote tk__oip_quoted(const char *text)
{
    tk__oip_quote q;
    tk__api_text_copy(q.text, sizeof q.text, text);
    return q;
}

#endif
