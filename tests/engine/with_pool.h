/* A pool of two threads for all tests of a program: its group's set-up and tear-down. */
#ifndef TESTS_WITH_POOL_H
#define TESTS_WITH_POOL_H

#include "engine/pool.h"

static tk_pool *pool;

static int make_pool(void **state)
{
    (void)state;
    return tk_pool_create(&pool, 2) == TK_OK ? 0 : -1;
}

static int drop_pool(void **state)
{
    (void)state;
    tk_pool_destroy(pool);
    return 0;
}

#endif
