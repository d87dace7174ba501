// SPDX-License-Identifier: Apache-2.0
#include "oip_inputs.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "binary.h"
#include "json_fields.h"
#include "oip.h"

const char *const oip_datatypes[] = {
    [WIRE_F32] = "FP32", [WIRE_F64] = "FP64", [WIRE_F16] = "FP16", [WIRE_BF16] = "BF16"};

const char *const oip_input_names[MSG_INPUTS] = {
    [MSG_INPUT_X] = "x", [MSG_INPUT_DOUT] = "dout", [MSG_INPUT_RESIDUAL] = "residual"};

// ---- members of an input

// A string, cut as a key is; what else stands there is refused.
static bool take_string(struct scan *scan, char text[SCAN_KEY_MAX + 1]) {
    struct scan_span span;
    if (scan_peek(scan) != '"') return scan_refuse(scan, MSG_WRONG_TYPE, "expected a string");
    if (!scan_skip(scan, &span)) return false;
    scan_unescape(text, (struct scan_span){span.text + 1, span.length - 2});
    return true;
}

static bool take_datatype(struct oip_input *input, struct scan *scan) {
    char text[SCAN_KEY_MAX + 1] = "";
    if (!take_string(scan, text)) return false;
    for (size_t i = 0; i < wire_dtype_count; i++) {
        if (strcmp(text, oip_datatypes[i]) != 0) continue;
        input->tensor.wire = (enum wire_dtype)i;
        return true;
    }
    msg_fail(scan->error, MSG_OUT_OF_RANGE, scan->pointer,
             "the datatype \"%.20s\" is none of FP32, FP64, FP16 and BF16", text);
    return true;
}

static bool take_parameter(void *rest, struct scan *scan, const struct scan_key *key) {
    return rest_take(rest, scan, key);
}

static bool take_parameters(struct oip_input *input, struct scan *scan) {
    static const struct field fields[] = {
        {"binary_data_size", FIELD_INTEGER, 0, 0, 0x1p53, NULL, 1},
        FIELD_END,
    };
    struct rest rest = {.known = {fields}};
    unsigned given = 0;
    int64_t size = 0;
    if (scan_peek(scan) != '{') return scan_refuse(scan, MSG_WRONG_TYPE, "parameters are an object");
    const bool ok = field_members(scan, take_parameter, &rest);
    if (ok && scan->error->code == MSG_OK)
        field_set_all(&size, &given, fields, rest.object, scan->pointer, scan->error);
    rest_free(&rest);
    input->size = (size_t)size;
    input->has_size = given != 0;
    return ok;
}

// As f64, unless both the input and the layer are f32: a number is rounded to the type of the input, then to that of
// the layer, as the elements of a binary input are.
static bool take_data(struct oip_input *input, struct scan *scan, enum bn_dtype dtype) {
    if (!input->has_datatype) return scan_skip(scan, &input->text);
    const bool plain = input->tensor.wire == WIRE_F32 && dtype == BN_F32;
    return scan_numbers(scan, &input->numbers, plain ? BN_F32 : BN_F64);
}

static bool take_late_data(struct oip_input *input, struct scan *scan, enum bn_dtype dtype) {
    const char *const at = scan->at;
    const size_t length = scan->pointer_length;
    scan->at = input->text.text;
    scan_push(scan, "data");
    const bool ok = take_data(input, scan, dtype);
    scan_pop(scan, length);
    scan->at = at;
    return ok;
}

struct input_walk {
    struct oip_input *input;
    enum bn_dtype dtype;
};

static bool take_member(void *context, struct scan *scan, const struct scan_key *key) {
    const struct input_walk *const walk = context;
    struct oip_input *const input = walk->input;
    const struct {
        const char *name;
        bool *seen;
    } known[] = {{"name", &input->has_name},
                 {"shape", &input->has_shape},
                 {"datatype", &input->has_datatype},
                 {"parameters", &input->has_parameters},
                 {"data", &input->has_data}};
    size_t i = 0;
    while (i < 5 && strcmp(key->name, known[i].name) != 0) i++;
    if (i == 5) return scan_refuse(scan, MSG_UNKNOWN_FIELD, "an input has name, shape, datatype, parameters and data");
    if (*known[i].seen) return scan_refuse(scan, MSG_DUPLICATE_FIELD, "the field is given twice");
    *known[i].seen = true;
    switch (i) {
    case 0: return take_string(scan, input->name);
    case 1: return scan_shape(scan, &input->tensor);
    case 2: return take_datatype(input, scan);
    case 3: return take_parameters(input, scan);
    default: return take_data(input, scan, walk->dtype);
    }
}

