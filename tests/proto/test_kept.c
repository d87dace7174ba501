// SPDX-License-Identifier: Apache-2.0
//
// What a pass that is kept takes of the memory budget, in every form: its elements, and no more.
#include "files.h"

#include "../../proto/base64.h"
#include "../../proto/oip.h"

enum { N = 6000 };
static const char *const types[] = {"F32", "F64", "F16", "BF16"};
static const char *const numbers[] = {"FP32", "FP64", "FP16", "BF16"};

// Halves hold these too.
static double value_at(size_t i, bool residual) {
    return (double)(i % 61) - (residual ? 30.5 : 7);
}

struct form {
    enum wire_dtype x, residual;
    bool has_residual, residual_first, relu;
    enum bn_dtype dtype;
    size_t padding; // spaces in the header
};

static size_t write_elements(unsigned char *out, enum wire_dtype wire, bool residual) {
    static double values[N];
    for (size_t i = 0; i < N; i++) values[i] = value_at(i, residual);
    tensor_to_wire(out, wire, values, BN_F64, N);
    return N * wire_dtypes[wire].size;
}

// The tensors' bytes, in their order; ends[0] is where x's end, ends[1] the residual's.
static size_t write_both(unsigned char *data, size_t begins[2], const struct form *form) {
    size_t size = 0;
    for (int i = 0; i < (form->has_residual ? 2 : 1); i++) {
        const bool residual = form->has_residual && (i == 0) == form->residual_first;
        begins[residual] = size;
        size += write_elements(data + size, residual ? form->residual : form->x, residual);
    }
    return size;
}

static struct decoded decode_file(const struct form *form) {
    static unsigned char data[2 * N * sizeof(double)];
    size_t begins[2] = {0};
    const size_t size = write_both(data, begins, form);
    char header[1000], residual[200] = "";
    if (form->has_residual)
        snprintf(residual, sizeof residual,
                 ",\"residual\":{\"dtype\":\"%s\",\"shape\":[%d,2],\"data_offsets\":[%zu,%zu]}", types[form->residual],
                 N / 2, begins[1], begins[1] + N * wire_dtypes[form->residual].size);
    snprintf(
        header, sizeof header,
        "{\"__metadata__\":{\"cache\":\"true\"%s},\"x\":{\"dtype\":\"%s\",\"shape\":[%d,2],\"data_offsets\":[%zu,%zu]}"
        "%s}%*s",
        form->relu ? ",\"activation\":\"\\\"relu\\\"\"" : "", types[form->x], N / 2, begins[0],
        begins[0] + N * wire_dtypes[form->x].size, residual, (int)form->padding, "");
    return decode_safetensors(safetensors_file(header, data, size), TRAIN, form->dtype);
}

static struct decoded decode_infer(const struct form *form) {
    static unsigned char data[2 * N * sizeof(double)];
    size_t begins[2];
    const size_t size = write_both(data, begins, form);
    const struct msg_config layer = {.num_features = 2, .dtype = (int)form->dtype, .channel_axis = 1};
    char x[200], residual[200], json[1000];
    snprintf(x, sizeof x,
             "{\"name\":\"x\",\"shape\":[%d,2],\"datatype\":\"%s\",\"parameters\":{\"binary_data_size\":%zu}}", N / 2,
             numbers[form->x], N * wire_dtypes[form->x].size);
    snprintf(residual, sizeof residual,
             "{\"name\":\"residual\",\"shape\":[%d,2],\"datatype\":\"%s\",\"parameters\":{\"binary_data_size\":%zu}}",
             N / 2, numbers[form->residual], N * wire_dtypes[form->residual].size);
    snprintf(json, sizeof json, "{\"parameters\":{\"mode\":\"train-forward\",\"cache\":true%s},\"inputs\":[%s%s%s]}%*s",
             form->relu ? ",\"activation\":\"relu\"" : "", form->has_residual && form->residual_first ? residual : x,
             form->has_residual ? "," : "",
             !form->has_residual    ? ""
             : form->residual_first ? x
                                    : residual,
             (int)form->padding, "");
    struct buffer body = {.budget = &budget};
    assert_true(buffer_append(&body, json, strlen(json)) && buffer_append(&body, data, size));
    const struct oip_request request = {
        .body = &body, .has_header = true, .header = strlen(json), .budget = &budget, .model = "it", .layer = &layer};
    struct decoded d = {.ok = false};
    enum msg_call_kind kind;
    d.ok = oip_decode(&d.call, &kind, &request, &d.error);
    return d;
}

