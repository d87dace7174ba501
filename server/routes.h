// SPDX-License-Identifier: Apache-2.0
//
// The table of routes: which method on which path runs what. proto/openapi.yaml lists the same, and a test holds the
// two together.
#ifndef NORMD_SERVER_ROUTES_H
#define NORMD_SERVER_ROUTES_H

#include <stdbool.h>
#include <stddef.h>

#include "job.h"

enum route_flag {
    ROUTE_HAS_NAME = 1 << 0,    // {name} in the path is a layer
    ROUTE_NEEDS_LAYER = 1 << 1, // which must exist
    ROUTE_BODY = 1 << 2,        // takes a JSON body, at most --max-body
    ROUTE_BIG_BODY = 1 << 3,    // which may be as large as the memory budget, since that of a state follows the layer
    ROUTE_HEAVY = 1 << 4,       // runs on a worker whatever its size
    ROUTE_PROBE = 1 << 5,       // whatever query and Accept say is ignored: a probe cannot always choose what it sends
    ROUTE_NOT_BUILT = 1 << 6,   // of the contract, but not in this build: `run` says so as soon as the head was read
    ROUTE_OIP = 1 << 7,         // of the Open Inference Protocol: Content-Type does not say what a body is
    ROUTE_CODED = 1 << 8,       // takes and gives bodies in a content coding too
    ROUTE_CALL = 1 << 9,        // computes: the layer's times count it
};

struct route {
    const char *method; // HEAD is GET without its body
    const char *path;   // {name} and {version} stand for one segment each
    enum job_result (*run)(struct job *job);
    unsigned flags;
    const char *content_type;                   // of its replies; NULL: that of the form, or they have no body
    unsigned reads, writes;                     // forms of bodies and replies: bit 1 << enum codec_form
    const char *parameters[JOB_PARAMETERS_MAX]; // query parameters that it knows; of a call: options of a form without
                                                // room for fields
};

extern const struct route routes[];
extern const size_t route_count;

enum route_match {
    ROUTE_FOUND,
    ROUTE_NO_PATH,
    ROUTE_NO_METHOD,  // the path has other methods
    ROUTE_BAD_NAME,   // {name} is none
    ROUTE_NO_VERSION, // {version} is not the one that a layer has
};

// Finds the route of a method and a raw path (percent-encoded, without query). name: room of MSG_NAME_MAX + 1, filled
// in where the path has one.
enum route_match route_find(const struct route **route, char *name, const char *method, const char *path);

// True where the path is of the Open Inference Protocol, whether there is such a route or not.
bool route_is_oip(const char *path);

// The methods of a path that exists, as the Allow field has them: "GET, HEAD, PUT".
void route_allow(char *out, size_t room, const char *path);

// Decodes %XX in a path segment or query value of `length` bytes; plus is a space in a query. False where it is
// malformed, contains NUL, or does not fit.
bool route_unescape(char *out, size_t room, const char *text, size_t length, bool query);

#endif
