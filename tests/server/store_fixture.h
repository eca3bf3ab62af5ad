/* A store in a fresh folder, and small things to put into it. */
#ifndef TESTS_SERVER_STORE_FIXTURE_H
#define TESTS_SERVER_STORE_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "heads/model.h"
#include "store/store.h"

typedef struct store_fixture {
    char dir[64]; /* of the store */
    tk_store *store;
    int64_t alice, bob;
    tk_token alice_token, bob_token;
} store_fixture;

#define assert_ok(expr) assert_ok_((expr), &diag, #expr, __FILE__, __LINE__)
void assert_ok_(tk_err err, const tk_diag *diag, const char *what, const char *file, int line);
#define assert_err(expr, want, words)                                                              \
    assert_err_((expr), (want), &diag, (words), #expr, __FILE__, __LINE__)
/* The error, and `words` somewhere in its sentence. */
void assert_err_(tk_err err, tk_err want, const tk_diag *diag, const char *words, const char *what,
                 const char *file, int line);

void fixture_dir(char *dir, size_t size);                       /* a fresh folder's name */
void fixture_open(store_fixture *f, const tk_store_opts *opts); /* with tenants alice and bob */
void fixture_reopen(store_fixture *f, const tk_store_opts *opts);
void fixture_close(store_fixture *f); /* and removes the folder */

/* A file in tmp/ of `size` bytes made from `seed`; free its path. */
char *fixture_file(tk_store *store, size_t size, unsigned seed);
/* A data set of two labels from such a file. */
uint64_t fixture_data_set(tk_store *store, int64_t tenant, size_t size, unsigned seed);
/* A ResNet-20 with the given heads ("alice/type", ...), two labels each, saved in tmp/ and staged.
 */
void fixture_model(tk_store *store, const char *const *heads, size_t n, uint64_t seed,
                   tk_object *out);
tk_model *fixture_net(const char *const *heads, size_t n, uint64_t seed);
/* Files in DIR/objects. */
size_t fixture_objects(const tk_store *store);
size_t fixture_entries(const char *dir, const char *name);

#endif
