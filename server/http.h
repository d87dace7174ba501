// SPDX-License-Identifier: Apache-2.0
//
// The HTTP side: libmicrohttpd's threads, from the head of a request to the bytes of its reply. Everything between is
// the job's. The daemon runs on threads of its own; the functions here are for the main thread.
#ifndef NORMD_SERVER_HTTP_H
#define NORMD_SERVER_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "job.h"

struct http;

// Serves on the listening socket (taken over) with `threads` I/O threads. service is borrowed and must outlive it.
// NULL with the socket closed where it cannot.
struct http *http_start(struct service *service, int listen_fd, unsigned threads);

// Cuts connections whose deadline has passed. To be called a few times a second.
void http_reap(struct http *http, uint64_t now_ns);

// Stops accepting; requests that run go on, and each reply closes its connection. Once, after service->draining is set.
void http_drain(struct http *http);

// Cuts connections that serve no request. Again and again while draining: a reply that was on its way when the drain
// began leaves an idle connection behind.
void http_cut_idle(struct http *http);

// Connections that are open.
size_t http_connections(struct http *http);

// Cuts all connections.
void http_cut_all(struct http *http);

// Ends the threads and sets *http to NULL. No job may be with a worker or the writer any more.
void http_stop(struct http **http);

#endif
