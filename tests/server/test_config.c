// SPDX-License-Identifier: Apache-2.0
//
// The settings, each by flag, by `=` and by variable; what each takes and refuses, and the page in README.md.
#include "fixture.h"

#include "../../server/config.h"
#include "../../server/log.h"
#include "../../server/store.h"
#include "../../server/registry.h"
#include "../../server/writer.h"

#define MS UINT64_C(1000000)
#define SECOND (1000 * MS)
#define DAY (86400 * SECOND)
#define KIB UINT64_C(1024)
#define TIB (KIB * KIB * KIB * KIB)

enum kind { SIZE, DURATION, NUMBER, WORD, TEXT };

// What the documentation promises of each setting, written out once more.
static const struct setting {
    const char *name, *variable;
    enum kind kind;
    uint64_t initial, low, high;
    size_t offset;
    const char *text;  // TEXT: the default
    const char *words; // WORD
} settings[] = {
    {"cache-budget", "NORMD_CACHE_BUDGET", SIZE, 256 * KIB *KIB, 0, TIB, offsetof(struct config, cache_budget), NULL,
     NULL},
    {"cache-ttl", "NORMD_CACHE_TTL", DURATION, 600 * SECOND, 100 * MS, 365 * DAY, offsetof(struct config, cache_ttl_ns),
     NULL, NULL},
    {"client-rate", "NORMD_CLIENT_RATE", NUMBER, 0, 0, 1000000, offsetof(struct config, client_rate), NULL, NULL},
    {"data", "NORMD_DATA", TEXT, 0, 0, 0, offsetof(struct config, data), "./data", NULL},
    {"drain-timeout", "NORMD_DRAIN_TIMEOUT", DURATION, 10 * SECOND, 0, DAY, offsetof(struct config, drain_timeout_ns),
     NULL, NULL},
    {"durability", "NORMD_DURABILITY", WORD, DURABILITY_SYNC, 0, 0, offsetof(struct config, durability), NULL,
     "sync interval none"},
    {"listen", "NORMD_LISTEN", TEXT, 0, 0, 0, offsetof(struct config, listen), "127.0.0.1:8080", NULL},
    {"log-format", "NORMD_LOG_FORMAT", WORD, LOG_FORMAT_TEXT, 0, 0, offsetof(struct config, log_format), NULL,
     "text json"},
    {"log-level", "NORMD_LOG_LEVEL", WORD, LOG_LEVEL_INFO, 0, 0, offsetof(struct config, log_level), NULL,
     "error warn info debug"},
    {"max-body", "NORMD_MAX_BODY", SIZE, 64 * KIB *KIB, KIB, TIB, offsetof(struct config, max_body), NULL, NULL},
    {"memory-budget", "NORMD_MEMORY_BUDGET", SIZE, KIB *KIB *KIB, KIB *KIB, TIB, offsetof(struct config, memory_budget),
     NULL, NULL},
    {"request-timeout", "NORMD_REQUEST_TIMEOUT", DURATION, 30 * SECOND, MS, DAY,
     offsetof(struct config, request_timeout_ns), NULL, NULL},
    {"threads", "NORMD_THREADS", NUMBER, 0, 0, 1024, offsetof(struct config, threads), NULL, NULL},
};

static struct config config;
static char why[200];

static enum config_outcome read_arguments(int count, char **arguments) {
    char *argv[10] = {(char *)(uintptr_t) "normd"};
    for (int i = 0; i < count; i++) argv[i + 1] = arguments[i];
    why[0] = '\0';
    return config_read(&config, count + 1, argv, why, sizeof why);
}

#define READ(...) read_arguments((int)COUNT(((char *[]){__VA_ARGS__})), (char *[]){__VA_ARGS__})

enum way { BY_FLAG, BY_EQUALS, BY_VARIABLE, WAYS };

static enum config_outcome give(const struct setting *setting, const char *value, enum way way) {
    char flag[60], joined[400];
    snprintf(flag, sizeof flag, "--%s", setting->name);
    snprintf(joined, sizeof joined, "--%s=%s", setting->name, value);
    if (way == BY_FLAG) return READ(flag, (char *)(uintptr_t)value);
    if (way == BY_EQUALS) return READ(joined);
    setenv(setting->variable, value, 1);
    const enum config_outcome outcome = read_arguments(0, NULL);
    unsetenv(setting->variable);
    return outcome;
}

static uint64_t number_of(const struct setting *setting) {
    const char *const at = (const char *)&config + setting->offset;
    if (setting->kind == WORD) return (uint64_t) * (const int *)(const void *)at;
    return *(const uint64_t *)(const void *)at;
}

