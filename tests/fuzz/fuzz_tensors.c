/* Any bytes as a safetensors file: parsed, converted, and taken for a trunk. */
#include <assert.h>
#include <string.h>

#include "engine/mem.h"
#include "engine/tensors.h"
#include "fuzz.h"

static void use(const tk_tensors *tensors)
{
    for (size_t i = 0; i < tk_tensors_count(tensors); i++) {
        const tk_tensor *t = tk_tensors_at(tensors, i);
        float *values = tk_calloc(t->count, sizeof *values);
        assert(tk_tensors_find(tensors, t->name) == t);
        if (values && tk_tensor_to_f32(t, values, NULL) != TK_OK)
            assert(t->dtype == TK_I64 || t->dtype == TK_OTHER);
        tk_free(values);
    }
    tk_diag diag;
    tk_arch arch;
    tk_params *params;
    (void)tk_tensors_meta(tensors, "format");
    if (tk_arch_guess(tensors, "", &arch, &diag) != TK_OK) return;
    if (tk_params_create(&params, arch) != TK_OK) return;
    if (tk_params_load(params, tensors, "", &diag) == TK_OK) assert(!tk_params_nonfinite(params));
    tk_params_destroy(params);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tk_tensors *tensors;
    tk_diag diag = {.text = ""};
    const long live = tk_test_alloc_live();
    tk_err err = tk_tensors_parse(&tensors, data, size, &diag);
    assert((err == TK_OK) == (tensors != NULL));
    assert((err == TK_OK) == (diag.text[0] == '\0'));
    if (tensors) use(tensors);
    tk_tensors_close(tensors);
    assert(tk_test_alloc_live() == live);
    return 0;
}
