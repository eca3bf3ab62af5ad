/* The file of --config, cut into its settings: lines of "name = value", '#' at a line's beginning
 * or after a blank for comments. What names and values mean is config.c's business. */
#ifndef SERVER_CONFIG_FILE_H
#define SERVER_CONFIG_FILE_H

#include "engine/err.h"

typedef struct tk__config_line {
    const char *name, *value; /* within the text; name NULL: the file is over */
    unsigned number;          /* from 1 */
} tk__config_line;

/* The whole file, at most 64 KiB, for tk_free(). TK_BADARG: it cannot be read, or is no text. */
TK_MUST tk_err tk__config_file_read(const char *path, char **text, tk_diag *diag);
/* The next setting. *at is the text at first, and `line` zeroed; the text is cut on the way.
 * TK_BADARG, with file and line: this is no setting. */
TK_MUST tk_err tk__config_file_next(const char *path, char **at, tk__config_line *line,
                                    tk_diag *diag);

#endif
