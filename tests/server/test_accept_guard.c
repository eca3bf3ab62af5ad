/* The process's accept4 when descriptors are short or reserved. */
#define _GNU_SOURCE /* accept4 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "rpc/accept_guard.h"

enum { MAX_CONNECTIONS = 40, HIGHEST = MAX_CONNECTIONS + 64, LIMIT = 200 };

static int listener;
static struct sockaddr_in address;
static int fillers[LIMIT], n_fillers;

static int setup(void **state)
{
    (void)state;
    struct rlimit limit;
    socklen_t len = sizeof address;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return -1;
    limit.rlim_cur = LIMIT;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) return -1;
    tk__accept_guard_init(MAX_CONNECTIONS);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    address = (struct sockaddr_in){.sin_family = AF_INET};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (const struct sockaddr *)&address, sizeof address) != 0) return -1;
    if (listen(listener, 16) != 0) return -1;
    return getsockname(listener, (struct sockaddr *)&address, &len);
}

static int teardown(void **state)
{
    (void)state;
    return close(listener);
}

static int connect_one(void)
{
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

/* Takes descriptors until the next one would be numbered above `most`, or there is none. */
static void fill(int most)
{
    for (int fd; (fd = open("/dev/null", O_RDONLY)) >= 0;) {
        fillers[n_fillers++] = fd;
        if (fd >= most) break;
    }
}

static void empty(void)
{
    while (n_fillers > 0)
        close(fillers[--n_fillers]);
}

static void assert_closed_by_peer(int fd)
{
    char byte;
    assert_true(recv(fd, &byte, 1, 0) <= 0);
    close(fd);
}

static void connection_is_accepted_with_its_address(void **state)
{
    (void)state;
    const int ours = connect_one();
    struct sockaddr_in from;
    socklen_t len = sizeof from;
    const int theirs = accept4(listener, (struct sockaddr *)&from, &len, SOCK_CLOEXEC);
    assert_true(theirs >= 0);
    assert_int_equal(len, sizeof from);
    assert_int_equal(from.sin_addr.s_addr, htonl(INADDR_LOOPBACK));
    assert_int_equal(fcntl(theirs, F_GETFD), FD_CLOEXEC);
    close(theirs);
    close(ours);
    errno = 0;
    assert_int_equal(accept4(listener, NULL, NULL, 0), -1);
    assert_int_equal(errno, EAGAIN);
}

static void connection_without_a_descriptor_is_closed_not_reported(void **state)
{
    (void)state;
    const int first = connect_one(), second = connect_one();
    const uint64_t before = tk__accept_guard_shed();
    fill(LIMIT);
    assert_int_equal(accept4(listener, NULL, NULL, 0), -1);
    assert_int_equal(errno, EAGAIN); /* and not EMFILE, which would end the core's listener */
    assert_int_equal(tk__accept_guard_shed(), before + 2);
    empty();
    assert_closed_by_peer(first);
    assert_closed_by_peer(second);
    const int third = connect_one(), theirs = accept4(listener, NULL, NULL, 0);
    assert_true(theirs >= 0);
    close(theirs);
    close(third);
}

static void connections_leave_a_reserve_of_descriptors(void **state)
{
    (void)state;
    const int ours = connect_one();
    const uint64_t before = tk__accept_guard_shed();
    fill(HIGHEST);
    assert_int_equal(accept4(listener, NULL, NULL, 0), -1);
    assert_int_equal(errno, EAGAIN);
    assert_int_equal(tk__accept_guard_shed(), before + 1);
    assert_closed_by_peer(ours);
    empty();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(connection_is_accepted_with_its_address),
        cmocka_unit_test(connection_without_a_descriptor_is_closed_not_reported),
        cmocka_unit_test(connections_leave_a_reserve_of_descriptors),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
