// SPDX-License-Identifier: Apache-2.0
#include "taken.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <stddef.h>
#include <sys/socket.h>

uint64_t taken_bytes(int fd) {
    struct tcp_info info = {0};
    socklen_t size = sizeof info;
    const size_t needed = offsetof(struct tcp_info, tcpi_bytes_acked) + sizeof info.tcpi_bytes_acked;
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 && size >= needed ? info.tcpi_bytes_acked : 0;
}
