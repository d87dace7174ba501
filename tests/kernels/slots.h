// SPDX-License-Identifier: Apache-2.0
//
// One call of one slot on guarded operands, and its comparison with the reference, bit for bit.
#ifndef NORMD_TESTS_KERNELS_SLOTS_H
#define NORMD_TESTS_KERNELS_SLOTS_H

#include "reference.h"

enum slot {
    SUMS_RUN,
    SUMS_COLUMNS,
    GRAD_SUMS_RUN,
    GRAD_SUMS_COLUMNS,
    NORMALIZE_RUN,
    NORMALIZE_COLUMNS,
    GRAD_RUN,
    GRAD_COLUMNS,
    SLOTS,
};

static const char *const slot_names[SLOTS] = {"sums_run",          "sums_columns",  "grad_sums_run",
                                              "grad_sums_columns", "normalize_run", "normalize_columns",
                                              "grad_run",          "grad_columns"};

// Where an output lies: by itself, or in place of an input.
enum output { OUT_NONE, OUT_FRESH, OUT_OF_X, OUT_OF_Z, OUT_OF_DY, OUTPUTS };

static const char *const output_names[OUTPUTS] = {"none", "fresh", "x", "z", "dy"};

struct slot_case {
    const char *tier;
    enum slot slot;
    enum bn_dtype dtype;
    struct bn_rows block;
    uint64_t seed;
    bool relu, residual, frozen, stream;
    enum output out, dz; // out is y or dx
};

enum { SLOT_FLAGS = 2 * 2 * 2 * 2 * OUTPUTS * OUTPUTS };

static inline bool slot_takes_sums(enum slot slot) {
    return slot <= GRAD_SUMS_COLUMNS;
}

static inline bool slot_is_gradient(enum slot slot) {
    return slot == GRAD_SUMS_RUN || slot == GRAD_SUMS_COLUMNS || slot == GRAD_RUN || slot == GRAD_COLUMNS;
}

static inline bool slot_has_columns(enum slot slot) {
    return slot % 2;
}

// Sets the flags of t from a number below SLOT_FLAGS; false where the slot's contract does not allow them.
static inline bool slot_flags(struct slot_case *t, uint64_t flags) {
    t->relu = flags % 2;
    t->residual = flags / 2 % 2;
    t->frozen = flags / 4 % 2;
    t->stream = flags / 8 % 2;
    t->out = (enum output)(flags / 16 % OUTPUTS);
    t->dz = (enum output)(flags / 16 / OUTPUTS);
    const bool gradient = slot_is_gradient(t->slot), sums = slot_takes_sums(t->slot);
    if (t->slot <= SUMS_COLUMNS && (t->relu || t->residual)) return false;
    if (sums) return !t->frozen && !t->stream && t->out == OUT_NONE && t->dz == OUT_NONE;
    if (t->out == OUT_NONE || (!t->residual && (t->out == OUT_OF_Z || t->dz == OUT_OF_Z))) return false;
    if (!gradient) return !t->frozen && t->dz == OUT_NONE && t->out != OUT_OF_DY;
    return t->out != OUT_OF_Z && t->dz != OUT_OF_X && !(t->out == OUT_OF_DY && t->dz == OUT_OF_DY);
}

static inline void name_slot(const struct slot_case *t) {
    print_error("tier %s %s %s rows %zu length %zu stride %zu seed %llu%s%s%s%s out %s dz %s: ", t->tier,
                dtype_names[t->dtype], slot_names[t->slot], t->block.rows, t->block.length, t->block.stride,
                (unsigned long long)t->seed, t->relu ? " relu" : "", t->residual ? " residual" : "",
                t->frozen ? " frozen" : "", t->stream ? " stream" : "", output_names[t->out], output_names[t->dz]);
}

#define fail_slot(t, ...)                                                                                              \
    do {                                                                                                               \
        name_slot(t);                                                                                                  \
        fail_msg(__VA_ARGS__);                                                                                         \
    } while (0)

