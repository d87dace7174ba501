// SPDX-License-Identifier: Apache-2.0
#include "fixture.h"

#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <unistd.h>

#include "../../server/log.h"

static int pipe_ends[2], saved;

static void capture(void) {
    assert_int_equal(pipe2(pipe_ends, O_CLOEXEC), 0);
    fcntl(pipe_ends[1], F_SETPIPE_SZ, 1 << 20);
    saved = dup(STDERR_FILENO);
    assert_int_equal(dup2(pipe_ends[1], STDERR_FILENO), STDERR_FILENO);
    close(pipe_ends[1]);
}

// What was written since; for the caller to free.
static char *captured(void) {
    dup2(saved, STDERR_FILENO);
    close(saved);
    const size_t room = 1 << 20;
    char *const text = malloc(room + 1);
    assert_non_null(text);
    size_t size = 0;
    for (ssize_t n; (n = read(pipe_ends[0], text + size, room - size)) > 0;) size += (size_t)n;
    close(pipe_ends[0]);
    text[size] = '\0';
    return text;
}

static char *line_of(enum log_format format, const char *message) {
    capture();
    log_start(LOG_LEVEL_DEBUG, format);
    log_line(LOG_LEVEL_WARN, "%s", message);
    return captured();
}

static bool is_time(const char *text, size_t length) {
    static const char pattern[] = "dddd-dd-ddTdd:dd:dd.dddZ";
    if (length != strlen(pattern)) return false;
    for (size_t i = 0; i < length; i++) {
        const bool digit = text[i] >= '0' && text[i] <= '9';
        if (pattern[i] == 'd' ? !digit : text[i] != pattern[i]) return false;
    }
    return true;
}

static void test_text(void **state) {
    (void)state;
    static const char *const rows[][2] = {
        {"plain \"text\" \\ \xc3\xa9", "plain \"text\" \\ \xc3\xa9"},
        {"two\nlines\r\n", "two\\u000alines\\u000d\\u000a"},
        {"\x1b[31mred\x7f\t\x01", "\\u001b[31mred\\u007f\\u0009\\u0001"},
        {"", ""},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char *const line = line_of(LOG_FORMAT_TEXT, rows[i][0]);
        const char *const space = strchr(line, ' ');
        assert_true(space != NULL && is_time(line, (size_t)(space - line)));
        char expected[200];
        snprintf(expected, sizeof expected, " warn %s\n", rows[i][1]);
        assert_string_equal(space, expected);
        free(line);
    }
}

static json_t *parse(const char *line) {
    json_error_t why;
    json_t *const json = json_loads(line, 0, &why);
    if (json == NULL) fail_msg("byte %d: %.60s", why.position, why.text);
    assert_int_equal(json_object_size(json), 3);
    const char *const when = json_string_value(json_object_get(json, "time"));
    assert_true(when != NULL && is_time(when, strlen(when)));
    return json;
}

static void test_json(void **state) {
    (void)state;
    char all[130] = "";
    for (int c = 1; c < 128; c++) all[c - 1] = (char)c;
    const char *const messages[] = {
        "plain", "\"quoted\" and \\ back\\\\slashes\\", all, "\xc3\xa9\xe2\x82\xac\xf0\x9f\x99\x82", "", "%s%n"};
    for (size_t i = 0; i < COUNT(messages); i++) {
        char *const line = line_of(LOG_FORMAT_JSON, messages[i]);
        const size_t length = strlen(line);
        assert_true(length > 0 && strchr(line, '\n') == line + length - 1); // one line
        json_t *const json = parse(line);
        assert_string_equal(json_string_value(json_object_get(json, "message")), messages[i]);
        assert_string_equal(json_string_value(json_object_get(json, "level")), "warn");
        json_decref(json);
        free(line);
    }
}

