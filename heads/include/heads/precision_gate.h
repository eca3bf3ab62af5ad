/* The gate's question, asked of a precision: may this version be served in it? The same rule as for
 * a candidate (gate.h), with the version in fp32 as what was before. */
#ifndef HEADS_PRECISION_GATE_H
#define HEADS_PRECISION_GATE_H

#include "heads/gate.h"
#include "heads/model.h"

/* Judges one head by its validations in fp32 and in the precision, `now`, on the same images. The
 * head's tolerance holds against fp32, and rule->best is not looked at. A head without labels is
 * judged by agreement with its answers in fp32: *now is rescored. The record's names are borrowed
 * from `fp32`. */
TK_MUST tk_err tk_precision_judge(const tk_validation *fp32, tk_validation *now,
                                  const tk_gate_rule *rule, tk_gate_record *record,
                                  tk_precision_check *check, tk_diag *diag);

#endif
