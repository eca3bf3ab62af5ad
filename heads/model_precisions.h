/* The part of a version's metadata that speaks of precisions. */
#ifndef HEADS_MODEL_PRECISIONS_H
#define HEADS_MODEL_PRECISIONS_H

#include <jansson.h>

#include "heads/model.h"

/* "precisions": {"bf16": {...}, "int8": {...}} of the head's object `o`; absent: not measured. */
void tk__checks_to_json(const tk_precision_check checks[TK_PRECISION_COUNT], json_t *o);
TK_MUST tk_err tk__checks_from_json(tk_precision_check checks[TK_PRECISION_COUNT], const json_t *o,
                                    tk_diag *diag);
/* "ranges": [a limit per map] of the metadata `root`; absent: no maps. */
json_t *tk__ranges_to_json(const tk_calibration *ranges);
TK_MUST tk_err tk__ranges_from_json(tk_calibration *ranges, const json_t *root, tk_diag *diag);

#endif