// ---- an input

static void lacks(struct scan *scan, const char *name) {
    const size_t length = scan->pointer_length;
    scan_push(scan, name);
    msg_fail(scan->error, MSG_MISSING_FIELD, scan->pointer, "%s is missing", name);
    scan_pop(scan, length);
}

static void check_members(const struct oip_input *input, struct scan *scan) {
    if (!input->has_name) lacks(scan, "name");
    if (!input->has_shape) lacks(scan, "shape");
    if (!input->has_datatype) lacks(scan, "datatype");
    if (input->has_data && input->has_size)
        msg_fail(scan->error, MSG_CONFLICTING_FIELDS, scan->pointer,
                 "an input has one of data and the parameter binary_data_size, not both");
    if (!input->has_data && !input->has_size) lacks(scan, "data");
}

static bool fits_nesting(const struct tensor *numbers, const struct tensor *shape) {
    if (numbers->rank == 1 || numbers->count == 0) return true;
    return numbers->rank == shape->rank &&
           memcmp(numbers->dim, shape->dim, (size_t)shape->rank * sizeof shape->dim[0]) == 0;
}

// The first finite value that is not finite in `wire`; n: there is none.
static size_t first_too_large(const double *values, enum wire_dtype wire, size_t n) {
    size_t i = tensor_first_overflow(values, BN_F64, wire, n);
    while (i < n && !isfinite(values[i])) i += 1 + tensor_first_overflow(values + i + 1, BN_F64, wire, n - i - 1);
    return i < n ? i : n;
}

// Numbers that were read as f64, rounded to `wire` and then to `dtype`, in their place. Returns the index of the first
// finite one that one of the two cannot hold; n: there is none.
static size_t round_numbers(unsigned char *values, enum wire_dtype wire, enum bn_dtype dtype, size_t n) {
    enum { PIECE = 512 };
    unsigned char raw[PIECE * sizeof(double)];
    const size_t size = bn_dtype_size(dtype);
    for (size_t i = 0; i < n; i += PIECE) {
        const size_t count = n - i < PIECE ? n - i : PIECE;
        const double *const from = (const double *)(const void *)(values + i * sizeof *from);
        const size_t bad = first_too_large(from, wire, count);
        if (bad < count) return i + bad;
        tensor_to_wire(raw, wire, from, BN_F64, count);
        const size_t overflow = tensor_from_wire(values + i * size, dtype, raw, wire, count);
        if (overflow < count) return i + overflow;
    }
    return n;
}

static void refuse_number(struct scan *scan, const struct tensor *tensor, size_t index) {
    char field[MSG_POINTER_MAX], pointer[MSG_POINTER_MAX];
    snprintf(field, sizeof field, "%.200s%s", scan->pointer + 1, tensor->form == TENSOR_NESTED ? "/data" : "");
    scan_tensor_pointer(pointer, field, tensor, index);
    msg_fail(scan->error, MSG_OVERFLOW, pointer, "the number is too large for %s, or for the layer's dtype",
             oip_datatypes[tensor->wire]);
}

// Makes the tensor of the numbers that were read.
static void finish_data(struct oip_input *input, struct scan *scan, enum bn_dtype dtype) {
    struct tensor *const tensor = &input->tensor, *const numbers = &input->numbers;
    const size_t length = scan->pointer_length;
    if (numbers->count != tensor->count || !fits_nesting(numbers, tensor)) {
        scan_push(scan, "data");
        if (numbers->count != tensor->count)
            msg_fail(scan->error, MSG_SHAPE_MISMATCH, scan->pointer, "data has %zu numbers, the shape asks for %zu",
                     numbers->count, tensor->count);
        msg_fail(scan->error, MSG_SHAPE_MISMATCH, scan->pointer, "data is nested otherwise than the shape says");
        scan_pop(scan, length);
        return;
    }
    tensor->dtype = dtype;
    tensor->form = numbers->rank == tensor->rank ? TENSOR_NESTED : TENSOR_FLAT;
    tensor->first_nonfinite = numbers->first_nonfinite;
    tensor->present = true;
    buffer_move(&tensor->values, &numbers->values);
    if (numbers->dtype == BN_F32) return;
    const size_t bad = round_numbers(tensor->values.data, tensor->wire, dtype, tensor->count);
    if (bad < tensor->count) refuse_number(scan, tensor, bad);
    tensor->values.size = tensor->count * bn_dtype_size(dtype);
}

