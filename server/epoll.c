// SPDX-License-Identifier: Apache-2.0
//
// epoll as libmicrohttpd's threads call it: two defects of the library, up to 0.9.75 at least, are kept from showing.
// The linker exports these functions because the library refers to them, so its calls come here.
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/epoll.h>

typedef int (*control)(int epfd, int operation, int fd, struct epoll_event *event);

// The library asks for 128 events and, when it is given exactly that many, calls epoll_wait again before it serves
// them; with nothing further ready it then sleeps on 128 requests that wait for it. Here it never gets as many as it
// asks for.
int epoll_wait(int epfd, struct epoll_event *events, int maxevents, int timeout) {
    return epoll_pwait(epfd, events, maxevents > 1 ? maxevents - 1 : maxevents, timeout, NULL);
}

// MHD_quiesce_daemon and the I/O threads both take the listening socket out of the epoll set, without a lock; the one
// that comes second gets ENOENT, and the library then aborts the process. What is out already is out.
int epoll_ctl(int epfd, int operation, int fd, struct epoll_event *event) {
    static _Atomic(control) next;
    control call = atomic_load(&next);
    if (call == NULL) {
        void *const found = dlsym(RTLD_NEXT, "epoll_ctl");
        memcpy(&call, &found, sizeof call);
        atomic_store(&next, call);
    }
    const int result = call(epfd, operation, fd, event);
    return result != 0 && operation == EPOLL_CTL_DEL && errno == ENOENT ? 0 : result;
}
