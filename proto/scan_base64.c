// SPDX-License-Identifier: Apache-2.0
//
// The base64 text of a tensor: its escapes, its size against the shape, its bytes as elements.
#include <string.h>

#include "base64.h"
#include "scan.h"

// JSON lets '/' be written \/ and any character \u002b; neither is anything to base64. Returns the length.
static size_t unescape_base64(char *out, struct scan_span text) {
    size_t n = 0;
    for (size_t i = 0; i < text.length; i++) {
        if (text.text[i] != '\\') {
            out[n++] = text.text[i];
        } else if (text.text[i + 1] != 'u') {
            i++;
            out[n++] = text.text[i] == '/' ? '/' : '\0'; // NUL is not of the alphabet, and refused
        } else {
            const unsigned code = scan_hex4(text.text + i + 2);
            out[n++] = code < 0x80 ? (char)code : '\0';
            i += 5;
        }
    }
    return n;
}

static void decode_base64(struct scan *scan, struct tensor *tensor, struct scan_span text) {
    const size_t raw_size = tensor->count * wire_dtypes[tensor->wire].size;
    const size_t values_size = tensor->count * bn_dtype_size(tensor->dtype);
    size_t size = 0, bad = 0;
    if (!base64_data_size(&size, text.text, text.length)) {
        msg_fail(scan->error, MSG_OUT_OF_RANGE, scan->pointer, "base64 text has a multiple of 4 characters");
        return;
    }
    if (size != raw_size) {
        msg_fail(scan->error, MSG_SHAPE_MISMATCH, scan->pointer, "base64 holds %zu bytes, the shape asks for %zu", size,
                 raw_size);
        return;
    }
    const size_t room = raw_size > values_size ? raw_size : values_size;
    tensor->values.budget = scan->budget;
    if (!buffer_reserve(&tensor->values, room + 4)) {
        msg_fail(scan->error, MSG_MEMORY_FULL, NULL, "the values do not fit the memory budget");
        return;
    }
    unsigned char *const raw = tensor->values.data + (room - raw_size);
    if (!base64_decode(raw, text.text, text.length, &bad)) {
        msg_fail(scan->error, MSG_OUT_OF_RANGE, scan->pointer, "not base64 at character %zu", bad);
        return;
    }
    const size_t overflow = tensor_from_wire(tensor->values.data, tensor->dtype, raw, tensor->wire, tensor->count);
    if (overflow < tensor->count) {
        msg_fail(scan->error, MSG_OVERFLOW, scan->pointer, "element %zu is too large for the layer's dtype", overflow);
        return;
    }
    tensor->values.size = values_size;
    tensor->first_nonfinite = bn_first_nonfinite(tensor->values.data, tensor->count, tensor->dtype);
    tensor->present = true;
}

void scan_base64(struct scan *scan, struct tensor *tensor, struct scan_span text) {
    const size_t length = scan->pointer_length;
    scan_push(scan, "base64");
    if (text.length == 0 || memchr(text.text, '\\', text.length) == NULL) {
        decode_base64(scan, tensor, text);
    } else {
        struct buffer plain = {.budget = scan->budget};
        if (buffer_reserve(&plain, text.length)) {
            const size_t n = unescape_base64((char *)plain.data, text);
            decode_base64(scan, tensor, (struct scan_span){(const char *)plain.data, n});
        } else {
            msg_fail(scan->error, MSG_MEMORY_FULL, NULL, "the values do not fit the memory budget");
        }
        buffer_free(&plain);
    }
    scan_pop(scan, length);
}
