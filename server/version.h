// SPDX-License-Identifier: Apache-2.0
#ifndef NORMD_SERVER_VERSION_H
#define NORMD_SERVER_VERSION_H

#define NORMD_VERSION "0.1.0"

#endif
