// SPDX-License-Identifier: Apache-2.0
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum setting_type {
    SETTING_TEXT,     // char[room]
    SETTING_COUNT,    // uint64_t
    SETTING_SIZE,     // uint64_t, bytes; K M G T are powers of 1024
    SETTING_DURATION, // uint64_t, nanoseconds; ms s m h, seconds without a unit
    SETTING_WORD,     // int: the index in `words`
};

struct setting {
    const char *name; // of the flag; the variable is NORMD_ and the name in capitals, - as _
    const char *argument;
    enum setting_type type;
    size_t offset;
    uint64_t low, high; // TEXT: high is the room
    const char *const *words;
    const char *initial;
    const char *help;
};

static const char *const durability_words[] = {"sync", "interval", "none", NULL};
static const char *const level_words[] = {"error", "warn", "info", "debug", NULL};
static const char *const format_words[] = {"text", "json", NULL};

#define AT(member) offsetof(struct config, member)
#define ROOM(member) sizeof(((struct config *)0)->member)
#define MS UINT64_C(1000000)
#define SECOND (1000 * MS)
#define DAY (86400 * SECOND)
#define KIB UINT64_C(1024)
#define TIB (KIB * KIB * KIB * KIB)

// One row a setting, sorted by name; --help and README.md show this order.
// clang-format off
static const struct setting settings[] = {
    {"cache-budget", "BYTES", SETTING_SIZE, AT(cache_budget), 0, TIB, NULL, "256M",
     "Memory for passes that train-forward keeps for backward (`\"cache\": true`); part of the memory budget."},
    {"cache-ttl", "SECONDS", SETTING_DURATION, AT(cache_ttl_ns), 100 * MS, 365 * DAY, NULL, "10m",
     "How long a kept pass lives after its last use."},
    {"client-rate", "N", SETTING_COUNT, AT(client_rate), 0, 1000000, NULL, "0",
     "Requests per second from one address, and as many at once; beyond that 429. 0: no limit. Probes do not count."},
    {"data", "DIR", SETTING_TEXT, AT(data), 1, ROOM(data), NULL, "./data",
     "Folder of the database; made if missing. One server at a time uses it."},
    {"drain-timeout", "SECONDS", SETTING_DURATION, AT(drain_timeout_ns), 0, DAY, NULL, "10s",
     "After SIGTERM or SIGINT, how long running calls may take to finish."},
    {"durability", "sync|interval|none", SETTING_WORD, AT(durability), 0, 0, durability_words, "sync",
     "When a change is on disk: before its reply; at least every 100 ms; whenever the system writes it."},
    {"listen", "HOST:PORT", SETTING_TEXT, AT(listen), 1, ROOM(listen), NULL, "127.0.0.1:8080",
     "Address to listen on; port 0 takes a free one, the ready line tells which."},
    {"log-format", "text|json", SETTING_WORD, AT(log_format), 0, 0, format_words, "text",
     "Form of the lines on standard error."},
    {"log-level", "error|warn|info|debug", SETTING_WORD, AT(log_level), 0, 0, level_words, "info",
     "Least severe lines that are written; debug has one for every request."},
    {"max-body", "BYTES", SETTING_SIZE, AT(max_body), KIB, TIB, NULL, "64M",
     "Largest request body; where a state or a snapshot is put, it is the memory budget."},
    {"memory-budget", "BYTES", SETTING_SIZE, AT(memory_budget), KIB * KIB, TIB, NULL, "1G",
     "Memory of bodies, tensors, replies, kept passes; the states have as much, and those being sent as much again."},
    {"request-timeout", "SECONDS", SETTING_DURATION, AT(request_timeout_ns), MS, DAY, NULL, "30s",
     "Time of a call after its body, which has as much and 1 s for each 4 KiB; a reply must make 4 KiB/s over it."},
    {"threads", "N", SETTING_COUNT, AT(threads), 0, 1024, NULL, "0",
     "Kernel threads; 0: the processors that the process may use."},
};
// clang-format on

#define SETTING_COUNT_OF (sizeof settings / sizeof settings[0])

// ---- values

struct unit {
    const char *name;
    uint64_t factor;
};

static const struct unit size_units[] = {{"", 1},    {"K", KIB}, {"M", KIB *KIB}, {"G", KIB *KIB *KIB},
                                         {"T", TIB}, {NULL, 0}};
static const struct unit duration_units[] = {{"", SECOND},       {"ms", MS},           {"s", SECOND},
                                             {"m", 60 * SECOND}, {"h", 3600 * SECOND}, {NULL, 0}};
static const struct unit count_units[] = {{"", 1}, {NULL, 0}};

static bool parse_number(uint64_t *value, const char *text, const struct unit *units) {
    char *end;
    if (!isdigit((unsigned char)text[0])) return false;
    errno = 0;
    const unsigned long long number = strtoull(text, &end, 10);
    if (errno != 0) return false;
    for (; units->name != NULL; units++) {
        if (strcmp(units->name, end) == 0) return !__builtin_mul_overflow((uint64_t)number, units->factor, value);
    }
    return false;
}

