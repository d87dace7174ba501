// SPDX-License-Identifier: Apache-2.0
//
// JSON numbers to floating point and back, exactly: reading rounds correctly (to nearest, ties to even), writing gives
// the shortest text that reads back to the same bits. No locale, no allocation; every function may run on any thread.
#ifndef NORMD_PROTO_NUMBER_H
#define NORMD_PROTO_NUMBER_H

#include <stddef.h>

enum number_status {
    NUMBER_OK,
    NUMBER_MALFORMED, // not a number by the grammar of RFC 8259, section 6
    NUMBER_OVERFLOW,  // rounds to infinity in the type asked for; *value is the infinity of its sign
};

// Reads the number at *text and sets *text behind it (where it is malformed: to the byte that does not fit, or end).
// Reads no byte at or behind `end`. What follows the number is the caller's to check. Underflow is not an error: it
// gives a subnormal or a zero of the right sign.
enum number_status number_read_f32(float *value, const char **text, const char *end);
enum number_status number_read_f64(double *value, const char **text, const char *end);

// Reads numbers that stand with a comma between each two of them, and with white space or without: the one at *text,
// and so on up to `room` of them, or up to what is not a number that fits the type. Sets *text behind the last one that
// was read, and returns how many those are; 0 leaves *text as it was.
size_t number_read_run_f32(float *values, size_t room, const char **text, const char *end);
size_t number_read_run_f64(double *values, size_t room, const char **text, const char *end);

// The most bytes that a write takes.
#define NUMBER_F32_MAX 15
#define NUMBER_F64_MAX 24

// Bytes behind the end of the text that a write may touch as well.
#define NUMBER_SLACK 32

// Writes the finite `value` at `out` (room for NUMBER_*_MAX + NUMBER_SLACK bytes, no NUL) and returns the end of the
// text. Of the texts that read back to the same bits it is the closest of the shortest in digits (Giulietti, "The
// Schubfach way to render doubles"), laid out plainly (150, 0.25) or with an exponent (1e3, 2.5e-7), whichever is
// shorter, plainly where both are equally long. Minus zero is -0.0.
char *number_write_f32(char *out, float value);
char *number_write_f64(char *out, double value);

// Writes n finite values with a comma between each two: room for NUMBER_*_MAX + 1 bytes for each, and NUMBER_SLACK.
char *number_write_run_f32(char *out, const float *values, size_t n);
char *number_write_run_f64(char *out, const double *values, size_t n);

#endif
