// SPDX-License-Identifier: Apache-2.0
#include "files.h"

const float four[4] = {1, 2.5f, -0.75f, 4};

const unsigned char bn_data[24] = {0, 0, 0x80, 0x3f, 0, 0x41, 0x40, 0xbf, 0, 0, 0, 0, 0, 0, 0x10, 0x40, 5};

static struct buffer file_of(const void *start, size_t start_size, const char *header, const void *data, size_t size) {
    struct buffer file = {.budget = &budget};
    assert_true(buffer_reserve(&file, start_size + strlen(header) + size));
    assert_true(buffer_append(&file, start, start_size) && buffer_append(&file, header, strlen(header)));
    assert_true(buffer_append(&file, data, size));
    return file;
}

struct buffer npy_file(int major, const char *header, const void *data, size_t size) {
    unsigned char start[12] = {0x93, 'N', 'U', 'M', 'P', 'Y', (unsigned char)major, 0};
    for (size_t i = 0; i < 4; i++) start[8 + i] = (unsigned char)(strlen(header) >> 8 * i);
    return file_of(start, major == 1 ? 10 : 12, header, data, size);
}

struct buffer safetensors_file(const char *header, const void *data, size_t size) {
    const uint64_t length = strlen(header);
    return file_of(&length, sizeof length, header, data, size);
}

const struct npy_type npy_types[NPY_TYPES] = {
    {"f2", 2, {0, 0x3c, 0, 0x41, 0, 0xba, 0, 0x44}, WIRE_F16},
    {"f4", 4, {0, 0, 0x80, 0x3f, 0, 0, 0x20, 0x40, 0, 0, 0x40, 0xbf, 0, 0, 0x80, 0x40}, WIRE_F32},
    {"f8",
     8,
     {0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0, 0, 0, 0, 0, 0, 4,    0x40,
      0, 0, 0, 0, 0, 0, 0xe8, 0xbf, 0, 0, 0, 0, 0, 0, 0x10, 0x40},
     WIRE_F64},
    {"V2", 2, {0x80, 0x3f, 0x20, 0x40, 0x40, 0xbf, 0x80, 0x40}, WIRE_BF16},
};

const struct msg_options npy_bf16 = {.option = {{"dtype", "bf16"}}, .count = 1};

struct buffer npy_typed_file(size_t type, char order, size_t padding) {
    unsigned char raw[32];
    char literal[300];
    const size_t size = npy_types[type].size;
    for (size_t i = 0; i < 4 * size; i++) {
        const size_t from = order == '>' ? i / size * size + size - 1 - i % size : i;
        raw[i] = npy_types[type].raw[from];
    }
    snprintf(literal, sizeof literal, "{'descr': '%c%s', 'fortran_order': False, 'shape': (2, 2)}%*s\n", order,
             npy_types[type].descr, (int)padding, "");
    return npy_file(1, literal, raw, 4 * size);
}

static enum msg_call_kind call_of(enum kind kind) {
    assert_true(kind == TRAIN || kind == INFERENCE || kind == BACKWARD);
    return kind == TRAIN ? MSG_TRAIN_FORWARD : kind == INFERENCE ? MSG_INFERENCE : MSG_BACKWARD;
}

static void check_decoded(const struct decoded *d, const struct buffer *file) {
    assert_int_equal(d->ok, d->error.code == MSG_OK);
    assert_false(d->error.has_pointer);
    assert_true(d->ok || d->error.detail[0] != '\0');
    assert_int_equal(file->capacity, 0); // taken over
}

struct decoded decode_npy(struct buffer file, enum kind kind, enum bn_dtype dtype, const struct msg_options *options) {
    struct codec_request request = {.body = &file, .budget = &budget};
    struct decoded d = {.ok = false};
    if (options != NULL) request.options = *options;
    d.ok = npy_decode_call(&d.call, call_of(kind), &request, dtype, &d.error);
    check_decoded(&d, &file);
    return d;
}

struct decoded decode_safetensors(struct buffer file, enum kind kind, enum bn_dtype dtype) {
    const struct codec_request request = {.body = &file, .budget = &budget};
    struct decoded d = {.ok = false};
    if (kind == STATE) {
        d.ok = safetensors_decode_state(&d.state, "it", &request, &d.error);
    } else if (kind == SNAPSHOT) {
        d.ok = safetensors_decode_snapshot(&d.snapshot, &request, &d.error);
    } else {
        d.ok = safetensors_decode_call(&d.call, call_of(kind), &request, dtype, &d.error);
    }
    check_decoded(&d, &file);
    return d;
}

static void expect_code(struct decoded *d, enum kind kind, enum msg_code code, const char *what) {
    if (d->error.code != code)
        fail_msg("%s, kind %d: %s (%s), expected %s", what, (int)kind, msg_codes[d->error.code].name, d->error.detail,
                 msg_codes[code].name);
    release(d);
}

void expect_npy(struct buffer file, enum msg_code code, const char *what) {
    struct decoded d = decode_npy(file, INFERENCE, BN_F32, NULL);
    expect_code(&d, INFERENCE, code, what);
}

void expect_safetensors(struct buffer file, enum kind kind, enum msg_code code, const char *what) {
    struct decoded d = decode_safetensors(file, kind, BN_F32);
    expect_code(&d, kind, code, what);
}

struct buffer sent_file(const struct buffer *out, const struct msg_extra *extra) {
    struct buffer file = {.budget = &budget};
    assert_true(buffer_append(&file, out->data, out->size));
    for (size_t i = 0; i < extra->pieces; i++)
        assert_true(buffer_append(&file, extra->piece[i].data, extra->piece[i].size));
    return file;
}

struct read read_reply(const struct buffer *out, const struct msg_extra *extra) {
    struct read r = {.file = sent_file(out, extra)};
    uint64_t length;
    memcpy(&length, r.file.data, sizeof length);
    assert_int_equal(length % 8, 0);
    assert_true(length <= r.file.size - 8);
    r.header = json_loadb((const char *)r.file.data + 8, (size_t)length, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(r.header);
    r.data = r.file.data + 8 + length;
    r.metadata = json_incref(json_object_get(r.header, "__metadata__"));
    json_object_del(r.header, "__metadata__");
    return r;
}

void free_read(struct read *r) {
    json_decref(r->header);
    json_decref(r->metadata);
    buffer_free(&r->file);
}

const void *elements_of(const struct read *r, const char *name, const char *dtype, size_t bytes) {
    const json_t *const info = json_object_get(r->header, name), *const offsets = json_object_get(info, "data_offsets");
    assert_non_null(info);
    assert_string_equal(json_string_value(json_object_get(info, "dtype")), dtype);
    const size_t begin = (size_t)json_integer_value(json_array_get(offsets, 0));
    assert_int_equal(json_integer_value(json_array_get(offsets, 1)), begin + bytes);
    assert_true((size_t)(r->data - r->file.data) + begin + bytes <= r->file.size);
    return r->data + begin;
}
