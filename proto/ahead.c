// SPDX-License-Identifier: Apache-2.0
#include "ahead.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "scan_nest.h"

// x, dout and residual with the shape of each, and some to spare.
#define ARRAYS_MAX 8

// Of those that are begun, with what turns out to be something else: inputs and outputs of a request, and some. Text
// that only looks like arrays is not worth more.
#define BEGUN_MAX 16

// How far before an array its datatype is looked for.
#define DATATYPE_NEAR 256

struct array {
    size_t start, at; // in the text: its bracket, and behind what was read
    struct nest nest;
    struct sink sink;
    struct buffer values; // where the sink puts them
};

struct ahead {
    enum bn_dtype dtype;
    size_t length;
    struct budget *budget;
    size_t arrived;     // bytes at the last call
    size_t complete_to; // the last comma: what stands before it is a value's end
    size_t sought_to;   // the next array begins here or behind
    bool open;          // the last array has not ended
    bool stopped;
    size_t count, begun; // those refused are begun, and not in the count
    struct array arrays[ARRAYS_MAX];
};

struct ahead *ahead_new(enum bn_dtype dtype, size_t length, struct budget *budget) {
    struct ahead *const ahead = calloc(1, sizeof *ahead);
    if (ahead == NULL) return NULL;
    ahead->dtype = dtype;
    ahead->length = length;
    ahead->budget = budget;
    return ahead;
}

static void find_complete(struct ahead *ahead, const char *text, size_t length) {
    const char *const comma = memrchr(text + ahead->arrived, ',', length - ahead->arrived);
    if (comma != NULL) ahead->complete_to = (size_t)(comma - text);
    ahead->arrived = length;
}

// The value of a member: the bracket behind a colon. Within a string it may be none; then no walk asks for it.
static bool is_value(const char *text, size_t bracket) {
    size_t at = bracket;
    while (at > 0 && (text[at - 1] == ' ' || text[at - 1] == '\n' || text[at - 1] == '\t' || text[at - 1] == '\r'))
        at--;
    return at > 0 && text[at - 1] == ':';
}

static size_t find_bracket(struct ahead *ahead, const char *text) {
    while (ahead->sought_to < ahead->complete_to) {
        const char *const found = memchr(text + ahead->sought_to, '[', ahead->complete_to - ahead->sought_to);
        const size_t bracket = found != NULL ? (size_t)(found - text) : SIZE_MAX;
        ahead->sought_to = found != NULL ? bracket + 1 : ahead->complete_to;
        if (found != NULL && is_value(text, bracket)) return bracket;
    }
    return SIZE_MAX;
}

// Numbers of other datatypes than FP32 are read as f64, to be rounded to the datatype first (oip_inputs.c).
static enum bn_dtype dtype_at(const struct ahead *ahead, const char *text, size_t bracket) {
    static const char *const others[] = {"\"FP64\"", "\"FP16\"", "\"BF16\""};
    const size_t near = bracket < DATATYPE_NEAR ? bracket : DATATYPE_NEAR;
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        if (memmem(text + bracket - near, near, others[i], strlen(others[i])) != NULL) return BN_F64;
    }
    return ahead->dtype;
}

static bool begin_next(struct ahead *ahead, struct scan *scan) {
    if (ahead->count == ARRAYS_MAX || ahead->begun == BEGUN_MAX) return false;
    const size_t bracket = find_bracket(ahead, scan->text);
    if (bracket == SIZE_MAX) return false;
    struct array *const array = &ahead->arrays[ahead->count++];
    ahead->begun++;
    array->start = bracket;
    scan->at = scan->text + bracket;
    // Memory grows with what arrives, but for what lies ready.
    array->sink = scan_sink_start(scan, &array->values, dtype_at(ahead, scan->text, bracket), 0);
    if (ahead->length > bracket) scan_sink_reserve_ready(&array->sink, scan_guess(ahead->length - bracket));
    ahead->open = scan_nest_open(scan, &array->nest, &array->sink) == NEST_OK;
    array->at = (size_t)(scan->at - scan->text);
    return true;
}

// What is refused is the walk's to read.
static void read_on(struct ahead *ahead, struct scan *scan) {
    struct array *const array = &ahead->arrays[ahead->count - 1];
    enum nest_result result = NEST_OK;
    scan->at = scan->text + array->at;
    while (result == NEST_OK && array->nest.level > 0 && scan_peek(scan) != '\0')
        result = scan_nest_step(scan, &array->nest, &array->sink);
    array->at = (size_t)(scan->at - scan->text);
    ahead->open = result == NEST_OK && array->nest.level > 0;
    if (!ahead->open) ahead->sought_to = array->at;
    if (result == NEST_OK) return;
    buffer_free(&array->values);
    ahead->count--;
}

void ahead_read(struct ahead *ahead, const char *text, size_t length) {
    struct msg_error ignored = {0};
    struct scan scan;
    if (ahead->stopped) return;
    find_complete(ahead, text, length);
    scan_start(&scan, text, ahead->complete_to, ahead->budget, &ignored);
    while (ahead->open || begin_next(ahead, &scan)) {
        read_on(ahead, &scan);
        if (ahead->open) return;
    }
}

size_t ahead_bytes(const struct ahead *ahead) {
    size_t bytes = 0;
    for (size_t i = 0; ahead != NULL && i < ahead->count; i++) bytes += ahead->arrays[i].values.capacity;
    return bytes;
}

bool ahead_resume(struct ahead *ahead, struct scan *scan, struct nest *nest, struct sink *sink) {
    const size_t start = (size_t)(scan->at - scan->text), count = ahead != NULL ? ahead->count : 0;
    for (size_t i = 0; i < count; i++) {
        struct array *const array = &ahead->arrays[i];
        if (array->start != start) continue;
        array->start = SIZE_MAX;
        if (sink->dtype != array->sink.dtype) {
            buffer_free(&array->values);
            return false;
        }
        struct buffer *const values = sink->values;
        buffer_move(values, &array->values);
        *sink = array->sink;
        sink->values = values;
        *nest = array->nest;
        scan->at = scan->text + array->at;
        return true;
    }
    return false;
}

void ahead_stop(struct ahead *ahead) {
    if (ahead == NULL) return;
    for (size_t i = 0; i < ahead->count; i++) buffer_free(&ahead->arrays[i].values);
    ahead->count = 0;
    ahead->stopped = true;
}

void ahead_free(struct ahead **ahead) {
    ahead_stop(*ahead);
    free(*ahead);
    *ahead = NULL;
}
