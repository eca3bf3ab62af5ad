/* Any text as the metadata of a version's file. The tensors are a ResNet-20, heads "a" and "b" of
 * two classes each: what the text claims about them has to be checked. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/mem.h"
#include "engine/tensors.h"
#include "fuzz.h"
#include "heads/model.h"

static const float zeros[128];

static int write_version(const char *path, const char *text)
{
    static const size_t weight[] = {2, 64}, bias[] = {2};
    tk_params *trunk;
    tk_tensor_list list = {0};
    int good = tk_params_create(&trunk, TK_RESNET20) == TK_OK;
    if (!good) return 0;
    good = tk_tensor_list_add_trunk(&list, trunk, trunk->data, "trunk.", false) == TK_OK &&
           tk_tensor_list_add(&list, "head.a.weight", 2, weight, zeros) == TK_OK &&
           tk_tensor_list_add(&list, "head.a.bias", 1, bias, zeros) == TK_OK &&
           tk_tensor_list_add(&list, "head.b.weight", 2, weight, zeros) == TK_OK &&
           tk_tensor_list_add(&list, "head.b.bias", 1, bias, zeros) == TK_OK &&
           tk_tensors_write(path, list.items, list.n, &(tk_meta){"trunkd", text}, 1, NULL) == TK_OK;
    tk_tensor_list_fini(&list);
    tk_params_destroy(trunk);
    return good;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[] = "/tmp/fuzz-model-XXXXXX";
    const long live = tk_test_alloc_live();
    char *text = tk_calloc(size + 1, 1);
    const int fd = mkstemp(path);
    if (!text || fd < 0) return 0;
    (void)close(fd);
    memcpy(text, data, size);
    if (write_version(path, text)) {
        tk_model *model;
        const tk_err err = tk_model_load(&model, path, true, NULL);
        assert((err == TK_OK) == (model != NULL));
        if (model) assert(model->n_heads == 2 && !model->fisher);
        tk_model_destroy(model);
        const bool sound = err == TK_OK;
        const tk_err outlined = tk_model_outline(&model, path, NULL);
        assert((outlined == TK_OK) == (model != NULL));
        assert(!sound || (outlined == TK_OK && model->n_heads == 2));
        tk_model_destroy(model);
    }
    (void)unlink(path);
    tk_free(text);
    assert(tk_test_alloc_live() == live);
    return 0;
}
