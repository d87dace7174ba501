// SPDX-License-Identifier: Apache-2.0
//
// The tier table, and: every tier that this CPU can run, scalar included, gives the bits of the reference.
#include <signal.h>

#include "../../kernels/cpu.h"
#include "slots.h"

#if defined(__x86_64__)
static const char *const names[] = {"scalar", "avx2", "avx512"};
#elif defined(__aarch64__)
static const char *const names[] = {"scalar", "neon"};
#else
static const char *const names[] = {"scalar"};
#endif

static void test_table(void **state) {
    (void)state;
    assert_int_equal(BN_DTYPES, DTYPES);
    assert_int_equal(bn_tier_count, COUNT(names));
    for (size_t i = 0; i < COUNT(names); i++) assert_string_equal(bn_tiers[i].name, names[i]);
    assert_int_equal(bn_tiers[0].features, 0);
    const char *last = NULL;
    struct bn_slots slots[BN_DTYPES];
    for (size_t i = 0; i < bn_tier_count; i++) {
        const bool can = (bn_tiers[i].features & ~cpu_features()) == 0;
        assert_int_equal(tier_fill(i, slots), can);
        if (can) last = bn_tiers[i].name;
    }
    assert_string_equal(bn_cpu_tier(), last);
    assert_false(tier_fill(bn_tier_count, slots));
}

// A slot that the row of scalar leaves out would keep its poison, or be NULL.
static void test_scalar_fills_every_slot(void **state) {
    (void)state;
    struct bn_slots slots[BN_DTYPES], poison;
    memset(slots, 0x5a, sizeof slots);
    memset(&poison, 0x5a, sizeof poison);
    assert_true(tier_fill(0, slots));
    const unsigned char null[sizeof(void (*)(void))] = {0};
    for (size_t dtype = 0; dtype <= BN_BF16; dtype++) {
        for (size_t offset = 0; offset < sizeof poison; offset += sizeof null) {
            const unsigned char *const slot = (unsigned char *)&slots[dtype] + offset;
            assert_memory_not_equal(slot, &poison, sizeof null);
            assert_memory_not_equal(slot, null, sizeof null);
        }
    }
}

static void test_slots_in_use(void **state) {
    (void)state;
    struct bn_slots slots[BN_DTYPES];
    size_t tier = bn_tier_count;
    while (tier-- > 0 && !tier_fill(tier, slots)) continue;
    for (enum bn_dtype dtype = 0; dtype <= BN_BF16; dtype++)
        assert_memory_equal(tier_slots(dtype), &slots[dtype], sizeof slots[dtype]);
}

// Worked out by hand, so that the reference that tiers are held to is not only its own measure.
static void test_scalar_by_hand(void **state) {
    (void)state;
    struct bn_slots slots[BN_DTYPES];
    assert_true(tier_fill(0, slots));
    const struct bn_slots *const s = &slots[BN_F32];
    const float x[] = {1, 2, 4, 8, 16, 32}, z[] = {-100, -15, 10, 0, 0, 0}, dy[] = {1, 2, 3, 4, 5, 6};
    const float pivots[] = {1, 2};
    double sums[2], sum[2], sumsq[2];
    s->sums_run(sums, x, (struct bn_rows){.rows = 2, .length = 2, .stride = 3}, 1);
    assert_true(sums[0] == 0 + 1 + 7 + 15 && sums[1] == 0 + 1 + 49 + 225);
    s->sums_columns(sum, sumsq, x, (struct bn_rows){3, 2, 2}, pivots);
    assert_true(sum[0] == 3 + 15 && sum[1] == 6 + 30 && sumsq[0] == 9 + 225 && sumsq[1] == 36 + 900);

    const float hi = 1, lo = 0.5F, scale = 2, beta = 3, shift = 3, slope = 0.25F;
    const struct bn_coefficients k = {&hi, &lo, &scale, &beta, &shift, &slope};
    const struct bn_rows row = {1, 3, 3};
    float y[3], dx[3], dz[3];
    struct bn_operands op = {.x = x, .z = z, .y = y, .relu = true}; // bn(x) is 2, 4, 8
    s->normalize_run(&op, row, &k);
    assert_true(y[0] == 0 && y[1] == 0 && y[2] == 18);
    op.relu = false;
    s->normalize_run(&op, row, &k);
    assert_true(y[0] == -98 && y[1] == -11 && y[2] == 18);
    op = (struct bn_operands){.x = x, .z = z, .dy = dy, .dx = dx, .dz = dz, .relu = true};
    s->grad_run(&op, row, &k); // g is 0, 0, 3
    assert_true(dx[0] == (-3 + 0.5F * 0.25F) * 2 && dx[2] == (0 - 2.5F * 0.25F) * 2);
    assert_true(dz[0] == 0 && dz[1] == 0 && dz[2] == 3);
    s->grad_sums_run(sums, &op, row, 1, &k);
    assert_true(sums[0] == 3 && sums[1] == 9);
    op.frozen = true;
    s->grad_run(&op, row, &k);
    assert_true(dx[0] == 0 && dx[2] == 6);
}

