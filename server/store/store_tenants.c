/* Tenants and tokens. A token is 32 random bytes; the store keeps its SHA-256 only. Live tokens are
 * mirrored in memory, so that authentication never waits for the disk.
 *
 * The mirror is found by hash: whoever guesses tokens cannot steer SHA-256, so the probing tells
 * nothing about the secret, and the match itself is compared in constant time. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>

#include "engine/file.h"
#include "engine/mem.h"
#include "store/store_internal.h"

enum { SECRET_BYTES = 32, SECRET_TEXT = 46 }; /* "tk_" + 43 */

static tk_err no_memory(tk_diag *diag)
{
    return tk_fail(diag, TK_NOMEM, "store: out of memory");
}

/* -- the mirror -- */

static size_t slot_of(const tk_token_index *index, const unsigned char *hash)
{
    uint64_t h;
    memcpy(&h, hash, sizeof h);
    return (size_t)h & (index->cap - 1);
}

static tk_token_entry *find(const tk_token_index *index, const unsigned char *hash)
{
    if (!index->cap) return NULL;
    for (size_t i = slot_of(index, hash);; i = (i + 1) & (index->cap - 1)) {
        tk_token_entry *entry = &index->slots[i];
        if (!entry->who.token_id[0]) return NULL;
        if (CRYPTO_memcmp(entry->hash, hash, TK_HASH_BYTES) == 0) return entry;
    }
}

static void put(tk_token_index *index, const tk_token_entry *entry)
{
    size_t i = slot_of(index, entry->hash);
    while (index->slots[i].who.token_id[0])
        i = (i + 1) & (index->cap - 1);
    index->slots[i] = *entry;
    index->n++;
}

static tk_err add(tk_token_index *index, const tk_token_entry *entry, tk_diag *diag)
{
    if (2 * (index->n + 1) > index->cap) {
        tk_token_index grown = {.cap = index->cap ? 2 * index->cap : 16};
        grown.slots = tk_calloc(grown.cap, sizeof *grown.slots);
        if (!grown.slots) return no_memory(diag);
        for (size_t i = 0; i < index->cap; i++)
            if (index->slots[i].who.token_id[0]) put(&grown, &index->slots[i]);
        tk_free(index->slots);
        *index = grown;
    }
    put(index, entry);
    return TK_OK;
}

static void index_fini(tk_token_index *index)
{
    tk_free(index->slots);
    tk_free(index->by_name);
    *index = (tk_token_index){0};
}

