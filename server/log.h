// SPDX-License-Identifier: Apache-2.0
//
// Lines to standard error: a level, a message, in text or as JSON. One write each, so that lines of threads do not mix.
#ifndef NORMD_SERVER_LOG_H
#define NORMD_SERVER_LOG_H

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };
enum log_format { LOG_FORMAT_TEXT, LOG_FORMAT_JSON };

// Once, before threads start. Until then: info, text.
void log_start(enum log_level level, enum log_format format);

// Writes the line if the level is on. Control characters come out escaped. Any thread; not from signal handlers.
__attribute__((format(printf, 2, 3))) void log_line(enum log_level level, const char *format, ...);

#endif
