// SPDX-License-Identifier: Apache-2.0
//
// Settings of the server: one table drives flags, NORMD_* environment variables, --help and the page in README.md.
// A flag wins over the environment, which wins over the default.
#ifndef NORMD_SERVER_CONFIG_H
#define NORMD_SERVER_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct config {
    char listen[256]; // HOST:PORT, [V6]:PORT
    char data[1024];
    uint64_t client_rate;                           // requests per second; 0: no limit
    uint64_t threads;                               // 0: as many as the process may use
    int durability;                                 // enum durability
    uint64_t max_body, memory_budget, cache_budget; // bytes
    uint64_t cache_ttl_ns, request_timeout_ns, drain_timeout_ns;
    int log_level, log_format; // enum log_level, enum log_format
};

enum config_outcome {
    CONFIG_RUN,         // start the server
    CONFIG_HEALTHCHECK, // the subcommand `healthcheck`
    CONFIG_HELP,
    CONFIG_HELP_MARKDOWN,
    CONFIG_VERSION,
    CONFIG_WRONG, // `why` says what is wrong, in one line without its end
};

// Reads arguments and the environment into *config. A variable that is empty counts as not set; one of a setting that a
// flag gives is not looked at.
enum config_outcome config_read(struct config *config, int argc, char **argv, char *why, size_t why_size);

// How many variables NORMD_* of the environment are no setting, and their names, separated by commas. Their values are
// not shown.
size_t config_unknown_variables(char *out, size_t room);

// The usage text, and the table of settings as Markdown.
void config_help(FILE *out);
void config_markdown(FILE *out);

#endif
