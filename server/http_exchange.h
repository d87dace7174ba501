// SPDX-License-Identifier: Apache-2.0
//
// Private to the HTTP files: one request, from libmicrohttpd's first callback for it to its last.
#ifndef NORMD_SERVER_HTTP_EXCHANGE_H
#define NORMD_SERVER_HTTP_EXCHANGE_H

#include <microhttpd.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "connections.h"
#include "job.h"

#define SECOND_NS UINT64_C(1000000000)

enum stage {
    STAGE_BODY,    // the body is gathered
    STAGE_REFUSED, // it is thrown away, the error of the job is the reply
    STAGE_WORK,    // the job runs, the connection is suspended or about to be resumed
    STAGE_REPLIED,
};

// Owned by libmicrohttpd's connection, from the first callback to `completed`.
struct exchange {
    struct MHD_Connection *connection;
    struct connections *connections; // borrowed
    struct connection *deadline;     // in it
    struct job *job;                 // owned
    enum stage stage;
    bool has_body, close;
    size_t received;
    size_t given; // of the piece at hand of a reply in pieces
    uint64_t began_ns, body_began_ns;
    char allow[64];
    char method[16];
    int status;
};

// True where the reply is to name the content codings of bodies.
bool exchange_tells_codings(const struct exchange *exchange);

// A whole reply as it goes over the wire, for those that libmicrohttpd cannot send: it takes none while it waits for a
// body.
bool exchange_write_error(struct buffer *out, const struct job *job, const char *fields, bool with_body);

// The fields of the job's error that others do not have.
void exchange_error_fields(char *out, size_t room, const struct exchange *exchange);

// Queues the job's reply, or its error.
enum MHD_Result exchange_reply(struct exchange *exchange);

#endif
