/* Folders, as store and jobs need them. */
#ifndef SERVER_STORE_FILES_H
#define SERVER_STORE_FILES_H

#include <stdbool.h>

#include "engine/err.h"

/* Makes a folder (mode 0700), durably. It may be there already. */
TK_MUST tk_err tk_files_make_dir(const char *path, tk_diag *diag);
/* Removes what is in a folder, and the folder when `self`. It may be missing. Follows no links. */
TK_MUST tk_err tk_files_remove_tree(const char *path, bool self, tk_diag *diag);

#endif
