/* Keeps the gRPC listener alive when file descriptors run out.
 *
 * The C core before 1.53.2 closes its listening socket for good when accept4() fails with EMFILE
 * (CVE-2023-4785). Its shared library calls accept4 through the dynamic symbol table, so a function
 * of that name in the executable is the one it gets. Ours never reports a shortage: it accepts with
 * the place of a spare descriptor, closes the connection at once, and goes on. It also leaves a
 * reserve of descriptors to the rest of the process, by refusing connections whose descriptor is
 * numbered above a limit. */
#ifndef SERVER_RPC_ACCEPT_GUARD_H
#define SERVER_RPC_ACCEPT_GUARD_H

#include <stdint.h>

/* Opens the spare descriptors (once in the process) and allows at least `max_connections`
 * descriptors beyond a reserve of 64. Calling it also makes the linker take this file from the
 * static library. Any thread. */
void tk__accept_guard_init(unsigned max_connections);
/* Connections closed for want of descriptors, or over the limit, since the process began. Any
 * thread. */
uint64_t tk__accept_guard_shed(void);
/* Calls that reached our accept4: more than none shows that it is the one in use. Any thread. */
uint64_t tk__accept_guard_calls(void);

#endif
