// SPDX-License-Identifier: Apache-2.0
#include "scan_nest.h"

#include <stdio.h>
#include <string.h>

#include "ahead.h"
#include "number.h"

static const char *const special_names[] = {"NaN", "Infinity", "-Infinity"};

// ---- values

// Text of a number in a tensor, separators included.
#define TEXT_PER_VALUE 8

size_t scan_guess(size_t text) {
    return text / TEXT_PER_VALUE + 8;
}

struct sink scan_sink_start(const struct scan *scan, struct buffer *values, enum bn_dtype dtype, size_t guess) {
    values->budget = scan->budget;
    return (struct sink){.values = values, .dtype = dtype, .guess = guess, .first_nonfinite = SIZE_MAX};
}

// What is left over is given back at the end, and what is missing is less than all.
bool scan_sink_reserve_ready(struct sink *sink, size_t guess) {
    const size_t bytes = guess * bn_dtype_size(sink->dtype);
    return buffer_reserve_spare(sink->values, bytes / 2, bytes * 2);
}

// Moves over n values that were put behind the others.
static void sink_add(struct sink *sink, size_t n) {
    sink->values->size += n * bn_dtype_size(sink->dtype);
    sink->count += n;
}

// "NaN", "Infinity" and "-Infinity", with escapes too, to the place `at`. NEST_REFUSED, without an error set: the
// string is another one.
static enum nest_result read_special(struct scan *scan, void *at, struct sink *sink) {
    static const double values64[] = {(double)__builtin_nanf(""), (double)__builtin_inff(), -(double)__builtin_inff()};
    static const float values32[] = {__builtin_nanf(""), __builtin_inff(), -__builtin_inff()};
    const char *const start = scan->at;
    char text[SCAN_KEY_MAX + 1];
    struct scan_span span;
    if (!scan_skip(scan, &span)) return NEST_MALFORMED;
    scan_unescape(text, (struct scan_span){span.text + 1, span.length - 2});
    for (int i = 0; i < 3; i++) {
        if (strcmp(text, special_names[i]) != 0) continue;
        if (sink->first_nonfinite == SIZE_MAX) sink->first_nonfinite = sink->count;
        if (sink->dtype == BN_F32)
            memcpy(at, &values32[i], sizeof values32[i]);
        else
            memcpy(at, &values64[i], sizeof values64[i]);
        return NEST_OK;
    }
    scan->at = start;
    return NEST_REFUSED;
}

// What stands here is no number that fits.
static enum nest_result refuse_element(struct scan *scan, const struct sink *sink) {
    const char *const start = scan->at;
    const char c = start < scan->end ? *start : '\0';
    double value64;
    float value32;
    const enum number_status status = sink->dtype == BN_F32 ? number_read_f32(&value32, &scan->at, scan->end)
                                                            : number_read_f64(&value64, &scan->at, scan->end);
    if (status == NUMBER_MALFORMED && (c == '-' || (c >= '0' && c <= '9'))) {
        scan_malformed(scan, "not a number");
        return NEST_MALFORMED;
    }
    scan->at = start;
    if (status == NUMBER_OVERFLOW) {
        msg_fail(scan->error, MSG_OVERFLOW, scan->pointer, "the number is too large for %s",
                 sink->dtype == BN_F32 ? "f32" : "f64");
    } else {
        msg_fail(scan->error, MSG_WRONG_TYPE, scan->pointer, "expected a number%s",
                 c == '"' ? ", \"NaN\", \"Infinity\" or \"-Infinity\"" : "");
    }
    return NEST_REFUSED;
}

// Reads the value at hand and, where it is a number, those that follow it in the same array. *count: how many.
static enum nest_result read_values(struct scan *scan, struct sink *sink, size_t *count) {
    *count = 0;
    if (!buffer_grow(sink->values, sizeof(double))) {
        msg_fail(scan->error, MSG_MEMORY_FULL, NULL, "the values do not fit the memory budget");
        return NEST_REFUSED;
    }
    void *const at = sink->values->data + sink->values->size;
    const size_t room = (sink->values->capacity - sink->values->size) / bn_dtype_size(sink->dtype);
    *count = sink->dtype == BN_F32 ? number_read_run_f32(at, room, &scan->at, scan->end)
                                   : number_read_run_f64(at, room, &scan->at, scan->end);
    if (*count == 0 && scan->at < scan->end && *scan->at == '"') {
        const enum nest_result result = read_special(scan, at, sink);
        if (result == NEST_MALFORMED) return result;
        *count = result == NEST_OK;
    }
    sink_add(sink, *count);
    return *count > 0 ? NEST_OK : refuse_element(scan, sink);
}

// ---- nested arrays