enum { TENSOR_ELEMENTS = 32768, MAX_COLUMNS = 8192 };
enum tensor { X, Z, DY, OUT, DZ, TENSORS };
enum coefficient { MEAN_HI, MEAN_LO, SCALE, BETA, SHIFT, SLOPE, COEFFICIENTS };

// Operands of a call: before it, after it as they should be, and as they are.
struct stage {
    _Alignas(64) double before[TENSORS][TENSOR_ELEMENTS], expected[TENSORS][TENSOR_ELEMENTS];
    double coefficients[COEFFICIENTS][MAX_COLUMNS], mean[MAX_COLUMNS], sums[2][MAX_COLUMNS];
    struct guarded tensor[TENSORS], k[COEFFICIENTS], mean_room, out[2];
    size_t n; // elements of a tensor
};

static inline void stage_open(struct stage *s) {
    for (size_t i = 0; i < TENSORS; i++) s->tensor[i] = guarded_room(sizeof s->before[i]);
    for (size_t i = 0; i < COEFFICIENTS; i++) s->k[i] = guarded_room(sizeof s->coefficients[i]);
    for (size_t i = 0; i < 2; i++) s->out[i] = guarded_room(sizeof s->sums[i]);
    s->mean_room = guarded_room(sizeof s->mean);
}

static inline void stage_close(struct stage *s) {
    for (size_t i = 0; i < TENSORS; i++) guarded_free(&s->tensor[i]);
    for (size_t i = 0; i < COEFFICIENTS; i++) guarded_free(&s->k[i]);
    for (size_t i = 0; i < 2; i++) guarded_free(&s->out[i]);
    guarded_free(&s->mean_room);
}

// n values of a fill from a store of them, which is made once. Every odd_ones-th time some are not plain.
static inline void draw_values(void *x, enum bn_dtype dtype, size_t n, enum fill fill, unsigned odd_ones,
                               uint64_t *random) {
    enum { STORE = 2 * TENSOR_ELEMENTS };
    static double store[DTYPES][FILL_COUNT][STORE];
    static bool made[DTYPES][FILL_COUNT];
    double *const values = store[dtype][fill];
    if (!made[dtype][fill]) fill_tensor(values, dtype, (struct bn_shape){STORE, 1, 1}, fill, 1);
    made[dtype][fill] = true;
    const size_t first = fill == FILL_OUTLIER_FIRST ? 0 : random_bits(random) % (STORE - n + 1);
    memcpy(x, at(values, dtype, first), n * dtype_size(dtype));
    if (random_bits(random) % odd_ones == 0) sprinkle(x, dtype, n, random_bits(random));
}

static inline void draw_operands(struct stage *s, const struct slot_case *t) {
    uint64_t random = t->seed;
    const enum fill fill = random_bits(&random) % FILL_COUNT;
    // Small whole numbers meet v = 0 and -0 often.
    const enum fill other = fill == FILL_WHOLE || random_bits(&random) % 4 == 0 ? FILL_WHOLE : FILL_NORMAL;
    const size_t columns = slot_has_columns(t->slot) ? t->block.length : 1;
    s->n = (t->block.rows - 1) * t->block.stride + t->block.length;
    assert_true(s->n <= TENSOR_ELEMENTS && columns <= MAX_COLUMNS);
    draw_values(s->before[X], t->dtype, s->n, fill, 3, &random);
    draw_values(s->before[Z], t->dtype, s->n, other, 3, &random);
    draw_values(s->before[DY], t->dtype, s->n, FILL_NORMAL, 3, &random);
    for (size_t i = 0; i < COEFFICIENTS; i++)
        draw_values(s->coefficients[i], real_of(t->dtype), columns, i == MEAN_HI ? fill : other, 24, &random);
    for (size_t j = 0; j < columns; j++) s->mean[j] = get(s->coefficients[MEAN_HI], real_of(t->dtype), j);
    if (slot_is_gradient(t->slot)) draw_values(s->mean, BN_F64, columns, FILL_NORMAL_1E3, 8, &random);
}

