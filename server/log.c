// SPDX-License-Identifier: Apache-2.0
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static enum log_level threshold = LOG_LEVEL_INFO;
static enum log_format line_format = LOG_FORMAT_TEXT;

void log_start(enum log_level level, enum log_format format) {
    threshold = level;
    line_format = format;
}

// Bytes of the UTF-8 character at `text`, 0 where there is none.
static size_t character_length(const char *text) {
    const unsigned char a = (unsigned char)text[0], b = (unsigned char)text[1];
    const size_t length = a < 0x80                ? 1
                          : a >= 0xc2 && a < 0xe0 ? 2
                          : a >= 0xe0 && a < 0xf0 ? 3
                          : a >= 0xf0 && a < 0xf5 ? 4
                                                  : 0;
    if ((a == 0xe0 && b < 0xa0) || (a == 0xed && b >= 0xa0) || (a == 0xf0 && b < 0x90) || (a == 0xf4 && b >= 0x90))
        return 0;
    for (size_t i = 1; i < length; i++) {
        if (((unsigned char)text[i] & 0xc0) != 0x80) return 0;
    }
    return length;
}

// Escapes as JSON does, which keeps a text line a line too. Writes at most room - 1 bytes and a NUL.
static void escape(char *out, size_t room, const char *text) {
    size_t n = 0;
    while (*text != '\0' && n + 7 < room) {
        const unsigned char c = (unsigned char)*text;
        const size_t length = character_length(text);
        if (c < 0x20 || c == 0x7f) {
            n += (size_t)snprintf(out + n, room - n, "\\u%04x", c);
        } else if (length == 0) {
            out[n++] = '?';
        } else {
            if (line_format == LOG_FORMAT_JSON && (c == '"' || c == '\\')) out[n++] = '\\';
            memcpy(out + n, text, length);
            n += length;
        }
        text += length > 0 ? length : 1;
    }
    out[n] = '\0';
}

void log_line(enum log_level level, const char *format, ...) {
    static const char *const names[] = {"error", "warn", "info", "debug"};
    if (level > threshold) return;
    char message[1024], safe[2048], line[2200], when[32];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    escape(safe, sizeof safe, message);

    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &utc);
    const char *const layout = line_format == LOG_FORMAT_JSON
                                   ? "{\"time\":\"%s.%03ldZ\",\"level\":\"%s\",\"message\":\"%s\"}\n"
                                   : "%s.%03ldZ %s %s\n";
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    const int length = snprintf(line, sizeof line, layout, when, now.tv_nsec / 1000000, names[level], safe);
#pragma GCC diagnostic pop
    if (length > 0 && write(STDERR_FILENO, line, (size_t)length) < 0)
        return; // nowhere to say that standard error is gone
}
