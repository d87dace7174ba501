// SPDX-License-Identifier: Apache-2.0
//
// CPU features that tiers ask for: what the CPU and the operating system have, less what NORMD_CPU masks away.
#ifndef NORMD_KERNELS_CPU_H
#define NORMD_KERNELS_CPU_H

#include <stddef.h>

enum cpu_feature {
    CPU_AVX2 = 1 << 0,   // and F16C, and the OS saves ymm
    CPU_AVX512 = 1 << 1, // F, BW, DQ, VL, and the OS saves zmm and the mask registers
    CPU_NEON = 1 << 2,
};

// Detected once, then constant: a set of enum cpu_feature. NORMD_CPU=scalar|avx2|avx512 in the environment caps it; any
// other value is ignored here (the server refuses it at start). May be called from any thread.
unsigned cpu_features(void);

// Bytes of the data cache of level 2 (a core's own) or 3 (all cores' together), detected once; a usual size where the
// system does not say. May be called from any thread.
size_t cpu_cache_bytes(int level);

#endif
