/* ResNet architectures and their parameters.
 *
 * He et al. 2015 (1512.03385): ResNet-18/34/50 with the ImageNet stem (7x7 stride 2, max pool; ResNet-50
 * with the stride on the 3x3, as torchvision has it) and ResNet-20/32/56 with the CIFAR stem (3x3,
 * three stages of 16, 32, 64 channels; a 1x1 convolution where a shortcut changes shape). A trunk ends
 * with global average pooling: `features` floats per image. Names are torchvision's. */
#ifndef ENGINE_NET_H
#define ENGINE_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/err.h"

typedef enum tk_arch {
    TK_RESNET18,
    TK_RESNET34,
    TK_RESNET50,
    TK_RESNET20,
    TK_RESNET32,
    TK_RESNET56,
    TK_ARCH_COUNT,
} tk_arch;

const char *tk_arch_name(tk_arch arch); /* "resnet18", ... */
TK_MUST tk_err tk_arch_parse(const char *name, tk_arch *out, tk_diag *diag);
size_t tk_arch_features(tk_arch arch); /* 512, 512, 2048, 64, 64, 64 */
size_t tk_arch_maps(tk_arch arch);     /* of activations, the input among them (precision.h) */
/* Is a square input of `px` allowed? 64..448 for the ImageNet stem, 32 for the CIFAR stem. */
TK_MUST tk_err tk_arch_check_px(tk_arch arch, unsigned px, tk_diag *diag);

typedef enum tk_param_kind {
    TK_PARAM_CONV,    /* weight decay applies */
    TK_PARAM_BN_GAMMA, /* "weight" on disk */
    TK_PARAM_BN_BETA,  /* "bias" on disk */
    TK_PARAM_BN_MEAN,  /* "running_mean"; a buffer, not trained */
    TK_PARAM_BN_VAR,   /* "running_var"; a buffer, not trained */
} tk_param_kind;

/* One named tensor inside the block of a tk_params. */
typedef struct tk_param {
    char name[48];      /* torchvision's: "layer1.0.conv1.weight" */
    tk_param_kind kind;
    size_t oc, ic, k;   /* convolution: k x k, ic -> oc; batch norm: oc channels, ic = k = 0 */
    size_t offset, count; /* floats, into tk_params.data; offsets are multiples of 16 */
} tk_param;

/* All parameters of a trunk: one 64-byte aligned block. Trained tensors come first (0..trained), then
 * the running statistics (trained..count), so that gradients, momenta, Fisher and anchors are plain
 * vectors of `trained` floats in the same layout; padding between tensors is zero. Convolution weights
 * are kept HWIO ([k][k][ic][oc]) in memory and OIHW on disk. */
typedef struct tk_params {
    tk_arch arch;
    size_t tensors;
    const tk_param *table; /* [tensors], in forward order within each of the two parts */
    size_t trained, count;
    float *data;
} tk_params;

/* Zeroed parameters (running_var = 1, gamma = 1). Free with tk_params_destroy(). */
TK_MUST tk_err tk_params_create(tk_params **out, tk_arch arch);
TK_MUST tk_err tk_params_clone(tk_params **out, const tk_params *from);
void tk_params_copy(tk_params *to, const tk_params *from); /* same arch */
void tk_params_destroy(tk_params *params);                 /* NULL is fine */
/* Index into table, or -1. */
long tk_params_find(const tk_params *params, const char *name);
/* He normal, fan-out (torchvision's default): conv ~ N(0, 2/(k*k*oc)), drawn per element in OIHW
 * order from stream tk_rng_stream(name); gamma 1, beta 0, mean 0, var 1. */
void tk_params_init(tk_params *params, uint64_t seed);
/* OIHW <-> HWIO of one tensor; batch norm vectors are copied. `disk` has param->count floats. */
void tk_param_to_disk(const tk_param *param, const float *data, float *disk);
void tk_param_from_disk(const tk_param *param, const float *disk, float *data);
/* First tensor with a NaN or infinity, or NULL. */
const char *tk_params_nonfinite(const tk_params *params);

#endif
