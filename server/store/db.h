/* The door to SQLite: what the store needs of it, in the project's errors. Only db.c sees
 * sqlite3.h.
 *
 * Values are bound by a string of types, one letter each: i int64_t, d double (NaN becomes NULL), t
 * const char * (NULL becomes NULL), b const void * and size_t (NULL becomes NULL). One thread at a
 * time. */
#ifndef SERVER_STORE_DB_H
#define SERVER_STORE_DB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/err.h"

typedef struct tk_db tk_db;

/* Opens or makes the file: WAL, synchronous=FULL, foreign keys on, deleted content overwritten. */
TK_MUST tk_err tk__db_open(tk_db **out, const char *path, tk_diag *diag);
void tk__db_close(tk_db *db); /* NULL is fine */

/* Several statements without values. */
TK_MUST tk_err tk__db_script(tk_db *db, const char *sql, tk_diag *diag);
/* One statement to its end. A broken UNIQUE is TK_EXISTS. */
TK_MUST tk_err tk__db_run(tk_db *db, tk_diag *diag, const char *sql, const char *types, ...);
/* The first column of the first row; `missing` when there is none or when it is NULL. */
TK_MUST tk_err tk__db_int(tk_db *db, int64_t *out, int64_t missing, tk_diag *diag, const char *sql,
                          const char *types, ...);
int64_t tk__db_last_id(const tk_db *db);
int64_t tk__db_changes(const tk_db *db); /* rows of the last statement */

/* BEGIN IMMEDIATE. */
TK_MUST tk_err tk__db_begin(tk_db *db, tk_diag *diag);
/* COMMIT when `err` is TK_OK, and ROLLBACK when it is not or when COMMIT fails. Returns what holds.
 */
TK_MUST tk_err tk__db_end(tk_db *db, tk_err err, tk_diag *diag);
/* Writes the log back and empties it, so that deleted content is gone from there, too. */
void tk__db_checkpoint(tk_db *db);

/* Rows of a query:
 *     err = tk__rows_open(&rows, db, diag, "SELECT ...", "i", id);
 *     while (err == TK_OK && tk__rows_next(&rows)) ...;
 *     err = tk__rows_close(&rows, err, diag); */
typedef struct tk_rows {
    tk_db *db;
    void *statement;
    bool failed;
} tk_rows;

TK_MUST tk_err tk__rows_open(tk_rows *rows, tk_db *db, tk_diag *diag, const char *sql,
                             const char *types, ...);
bool tk__rows_next(tk_rows *rows);
/* `err` when it is not TK_OK, else what stopped the reading. Call it also after a failed open. */
TK_MUST tk_err tk__rows_close(tk_rows *rows, tk_err err, tk_diag *diag);

int64_t tk__col_int(const tk_rows *rows, int i);
double tk__col_real(const tk_rows *rows, int i);      /* NaN for NULL */
const char *tk__col_text(const tk_rows *rows, int i); /* "" for NULL; until the next row */
const void *tk__col_blob(const tk_rows *rows, int i, size_t *size); /* NULL for NULL */

#endif