static bool parse_word(int *value, const char *text, const char *const *words) {
    for (int i = 0; words[i] != NULL; i++) {
        if (strcmp(words[i], text) == 0) {
            *value = i;
            return true;
        }
    }
    return false;
}

static const struct unit *units_of(enum setting_type type) {
    return type == SETTING_SIZE ? size_units : type == SETTING_DURATION ? duration_units : count_units;
}

static const char *expected_of(const struct setting *setting) {
    switch (setting->type) {
    case SETTING_SIZE: return "a size such as 64M";
    case SETTING_DURATION: return "a duration such as 30s";
    case SETTING_COUNT: return "a whole number";
    case SETTING_TEXT: return setting->argument;
    case SETTING_WORD: return setting->argument;
    }
    return "";
}

// False where the text is no value of the setting.
static bool set(struct config *config, const struct setting *setting, const char *text) {
    void *const at = (char *)config + setting->offset;
    if (setting->type == SETTING_TEXT) {
        const size_t length = strlen(text);
        if (length < setting->low || length >= setting->high) return false;
        memcpy(at, text, length + 1);
        return true;
    }
    if (setting->type == SETTING_WORD) return parse_word(at, text, setting->words);
    uint64_t value = 0;
    if (!parse_number(&value, text, units_of(setting->type))) return false;
    if (value < setting->low || value > setting->high) return false;
    *(uint64_t *)at = value;
    return true;
}

static bool set_or_say(struct config *config, const struct setting *setting, const char *source, const char *text,
                       char *why, size_t why_size) {
    if (set(config, setting, text)) return true;
    snprintf(why, why_size, "%s: \"%.100s\" is not %s%s", source, text, setting->type == SETTING_WORD ? "one of " : "",
             expected_of(setting));
    const uint64_t unit = setting->type == SETTING_DURATION ? MS : 1;
    uint64_t value = 0;
    const bool numeric = setting->type != SETTING_TEXT && setting->type != SETTING_WORD;
    if (numeric && parse_number(&value, text, units_of(setting->type))) {
        snprintf(why, why_size, "%s: \"%.100s\" is out of range, %llu to %llu%s", source, text,
                 (unsigned long long)(setting->low / unit), (unsigned long long)(setting->high / unit),
                 setting->type == SETTING_DURATION ? " ms"
                 : setting->type == SETTING_SIZE   ? " bytes"
                                                   : "");
    }
    return false;
}

// ---- sources

static void variable_name(char *out, size_t room, const char *name) {
    size_t n = (size_t)snprintf(out, room, "NORMD_%s", name);
    for (size_t i = 6; i < n; i++) out[i] = out[i] == '-' ? '_' : (char)toupper((unsigned char)out[i]);
}

// What is set to nothing counts as not set, as in most programs.
static const char *variable(const char *name) {
    const char *const text = getenv(name);
    return text != NULL && text[0] != '\0' ? text : NULL;
}

// Settings that a flag gave are left alone, whatever their variables hold.
static bool read_environment(struct config *config, const bool by_flag[], char *why, size_t why_size) {
    for (size_t i = 0; i < SETTING_COUNT_OF; i++) {
        char name[64];
        variable_name(name, sizeof name, settings[i].name);
        const char *const text = by_flag[i] ? NULL : variable(name);
        if (text != NULL && !set_or_say(config, &settings[i], name, text, why, why_size)) return false;
    }
    return true;
}

static bool is_known(const char *name, size_t length) {
    for (size_t i = 0; i < SETTING_COUNT_OF; i++) {
        char known[64];
        variable_name(known, sizeof known, settings[i].name);
        if (strlen(known) == length && memcmp(known, name, length) == 0) return true;
    }
    // That of the kernel library, and those of the tests.
    return (length == 9 && memcmp(name, "NORMD_CPU", 9) == 0) || strncmp(name, "NORMD_TEST_", 11) == 0;
}

size_t config_unknown_variables(char *out, size_t room) {
    size_t count = 0, n = 0;
    out[0] = '\0';
    for (char **entry = environ; *entry != NULL; entry++) {
        const size_t length = strcspn(*entry, "=");
        if (strncmp(*entry, "NORMD_", 6) != 0 || is_known(*entry, length)) continue;
        const int more = snprintf(out + n, room - n, "%s%.*s", count > 0 ? ", " : "", (int)length, *entry);
        n = more > 0 && (size_t)more < room - n ? n + (size_t)more : room - 1;
        count++;
    }
    return count;
}

static const struct setting *find(const char *name, size_t length) {
    for (size_t i = 0; i < SETTING_COUNT_OF; i++) {
        if (strlen(settings[i].name) == length && memcmp(settings[i].name, name, length) == 0) return &settings[i];
    }
    return NULL;
}