// Sets the scan's pointer to the place of the walk, `levels` deep.
static void point_into(struct scan *scan, const struct nest *nest, int levels) {
    char token[24];
    for (int l = 0; l < levels; l++) {
        snprintf(token, sizeof token, "%zu", nest->index[l]);
        scan_push(scan, token);
    }
}

static enum nest_result refuse_here(struct scan *scan, const struct nest *nest, int levels, enum msg_code code,
                                    const char *what) {
    const size_t length = scan->pointer_length;
    point_into(scan, nest, levels);
    msg_fail(scan->error, code, scan->pointer, "%s", what);
    scan_pop(scan, length);
    return NEST_REFUSED;
}

static enum nest_result close_array(struct scan *scan, struct nest *nest) {
    scan->at++;
    const int l = nest->level - 1;
    const size_t length = nest->index[l];
    if (nest->dim[l] == SIZE_MAX) nest->dim[l] = length;
    if (nest->dim[l] != length)
        return refuse_here(scan, nest, l, MSG_RAGGED, "the row is shorter or longer than the first one");
    nest->level = l;
    if (l > 0) nest->index[l - 1]++;
    return NEST_OK;
}

static enum nest_result open_array(struct scan *scan, struct nest *nest) {
    if (nest->leaf > 0 && nest->level == nest->leaf) {
        return refuse_here(scan, nest, nest->level, MSG_RAGGED, "an array where the others have a number");
    }
    if (nest->level == TENSOR_MAX_RANK) {
        return refuse_here(scan, nest, 0, MSG_SHAPE_MISMATCH, "a tensor has a rank from 2 to 8");
    }
    scan->at++;
    nest->index[nest->level++] = 0;
    return NEST_OK;
}

static enum nest_result nest_element(struct scan *scan, struct nest *nest, struct sink *sink) {
    const bool beside_array = nest->level < TENSOR_MAX_RANK && nest->dim[nest->level] != SIZE_MAX;
    if (nest->leaf == 0) nest->leaf = nest->level;
    if (nest->level != nest->leaf || beside_array) {
        return refuse_here(scan, nest, nest->level, MSG_RAGGED, "a number where the others have an array");
    }
    const bool first_error = scan->error->code == MSG_OK;
    size_t count;
    const enum nest_result result = read_values(scan, sink, &count);
    nest->index[nest->level - 1] += count;
    if (result == NEST_REFUSED && first_error && scan->error->has_pointer) {
        const size_t length = scan->pointer_length;
        point_into(scan, nest, nest->level);
        snprintf(scan->error->pointer, sizeof scan->error->pointer, "%s", scan->pointer);
        scan_pop(scan, length);
    }
    return result;
}

enum nest_result scan_nest_step(struct scan *scan, struct nest *nest, struct sink *sink) {
    char c = scan_peek(scan);
    if (c == ']') return close_array(scan, nest);
    if (nest->index[nest->level - 1] > 0) {
        if (c != ',') {
            scan_malformed(scan, "expected ',' or ']'");
            return NEST_MALFORMED;
        }
        scan->at++;
        c = scan_peek(scan);
        if (c == ']') {
            scan_malformed(scan, "expected a value");
            return NEST_MALFORMED;
        }
    }
    return c == '[' ? open_array(scan, nest) : nest_element(scan, nest, sink);
}

enum nest_result scan_nest_open(struct scan *scan, struct nest *nest, struct sink *sink) {
    *nest = (struct nest){.level = 0};
    for (int l = 0; l < TENSOR_MAX_RANK; l++) nest->dim[l] = SIZE_MAX;
    // Where the guess does not fit the budget, the values grow as they are read.
    if (!scan_sink_reserve_ready(sink, sink->guess) &&
        !buffer_reserve(sink->values, sink->guess * bn_dtype_size(sink->dtype))) {
        sink->values->refused = 0;
    }
    return open_array(scan, nest);
}

bool scan_nest_read(struct scan *scan, struct nest *nest, struct sink *sink) {
    const char *const start = scan->at;
    enum nest_result result = NEST_OK;
    if (!ahead_resume(scan->ahead, scan, nest, sink)) result = scan_nest_open(scan, nest, sink);
    while (result == NEST_OK && nest->level > 0) result = scan_nest_step(scan, nest, sink);
    if (result == NEST_OK) buffer_trim(sink->values);
    if (result != NEST_REFUSED) return result == NEST_OK;
    scan->at = start;
    return scan_skip(scan, NULL);
}

int scan_nest_rank(const struct nest *nest) {
    int rank = 0;
    while (rank < TENSOR_MAX_RANK && nest->dim[rank] != SIZE_MAX) rank++;
    return rank;
}