static int compare_names(const void *a, const void *b)
{
    const tk_principal *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

/* A tenant with several tokens is there several times, which no search minds. */
static tk_err sort_names(tk_token_index *index, tk_diag *diag)
{
    index->by_name = tk_calloc(index->n + 1, sizeof *index->by_name);
    if (!index->by_name) return no_memory(diag);
    for (size_t i = 0; i < index->cap; i++) {
        const tk_principal *who = &index->slots[i].who;
        if (who->token_id[0] && !who->admin) index->by_name[index->n_names++] = who;
    }
    qsort(index->by_name, index->n_names, sizeof *index->by_name, compare_names);
    return TK_OK;
}

/* All live tokens, from the records. */
static tk_err read_index_locked(tk_store *store, tk_token_index *out, tk_diag *diag)
{
    *out = (tk_token_index){0};
    tk_rows rows;
    tk_err err =
        tk__rows_open(&rows, store->db, diag,
                      "SELECT tokens.id, hash, ifnull(tenant, 0), ifnull(name, '') FROM tokens"
                      " LEFT JOIN tenants ON tenants.id = tenant WHERE NOT revoked",
                      "");
    while (err == TK_OK && tk__rows_next(&rows)) {
        size_t size;
        const void *hash = tk__col_blob(&rows, 1, &size);
        tk_token_entry entry = {.who = {.tenant = tk__col_int(&rows, 2)}};
        if (size != TK_HASH_BYTES) continue;
        memcpy(entry.hash, hash, size);
        entry.who.admin = entry.who.tenant == TK_ALL;
        (void)snprintf(entry.who.token_id, sizeof entry.who.token_id, "%s", tk__col_text(&rows, 0));
        (void)snprintf(entry.who.name, sizeof entry.who.name, "%s", tk__col_text(&rows, 3));
        err = add(out, &entry, diag);
    }
    err = tk__rows_close(&rows, err, diag);
    if (err == TK_OK) err = sort_names(out, diag);
    if (err != TK_OK) index_fini(out);
    return err;
}

/* Makes the mirror again inside the transaction that changed the records: it is swapped in only
 * when the commit held. The lock is let go. */
tk_err tk__store_end_with_tokens(tk_store *store, tk_err err, tk_diag *diag)
{
    tk_token_index index = {0};
    if (err == TK_OK) err = read_index_locked(store, &index, diag);
    err = tk__db_end(store->db, err, diag);
    if (err == TK_OK) {
        (void)pthread_rwlock_wrlock(&store->tokens_lock);
        const tk_token_index old = store->tokens;
        store->tokens = index;
        (void)pthread_rwlock_unlock(&store->tokens_lock);
        index = old;
    }
    (void)pthread_mutex_unlock(&store->lock);
    index_fini(&index);
    return err;
}

static bool hash_token(const char *token, size_t len, unsigned char *hash)
{
    unsigned size = 0;
    return EVP_Digest(token, len, hash, &size, EVP_sha256(), NULL) && size == TK_HASH_BYTES;
}

tk_err tk_store_authenticate(tk_store *store, const char *token, size_t len, tk_principal *out,
                             tk_diag *diag)
{
    *out = (tk_principal){0};
    unsigned char hash[EVP_MAX_MD_SIZE];
    bool known = false;
    if (token && len == SECRET_TEXT && hash_token(token, len, hash)) {
        (void)pthread_rwlock_rdlock(&store->tokens_lock);
        const tk_token_entry *entry = find(&store->tokens, hash);
        known = entry != NULL;
        if (known) *out = entry->who;
        (void)pthread_rwlock_unlock(&store->tokens_lock);
    }
    if (known) return TK_OK;
    return tk_fail(diag, TK_UNAUTHENTICATED, "token: unknown or revoked");
}

tk_err tk_store_tenant_live(tk_store *store, const char *name, int64_t *tenant, tk_diag *diag)
{
    tk_principal wanted = {0};
    const tk_principal *key = &wanted;
    *tenant = 0;
    if (strlen(name) < sizeof wanted.name) {
        (void)snprintf(wanted.name, sizeof wanted.name, "%s", name);
        (void)pthread_rwlock_rdlock(&store->tokens_lock);
        const tk_token_index *index = &store->tokens;
        const tk_principal *const *found = index->n_names
                                               ? bsearch(&key, index->by_name, index->n_names,
                                                         sizeof *index->by_name, compare_names)
                                               : NULL;
        if (found) *tenant = (*found)->tenant;
        (void)pthread_rwlock_unlock(&store->tokens_lock);
    }
    if (*tenant) return TK_OK;
    return tk_fail(diag, TK_NOTFOUND, "tenant: there is none of that name with a live token");
}

void tk__tokens_fini(tk_store *store)
{
    index_fini(&store->tokens);
}

/* -- making tokens -- */

static void base64url(const unsigned char *data, size_t n, char *out)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    uint32_t bits = 0;
    unsigned have = 0;
    for (size_t i = 0; i < n; i++) {
        bits = bits << 8 | data[i];
        for (have += 8; have >= 6; have -= 6)
            *out++ = digits[bits >> (have - 6) & 63];
    }
    if (have) *out++ = digits[bits << (6 - have) & 63];
    *out = '\0';
}

static tk_err make_token(tk_token *out, tk_diag *diag)
{
    unsigned char secret[SECRET_BYTES], id[8];
    *out = (tk_token){.secret = "tk_"};
    if (RAND_bytes(secret, sizeof secret) != 1 || RAND_bytes(id, sizeof id) != 1)
        return tk_fail(diag, TK_INTERNAL, "no randomness for a token");
    base64url(secret, sizeof secret, out->secret + 3);
    OPENSSL_cleanse(secret, sizeof secret);
    for (size_t i = 0; i < sizeof id; i++)
        (void)snprintf(out->id + 2 * i, 3, "%02x", id[i]);
    return TK_OK;
}

/* Inserts a token; tenant TK_ALL: an admin's. */
static tk_err insert_token_locked(tk_store *store, int64_t tenant, const tk_token *token,
                                  tk_diag *diag)
{
    unsigned char hash[EVP_MAX_MD_SIZE];
    if (!hash_token(token->secret, strlen(token->secret), hash))
        return tk_fail(diag, TK_INTERNAL, "token: SHA-256");
    return tk__db_run(store->db, diag,
                      "INSERT INTO tokens(id, tenant, hash, created) VALUES(?, nullif(?, 0), ?, ?)",
                      "tibi", token->id, tenant, (const void *)hash, (size_t)TK_HASH_BYTES,
                      tk__now_ms());
}