static void expect_values(const struct tensor *tensor, bool residual, const char *what) {
    for (size_t i = 0; i < N; i++) {
        if (value_of(tensor, i) != value_at(i, residual))
            fail_msg("%s: %s %zu is %g", what, residual ? "residual" : "x", i, value_of(tensor, i));
    }
}

// What the server does once y is there: a sum's gradient needs no residual.
static size_t kept_bytes(struct decoded *d, bool relu) {
    if (!relu) tensor_free(&d->call.residual);
    return budget.used;
}

static void check_form(struct decoded (*decode_form)(const struct form *form), const struct form *form) {
    char what[200];
    const size_t size = bn_dtype_size(form->dtype), tensors = form->has_residual && form->relu ? 2 : 1;
    struct decoded d = decode_form(form);
    snprintf(what, sizeof what, "%s, residual %s%s%s, layer %s, padding %zu", types[form->x],
             form->has_residual ? types[form->residual] : "none", form->residual_first ? ", which is first" : "",
             form->relu ? ", relu" : "", msg_dtype_words[form->dtype], form->padding);
    if (!d.ok) fail_msg("%s: %s", what, d.error.detail);
    expect_values(&d.call.x, false, what);
    if (form->has_residual) expect_values(&d.call.residual, true, what);
    assert_int_equal((uintptr_t)d.call.x.values.data % size, 0);
    const size_t bytes = kept_bytes(&d, form->relu), elements = tensors * N * size;
    if (bytes < elements || bytes > elements + elements / 8)
        fail_msg("%s: %zu bytes for elements of %zu", what, bytes, elements);
    release(&d);
}

static void check_forms(struct decoded (*decode_form)(const struct form *form)) {
    static const size_t paddings[] = {0, 1, 63, 64, 500};
    for (size_t i = 0; i < 4 * 5 * 2 * 2 * 2 * COUNT(paddings); i++) {
        size_t rest = i;
        struct form form = {.x = (enum wire_dtype)(rest % 4)};
        rest /= 4;
        form.has_residual = rest % 5 < 4;
        form.residual = form.has_residual ? (enum wire_dtype)(rest % 5) : WIRE_F32;
        rest /= 5;
        form.residual_first = form.has_residual && rest % 2 != 0;
        form.relu = rest / 2 % 2 != 0;
        form.dtype = rest / 4 % 2 != 0 ? BN_F64 : BN_F32;
        form.padding = paddings[rest / 8];
        check_form(decode_form, &form);
    }
}

static void test_safetensors(void **state) {
    (void)state;
    check_forms(decode_file);
}

static void test_oip(void **state) {
    (void)state;
    check_forms(decode_infer);
}

static void test_npy(void **state) {
    (void)state;
    static unsigned char data[N * sizeof(double)];
    static const struct msg_options keep = {.option = {{"cache", "true"}}, .count = 1};
    for (int i = 0; i < 12; i++) {
        static const enum wire_dtype wires[] = {WIRE_F16, WIRE_F32, WIRE_F64};
        static const size_t paddings[] = {1, 400};
        const enum bn_dtype dtype = i % 2 == 0 ? BN_F32 : BN_F64;
        const enum wire_dtype wire = wires[i / 2 % 3];
        const size_t size = write_elements(data, wire, false), elements = N * bn_dtype_size(dtype);
        char header[600];
        snprintf(header, sizeof header, "{'descr': '<f%zu', 'fortran_order': False, 'shape': (%d, 2)}%*s", size / N,
                 N / 2, (int)paddings[i / 6], "");
        struct decoded d = decode_npy(npy_file(1, header, data, size), TRAIN, dtype, &keep);
        assert_true(d.ok);
        expect_values(&d.call.x, false, header);
        assert_in_range(budget.used, elements, elements + elements / 8);
        release(&d);
    }
}

