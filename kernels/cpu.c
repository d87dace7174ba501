// SPDX-License-Identifier: Apache-2.0
#include "cpu.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdint.h>
#endif

// What NORMD_CPU lets through.
static const struct {
    const char *name;
    unsigned features;
} caps[] = {
    {"scalar", 0},
    {"avx2", CPU_AVX2},
    {"avx512", CPU_AVX2 | CPU_AVX512},
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static unsigned features;
static size_t cache_bytes[2];

#if defined(__x86_64__)

// Bits of XCR0 and of CPUID, as in Intel's Software Developer's Manual, volume 1, 13.3 and volume 2, CPUID.
enum {
    XCR0_YMM = 0x06, // XMM and the upper halves of YMM
    XCR0_ZMM = 0xe6, // those, the mask registers, the upper halves of ZMM and ZMM16 to 31
};
static const unsigned leaf7_avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;

// The register states that the operating system saves. Needs OSXSAVE; inline, since the intrinsic needs -mxsave.
static uint64_t read_xcr0(void) {
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static unsigned detect(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_AVX) || !(c & bit_F16C)) return 0;
    const uint64_t saved = read_xcr0();
    if ((saved & XCR0_YMM) != XCR0_YMM || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2)) return 0;
    if ((saved & XCR0_ZMM) != XCR0_ZMM || (b & leaf7_avx512) != leaf7_avx512) return CPU_AVX2;
    return CPU_AVX2 | CPU_AVX512;
}

#elif defined(__aarch64__)

static unsigned detect(void) {
    return CPU_NEON; // every aarch64 has it
}

#else

static unsigned detect(void) {
    return 0;
}

#endif

static bool read_line(const char *path, char *line, int size) {
    FILE *const file = fopen(path, "re");
    if (!file) return false;
    const bool ok = fgets(line, size, file) != NULL;
    fclose(file);
    return ok;
}

// Linux says it in a file, for the first processor; glibc's sysconf knows it on x86 only, musl's nowhere.
static size_t detect_cache(int level, size_t usual) {
    char path[64], text[32] = "";
    for (int i = 0; i < 8; i++) {
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/level", i);
        if (!read_line(path, text, sizeof text)) break;
        if (atoi(text) != level) continue;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", i);
        if (!read_line(path, text, sizeof text)) break;
        const size_t size = strtoul(text, NULL, 10) << (strchr(text, 'M') ? 20 : 10);
        return size >= usual / 16 ? size : usual;
    }
    return usual;
}

static void detect_and_cap(void) {
    features = detect();
    cache_bytes[0] = detect_cache(2, 512 * 1024);
    cache_bytes[1] = detect_cache(3, 8 * 1024 * 1024);
    const char *const cap = getenv("NORMD_CPU");
    for (size_t i = 0; cap && i < sizeof caps / sizeof caps[0]; i++) {
        if (strcmp(cap, caps[i].name) == 0) features &= caps[i].features;
    }
}

unsigned cpu_features(void) {
    pthread_once(&once, detect_and_cap);
    return features;
}

size_t cpu_cache_bytes(int level) {
    pthread_once(&once, detect_and_cap);
    return cache_bytes[level == 3];
}
