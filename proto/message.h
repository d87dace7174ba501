// SPDX-License-Identifier: Apache-2.0
//
// What requests and replies of the API say, apart from how they are written: a codec (json.h) decodes bodies into these
// structs and encodes replies from them. The table of errors is here too. Plain data; no threads, no HTTP.
#ifndef NORMD_PROTO_MESSAGE_H
#define NORMD_PROTO_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "buffer.h"
#include "tensor.h"
#include "../kernels/bn.h"

// ---- errors

enum msg_code {
    MSG_OK,
    MSG_BAD_FRAMING,
    MSG_BAD_HEADER,
    MSG_BAD_NAME,
    MSG_BAD_PARAMETER,
    MSG_UNEXPECTED_BODY,
    MSG_MALFORMED_JSON,
    MSG_MALFORMED_FILE,
    MSG_NOT_AN_OBJECT,
    MSG_DUPLICATE_FIELD,
    MSG_UNKNOWN_FIELD,
    MSG_NOT_FOUND,
    MSG_LAYER_NOT_FOUND,
    MSG_METHOD_NOT_ALLOWED,
    MSG_NOT_ACCEPTABLE,
    MSG_BODY_TIMEOUT,
    MSG_CONFIG_CONFLICT,
    MSG_CACHE_GONE,
    MSG_PRECONDITION_FAILED,
    MSG_BODY_TOO_LARGE,
    MSG_UNSUPPORTED_MEDIA_TYPE,
    MSG_EXPECTATION_FAILED,
    MSG_MISSING_FIELD,
    MSG_WRONG_TYPE,
    MSG_OUT_OF_RANGE,
    MSG_CONFLICTING_FIELDS,
    MSG_SHAPE_MISMATCH,
    MSG_RAGGED,
    MSG_OVERFLOW,
    MSG_NON_FINITE,
    MSG_SINGLE_VALUE,
    MSG_NOT_SUPPORTED_BY_LAYER,
    MSG_RATE_LIMITED,
    MSG_INTERNAL,
    MSG_NOT_BUILT,
    MSG_QUEUE_FULL,
    MSG_MEMORY_FULL,
    MSG_DRAINING,
    MSG_STORE_FAILED,
    MSG_DEADLINE,
    MSG_STORE_FULL,
};

struct msg_code_row {
    enum msg_code code;
    int status;       // HTTP
    const char *name; // on the wire: `code`, and the end of `type`
    const char *title;
};

extern const struct msg_code_row msg_codes[]; // indexed by enum msg_code
extern const size_t msg_code_count;

#define MSG_DETAIL_MAX 256
#define MSG_POINTER_MAX 256

struct msg_error {
    enum msg_code code;
    bool has_pointer;
    char detail[MSG_DETAIL_MAX];   // UTF-8, one sentence, no internals
    char pointer[MSG_POINTER_MAX]; // RFC 6901, into the body
};

// Fills `error`, unless it holds an error already (the first one counts), and returns false for the caller to return.
// pointer may be NULL.
__attribute__((format(printf, 4, 5))) bool msg_fail(struct msg_error *error, enum msg_code code, const char *pointer,
                                                    const char *format, ...);

// ---- layers

#define MSG_NAME_MAX 128

// True where `name` matches [A-Za-z0-9][A-Za-z0-9._-]{0,127}.
bool msg_name_valid(const char *name, size_t length);

enum msg_convention { MSG_PYTORCH, MSG_CS231N, MSG_ONNX, MSG_KERAS, MSG_PAPER };
enum msg_init { MSG_INIT_STANDARD, MSG_INIT_FIRST_BATCH };
enum msg_nonfinite { MSG_REJECT, MSG_SKIP_UPDATE, MSG_PROPAGATE };
enum msg_single_value { MSG_SINGLE_REJECT, MSG_SINGLE_BETA };

// The words of those enums on the wire, in their order; each list ends with NULL. msg_dtype_words is enum bn_dtype's.
extern const char *const msg_convention_words[];
extern const char *const msg_dtype_words[];
extern const char *const msg_init_words[];
extern const char *const msg_nonfinite_words[];
extern const char *const msg_single_value_words[];

// Bits of msg_config.given.
enum msg_config_field {
    MSG_NUM_FEATURES = 1 << 0,
    MSG_CONVENTION = 1 << 1,
    MSG_MOMENTUM = 1 << 2,
    MSG_EPS = 1 << 3,
    MSG_AFFINE = 1 << 4,
    MSG_TRACK = 1 << 5,
    MSG_CHANNEL_AXIS = 1 << 6,
    MSG_DTYPE = 1 << 7,
    MSG_INIT = 1 << 8,
    MSG_NONFINITE = 1 << 9,
    MSG_SINGLE_VALUE_POLICY = 1 << 10,
};

#define MSG_CHANNELS_MAX 1048576

// The configuration of a layer. A decoded one holds the fields in `given`; layer_config_complete fills in the others.
struct msg_config {
    unsigned given;
    int64_t num_features; // 1 to MSG_CHANNELS_MAX
    int convention;       // enum msg_convention
    double momentum;      // [0,1] in the convention's own sense; NaN: null, the cumulative average
    double eps;           // > 0
    bool affine;
    bool track_running_stats;
    int64_t channel_axis; // -8 to 7, negative from the end
    int dtype;            // enum bn_dtype
    int init;             // enum msg_init
    int nonfinite;        // enum msg_nonfinite
    int single_value;     // enum msg_single_value
};

// A layer in replies.
struct msg_layer {
    const char *name;
    const struct msg_config *config;
    double new_weight; // NaN: null
    int running_ddof;
    uint64_t version;
    uint64_t train_forward, inference, backward, skipped; // counters
    uint64_t state_bytes, cache_bytes;
};

