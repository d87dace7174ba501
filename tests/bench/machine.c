// SPDX-License-Identifier: Apache-2.0
#include "machine.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void look_at_cpu(struct machine *machine) {
    snprintf(machine->cpu, sizeof machine->cpu, "unknown");
    FILE *const file = fopen("/proc/cpuinfo", "r");
    if (file == NULL) return;
    char line[256];
    while (fgets(line, sizeof line, file) != NULL) {
        const char *const colon = strstr(line, ": ");
        if (strncmp(line, "model name", 10) != 0 || colon == NULL) continue;
        snprintf(machine->cpu, sizeof machine->cpu, "%.*s", (int)strcspn(colon + 2, "\n\"\\"), colon + 2);
        break;
    }
    fclose(file);
}

// The first word of a file about a cache.
static const char *cache_word(char room[32], unsigned index, const char *what) {
    char path[96];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%u/%s", index, what);
    FILE *const file = fopen(path, "r");
    if (file == NULL) return NULL;
    const int got = fscanf(file, "%31s", room);
    fclose(file);
    return got == 1 ? room : NULL;
}

static void look_at_caches(struct machine *machine) {
    char type[32], level[32], size[32];
    for (unsigned i = 0; cache_word(type, i, "type") != NULL; i++) {
        if (strcmp(type, "Instruction") == 0 || cache_word(level, i, "level") == NULL) continue;
        const unsigned long at = strtoul(level, NULL, 10);
        if (at > 3 || cache_word(size, i, "size") == NULL) continue;
        machine->cache[at] = (size_t)strtoul(size, NULL, 10) * 1024; // as "512K"
    }
}

void machine_look(struct machine *machine) {
    *machine = (struct machine){.threads = 1};
    look_at_cpu(machine);
    look_at_caches(machine);
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) machine->threads = (unsigned)CPU_COUNT(&set);
    if (getloadavg(&machine->load, 1) != 1) machine->load = 0;
}

double machine_busy_ns(void) {
    enum { USER, NICE, SYSTEM, IDLE, IOWAIT, IRQ, SOFTIRQ, STEAL, FIELDS };
    unsigned long long ticks[FIELDS] = {0};
    FILE *const file = fopen("/proc/stat", "r");
    if (file == NULL) return 0;
    const int got = fscanf(file, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &ticks[USER], &ticks[NICE],
                           &ticks[SYSTEM], &ticks[IDLE], &ticks[IOWAIT], &ticks[IRQ], &ticks[SOFTIRQ], &ticks[STEAL]);
    fclose(file);
    if (got != FIELDS) return 0;
    const unsigned long long busy =
        ticks[USER] + ticks[NICE] + ticks[SYSTEM] + ticks[IRQ] + ticks[SOFTIRQ] + ticks[STEAL];
    return (double)busy * 1e9 / (double)sysconf(_SC_CLK_TCK);
}