struct bench {
    const char *tier;
    struct bn_slots slots[BN_DTYPES];
    struct stage stage;
    uint64_t seed;
};

// The slot with the next flags from `flags` on that its contract allows.
static void check_flags(struct bench *b, enum slot slot, enum bn_dtype dtype, struct bn_rows block, uint64_t flags) {
    struct slot_case t = {.tier = b->tier, .slot = slot, .dtype = dtype, .block = block, .seed = b->seed++};
    if (!chosen(t.seed, block.rows * block.length, 20000)) return;
    while (!slot_flags(&t, flags % SLOT_FLAGS)) flags++;
    check_slot(&b->stage, &b->slots[0], &t);
}

static void check_every_flag(struct bench *b, enum bn_dtype dtype, struct bn_rows block) {
    for (enum slot slot = 0; slot < SLOTS; slot++) {
        for (uint64_t flags = 0; flags < SLOT_FLAGS; flags++) {
            struct slot_case t = {.slot = slot};
            if (slot_flags(&t, flags)) check_flags(b, slot, dtype, block, flags);
        }
    }
}

static void check_some_flags(struct bench *b, enum bn_dtype dtype, struct bn_rows block, size_t count) {
    for (size_t i = 0; i < SLOTS * count; i++) {
        uint64_t random = b->seed;
        check_flags(b, i % SLOTS, dtype, block, random_bits(&random));
    }
}

static void check_blocks(struct bench *b, enum bn_dtype dtype) {
    const size_t edges[] = {1, 8, 15, 16, 17, 31, 33, 64, 70};
    for (size_t i = 0; i < COUNT(edges); i++) {
        for (size_t rows = 1; rows <= 3; rows++) check_every_flag(b, dtype, (struct bn_rows){rows, edges[i], edges[i]});
    }
    const size_t lengths[] = {48, 49, 63, 64, 65, 127, 128, 129, 196, 255, 256, 257, 300};
    for (size_t i = 1; i <= 40 + COUNT(lengths); i++) {
        const size_t length = i <= 40 ? i : lengths[i - 41];
        for (size_t rows = 1; rows <= 9; rows++)
            check_some_flags(b, dtype, (struct bn_rows){rows, length, length + b->seed % 20}, 2);
    }
    for (size_t rows = 10; rows <= 50; rows++)
        check_some_flags(b, dtype, (struct bn_rows){rows, 1 + b->seed % 50, 51 + b->seed % 3}, 2);
    const struct bn_rows large[] = {{600, 7, 9},    {513, 16, 48}, {5, 4096, 4096}, {5, 4033, 5000}, {1, 8192, 8192},
                                    {40, 784, 784}, {41, 49, 343}, {3, 2500, 2503}, {2, 8191, 8200}, {70, 300, 301}};
    for (size_t i = 0; i < COUNT(large); i++) check_some_flags(b, dtype, large[i], 4);
}

static void check_first_nonfinite(struct bench *b, enum bn_dtype dtype) {
    struct guarded *const g = &b->stage.tensor[X];
    const size_t large[] = {1023, 1024, 1025, 2047, 2048, 2049, 3100, 4095, 4097, 6200}; // around whole groups
    for (size_t j = 0; j < 400 + 5 * COUNT(large); j++) {
        const size_t n = j < 400 ? j : large[j % COUNT(large)];
        uint64_t random = j;
        const enum fill fills[] = {FILL_NORMAL, FILL_SUBNORMAL, FILL_NEGATIVE_ZERO, FILL_SORTED};
        fill_tensor(b->stage.before[X], dtype, (struct bn_shape){n, 1, 1}, fills[n % COUNT(fills)], n);
        for (size_t i = 0; i < 5; i++) {
            if (i > 0 && n > 0)
                sprinkle(b->stage.before[X], dtype, j >= 400 ? 1 : n % 2 ? n : 1 + n / 2, random_bits(&random));
            const void *const x = place_copy(g, b->stage.before[X], dtype, n, &random);
            const size_t at = b->slots[dtype].first_nonfinite(x, n);
            const size_t expected = reference_first_nonfinite(x, dtype, n);
            if (at != expected)
                fail_msg("tier %s %s first_nonfinite of %zu is %zu, not %zu", b->tier, dtype_names[dtype], n, at,
                         expected);
        }
    }
}