static void check_json(const char *text, size_t length) {
    struct buffer body = {.budget = NULL};
    assert_true(buffer_append(&body, text, length));
    const struct codec_request request = {.body = &body, .budget = &budget};
    struct decoded d = {.ok = false};
    d.ok = codecs[CODEC_JSON].decode_call(&d.call, MSG_TRAIN_FORWARD, &request, BN_F32, &d.error);
    assert_true(d.ok);
    expect_values(&d.call.x, false, "JSON");
    assert_in_range(budget.used, N * sizeof(float), N * sizeof(float) * 9 / 8);
    release(&d);
    buffer_free(&body);
}

// Text is read into memory that grows, base64 into such as holds the type on the wire.
static void test_json(void **state) {
    (void)state;
    static char text[N * 16];
    static unsigned char raw[N * sizeof(double)];
    size_t length = (size_t)snprintf(text, sizeof text, "{\"cache\":true,\"x\":[");
    for (size_t i = 0; i < N; i += 2)
        length += (size_t)snprintf(text + length, sizeof text - length, "%s[%g,%g]", i > 0 ? "," : "",
                                   value_at(i, false), value_at(i + 1, false));
    length += (size_t)snprintf(text + length, sizeof text - length, "]}");
    check_json(text, length);
    for (enum wire_dtype wire = WIRE_F32; wire <= WIRE_BF16; wire++) {
        const size_t size = write_elements(raw, wire, false);
        length = (size_t)snprintf(text, sizeof text,
                                  "{\"cache\":true,\"x\":{\"shape\":[%d,2],\"dtype\":\"%s\",\"base64\":\"", N / 2,
                                  wire_dtypes[wire].name);
        length = (size_t)(base64_encode(text + length, raw, size) - text);
        length += (size_t)snprintf(text + length, sizeof text - length, "\"}}");
        check_json(text, length);
    }
}

// An empty batch is kept too.
static void test_empty(void **state) {
    (void)state;
    struct decoded d = decode_safetensors(
        safetensors_file("{\"__metadata__\":{\"cache\":\"true\"},\"x\":{\"dtype\":\"F32\",\"shape\":[0,2],\"data_"
                         "offsets\":[0,0]},\"residual\":{\"dtype\":\"F64\",\"shape\":[0,2],\"data_offsets\":[0,0]}}",
                         "", 0),
        TRAIN, BN_F32);
    assert_true(d.ok && d.call.x.present && d.call.residual.present);
    release(&d);
}

// Where there is no memory for a second place, everything stays in the first one.
static void test_full(void **state) {
    (void)state;
    const struct form form = {.x = WIRE_F32, .residual = WIRE_F32, .has_residual = true};
    budget.limit = 2 * N * sizeof(float) + 1000;
    struct decoded d = decode_file(&form);
    assert_true(d.ok);
    expect_values(&d.call.x, false, "full");
    expect_values(&d.call.residual, true, "full");
    release(&d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_safetensors, fresh_budget), cmocka_unit_test_setup(test_oip, fresh_budget),
        cmocka_unit_test_setup(test_npy, fresh_budget),         cmocka_unit_test_setup(test_json, fresh_budget),
        cmocka_unit_test_setup(test_empty, fresh_budget),       cmocka_unit_test_setup(test_full, fresh_budget),
    };
    return cmocka_run_group_tests_name("kept", tests, NULL, NULL);
}