static inline void *place_copy(struct guarded *g, const void *values, enum bn_dtype dtype, size_t n, uint64_t *random) {
    guarded_place(g, n, dtype_size(dtype), random_bits(random) % 20);
    if (values) memcpy(g->data, values, g->bytes);
    if (!values) memset(g->data, 0xee, g->bytes);
    return g->data;
}

// Which tensor an output is; the one it has to itself where it is not in place of an input.
static inline enum tensor tensor_of(enum output out, enum tensor own) {
    return out == OUT_OF_X ? X : out == OUT_OF_Z ? Z : out == OUT_OF_DY ? DY : own;
}

// What the slot has no use for is NULL.
static inline void use_coefficients(bool used[COEFFICIENTS], const struct slot_case *t) {
    const bool gradient = slot_is_gradient(t->slot), apply = gradient && !slot_takes_sums(t->slot);
    const bool v = gradient ? t->relu : !slot_takes_sums(t->slot), d = apply && !t->frozen;
    used[MEAN_HI] = used[MEAN_LO] = v || d;
    used[SCALE] = v || apply;
    used[BETA] = v;
    used[SHIFT] = used[SLOPE] = d;
}

static inline struct bn_coefficients coefficients_of(const void *const rows[COEFFICIENTS]) {
    return (struct bn_coefficients){rows[MEAN_HI], rows[MEAN_LO], rows[SCALE], rows[BETA], rows[SHIFT], rows[SLOPE]};
}

static inline struct bn_operands operands_of(const struct slot_case *t, void *const tensors[TENSORS]) {
    const bool gradient = slot_is_gradient(t->slot), sums = slot_takes_sums(t->slot);
    return (struct bn_operands){
        .x = tensors[X],
        .z = t->residual ? tensors[Z] : NULL,
        .dy = gradient ? tensors[DY] : NULL,
        .y = gradient || sums ? NULL : tensors[OUT],
        .dx = gradient && !sums ? tensors[OUT] : NULL,
        .dz = t->dz == OUT_NONE ? NULL : tensors[DZ],
        .relu = t->relu,
        .frozen = t->frozen,
        .stream = t->stream,
    };
}

static inline void call_slot(const struct bn_slots *s, const struct slot_case *t, const struct bn_operands *op,
                             const struct bn_coefficients *k, const void *pivot, const double *mean,
                             double *const out[2]) {
    double run[2];
    switch (t->slot) {
    case SUMS_RUN: s->sums_run(run, op->x, t->block, mean[0]); break;
    case SUMS_COLUMNS: s->sums_columns(out[0], out[1], op->x, t->block, pivot); break;
    case GRAD_SUMS_RUN: s->grad_sums_run(run, op, t->block, mean[0], k); break;
    case GRAD_SUMS_COLUMNS: s->grad_sums_columns(out[0], out[1], op, t->block, mean, k); break;
    case NORMALIZE_RUN: s->normalize_run(op, t->block, k); break;
    case NORMALIZE_COLUMNS: s->normalize_columns(op, t->block, k); break;
    case GRAD_RUN: s->grad_run(op, t->block, k); break;
    case GRAD_COLUMNS: s->grad_columns(op, t->block, k); break;
    case SLOTS: break;
    }
    if (t->slot == SUMS_RUN || t->slot == GRAD_SUMS_RUN) {
        out[0][0] = run[0];
        out[1][0] = run[1];
    }
}