// ---- state

// A vector of a decoded state: absent from the body, null, or values.
struct msg_vector {
    bool given;
    bool null;
    size_t count;
    struct buffer values;   // double; owned
    size_t first_nonfinite; // count: none
    size_t first_negative;  // index of the first value below 0; count: none
};

// The index of the first of n values that is below 0; n: none.
size_t msg_first_negative(const double *values, size_t n);

struct msg_state {
    struct msg_vector gamma, beta, running_mean, running_var;
    bool has_num_batches_tracked, null_num_batches_tracked;
    uint64_t num_batches_tracked;
    bool has_layer;
    struct msg_config layer;
    struct buffer body; // owned: the body, where vectors lie in it
};

void msg_state_free(struct msg_state *state);

// A state in replies; NULL vectors are null. Borrowed.
struct msg_state_view {
    size_t channels;
    const double *gamma, *beta, *running_mean, *running_var;
    bool tracks; // num_batches_tracked is a number
    uint64_t num_batches_tracked;
    uint64_t version;
    const struct msg_config *layer;
    double new_weight;
    int running_ddof;
};

struct msg_snapshot_entry {
    char name[MSG_NAME_MAX + 1];
    struct msg_state state;
    bool has_guess; // what the layer is if there is none of this name and the body does not say
    struct msg_config guess;
};

struct msg_snapshot {
    struct buffer storage;              // of entries; owned
    struct msg_snapshot_entry *entries; // sorted by name, names unique; NULL where "layers" is absent
    size_t count;
    struct buffer body;          // owned: the body, where vectors and ignored names lie in it
    struct buffer ignored_names; // owned; const char *
    size_t ignored;              // how many
};

// The name of what the snapshot holds besides layers.
const char *msg_snapshot_ignored(const struct msg_snapshot *snapshot, size_t index);

void msg_snapshot_free(struct msg_snapshot *snapshot);

// ---- calls

enum msg_call_kind { MSG_TRAIN_FORWARD, MSG_INFERENCE, MSG_BACKWARD };

enum msg_mode { MSG_MODE_TRAIN, MSG_MODE_INFERENCE };

#define MSG_CACHE_ID_MAX 64

// Tensors of a call, as inputs of the Open Inference Protocol, and what a reply has, as its outputs.
enum msg_input { MSG_INPUT_X, MSG_INPUT_DOUT, MSG_INPUT_RESIDUAL };
enum msg_output { MSG_Y, MSG_BATCH_MEAN, MSG_BATCH_VAR, MSG_DX, MSG_DGAMMA, MSG_DBETA, MSG_DRESIDUAL };

#define MSG_INPUTS 3
#define MSG_OUTPUTS 7
#define MSG_OUTPUTS_MAX 4 // of one reply
#define MSG_ID_MAX 256

// What an infer request says beside its call: what the reply is to have, and where its inputs stood.
struct msg_infer {
    const char *model;       // the layer's name; borrowed
    char id[MSG_ID_MAX + 1]; // JSON text, quotes included; empty: none
    struct {
        enum msg_output name;
        bool binary;
    } outputs[MSG_OUTPUTS_MAX];
    size_t output_count;
    bool chosen; // the request named them
    struct {
        bool given, in_json;
        size_t index; // among the inputs
    } inputs[MSG_INPUTS];
    bool raw;            // the body is x and nothing else
    uint64_t timeout_us; // 0: none of its own
};

struct msg_call {
    struct tensor x, dout, residual;
    struct buffer body;               // owned: what a binary body holds in place; the tensors may lie in it
    int activation;                   // enum bn_activation
    bool keep;                        // train-forward: "cache": true
    char cache[MSG_CACHE_ID_MAX + 1]; // backward; empty where absent
    bool has_channel_axis;
    int64_t channel_axis;
    int mode; // enum msg_mode
    bool has_step;
    double lr, weight_decay;
    struct msg_infer infer;
};

void msg_call_free(struct msg_call *call);

// Of a call whose pass is to be kept, cuts off what the elements of its tensors do not need. A residual without an
// activation gets memory of its own, for backward needs none: it can be freed before. Where there is no memory for
// that, the residual stays where it is.
void msg_call_trim(struct msg_call *call);

// Fields of a call that stand in the query of the request, since its body is one tensor. Borrowed.
struct msg_option {
    const char *name, *value;
};

#define MSG_OPTIONS_MAX 8

struct msg_options {
    struct msg_option option[MSG_OPTIONS_MAX];
    size_t count;
};

// What a reply consists of besides the buffer that it was encoded into: bytes that are sent from where they lie, behind
// that buffer and in this order, and fields of the head. Bytes and names are borrowed. An infer request's reply is what
// `infer` asks for, which is set before.
struct msg_piece {
    const void *data;
    size_t size;
};

struct msg_head_field {
    const char *name;
    char value[MSG_CACHE_ID_MAX + 1];
};

#define MSG_PIECES_MAX 4
#define MSG_HEAD_FIELDS_MAX 5

struct msg_extra {
    struct msg_piece piece[MSG_PIECES_MAX];
    size_t pieces;
    struct msg_head_field field[MSG_HEAD_FIELDS_MAX];
    size_t fields;
    const struct msg_infer *infer; // NULL for the other forms
    const char *media_type;        // NULL: the form's
};

// What a reply says besides its tensor; arrays [channels] borrowed.
struct msg_train_reply {
    const double *batch_mean, *batch_var; // NULL: null
    size_t channels;
    uint64_t count;
    bool tracks;
    uint64_t num_batches_tracked;
    bool updated;
    uint64_t version;
    const char *cache; // NULL: no such field
};

struct msg_backward_reply {
    const double *dgamma, *dbeta; // NULL: null
    size_t channels;
    uint64_t version;
};

#endif