/* The file is written before the record: a crash in between leaves a file that the next start
 * replaces. */
static tk_err first_admin(tk_store *store, tk_diag *diag)
{
    tk_token token;
    char text[TK_TOKEN_SIZE + 1];
    tk_err err = make_token(&token, diag);
    if (err != TK_OK) return err;
    char *path = tk__store_path(store, "admin.token");
    if (!path) return no_memory(diag);
    const int n = snprintf(text, sizeof text, "%s\n", token.secret);
    err = tk_file_write(path, text, (size_t)n, diag); /* mode 0600 */
    tk_free(path);
    if (err == TK_OK) err = tk__store_begin(store, diag);
    if (err != TK_OK) return err;
    return tk__store_end_with_tokens(store, insert_token_locked(store, TK_ALL, &token, diag), diag);
}

tk_err tk__tokens_open(tk_store *store, tk_diag *diag)
{
    int64_t admins;
    tk_err err = tk__db_int(store->db, &admins, 0, diag,
                            "SELECT count(*) FROM tokens WHERE tenant IS NULL", "");
    if (err != TK_OK) return err;
    if (admins == 0) return first_admin(store, diag);
    return read_index_locked(store, &store->tokens, diag);
}

tk_err tk_store_token_issue(tk_store *store, const char *tenant, tk_token *out, tk_diag *diag)
{
    *out = (tk_token){0};
    tk_token token;
    tk_err err = make_token(&token, diag);
    if (err == TK_OK) err = tk__store_begin(store, diag);
    if (err != TK_OK) return err;
    int64_t id = TK_ALL;
    if (tenant && tenant[0]) {
        err = tk__db_int(store->db, &id, 0, diag, "SELECT id FROM tenants WHERE name = ?", "t",
                         tenant);
        if (err == TK_OK && !id)
            err = tk_fail(diag, TK_NOTFOUND, "tenant: there is none of that name");
    }
    if (err == TK_OK) err = insert_token_locked(store, id, &token, diag);
    err = tk__store_end_with_tokens(store, err, diag);
    if (err == TK_OK) *out = token;
    return err;
}

tk_err tk_store_token_revoke(tk_store *store, const char *id, tk_diag *diag)
{
    tk_err err = tk__store_begin(store, diag);
    if (err != TK_OK) return err;
    int64_t admins;
    err = tk__db_run(store->db, diag, "UPDATE tokens SET revoked = 1 WHERE id = ? AND NOT revoked",
                     "t", id);
    if (err == TK_OK && tk__db_changes(store->db) == 0)
        err = tk_fail(diag, TK_NOTFOUND, "token: there is no live one with that id");
    if (err == TK_OK)
        err = tk__db_int(store->db, &admins, 0, diag,
                         "SELECT count(*) FROM tokens WHERE tenant IS NULL AND NOT revoked", "");
    if (err == TK_OK && admins == 0)
        err = tk_fail(diag, TK_PRECONDITION,
                      "token: this is the last admin token; issue another one first");
    return tk__store_end_with_tokens(store, err, diag);
}

/* -- tenants -- */

tk_err tk_store_tenant_create(tk_store *store, const char *name, int64_t *id, tk_token *token,
                              tk_diag *diag)
{
    *id = 0;
    *token = (tk_token){0};
    tk_token made;
    tk_err err = tk_name_check(name, "tenant", diag);
    if (err == TK_OK) err = make_token(&made, diag);
    if (err == TK_OK) err = tk__store_begin(store, diag);
    if (err != TK_OK) return err;
    int64_t tenant = 0;
    err = tk__db_run(store->db, diag, "INSERT INTO tenants(name, created) VALUES(?, ?)", "ti", name,
                     tk__now_ms());
    if (err == TK_EXISTS) err = tk_fail(diag, TK_EXISTS, "tenant: \"%s\" exists already", name);
    if (err == TK_OK) {
        tenant = tk__db_last_id(store->db);
        err = insert_token_locked(store, tenant, &made, diag);
    }
    err = tk__store_end_with_tokens(store, err, diag);
    if (err != TK_OK) return err;
    *id = tenant;
    *token = made;
    return TK_OK;
}

