// SPDX-License-Identifier: Apache-2.0
//
// The tier table, the cap of NORMD_CPU, and: every tier that this CPU can run gives the bits of the scalar one.
#include <sys/wait.h>
#include <unistd.h>

#include "../../kernels/cpu.h"
#include "../../kernels/tiers.h"
#include "cases.h"

// Features are detected once, so each cap needs a process that has not asked yet.
static unsigned features_with(const char *cap) {
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if ((cap ? setenv("NORMD_CPU", cap, 1) : unsetenv("NORMD_CPU")) != 0) _exit(255);
        _exit((int)cpu_features());
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) != 255);
    return (unsigned)WEXITSTATUS(status);
}

// Runs first: nothing in this process may have asked for features.
static void test_cap(void **state) {
    (void)state;
    const unsigned all = features_with(NULL);
    assert_int_equal(features_with("scalar"), 0);
    assert_int_equal(features_with("avx2"), all & CPU_AVX2);
    assert_int_equal(features_with("avx512"), all & (CPU_AVX2 | CPU_AVX512));
    assert_int_equal(features_with("other"), all);
    assert_int_equal(features_with(""), all);
#if defined(__x86_64__)
    assert_int_equal(!!(all & CPU_AVX2), !!__builtin_cpu_supports("avx2"));
    assert_int_equal(all & CPU_NEON, 0);
    assert_true(all & CPU_AVX2 || !(all & CPU_AVX512));
#elif defined(__aarch64__)
    assert_int_equal(all, CPU_NEON);
#endif
}

static void test_table(void **state) {
    (void)state;
    assert_true(bn_tier_count >= 1);
    assert_string_equal(bn_tiers[0].name, "scalar");
    assert_int_equal(bn_tiers[0].features, 0);
    const char *last = NULL;
    for (size_t i = 0; i < bn_tier_count; i++) {
        for (size_t j = 0; j < i; j++) assert_string_not_equal(bn_tiers[i].name, bn_tiers[j].name);
        struct bn_slots f32, f64;
        const bool can = (bn_tiers[i].features & ~cpu_features()) == 0;
        assert_int_equal(tier_fill(i, &f32, &f64), can);
        if (can) last = bn_tiers[i].name;
    }
    assert_string_equal(bn_cpu_tier(), last);
    struct bn_slots f32, f64;
    assert_false(tier_fill(bn_tier_count, &f32, &f64));
}

// A slot that the row of scalar leaves out would keep its poison, or be NULL.
static void test_scalar_fills_every_slot(void **state) {
    (void)state;
    struct bn_slots slots[2], poison;
    memset(slots, 0x5a, sizeof slots);
    memset(&poison, 0x5a, sizeof poison);
    assert_true(tier_fill(0, &slots[0], &slots[1]));
    const unsigned char null[sizeof(void (*)(void))] = {0};
    for (size_t dtype = 0; dtype < 2; dtype++) {
        for (size_t at = 0; at < sizeof poison; at += sizeof null) {
            const unsigned char *const slot = (unsigned char *)&slots[dtype] + at;
            assert_memory_not_equal(slot, &poison, sizeof null);
            assert_memory_not_equal(slot, null, sizeof null);
        }
    }
}

static void test_slots_in_use(void **state) {
    (void)state;
    for (size_t i = bn_tier_count; i-- > 0;) {
        struct bn_slots f32, f64;
        if (!tier_fill(i, &f32, &f64)) continue;
        assert_memory_equal(tier_slots(BN_F32), &f32, sizeof f32);
        assert_memory_equal(tier_slots(BN_F64), &f64, sizeof f64);
        return;
    }
    fail();
}

// One call of every slot with the same operands: all that they wrote.
struct operands {
    enum bn_dtype dtype;
    struct bn_run run; // columns: rows = planes, columns = length
    void *x, *dy;
    struct bn_coefficients k; // of run.length channels
    double *mean, *mean_lo;
};

enum { MAX_LENGTH = 300, MAX_PLANES = 9, GAP = 3, SPAN = MAX_PLANES * (MAX_LENGTH + GAP) };

struct written {
    double run[4], columns[4][MAX_LENGTH];
    double normalized[2][SPAN], gradient[2][SPAN], scaled[2][SPAN]; // float tensors use the first half
    size_t nonfinite;
    double coefficients[5];
};

