/* What the tests of the Open Inference Protocol share: trunkd with two versions of the two tenants'
 * models, images in every form that the protocol knows, and what the current version says of them.
 * What is not as it should be fails the test. */
#ifndef TESTS_SERVER_OIP_FIXTURE_H
#define TESTS_SERVER_OIP_FIXTURE_H

#include "inference/open_inference_grpc.pb-c.h"
#include "serving/batcher.h"
#include "trunkd_process.h"

enum { OIP_IMAGES = 3, OIP_PX = 32, OIP_FEATURES = 64 };

#define OIP(name)    &inference__##name##__descriptor
#define METHOD(name) "/inference.GRPCInferenceService/" name
#define BAD          TK_CLIENT_INVALID_ARGUMENT

extern trunkd oip_server; /* version 2 is current */
extern fixture_bytes oip_good[OIP_IMAGES];
extern tk_image oip_pixels[OIP_IMAGES];                   /* the same, decoded */
extern float oip_planes[OIP_IMAGES][3 * OIP_PX * OIP_PX]; /* the same, as the trunk reads them */

typedef struct oip_expected {
    tk_top top[FIXTURE_TYPES];
    float probabilities[FIXTURE_TYPES], logits[FIXTURE_TYPES], features[OIP_FEATURES];
} oip_expected;

/* Of alice's head at version 2, for each image. */
extern oip_expected oip_wanted[OIP_IMAGES];

/* For a group of tests. */
int oip_set_up(void **state);
int oip_tear_down(void **state);

/* -- requests -- */

typedef Inference__ModelInferRequest infer_request;
typedef Inference__ModelInferRequest__InferInputTensor input_tensor;
typedef Inference__ModelInferRequest__InferRequestedOutputTensor wanted_tensor;

/* A request on the heap of the test: everything it points to lies within. */
typedef struct oip_question {
    infer_request in;
    char model[64], version[32], id[32];
    input_tensor input, *inputs[2];
    char name[64], datatype[32];
    int64_t shape[8];
    Inference__InferTensorContents contents;
    ProtobufCBinaryData raw[2], files[OIP_IMAGES];
    uint32_t *numbers;
    uint8_t *bytes; /* of raw contents, or NULL */
    wanted_tensor outputs[4], *output_list[4];
    char output_names[4][64];
    Inference__ModelInferRequest__InferRequestedOutputTensor__ParametersEntry entries[4],
        *entry_list[4];
    Inference__InferParameter parameters[4];
    char key[32];
} oip_question;

/* `words` are part of the sentence. */
void oip_assert_status(const tk_client_status *status, int code, const char *words);
/* The answer, for tk_client_free_message(). */
void *oip_answered(tk_client *client, const char *path, const void *in,
                   const ProtobufCMessageDescriptor *type);
void oip_assert_refused(tk_client *client, const char *path, const void *in,
                        const ProtobufCMessageDescriptor *type, int code, const char *words);
/* To alice's model, with one input and no contents yet. oip_finish() frees what it holds, not `q`.
 */
void oip_ask_about(oip_question *q, const char *datatype, size_t n_shape, const int64_t *shape);
void oip_finish(oip_question *q);
void oip_put_raw(oip_question *q, const void *data, size_t size);
/* Names an output; `classification` 0: all its values. */
void oip_want(oip_question *q, const char *name, int64_t classification);
/* About all images as files and as planes, or about the i-th as pixels, since all of a tensor have
 * one size; in contents of the type, or raw. */
void oip_files_typed(oip_question *q);
void oip_files_raw(oip_question *q);
void oip_pixels_raw(oip_question *q, size_t i);
void oip_pixels_typed(oip_question *q, size_t i);
void oip_planes_raw(oip_question *q);
void oip_planes_typed(oip_question *q);

/* -- answers -- */

/* Alice asks: an answer, for tk_client_free_message(). */
Inference__ModelInferResponse *oip_infer(oip_question *q);
/* Alice asks, and is refused; finishes `q`. */
void oip_refused(oip_question *q, int code, const char *words);
/* The i-th output is FP32 [n][width], to the bit. */
void oip_assert_floats(const Inference__ModelInferResponse *out, size_t i, const char *name,
                       size_t n, size_t width, bool raw, const float *values);
/* All three outputs of images first, first + 1, ... */
void oip_assert_all(const Inference__ModelInferResponse *out, size_t first, size_t n, bool raw);
/* Alice asks, and gets them; finishes `q`. */
void oip_assert_answers(oip_question *q, size_t first, size_t n, bool raw);

#endif