static tk_err read_tenants_locked(tk_store *store, const char *name, tk_tenants *out, tk_diag *diag)
{
    tk_rows rows;
    size_t cap = 0;
    tk_err err =
        tk__rows_open(&rows, store->db, diag,
                      "SELECT id, name, created,"
                      " (SELECT count(*) FROM version_heads JOIN current USING(version) JOIN heads"
                      "  ON heads.id = version_heads.head WHERE heads.tenant = tenants.id),"
                      " (SELECT count(*) FROM data_sets WHERE data_sets.tenant = tenants.id),"
                      " ifnull(weight, 0), ifnull(rate, 0), ifnull(images, 0), ifnull(bytes, 0)"
                      " FROM tenants LEFT JOIN tenant_limits ON tenant = id WHERE ?1 IS NULL OR "
                      "name = ?1 ORDER BY name",
                      "t", name);
    while (err == TK_OK && tk__rows_next(&rows)) {
        if (out->n == cap) {
            cap = cap ? 2 * cap : 16;
            tk_tenant *items = tk_realloc(out->items, cap * sizeof *items);
            if (!items) {
                err = no_memory(diag);
                break;
            }
            out->items = items;
        }
        tk_tenant *t = &out->items[out->n++];
        *t = (tk_tenant){.id = tk__col_int(&rows, 0),
                         .created_ms = tk__col_int(&rows, 2),
                         .heads = (uint64_t)tk__col_int(&rows, 3),
                         .data_sets = (uint64_t)tk__col_int(&rows, 4),
                         .limits = {.weight = tk__col_real(&rows, 5),
                                    .rate = tk__col_real(&rows, 6),
                                    .images = (uint64_t)tk__col_int(&rows, 7),
                                    .bytes = (uint64_t)tk__col_int(&rows, 8)}};
        (void)snprintf(t->name, sizeof t->name, "%s", tk__col_text(&rows, 1));
        err = tk__store_tenant_bytes_locked(store, t->id, &t->bytes, diag);
    }
    return tk__rows_close(&rows, err, diag);
}

static tk_err list_tenants(tk_store *store, const char *name, tk_tenants *out, tk_diag *diag)
{
    *out = (tk_tenants){0};
    (void)pthread_mutex_lock(&store->lock);
    const tk_err err = read_tenants_locked(store, name, out, diag);
    (void)pthread_mutex_unlock(&store->lock);
    if (err != TK_OK) tk_tenants_fini(out);
    return err;
}

tk_err tk_store_tenant_list(tk_store *store, tk_tenants *out, tk_diag *diag)
{
    return list_tenants(store, NULL, out, diag);
}

tk_err tk_store_tenant_find(tk_store *store, const char *name, tk_tenant *out, tk_diag *diag)
{
    *out = (tk_tenant){0};
    tk_tenants list;
    tk_err err = list_tenants(store, name ? name : "", &list, diag);
    if (err != TK_OK) return err;
    if (list.n == 1)
        *out = list.items[0];
    else
        err = tk_fail(diag, TK_NOTFOUND, "tenant: there is none of that name");
    tk_tenants_fini(&list);
    return err;
}

tk_err tk_store_tenant_limits_set(tk_store *store, const char *name, tk_tenant_limits *limits,
                                  int64_t *id, tk_diag *diag)
{
    *id = 0;
    tk_err err = tk__store_begin(store, diag);
    if (err != TK_OK) return err;
    limits->change = ++store->limit_changes;
    err = tk__db_int(store->db, id, 0, diag, "SELECT id FROM tenants WHERE name = ?", "t", name);
    if (err == TK_OK && !*id)
        err = tk_fail(diag, TK_NOTFOUND, "tenant: there is none of that name");
    if (err == TK_OK)
        err = tk__db_run(store->db, diag,
                         "INSERT OR REPLACE INTO tenant_limits(tenant, weight, rate, images, bytes)"
                         " VALUES(?, ?, ?, ?, ?)",
                         "iddii", *id, limits->weight, limits->rate, (int64_t)limits->images,
                         (int64_t)limits->bytes);
    return tk__store_end(store, err, diag);
}

void tk_tenants_fini(tk_tenants *list)
{
    tk_free(list->items);
    *list = (tk_tenants){0};
}
