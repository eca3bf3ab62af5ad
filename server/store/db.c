/* SQLite behind db.h: opening with the settings that durability rests on, binding by type letters,
 * errors. */
#include "store/db.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>

#include <sqlite3.h>

#include "engine/mem.h"

struct tk_db {
    sqlite3 *handle;
};

static tk_err err_of(sqlite3 *handle, int code)
{
    switch (code & 0xff) {
    case SQLITE_FULL:
        return TK_NOSPACE;
    case SQLITE_NOMEM:
        return TK_NOMEM;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return TK_BUSY;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return TK_BADDATA;
    case SQLITE_IOERR: {
        const int cause = sqlite3_system_errno(handle);
        /* A WAL that cannot grow its shared memory says so as an I/O error. */
        if (cause == ENOSPC || cause == EDQUOT || code == SQLITE_IOERR_SHMSIZE) return TK_NOSPACE;
        return TK_IO;
    }
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PERM:
        return TK_IO;
    case SQLITE_CONSTRAINT:
        if (code == SQLITE_CONSTRAINT_UNIQUE || code == SQLITE_CONSTRAINT_PRIMARYKEY)
            return TK_EXISTS;
        return TK_INTERNAL;
    default:
        return TK_INTERNAL;
    }
}

static tk_err fail(const tk_db *db, int code, tk_diag *diag)
{
    const tk_err err = err_of(db->handle, code);
    if (err == TK_NOSPACE) return tk_fail(diag, err, "the store's disk is full");
    return tk_fail(diag, err, "data base: %s", sqlite3_errmsg(db->handle));
}

tk_err tk__db_open(tk_db **out, const char *path, tk_diag *diag)
{
    *out = NULL;
    tk_db *db = tk_calloc(1, sizeof *db);
    if (!db) return tk_fail(diag, TK_NOMEM, "data base: out of memory");
    const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
    const int code = sqlite3_open_v2(path, &db->handle, flags, NULL);
    tk_err err = TK_OK;
    if (!db->handle)
        err = tk_fail(diag, TK_NOMEM, "data base: out of memory");
    else if (code != SQLITE_OK)
        err = fail(db, code, diag);
    if (err == TK_OK) {
        sqlite3_extended_result_codes(db->handle, 1);
        sqlite3_busy_timeout(db->handle, 5000);
        err = tk__db_script(db,
                            "PRAGMA journal_mode=WAL;"
                            "PRAGMA synchronous=FULL;"
                            "PRAGMA foreign_keys=ON;"
                            "PRAGMA secure_delete=ON;"
                            "PRAGMA temp_store=MEMORY;",
                            diag);
    }
    if (err != TK_OK) {
        tk__db_close(db);
        return err;
    }
    *out = db;
    return TK_OK;
}

void tk__db_close(tk_db *db)
{
    if (!db) return;
    (void)sqlite3_close(db->handle);
    tk_free(db);
}

tk_err tk__db_script(tk_db *db, const char *sql, tk_diag *diag)
{
    const int code = sqlite3_exec(db->handle, sql, NULL, NULL, NULL);
    return code == SQLITE_OK ? TK_OK : fail(db, code, diag);
}

static int bind(sqlite3_stmt *statement, int i, char type, va_list *args)
{
    switch (type) {
    case 'i':
        return sqlite3_bind_int64(statement, i, va_arg(*args, int64_t));
    case 'd': {
        const double value = va_arg(*args, double);
        return isnan(value) ? sqlite3_bind_null(statement, i)
                            : sqlite3_bind_double(statement, i, value);
    }
    case 't':
        return sqlite3_bind_text(statement, i, va_arg(*args, const char *), -1, SQLITE_TRANSIENT);
    case 'b': {
        const void *data = va_arg(*args, const void *);
        const size_t size = va_arg(*args, size_t);
        return sqlite3_bind_blob64(statement, i, data, size, SQLITE_TRANSIENT);
    }
    default:
        return SQLITE_MISUSE;
    }
}

static tk_err prepare(tk_db *db, sqlite3_stmt **out, const char *sql, const char *types,
                      va_list *args, tk_diag *diag)
{
    *out = NULL;
    int code = sqlite3_prepare_v2(db->handle, sql, -1, out, NULL);
    for (int i = 0; code == SQLITE_OK && types[i]; i++)
        code = bind(*out, i + 1, types[i], args);
    if (code == SQLITE_OK) return TK_OK;
    const tk_err err = fail(db, code, diag);
    (void)sqlite3_finalize(*out);
    *out = NULL;
    return err;
}

