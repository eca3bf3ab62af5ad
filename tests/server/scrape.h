/* HTTP by hand, and a strict reader of Prometheus' text format: for tests. */
#ifndef TESTS_SERVER_SCRAPE_H
#define TESTS_SERVER_SCRAPE_H

#include <stdbool.h>
#include <stddef.h>

/* A connection to the loopback port, with a limit of 20 s on each wait. Asserts. */
int scrape_dial(int port);
/* Sends `request` (a string) and reads until the end. The answer is free()'s; "" when the other
 * side only closes. */
char *scrape_exchange(int port, const char *request);
/* GET of `path`; *status is the number of the status line, 0: none came. The answer with its
 * headers, free(). */
char *scrape_get(int port, const char *path, int *status);
/* What follows the empty line after the headers. Borrowed. */
const char *scrape_body(const char *answer);

/* Fails the test unless `text` is well-formed: each line by the format's grammar, HELP and TYPE
 * once and before the samples of their name, samples of a name together and none twice, buckets
 * rising and the last one, +Inf, equal to _count. */
void scrape_check(const char *text);
/* The value of the sample that is written just so, `name{label="value"}`; -1: there is none. */
double scrape_value(const char *text, const char *sample);

#endif
