/* The trainer's other commands, for work without a server. Each returns the exit status. */
#ifndef TRAINER_TOOLS_H
#define TRAINER_TOOLS_H

#include "engine/precision.h"

/* DIR/CLASS/image -> a pack, classes and images in order of their names. */
int tool_pack(const char *dir, const char *out);
/* Accuracy of one head of a version on a pack, as one line of JSON; in another precision than fp32
 * also how it compares with fp32. */
int tool_eval(const char *version, const char *pack, const char *head, tk_precision precision);

#endif