tk_err tk__db_run(tk_db *db, tk_diag *diag, const char *sql, const char *types, ...)
{
    sqlite3_stmt *statement;
    va_list args;
    va_start(args, types);
    tk_err err = prepare(db, &statement, sql, types, &args, diag);
    va_end(args);
    if (err != TK_OK) return err;
    int code;
    do
        code = sqlite3_step(statement);
    while (code == SQLITE_ROW);
    if (code != SQLITE_DONE) err = fail(db, code, diag);
    (void)sqlite3_finalize(statement);
    return err;
}

tk_err tk__db_int(tk_db *db, int64_t *out, int64_t missing, tk_diag *diag, const char *sql,
                  const char *types, ...)
{
    *out = missing;
    sqlite3_stmt *statement;
    va_list args;
    va_start(args, types);
    tk_err err = prepare(db, &statement, sql, types, &args, diag);
    va_end(args);
    if (err != TK_OK) return err;
    const int code = sqlite3_step(statement);
    if (code == SQLITE_ROW && sqlite3_column_type(statement, 0) != SQLITE_NULL)
        *out = sqlite3_column_int64(statement, 0);
    if (code != SQLITE_ROW && code != SQLITE_DONE) err = fail(db, code, diag);
    (void)sqlite3_finalize(statement);
    return err;
}

int64_t tk__db_last_id(const tk_db *db)
{
    return sqlite3_last_insert_rowid(db->handle);
}

int64_t tk__db_changes(const tk_db *db)
{
    return sqlite3_changes(db->handle);
}

tk_err tk__db_begin(tk_db *db, tk_diag *diag)
{
    return tk__db_run(db, diag, "BEGIN IMMEDIATE", "");
}

tk_err tk__db_end(tk_db *db, tk_err err, tk_diag *diag)
{
    if (err == TK_OK) err = tk__db_run(db, diag, "COMMIT", "");
    /* Some failures (a full disk) have rolled back by themselves. */
    if (err != TK_OK && !sqlite3_get_autocommit(db->handle))
        (void)sqlite3_exec(db->handle, "ROLLBACK", NULL, NULL, NULL);
    return err;
}

void tk__db_checkpoint(tk_db *db)
{
    (void)sqlite3_wal_checkpoint_v2(db->handle, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
}

tk_err tk__rows_open(tk_rows *rows, tk_db *db, tk_diag *diag, const char *sql, const char *types,
                     ...)
{
    *rows = (tk_rows){.db = db};
    sqlite3_stmt *statement;
    va_list args;
    va_start(args, types);
    const tk_err err = prepare(db, &statement, sql, types, &args, diag);
    va_end(args);
    rows->statement = statement;
    return err;
}

bool tk__rows_next(tk_rows *rows)
{
    const int code = sqlite3_step(rows->statement);
    rows->failed = code != SQLITE_ROW && code != SQLITE_DONE;
    return code == SQLITE_ROW;
}

tk_err tk__rows_close(tk_rows *rows, tk_err err, tk_diag *diag)
{
    if (err == TK_OK && rows->failed)
        err = fail(rows->db, sqlite3_extended_errcode(rows->db->handle), diag);
    (void)sqlite3_finalize(rows->statement);
    *rows = (tk_rows){0};
    return err;
}

int64_t tk__col_int(const tk_rows *rows, int i)
{
    return sqlite3_column_int64(rows->statement, i);
}

double tk__col_real(const tk_rows *rows, int i)
{
    if (sqlite3_column_type(rows->statement, i) == SQLITE_NULL) return (double)NAN;
    return sqlite3_column_double(rows->statement, i);
}

const char *tk__col_text(const tk_rows *rows, int i)
{
    const unsigned char *text = sqlite3_column_text(rows->statement, i);
    return text ? (const char *)text : "";
}

const void *tk__col_blob(const tk_rows *rows, int i, size_t *size)
{
    const void *data = sqlite3_column_blob(rows->statement, i);
    *size = data ? (size_t)sqlite3_column_bytes(rows->statement, i) : 0;
    return data;
}
