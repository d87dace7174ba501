// SPDX-License-Identifier: Apache-2.0
//
// The table on standard output, and the same for machines.
#ifndef NORMD_BENCH_REPORT_H
#define NORMD_BENCH_REPORT_H

#include <stdbool.h>

#include "peers.h"
#include "targets.h"

// peers: oneDNN and PyTorch; absent ones have no column.
void report_heading(const struct machine *machine, const struct peer peers[2]);
void report_row(const struct result *result, const struct peer peers[2]);
void report_end(const struct verdict verdicts[VERDICTS], const struct findings *findings);

// Returns false, with errno, where the file cannot be written.
bool report_json(const char *path, const struct findings *findings, const struct verdict verdicts[VERDICTS],
                 const struct peer peers[2]);

#endif