static const char *text_of(const struct setting *setting) {
    return (const char *)&config + setting->offset;
}

static void expect_taken(const struct setting *setting, const char *value, uint64_t expected) {
    for (int way = 0; way < WAYS; way++) {
        if (give(setting, value, (enum way)way) != CONFIG_RUN) fail_msg("%s", why);
        if (number_of(setting) != expected)
            fail_msg("%s %s: %llu", setting->name, value, (unsigned long long)number_of(setting));
    }
}

// The line names its source, quotes the value and is one line.
static void expect_refused(const struct setting *setting, const char *value, const char *reason) {
    for (int way = 0; way < WAYS; way++) {
        if (way == BY_VARIABLE && value[0] == '\0') continue; // as if it were not set
        assert_int_equal(give(setting, value, (enum way)way), CONFIG_WRONG);
        const char *const source = way == BY_VARIABLE ? setting->variable : setting->name;
        const bool listen = setting->kind == TEXT; // checked as a whole, wherever it came from
        if ((!listen && strstr(why, source) == NULL) || strstr(why, value) == NULL || strstr(why, reason) == NULL) {
            fail_msg("\"%s\" lacks %s, \"%s\" or \"%s\"", why, source, value, reason);
        }
        assert_null(strchr(why, '\n'));
    }
}

static void test_defaults(void **state) {
    (void)state;
    assert_int_equal(read_arguments(0, NULL), CONFIG_RUN);
    for (size_t i = 0; i < COUNT(settings); i++) {
        if (settings[i].kind == TEXT) {
            assert_string_equal(text_of(&settings[i]), settings[i].text);
        } else {
            assert_int_equal(number_of(&settings[i]), settings[i].initial);
        }
    }
}

static void test_units(void **state) {
    (void)state;
    static const struct {
        enum kind kind;
        const char *value;
        uint64_t expected;
    } rows[] = {
        {SIZE, "2097152", 2 * KIB * KIB},
        {SIZE, "2048K", 2 * KIB * KIB},
        {SIZE, "3M", 3 * KIB * KIB},
        {SIZE, "5G", 5 * KIB * KIB * KIB},
        {SIZE, "1T", TIB},
        {SIZE, "0003M", 3 * KIB * KIB},
        {DURATION, "7", 7 * SECOND},
        {DURATION, "7s", 7 * SECOND},
        {DURATION, "1500ms", 1500 * MS},
        {DURATION, "3m", 180 * SECOND},
        {DURATION, "2h", 7200 * SECOND},
        {NUMBER, "17", 17},
    };
    for (size_t i = 0; i < COUNT(settings); i++) {
        for (size_t k = 0; k < COUNT(rows); k++) {
            if (rows[k].kind == settings[i].kind) expect_taken(&settings[i], rows[k].value, rows[k].expected);
        }
    }
}

static void test_no_values(void **state) {
    (void)state;
    static const char *const values[] = {"",
                                         "x",
                                         "-1",
                                         "+1",
                                         " 1",
                                         "1 ",
                                         "1.5",
                                         "0x10",
                                         "1e3",
                                         "M",
                                         "1MM",
                                         "1m5s",
                                         "1k",
                                         "1S",
                                         "1Ms",
                                         "1KB",
                                         "1d",
                                         "18446744073709551616",
                                         "99999999999999999999999999"};
    for (size_t i = 0; i < COUNT(settings); i++) {
        if (settings[i].kind == TEXT) continue;
        for (size_t k = 0; k < COUNT(values); k++) expect_refused(&settings[i], values[k], "is not");
        if (settings[i].kind != DURATION) expect_refused(&settings[i], "5s", "is not");
        if (settings[i].kind != SIZE) expect_refused(&settings[i], "5M", "is not");
    }
    const struct setting *const size = &settings[0], *const duration = &settings[1];
    expect_refused(size, "18446744073709551615T", "is not"); // the product overflows
    expect_refused(duration, "18446744073709551615h", "is not");
}

static void test_ranges(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(settings); i++) {
        const struct setting *const setting = &settings[i];
        if (setting->kind == WORD || setting->kind == TEXT) continue;
        const uint64_t unit = setting->kind == DURATION ? MS : 1;
        const char *const suffix = setting->kind == DURATION ? "ms" : "";
        char value[40];
        for (int end = 0; end < 2; end++) {
            const uint64_t edge = end == 0 ? setting->low : setting->high;
            snprintf(value, sizeof value, "%llu%s", (unsigned long long)(edge / unit), suffix);
            expect_taken(setting, value, edge);
            if (edge == 0) continue;
            snprintf(value, sizeof value, "%llu%s", (unsigned long long)(edge / unit + (end == 0 ? UINT64_MAX : 1)),
                     suffix);
            expect_refused(setting, value, "out of range");
        }
    }
}

