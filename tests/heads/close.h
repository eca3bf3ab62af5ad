/* assert_close(): equality of doubles up to a bound; cmocka's own compares floats. */
#ifndef TESTS_HEADS_CLOSE_H
#define TESTS_HEADS_CLOSE_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static inline void close_at(double got, double want, double bound, const char *file, int line)
{
    if (fabs(got - want) <= bound) return;
    print_error("%.9g is not within %.2g of %.9g\n", got, bound, want);
    _fail(file, line);
}

#define assert_close(got, want, bound)                                                             \
    close_at((double)(got), (double)(want), (double)(bound), __FILE__, __LINE__)

#endif