// Reads the flag at argv[*i], and its value behind it or after '='.
static bool read_flag(struct config *config, bool by_flag[], int argc, char **argv, int *i, char *why,
                      size_t why_size) {
    const char *const argument = argv[*i];
    const char *const name = argument + 2;
    const size_t length = strncmp(argument, "--", 2) == 0 ? strcspn(name, "=") : 0;
    const struct setting *const setting = length > 0 ? find(name, length) : NULL;
    if (setting == NULL) {
        snprintf(why, why_size, "%.100s: there is no such option; --help lists them", argument);
        return false;
    }
    const char *text = name[length] == '=' ? name + length + 1 : NULL;
    if (text == NULL && *i + 1 < argc) text = argv[++*i];
    if (text == NULL) {
        snprintf(why, why_size, "--%s: %s is missing", setting->name, setting->argument);
        return false;
    }
    char source[64];
    snprintf(source, sizeof source, "--%s", setting->name);
    by_flag[setting - settings] = true;
    return set_or_say(config, setting, source, text, why, why_size);
}

// The host may be anything that resolves; the port must be a number.
static bool check_listen(const struct config *config, char *why, size_t why_size) {
    const char *const colon = strrchr(config->listen, ':');
    uint64_t port = 0;
    if (colon != NULL && colon > config->listen && parse_number(&port, colon + 1, count_units) && port <= 65535)
        return true;
    snprintf(why, why_size, "--listen: \"%.100s\" is not HOST:PORT", config->listen);
    return false;
}

// NORMD_CPU is the kernel library's own; a word that it would ignore is refused here.
static bool check_cpu(char *why, size_t why_size) {
    static const char *const caps[] = {"scalar", "avx2", "avx512", NULL};
    const char *const cap = variable("NORMD_CPU");
    int index = 0;
    if (cap == NULL || parse_word(&index, cap, caps)) return true;
    snprintf(why, why_size, "NORMD_CPU: \"%.100s\" is not one of scalar|avx2|avx512", cap);
    return false;
}

enum config_outcome config_read(struct config *config, int argc, char **argv, char *why, size_t why_size) {
    static const struct {
        const char *argument;
        enum config_outcome outcome;
    } words[] = {{"--help", CONFIG_HELP},
                 {"-h", CONFIG_HELP},
                 {"--help=markdown", CONFIG_HELP_MARKDOWN},
                 {"--version", CONFIG_VERSION}};
    enum config_outcome outcome = CONFIG_RUN;
    memset(config, 0, sizeof *config);
    for (size_t i = 0; i < SETTING_COUNT_OF; i++) {
        if (!set_or_say(config, &settings[i], settings[i].name, settings[i].initial, why, why_size))
            return CONFIG_WRONG;
    }
    bool by_flag[SETTING_COUNT_OF] = {false}, serves = true;
    for (int i = 1; i < argc; i++) {
        size_t w = 0;
        while (w < sizeof words / sizeof words[0] && strcmp(argv[i], words[w].argument) != 0) w++;
        if (i == 1 && strcmp(argv[i], "healthcheck") == 0) {
            outcome = CONFIG_HEALTHCHECK;
        } else if (w < sizeof words / sizeof words[0]) {
            if (serves) outcome = words[w].outcome; // the first one
            serves = false;
        } else if (!read_flag(config, by_flag, argc, argv, &i, why, why_size)) {
            return CONFIG_WRONG;
        }
    }
    if (!serves) return outcome;
    if (!read_environment(config, by_flag, why, why_size)) return CONFIG_WRONG;
    return check_listen(config, why, why_size) && check_cpu(why, why_size) ? outcome : CONFIG_WRONG;
}

// ---- pages

void config_help(FILE *out) {
    fputs("usage: normd [OPTIONS]               serve\n"
          "       normd healthcheck [OPTIONS]   exit 0 if the server at --listen is ready, else 1 and why\n\n"
          "Every option is also an environment variable: --max-body is NORMD_MAX_BODY. Sizes take K, M, G, T;\n"
          "durations ms, s, m, h. NORMD_CPU=scalar|avx2|avx512 caps the vector units that are used.\n\n",
          out);
    for (size_t i = 0; i < SETTING_COUNT_OF; i++) {
        const struct setting *const s = &settings[i];
        fprintf(out, "  --%s %s\n      %s [%s]\n", s->name, s->argument, s->help, s->initial);
    }
    fputs("  --help, --version\n", out);
}

void config_markdown(FILE *out) {
    fputs("| flag | variable | default | meaning |\n|---|---|---|---|\n", out);
    for (size_t i = 0; i < SETTING_COUNT_OF; i++) {
        const struct setting *const s = &settings[i];
        char name[64];
        variable_name(name, sizeof name, s->name);
        fprintf(out, "| `--%s ", s->name);
        for (const char *c = s->argument; *c != '\0'; c++) {
            if (*c == '|') fputc('\\', out);
            fputc(*c, out);
        }
        fprintf(out, "` | `%s` | `%s` | %s |\n", name, s->initial, s->help);
    }
}