static void test_words(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(settings); i++) {
        if (settings[i].kind != WORD) continue;
        char words[60], *at = NULL;
        strcpy(words, settings[i].words);
        uint64_t index = 0;
        for (char *word = strtok_r(words, " ", &at); word != NULL; word = strtok_r(NULL, " ", &at)) {
            expect_taken(&settings[i], word, index++);
            word[0] = (char)(word[0] - 'a' + 'A');
            expect_refused(&settings[i], word, "is not one of");
        }
        expect_refused(&settings[i], "0", "is not one of");
    }
}

static void test_texts(void **state) {
    (void)state;
    const struct setting *const data = &settings[3], *const listen = &settings[6];
    char longest[sizeof config.data], too_long[sizeof config.data + 1];
    memset(longest, 'x', sizeof longest);
    memset(too_long, 'x', sizeof too_long);
    longest[sizeof longest - 1] = too_long[sizeof too_long - 1] = '\0';
    const char *const folders[] = {"/", "a b", "--x", longest};
    for (size_t i = 0; i < COUNT(folders); i++) {
        assert_int_equal(READ((char *)(uintptr_t) "--data", (char *)(uintptr_t)folders[i]), CONFIG_RUN);
        assert_string_equal(config.data, folders[i]);
    }
    assert_int_equal(READ((char *)(uintptr_t) "--data", too_long), CONFIG_WRONG);
    expect_refused(data, "", "is not DIR");
    static const char *const good[] = {"0.0.0.0:0", "[::1]:8080", "localhost:65535", "host.example:1"};
    for (size_t i = 0; i < COUNT(good); i++) {
        for (int way = 0; way < WAYS; way++) {
            assert_int_equal(give(listen, good[i], (enum way)way), CONFIG_RUN);
            assert_string_equal(config.listen, good[i]);
        }
    }
    static const char *const bad[] = {
        "", "8080", ":8080", "host", "host:", "host:x", "host:-1", "host:65536", "host:8080 ", "host:80K"};
    for (size_t i = 0; i < COUNT(bad); i++) expect_refused(listen, bad[i], "is not HOST:PORT");
}

static void test_precedence(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(settings); i++) {
        static const char *const values[][2] = {{"8M", "9M"}, {"8s", "9s"}, {"8", "9"}, {NULL, NULL}, {"a:1", "b:2"}};
        const char *const *pair = values[settings[i].kind];
        char first[20], second[20], flag[60];
        if (settings[i].kind == WORD) {
            sscanf(settings[i].words, "%19s %19s", first, second);
        } else {
            strcpy(first, pair[0]);
            strcpy(second, pair[1]);
        }
        setenv(settings[i].variable, first, 1);
        snprintf(flag, sizeof flag, "--%s", settings[i].name);
        assert_int_equal(READ(flag, second), CONFIG_RUN); // the flag wins
        struct config by_flag = config;
        unsetenv(settings[i].variable);
        assert_int_equal(READ(flag, second), CONFIG_RUN);
        assert_memory_equal(&by_flag, &config, sizeof config);
        assert_int_equal(READ(flag, first, flag, second), CONFIG_RUN); // the last one
        assert_memory_equal(&by_flag, &config, sizeof config);
        setenv(settings[i].variable, settings[i].kind == TEXT ? "" : "wrong", 1); // where a flag wins, nobody looks
        assert_int_equal(READ(flag, second), CONFIG_RUN);
        assert_memory_equal(&by_flag, &config, sizeof config);
        unsetenv(settings[i].variable);
        assert_int_equal(read_arguments(0, NULL), CONFIG_RUN);
        const struct config by_default = config;
        setenv(settings[i].variable, "", 1); // as if it were not set
        assert_int_equal(read_arguments(0, NULL), CONFIG_RUN);
        assert_memory_equal(&by_default, &config, sizeof config);
        unsetenv(settings[i].variable);
    }
}

static void test_missing_values(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(settings); i++) {
        char flag[60];
        snprintf(flag, sizeof flag, "--%s", settings[i].name);
        assert_int_equal(READ(flag), CONFIG_WRONG);
        assert_non_null(strstr(why, flag));
        assert_non_null(strstr(why, "missing"));
    }
}