static void call_slots(const struct bn_slots *s, const struct operands *op, struct written *out) {
    const struct bn_run run = op->run;
    memset(out, 0, sizeof *out);
    s->sums_run(out->run, op->x, run, get(op->x, op->dtype, 0));
    s->grad_sums_run(out->run + 2, op->dy, op->x, run, op->mean[0], op->mean_lo[0]);
    s->sums_columns(out->columns[0], out->columns[1], op->x, run.planes, run.length, run.stride);
    s->grad_sums_columns(out->columns[2], out->columns[3], op->dy, op->x, run.planes, run.length, run.stride, op->mean,
                         op->mean_lo);
    s->normalize_run(out->normalized[0], op->x, run, &op->k, 1);
    s->normalize_columns(out->normalized[1], op->x, run.planes, run.length, run.stride, &op->k, 1);
    s->grad_run(out->gradient[0], op->dy, op->x, run, &op->k, 1);
    s->grad_columns(out->gradient[1], op->dy, op->x, run.planes, run.length, run.stride, &op->k, 1);
    s->scale_run(out->scaled[0], op->dy, run, &op->k, 1);
    s->scale_columns(out->scaled[1], op->dy, run.planes, run.length, run.stride, &op->k, 1);
    out->nonfinite = s->first_nonfinite(op->x, run.length);
    double *const c = out->coefficients;
    const struct bn_coefficients k = {&c[0], &c[1], &c[2], &c[3], &c[4]};
    s->set_coefficients(&k, 0, op->mean[0], op->mean_lo[0], 1.0 / 3, -2.0 / 3, 1e-3);
}

// The first index where n values differ other than as NaNs, or n.
static size_t first_difference(const void *a, const void *b, enum bn_dtype dtype, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const size_t size = bn_dtype_size(dtype);
        const bool same = memcmp((const char *)a + i * size, (const char *)b + i * size, size) == 0;
        if (!same && !(isnan(get(a, dtype, i)) && isnan(get(b, dtype, i)))) return i;
    }
    return n;
}

static void compare(const char *tier, const struct operands *op, const struct written *a, const struct written *b) {
    const struct {
        const char *slot;
        const void *a, *b;
        enum bn_dtype dtype;
        size_t n;
    } parts[] = {
        {"sums_run", a->run, b->run, BN_F64, 2},
        {"grad_sums_run", a->run + 2, b->run + 2, BN_F64, 2},
        {"sums_columns", a->columns[0], b->columns[0], BN_F64, 2 * MAX_LENGTH},
        {"grad_sums_columns", a->columns[2], b->columns[2], BN_F64, 2 * MAX_LENGTH},
        {"normalize_run", a->normalized[0], b->normalized[0], op->dtype, SPAN},
        {"normalize_columns", a->normalized[1], b->normalized[1], op->dtype, SPAN},
        {"grad_run", a->gradient[0], b->gradient[0], op->dtype, SPAN},
        {"grad_columns", a->gradient[1], b->gradient[1], op->dtype, SPAN},
        {"scale_run", a->scaled[0], b->scaled[0], op->dtype, SPAN},
        {"scale_columns", a->scaled[1], b->scaled[1], op->dtype, SPAN},
        {"set_coefficients", a->coefficients, b->coefficients, op->dtype, 5},
    };
    for (size_t i = 0; i < COUNT(parts); i++) {
        const size_t at = first_difference(parts[i].a, parts[i].b, parts[i].dtype, parts[i].n);
        if (at < parts[i].n)
            fail_msg("tier %s f%zu %s differs from scalar at %zu: planes %zu length %zu stride %zu", tier,
                     8 * bn_dtype_size(op->dtype), parts[i].slot, at, op->run.planes, op->run.length, op->run.stride);
    }
    assert_int_equal(a->nonfinite, b->nonfinite);
}

// One element past a 64-byte boundary.
static void *tensor_at(struct guarded *g, enum bn_dtype dtype, size_t n, uint64_t seed, enum fill fill) {
    *g = guarded_tensor(dtype, (struct bn_shape){1, 1, n});
    fill_tensor(g->data, dtype, (struct bn_shape){1, 1, n}, fill, seed);
    if (seed % 5 == 0) put(g->data, dtype, seed % n, seed % 2 ? (double)NAN : (double)-INFINITY);
    return g->data;
}