static bool take_input(struct oip_input *input, struct scan *scan, enum bn_dtype dtype) {
    struct input_walk walk = {input, dtype};
    if (scan_peek(scan) != '{') return scan_refuse(scan, MSG_WRONG_TYPE, "an input is an object");
    if (!field_members(scan, take_member, &walk)) return false;
    check_members(input, scan);
    if (scan->error->code != MSG_OK) return true;
    if (input->text.text != NULL && !take_late_data(input, scan, dtype)) return false;
    if (scan->error->code == MSG_OK && input->has_data) finish_data(input, scan, dtype);
    return true;
}

bool oip_take_inputs(struct oip_inputs *inputs, struct scan *scan, enum bn_dtype dtype) {
    size_t length = 0;
    bool more = true;
    if (inputs->given) return scan_refuse(scan, MSG_DUPLICATE_FIELD, "the field is given twice");
    inputs->given = true;
    if (scan_peek(scan) != '[') return scan_refuse(scan, MSG_WRONG_TYPE, "inputs are an array");
    if (!scan_array(scan)) return false;
    for (size_t i = 0;; i++) {
        if (!scan_item(scan, i, &more, &length)) return false;
        if (!more) return true;
        const bool ok = i < MSG_INPUTS
                            ? take_input(&inputs->input[inputs->count++], scan, dtype)
                            : scan_refuse(scan, MSG_UNKNOWN_FIELD, "the inputs are x, residual and dout, each once");
        if (!ok) return false;
        scan_end_item(scan, length);
    }
}

void oip_free_inputs(struct oip_inputs *inputs) {
    for (size_t i = 0; i < inputs->count; i++) {
        tensor_free(&inputs->input[i].tensor);
        tensor_free(&inputs->input[i].numbers);
    }
}

// ---- their places

static void input_pointer(char pointer[MSG_POINTER_MAX], size_t index, const char *member) {
    snprintf(pointer, MSG_POINTER_MAX, "/inputs/%zu%s", index, member);
}

static bool name_input(const struct oip_input *input, size_t index, struct msg_infer *infer, enum msg_call_kind kind,
                       size_t *which, struct msg_error *error) {
    char pointer[MSG_POINTER_MAX];
    input_pointer(pointer, index, "/name");
    *which = 0;
    while (*which < MSG_INPUTS && strcmp(oip_input_names[*which], input->name) != 0) ++*which;
    if (*which == MSG_INPUTS || (*which == MSG_INPUT_DOUT && kind != MSG_BACKWARD))
        return msg_fail(error, MSG_UNKNOWN_FIELD, pointer, "there is no input \"%.60s\" in this mode, only %s",
                        input->name, kind == MSG_BACKWARD ? "dout, x and residual" : "x and residual");
    if (infer->inputs[*which].given)
        return msg_fail(error, MSG_DUPLICATE_FIELD, pointer, "the input \"%s\" is given twice", input->name);
    infer->inputs[*which].given = true;
    infer->inputs[*which].in_json = input->has_data;
    infer->inputs[*which].index = index;
    return true;
}