static void test_unknown_options(void **state) {
    (void)state;
    static char options[][20] = {"--unknown",     "--thread", "--threadss", "--Threads", "-threads",
                                 "threads",       "--",       "-",          "",          "--=x",
                                 "--max_body=1M", "-v",       "serve",      "--help=x",  "--version=1"};
    for (size_t i = 0; i < COUNT(options); i++) {
        assert_int_equal(READ(options[i]), CONFIG_WRONG);
        if (strstr(why, options[i]) == NULL || strstr(why, "no such option") == NULL)
            fail_msg("%s: %s", options[i], why);
    }
    static char threads[] = "--threads=2", healthcheck[] = "healthcheck";
    assert_int_equal(READ(threads, healthcheck), CONFIG_WRONG); // a subcommand comes first
}

static void test_outcomes(void **state) {
    (void)state;
    static char help[] = "--help", h[] = "-h", markdown[] = "--help=markdown", version[] = "--version",
                healthcheck[] = "healthcheck", listen[] = "--listen=host:99", wrong[] = "--nonsense";
    assert_int_equal(READ(help), CONFIG_HELP);
    assert_int_equal(READ(h), CONFIG_HELP);
    assert_int_equal(READ(wrong, help), CONFIG_WRONG);
    assert_int_equal(READ(help, wrong), CONFIG_WRONG);
    assert_int_equal(READ(version, help), CONFIG_VERSION); // the first one
    setenv("NORMD_THREADS", "x", 1);
    assert_int_equal(READ(help), CONFIG_HELP); // help helps, whatever the environment holds
    unsetenv("NORMD_THREADS");
    assert_int_equal(READ(markdown), CONFIG_HELP_MARKDOWN);
    assert_int_equal(READ(listen, version), CONFIG_VERSION);
    assert_int_equal(READ(healthcheck), CONFIG_HEALTHCHECK);
    assert_string_equal(config.listen, "127.0.0.1:8080");
    assert_int_equal(READ(healthcheck, listen), CONFIG_HEALTHCHECK);
    assert_string_equal(config.listen, "host:99");
    assert_int_equal(READ(healthcheck, wrong), CONFIG_WRONG);
}

// ---- pages

static char *page(void (*write)(FILE *out)) {
    char *text = NULL;
    size_t size = 0;
    FILE *const out = open_memstream(&text, &size);
    assert_non_null(out);
    write(out);
    assert_int_equal(fclose(out), 0);
    return text;
}

static void test_pages(void **state) {
    (void)state;
    char *const help = page(config_help), *const table = page(config_markdown);
    size_t rows = 0;
    for (const char *at = table; (at = strchr(at, '\n')) != NULL; at++) rows++;
    assert_int_equal(rows, COUNT(settings) + 2); // so that none is missing above
    for (size_t i = 0; i < COUNT(settings); i++) {
        char word[80];
        snprintf(word, sizeof word, "  --%s ", settings[i].name);
        assert_non_null(strstr(help, word));
        snprintf(word, sizeof word, "| `--%s ", settings[i].name);
        const char *const row = strstr(table, word);
        assert_non_null(row);
        snprintf(word, sizeof word, "| `%s` |", settings[i].variable);
        assert_true(strstr(row, word) != NULL && strstr(row, word) < strchr(row, '\n'));
    }
    free(help);
    free(table);
}

// server/README.md holds the table between its markers, as --help=markdown prints it. Tests run at the root of the
// tree.
static void test_readme(void **state) {
    (void)state;
    static const char begin[] = "<!-- settings -->\n", end[] = "<!-- /settings -->";
    size_t size = 0;
    char *const readme = read_file("server/README.md", &size), *const table = page(config_markdown);
    char *const from = strstr(readme, begin);
    char *const to = from != NULL ? strstr(from, end) : NULL;
    if (to == NULL) fail_msg("server/README.md lacks <!-- settings --> or <!-- /settings -->");
    *to = '\0';
    assert_string_equal(from + strlen(begin), table);
    free(readme);
    free(table);
}

int main(void) {
    for (size_t i = 0; i < COUNT(settings); i++) unsetenv(settings[i].variable);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),        cmocka_unit_test(test_units),
        cmocka_unit_test(test_no_values),       cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_words),           cmocka_unit_test(test_texts),
        cmocka_unit_test(test_precedence),      cmocka_unit_test(test_missing_values),
        cmocka_unit_test(test_unknown_options), cmocka_unit_test(test_outcomes),
        cmocka_unit_test(test_pages),           cmocka_unit_test(test_readme),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