static void check_tier(size_t tier, enum bn_dtype dtype, struct bn_run run, uint64_t seed) {
    struct bn_slots scalar[2], wide[2];
    assert_true(tier_fill(0, &scalar[0], &scalar[1]));
    assert_true(tier_fill(tier, &wide[0], &wide[1]));
    struct guarded g[9];
    const enum fill fills[] = {FILL_NORMAL, FILL_NARROW_1E6, FILL_1E30, FILL_SUBNORMAL, FILL_OUTLIER_FIRST};
    struct operands op = {.dtype = dtype, .run = run};
    op.x = tensor_at(&g[0], dtype, SPAN, seed, fills[seed % COUNT(fills)]);
    op.dy = tensor_at(&g[1], dtype, SPAN, seed + 1, FILL_NORMAL);
    void **const rows[] = {&op.k.mean_hi, &op.k.mean_lo, &op.k.scale, &op.k.shift, &op.k.slope};
    for (size_t i = 0; i < COUNT(rows); i++)
        *rows[i] = tensor_at(&g[2 + i], dtype, MAX_LENGTH + 1, 5 * seed + i + 1, FILL_NORMAL);
    op.mean = tensor_at(&g[7], BN_F64, MAX_LENGTH, 5 * seed + 1, FILL_NORMAL);
    op.mean_lo = tensor_at(&g[8], BN_F64, MAX_LENGTH, 5 * seed + 2, FILL_1E_20);
    static struct written expected, actual;
    call_slots(&scalar[dtype], &op, &expected);
    call_slots(&wide[dtype], &op, &actual);
    compare(bn_tiers[tier].name, &op, &expected, &actual);
    for (size_t i = 0; i < COUNT(g); i++) guarded_free(&g[i]);
}

static void test_tiers_equal_scalar(void **state) {
    (void)state;
    const size_t lengths[] = {49, 63, 64, 65, 100, 127, 128, 129, 196, 255, 256, 257, 300};
    for (size_t tier = 1; tier < bn_tier_count; tier++) {
        if ((bn_tiers[tier].features & ~cpu_features()) != 0) {
            print_message("# tier %s: skipped, this CPU lacks it or NORMD_CPU caps it\n", bn_tiers[tier].name);
            continue;
        }
        uint64_t seed = 1;
        for (size_t i = 1; i < 40 + COUNT(lengths); i++) {
            const size_t length = i < 40 ? i : lengths[i - 40];
            for (size_t planes = 1; planes <= MAX_PLANES; planes++) {
                const struct bn_run run = {planes, length, length + seed % (GAP + 1)};
                check_tier(tier, BN_F32, run, seed++);
                check_tier(tier, BN_F64, run, seed++);
            }
        }
    }
}

// By hand, so that the truth the other tiers are held to is not only its own measure.
static void test_scalar_by_hand(void **state) {
    (void)state;
    struct bn_slots f32, f64;
    assert_true(tier_fill(0, &f32, &f64));
    const float x[] = {1, 2, 4, 8, 16, 32};
    double sums[2], sum[2], sumsq[2];
    f32.sums_run(sums, x, (struct bn_run){.planes = 2, .length = 2, .stride = 3}, 1);
    assert_true(sums[0] == 0 + 1 + 7 + 15 && sums[1] == 0 + 1 + 49 + 225);
    f32.sums_columns(sum, sumsq, x, 3, 2, 2);
    assert_true(sum[0] == 3 + 15 && sum[1] == 6 + 30 && sumsq[0] == 9 + 225 && sumsq[1] == 36 + 900);
    const float hi = 1, lo = 0.5, scale = 2, shift = 3, slope = 0.25;
    const struct bn_coefficients k = {(void *)&hi, (void *)&lo, (void *)&scale, (void *)&shift, (void *)&slope};
    float y[1];
    f32.normalize_run(y, &x[2], (struct bn_run){1, 1, 1}, &k, 0);
    assert_true(y[0] == (4 - 1.5F) * 2 + 3);
    f32.grad_columns(y, &x[3], &x[2], 1, 1, 1, &k, 0);
    assert_true(y[0] == ((8 - 3) - (4 - 1.5F) * 0.25F) * 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cap),
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_scalar_fills_every_slot),
        cmocka_unit_test(test_slots_in_use),
        cmocka_unit_test(test_tiers_equal_scalar),
        cmocka_unit_test(test_scalar_by_hand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