// Longer than the line is kept: cut, but still a whole line, and in JSON still JSON.
static void test_long(void **state) {
    (void)state;
    static const char fills[] = {'x', '"', '\n'};
    for (size_t i = 0; i < COUNT(fills); i++) {
        char message[5000];
        for (size_t size = 300; size < sizeof message; size = size * 5 / 4) {
            memset(message, fills[i], size);
            message[size] = '\0';
            char *line = line_of(LOG_FORMAT_TEXT, message);
            assert_true(strlen(line) > 300 && strchr(line, '\n') == line + strlen(line) - 1);
            free(line);
            line = line_of(LOG_FORMAT_JSON, message);
            assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
            json_t *const json = parse(line);
            const char *const kept = json_string_value(json_object_get(json, "message"));
            assert_true(strlen(kept) >= 290 && memcmp(kept, message, strlen(kept)) == 0);
            json_decref(json);
            free(line);
        }
    }
}

// A character cut in two, or bytes that never were one: JSON all the same.
static void test_not_utf8(void **state) {
    (void)state;
    char message[2100];
    for (size_t shift = 0; shift < 4; shift++) {
        for (size_t i = 0; i < sizeof message - 1; i++) message[i] = "\xf0\x9f\x99\x82"[(i + 4 - shift) % 4];
        memset(message, 'x', shift);
        message[sizeof message - 1] = '\0';
        char *const line = line_of(LOG_FORMAT_JSON, message);
        json_decref(parse(line));
        free(line);
    }
    static const char *const broken[] = {"\xff", "a\xc3", "\xed\xa0\x80", "\xc0\x80", "\x80"};
    for (size_t i = 0; i < COUNT(broken); i++) {
        char *const line = line_of(LOG_FORMAT_JSON, broken[i]);
        json_decref(parse(line));
        free(line);
    }
}

static void test_levels(void **state) {
    (void)state;
    static const char *const names[] = {"error", "warn", "info", "debug"};
    for (int threshold = LOG_LEVEL_ERROR; threshold <= LOG_LEVEL_DEBUG; threshold++) {
        capture();
        log_start((enum log_level)threshold, LOG_FORMAT_TEXT);
        for (int level = LOG_LEVEL_ERROR; level <= LOG_LEVEL_DEBUG; level++)
            log_line((enum log_level)level, "number %d", level);
        char *const text = captured();
        char *at = NULL;
        int level = LOG_LEVEL_ERROR;
        for (char *line = strtok_r(text, "\n", &at); line != NULL; line = strtok_r(NULL, "\n", &at), level++) {
            char expected[40];
            snprintf(expected, sizeof expected, " %s number %d", names[level], level);
            assert_string_equal(strchr(line, ' '), expected);
        }
        assert_int_equal(level, threshold + 1);
        free(text);
    }
}

#define LINES 500

static void *write_lines(void *context) {
    for (int i = 0; i < LINES; i++) log_line(LOG_LEVEL_INFO, "%s %d", (const char *)context, i);
    return NULL;
}

static void test_threads(void **state) {
    (void)state;
    static char words[4][100];
    pthread_t threads[4];
    capture();
    log_start(LOG_LEVEL_INFO, LOG_FORMAT_JSON);
    for (size_t i = 0; i < 4; i++) {
        memset(words[i], 'a' + (int)i, sizeof words[i] - 1);
        pthread_create(&threads[i], NULL, write_lines, words[i]);
    }
    for (size_t i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    char *const text = captured();
    char *at = NULL;
    int next[4] = {0};
    for (char *line = strtok_r(text, "\n", &at); line != NULL; line = strtok_r(NULL, "\n", &at)) {
        json_t *const json = parse(line);
        char word[100];
        int number = -1;
        assert_int_equal(sscanf(json_string_value(json_object_get(json, "message")), "%99s %d", word, &number), 2);
        assert_string_equal(word, words[word[0] - 'a']);
        assert_int_equal(number, next[word[0] - 'a']++);
        json_decref(json);
    }
    for (size_t i = 0; i < 4; i++) assert_int_equal(next[i], LINES);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),     cmocka_unit_test(test_json),   cmocka_unit_test(test_long),
        cmocka_unit_test(test_not_utf8), cmocka_unit_test(test_levels), cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests_name("log", tests, NULL, NULL);
}