// From a finite half value to the next one further from 0, or to where that would be if the range did not end.
static double half_step(struct half_format format, uint16_t bits) {
    const double next = (double)half_value(format, bits + 1), value = (double)half_value(format, bits);
    return isfinite(next) ? next - value : value - (double)half_value(format, bits - 1);
}

// Every half value, and every tie between two of them with its neighbours in float, through normalize_columns.
static void check_conversions(struct bench *b, enum bn_dtype dtype) {
    const struct half_format format = dtype == BN_F16 ? f16_format : bf16_format;
    static float zero[4096], one[4096], beta[4096];
    static uint16_t x[4096], y[4096];
    const struct bn_coefficients k = {zero, zero, one, beta, NULL, NULL};
    const struct bn_operands op = {.x = x, .y = y};
    for (size_t i = 0; i < COUNT(one); i++) one[i] = 1;
    for (uint32_t i = 0; i < 5 * 0x10000; i += COUNT(x)) {
        for (uint32_t j = 0; j < COUNT(x); j++) {
            const uint16_t bits = (uint16_t)((i + j) / 5 & 0xffff);
            const double low = (double)half_value(format, bits);
            const float tie = (float)(low + half_step(format, bits) / 2);
            const float values[] = {(float)low, tie, nextafterf(tie, 0), nextafterf(tie, INFINITY),
                                    nextafterf(tie, -INFINITY)};
            const float v = values[(i + j) % 5];
            // x + beta is v exactly, or x itself where beta is 0.
            x[j] = bits;
            beta[j] = isfinite(low) && isfinite(v) ? (float)((double)v - low) : 0;
        }
        b->slots[dtype].normalize_columns(&op, (struct bn_rows){1, COUNT(x), COUNT(x)}, &k);
        for (uint32_t j = 0; j < COUNT(x); j++) {
            uint16_t expected;
            put(&expected, dtype, 0, get(x, dtype, j) + (double)beta[j]);
            if (first_difference(&y[j], &expected, dtype, 1) == 0)
                fail_msg("tier %s %s %#x + %a is %#x, not %#x", b->tier, dtype_names[dtype], x[j], (double)beta[j],
                         y[j], expected);
        }
    }
}

static void tell_slot(int number) {
    if (slot_at_work) name_slot(slot_at_work);
    print_error("signal %d\n", number);
    signal(number, SIG_DFL); // NOLINT: happens again on return
}

static void check_tier(size_t tier) {
    struct bench *const b = calloc(1, sizeof *b);
    b->tier = bn_tiers[tier].name;
    assert_true(tier_fill(tier, b->slots));
    stage_open(&b->stage);
    void (*const before)(int) = signal(SIGSEGV, tell_slot);
    for (enum bn_dtype dtype = 0; dtype <= BN_BF16; dtype++) {
        check_blocks(b, dtype);
        check_first_nonfinite(b, dtype);
    }
    check_conversions(b, BN_F16);
    check_conversions(b, BN_BF16);
    signal(SIGSEGV, before);
    stage_close(&b->stage);
    free(b);
}

static void test_tier(void **state) {
    const char *const name = *state;
    for (size_t i = 0; i < bn_tier_count; i++) {
        if (strcmp(bn_tiers[i].name, name) != 0) continue;
        if ((bn_tiers[i].features & ~cpu_features()) == 0) {
            check_tier(i);
            return;
        }
        print_message("# skipped: this CPU lacks %s, or NORMD_CPU caps it\n", name);
        skip();
    }
    print_message("# skipped: %s is a tier of another kind of CPU\n", name);
    skip();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_scalar_fills_every_slot),
        cmocka_unit_test(test_slots_in_use),
        cmocka_unit_test(test_scalar_by_hand),
        {.name = "scalar", .test_func = test_tier, .initial_state = (void *)"scalar"},
        {.name = "avx2", .test_func = test_tier, .initial_state = (void *)"avx2"},
        {.name = "avx512", .test_func = test_tier, .initial_state = (void *)"avx512"},
        {.name = "neon", .test_func = test_tier, .initial_state = (void *)"neon"},
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