static inline void expect(struct stage *s, const struct slot_case *t) {
    const void *rows[COEFFICIENTS];
    bool used[COEFFICIENTS];
    void *tensors[TENSORS] = {s->before[X], s->before[Z], s->before[DY], s->expected[OUT], s->expected[DZ]};
    const size_t bytes = s->n * dtype_size(t->dtype);
    use_coefficients(used, t);
    for (size_t i = 0; i < COEFFICIENTS; i++) rows[i] = used[i] ? s->coefficients[i] : NULL;
    memset(s->before[OUT], 0xee, bytes);
    memset(s->before[DZ], 0xee, bytes);
    memcpy(s->expected[OUT], s->before[tensor_of(t->out, OUT)], bytes);
    memcpy(s->expected[DZ], s->before[tensor_of(t->dz, DZ)], bytes);
    const struct bn_operands op = operands_of(t, tensors);
    const struct bn_coefficients k = coefficients_of(rows);
    if (!slot_takes_sums(t->slot)) {
        reference_elements(&op, t->dtype, t->block, &k, slot_has_columns(t->slot));
    } else if (slot_has_columns(t->slot)) {
        reference_sums_columns(s->sums[0], s->sums[1], &op, t->dtype, t->block, s->mean, &k);
    } else {
        double run[2];
        reference_sums_run(run, &op, t->dtype, t->block, s->mean[0], &k);
        s->sums[0][0] = run[0];
        s->sums[1][0] = run[1];
    }
}

static inline void compare_tensors(const struct stage *s, const struct slot_case *t) {
    const enum tensor out = tensor_of(t->out, OUT), dz = tensor_of(t->dz, DZ);
    for (enum tensor i = 0; i < TENSORS; i++) {
        const void *expected = s->before[i];
        if (i == out && t->out != OUT_NONE) expected = s->expected[OUT];
        if (i == dz && t->dz != OUT_NONE) expected = s->expected[DZ];
        const size_t j = first_difference(s->tensor[i].data, expected, t->dtype, s->n);
        if (j < s->n)
            fail_slot(t, "tensor %d at row %zu element %zu is %.17g, not %.17g", i, j / t->block.stride,
                      j % t->block.stride, get(s->tensor[i].data, t->dtype, j), get(expected, t->dtype, j));
        if (!guarded_intact(&s->tensor[i])) fail_slot(t, "tensor %d: written outside", i);
    }
}

static inline void compare_sums(const struct stage *s, const struct slot_case *t) {
    const size_t n = slot_has_columns(t->slot) ? t->block.length : 1;
    for (size_t i = 0; i < 2; i++) {
        const size_t j = first_difference(s->out[i].data, s->sums[i], BN_F64, n);
        if (j < n)
            fail_slot(t, "sum %zu of column %zu is %.17g, not %.17g", i, j, get(s->out[i].data, BN_F64, j),
                      s->sums[i][j]);
        if (!guarded_intact(&s->out[i])) fail_slot(t, "sums: written outside");
    }
}

// What runs, for the message of a crash.
static const struct slot_case *slot_at_work;

static inline void check_slot(struct stage *s, const struct bn_slots *slots, const struct slot_case *t) {
    uint64_t random = t->seed + 1;
    draw_operands(s, t);
    expect(s, t);
    const size_t columns = slot_has_columns(t->slot) ? t->block.length : 1;
    void *tensors[TENSORS];
    for (size_t i = 0; i < TENSORS; i++) tensors[i] = place_copy(&s->tensor[i], s->before[i], t->dtype, s->n, &random);
    tensors[OUT] = tensors[tensor_of(t->out, OUT)];
    tensors[DZ] = tensors[tensor_of(t->dz, DZ)];
    const void *rows[COEFFICIENTS];
    bool used[COEFFICIENTS];
    use_coefficients(used, t);
    for (size_t i = 0; i < COEFFICIENTS; i++) {
        const void *const row = place_copy(&s->k[i], s->coefficients[i], real_of(t->dtype), columns, &random);
        rows[i] = used[i] ? row : NULL;
    }
    const double *const mean = place_copy(&s->mean_room, s->mean, BN_F64, columns, &random);
    double *const out[2] = {place_copy(&s->out[0], NULL, BN_F64, columns, &random),
                            place_copy(&s->out[1], NULL, BN_F64, columns, &random)};
    const struct bn_operands op = operands_of(t, tensors);
    const struct bn_coefficients k = coefficients_of(rows);
    slot_at_work = t;
    call_slot(&slots[t->dtype], t, &op, &k, s->k[MEAN_HI].data, mean, out);
    slot_at_work = NULL;
    compare_tensors(s, t);
    if (slot_takes_sums(t->slot)) compare_sums(s, t);
}

#endif