static bool take_binary(struct oip_input *input, size_t index, const struct buffer *body, size_t *at, size_t *floor,
                        enum bn_dtype dtype, struct budget *budget, struct msg_error *error) {
    struct tensor *const tensor = &input->tensor;
    const size_t size = tensor->count * wire_dtypes[tensor->wire].size;
    char pointer[MSG_POINTER_MAX];
    input_pointer(pointer, index, "/parameters/binary_data_size");
    if (input->size != size)
        return msg_fail(error, MSG_SHAPE_MISMATCH, pointer, "binary_data_size is %zu, the shape in %s takes %zu",
                        input->size, oip_datatypes[tensor->wire], size);
    if (size > body->size - *at)
        return msg_fail(error, MSG_MALFORMED_FILE, pointer,
                        "the body has %zu bytes for \"%s\", which takes %zu; tensors begin where "
                        "Inference-Header-Content-Length says",
                        body->size - *at, input->name, size);
    tensor->form = TENSOR_FLAT;
    const bool ok = binary_take(tensor, body, *at, floor, dtype, input->name, budget, error);
    *at += size;
    if (ok || error->has_pointer) return ok;
    error->has_pointer = error->code == MSG_OVERFLOW;
    input_pointer(error->pointer, index, "");
    return false;
}

static bool in_body(const struct tensor *tensor) {
    return tensor->present && tensor->values.memory == NULL && tensor->values.size > 0;
}

bool oip_place_inputs(struct oip_inputs *inputs, struct msg_call *call, enum msg_call_kind kind, size_t at,
                      enum bn_dtype dtype, struct budget *budget, struct msg_error *error) {
    struct tensor *const tensors[MSG_INPUTS] = {
        [MSG_INPUT_X] = &call->x, [MSG_INPUT_DOUT] = &call->dout, [MSG_INPUT_RESIDUAL] = &call->residual};
    struct msg_infer *const infer = &call->infer;
    size_t which[MSG_INPUTS] = {0}, floor = 0;
    for (size_t i = 0; i < inputs->count; i++) {
        if (!name_input(&inputs->input[i], i, infer, kind, &which[i], error)) return false;
    }
    const struct field_tensors given = {.x = infer->inputs[MSG_INPUT_X].given,
                                        .dout = infer->inputs[MSG_INPUT_DOUT].given,
                                        .residual = infer->inputs[MSG_INPUT_RESIDUAL].given};
    if (!field_check_call(call, kind, given, error)) return false;
    for (size_t i = 0; i < inputs->count; i++) {
        struct oip_input *const input = &inputs->input[i];
        if (input->has_size && !take_binary(input, i, &call->body, &at, &floor, dtype, budget, error)) return false;
        tensor_move(tensors[which[i]], &input->tensor);
    }
    if (at < call->body.size)
        return msg_fail(error, MSG_MALFORMED_FILE, NULL, "%zu bytes of the body belong to no input",
                        call->body.size - at);
    if (!in_body(&call->x) && !in_body(&call->dout) && !in_body(&call->residual)) buffer_free(&call->body);
    msg_call_trim(call);
    return true;
}

// ---- raw

bool oip_place_raw(struct msg_call *call, size_t at, const struct msg_config *layer, struct budget *budget,
                   struct msg_error *error) {
    struct tensor *const x = &call->x;
    int64_t dim[TENSOR_MAX_RANK];
    const enum bn_dtype dtype = (enum bn_dtype)layer->dtype;
    const size_t bytes = call->body.size - at, row = (size_t)layer->num_features * bn_dtype_size(dtype);
    size_t floor = at;
    int free_axes = 0;
    x->rank = oip_shape(dim, layer);
    for (int l = 0; l < x->rank; l++) {
        free_axes += dim[l] < 0;
        x->dim[l] = dim[l] < 0 ? bytes / row : (size_t)dim[l];
    }
    if (free_axes > 1)
        return msg_fail(error, MSG_SHAPE_MISMATCH, NULL,
                        "a raw request does not say the shape of x, of which %d axes are free", free_axes);
    x->wire = dtype == BN_F32 ? WIRE_F32 : WIRE_F64;
    if (bytes % row != 0)
        return msg_fail(error, MSG_MALFORMED_FILE, NULL, "%zu bytes are no whole number of rows of %lld %s", bytes,
                        (long long)layer->num_features, oip_datatypes[x->wire]);
    x->form = TENSOR_FLAT;
    x->dtype = dtype;
    x->count = bytes / row * (size_t)layer->num_features;
    x->present = true;
    call->infer.inputs[MSG_INPUT_X].given = true;
    call->infer.raw = true;
    return bytes == 0 || binary_take(x, &call->body, at, &floor, dtype, "x", budget, error);
}
