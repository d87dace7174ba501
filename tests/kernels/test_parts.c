// SPDX-License-Identifier: Apache-2.0
//
// Statistics and gradients of a batch from those of its parts, against the oracle of the whole.
#include "gradients.h"
#include "shapes.h"

enum { MAX_PARTS = 200 };

// A batch cut along its outer axis; parts may be empty.
struct parts {
    size_t count;
    size_t first[MAX_PARTS + 1];
};

static struct parts cut(size_t outer, size_t count, uint64_t seed) {
    struct parts parts = {.count = count};
    for (size_t i = 1; i < count; i++) parts.first[i] = outer * (random_bits(&seed) % 33) / 32;
    for (size_t i = 1; i < count; i++) {
        for (size_t j = i; j > 1 && parts.first[j] < parts.first[j - 1]; j--) {
            const size_t swap = parts.first[j];
            parts.first[j] = parts.first[j - 1];
            parts.first[j - 1] = swap;
        }
    }
    parts.first[count] = outer;
    return parts;
}

static struct bn_shape part_shape(struct bn_shape whole, const struct parts *parts, size_t i) {
    return (struct bn_shape){parts->first[i + 1] - parts->first[i], whole.channels, whole.inner};
}

static void *part_of(const struct guarded *g, const struct test_case *t, const struct parts *parts, size_t i) {
    return (char *)g->data + parts->first[i] * t->shape.channels * t->shape.inner * dtype_size(t->dtype);
}

struct arrays {
    struct guarded a, b, c;
};

static struct arrays arrays_new(size_t channels) {
    struct arrays arrays = {guarded_doubles(channels), guarded_doubles(channels), guarded_doubles(channels)};
    memset(arrays.a.data, 0, arrays.a.bytes);
    memset(arrays.b.data, 0, arrays.b.bytes);
    memset(arrays.c.data, 0, arrays.c.bytes);
    return arrays;
}

static void arrays_free(struct arrays *arrays) {
    guarded_free(&arrays->a);
    guarded_free(&arrays->b);
    guarded_free(&arrays->c);
}

static struct bn_stats stats_in(const struct arrays *arrays) {
    return (struct bn_stats){.mean = arrays->a.data, .mean_lo = arrays->b.data, .m2 = arrays->c.data};
}

static void merge_statistics(struct bn_stats *into, const struct test_case *t, const void *x, struct bn_shape shape,
                             struct bn_pool *pool) {
    struct arrays arrays = arrays_new(shape.channels);
    struct bn_stats more = stats_in(&arrays);
    assert_int_equal(bn_statistics(&more, x, t->dtype, shape, pool), BN_OK);
    bn_stats_merge(into, &more, shape.channels);
    arrays_free(&arrays);
}

static void check_merged(const struct test_case *t, const struct guarded *x, const struct bn_stats *stats) {
    assert_int_equal(stats->count, t->shape.outer * t->shape.inner);
    for (size_t c = 0; c < t->shape.channels; c++) {
        const struct truth truth = truth_of(x->data, t->dtype, t->shape, c);
        const long double off = fabsl(distance(&truth, stats->mean[c]) + stats->mean_lo[c]);
        const long double var = stats->m2[c] / (double)stats->count;
        if (!(off <= 1e-12L * sqrtl(truth.var) + 8 * DBL_TRUE_MIN))
            fail_case(t, "channel %zu: mean off by %Lg of sigma %Lg", c, off, sqrtl(truth.var));
        if (!(fabsl(var - truth.var) <= variance_bound(t->fill) * truth.var + DBL_TRUE_MIN))
            fail_case(t, "channel %zu: variance %.17Lg, is %.20Lg", c, var, truth.var);
    }
}

static bool same_statistics(const struct bn_stats *a, const struct bn_stats *b, size_t channels) {
    return a->count == b->count && first_difference(a->mean, b->mean, BN_F64, channels) == channels &&
           first_difference(a->mean_lo, b->mean_lo, BN_F64, channels) == channels &&
           first_difference(a->m2, b->m2, BN_F64, channels) == channels;
}

static void check_statistics(const struct test_case *t, size_t count, struct bn_pool *pool) {
    const struct parts parts = cut(t->shape.outer, count, t->seed);
    struct guarded x = guarded_tensor(t->dtype, t->shape);
    fill_tensor(x.data, t->dtype, t->shape, t->fill, t->seed);
    struct arrays arrays = arrays_new(t->shape.channels), again = arrays_new(t->shape.channels);
    struct bn_stats stats = stats_in(&arrays), other = stats_in(&again);
    for (size_t i = 0; i < parts.count; i++) {
        merge_statistics(&stats, t, part_of(&x, t, &parts, i), part_shape(t->shape, &parts, i), NULL);
        merge_statistics(&other, t, part_of(&x, t, &parts, i), part_shape(t->shape, &parts, i), pool);
    }
    check_merged(t, &x, &stats);
    if (!same_statistics(&stats, &other, t->shape.channels)) fail_case(t, "merged again, other bits");
    arrays_free(&arrays);
    arrays_free(&again);
    guarded_free(&x);
}

static void test_statistics(void **state) {
    (void)state;
    struct bn_pool *pool = bn_pool_new(2);
    uint64_t seed = 1;
    for (size_t i = 0; i < COUNT(shapes) * FILL_COUNT * 2; i++, seed++) {
        const struct test_case t = {.shape = shapes[i / 2 / FILL_COUNT],
                                    .dtype = i % 2 ? BN_F64 : BN_F32,
                                    .fill = i / 2 % FILL_COUNT,
                                    .seed = seed};
        if (chosen(seed, elements(t.shape), 3000)) check_statistics(&t, 1 + seed % 7, pool);
    }
    bn_pool_free(&pool);
}

// The worst that can be merged: a part for every value.
static void test_statistics_of_single_values(void **state) {
    (void)state;
    for (size_t i = 0; i < FILL_COUNT * 2; i++) {
        const struct test_case t = {
            .shape = {MAX_PARTS, 3, 1}, .dtype = i % 2 ? BN_F64 : BN_F32, .fill = (enum fill)(i / 2), .seed = i};
        struct parts parts = {.count = MAX_PARTS};
        struct guarded x = guarded_tensor(t.dtype, t.shape);
        fill_tensor(x.data, t.dtype, t.shape, t.fill, t.seed);
        struct arrays arrays = arrays_new(t.shape.channels);
        struct bn_stats stats = stats_in(&arrays);
        for (size_t j = 0; j < parts.count; j++) {
            parts.first[j + 1] = j + 1;
            merge_statistics(&stats, &t, part_of(&x, &t, &parts, j), part_shape(t.shape, &parts, j), NULL);
        }
        check_merged(&t, &x, &stats);
        arrays_free(&arrays);
        guarded_free(&x);
    }
}

// An empty part changes no bits, on either side, whatever the other one holds.
static void test_empty_parts(void **state) {
    (void)state;
    const double odd[] = {1, -0.0, 1e200, -1e308, 5e-324, (double)INFINITY};
    for (size_t i = 0; i < COUNT(odd) * COUNT(odd); i++) {
        double mean[2][1] = {{odd[i % COUNT(odd)]}, {0}}, mean_lo[2][1] = {{odd[i % COUNT(odd)] * 0x1p-60}, {0}};
        double m2[2][1] = {{fabs(odd[i / COUNT(odd)])}, {0}};
        if (isinf(mean[0][0])) continue;
        struct bn_stats full = {5, mean[0], mean_lo[0], m2[0]}, empty = {0, mean[1], mean_lo[1], m2[1]};
        const double before[] = {mean[0][0] + mean_lo[0][0], m2[0][0]};
        bn_stats_merge(&full, &empty, 1);
        assert_int_equal(full.count, 5);
        assert_true(mean[0][0] + mean_lo[0][0] == before[0] && m2[0][0] == before[1]);
        bn_stats_merge(&empty, &full, 1);
        assert_int_equal(empty.count, 5);
        assert_true(mean[1][0] == mean[0][0] && m2[1][0] == m2[0][0]);
    }
    double zero[] = {0, 0, 0};
    struct bn_stats none = {0, &zero[0], &zero[1], &zero[2]};
    bn_stats_merge(&none, &none, 1);
    assert_true(none.count == 0 && zero[0] == 0 && zero[1] == 0 && zero[2] == 0);
}

// A NaN mean and m2 in a part are those of the whole, in their channel only.
static void test_nonfinite_parts(void **state) {
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        double mean[2][2] = {{1, 2}, {3, 4}}, mean_lo[2][2] = {{0}}, m2[2][2] = {{5, 6}, {7, 8}};
        mean[i][1] = m2[i][1] = NAN;
        struct bn_stats into = {3, mean[0], mean_lo[0], m2[0]};
        const struct bn_stats more = {1, mean[1], mean_lo[1], m2[1]};
        bn_stats_merge(&into, &more, 2);
        assert_true(mean[0][0] == 1.5 && m2[0][0] == 5 + 7 + 3);
        assert_true(isnan(mean[0][1]) && isnan(m2[0][1]));
    }
    double mean[2] = {1e200, -1e200}, mean_lo[2] = {0}, m2[2] = {(double)INFINITY, 1};
    struct bn_stats into = {1, &mean[0], &mean_lo[0], &m2[0]};
    const struct bn_stats more = {1, &mean[1], &mean_lo[1], &m2[1]};
    bn_stats_merge(&into, &more, 1);
    assert_true(mean[0] == 0 && isinf(m2[0])); // squares that overflow leave the mean
}

static void add_sums(struct bn_gradient_sums *into, const struct test_case *t, const struct backward_tensors *all,
                     const struct bn_norm *norm, const struct parts *parts, size_t i) {
    struct arrays arrays = arrays_new(t->shape.channels);
    struct bn_gradient_sums more = {.dy = arrays.a.data, .dy_d = arrays.b.data};
    const struct bn_post post = post_of(t->post, part_of(&all->z, t, parts, i));
    const double dy = into->dy[0], dy_d = into->dy_d[0];
    const uint64_t count = into->count;
    assert_int_equal(bn_gradient_sums(&more, part_of(&all->dout, t, parts, i), part_of(&all->x, t, parts, i), t->dtype,
                                      part_shape(t->shape, parts, i), norm, &post, NULL),
                     BN_OK);
    bn_gradient_sums_merge(into, &more, t->shape.channels);
    assert_true(into->dy[0] == dy + more.dy[0] && into->dy_d[0] == dy_d + more.dy_d[0]);
    assert_int_equal(into->count, count + more.count);
    arrays_free(&arrays);
}

static void apply_part(const struct test_case *t, const struct backward_tensors *all, const struct bn_norm *norm,
                       const struct bn_gradient_sums *sums, const struct parts *parts, size_t i) {
    const struct bn_post post = post_of(t->post, part_of(&all->z, t, parts, i));
    const struct bn_gradients gradients = {.dx = part_of(&all->dx, t, parts, i),
                                           .dresidual = part_of(&all->dz, t, parts, i)};
    assert_int_equal(bn_gradient_apply(&gradients, part_of(&all->dout, t, parts, i), part_of(&all->x, t, parts, i),
                                       t->dtype, part_shape(t->shape, parts, i), norm, &post, t->frozen ? NULL : sums,
                                       NULL),
                     BN_OK);
}

static void check_gradients(const struct test_case *t, size_t count) {
    const struct parts parts = cut(t->shape.outer, count, t->seed);
    struct backward_tensors all = backward_tensors_new(t);
    const struct bn_norm norm = backward_norm(t, &all);
    struct arrays arrays = arrays_new(t->shape.channels);
    struct bn_gradient_sums sums = {.dy = arrays.a.data, .dy_d = arrays.b.data};
    for (size_t i = 0; i < parts.count; i++) add_sums(&sums, t, &all, &norm, &parts, i);
    for (size_t i = 0; i < parts.count; i++) apply_part(t, &all, &norm, &sums, &parts, i);
    double *const dgamma = all.dgamma.data, *const dbeta = all.dbeta.data;
    bn_gradient_affine(dgamma, dbeta, &sums, &norm, t->shape.channels);
    for (size_t c = 0; c < t->shape.channels; c++) {
        const struct gradient_truth truth = gradient_of(t, &all, &norm, c);
        check_gradient_sums(t, &truth, dgamma[c], dbeta[c], c);
        check_dx(t, &all, &truth, c);
        check_dresidual(t, &all, &truth, c);
    }
    arrays_free(&arrays);
    backward_tensors_free(&all);
}

static void test_gradients(void **state) {
    (void)state;
    uint64_t seed = 1;
    for (size_t i = 0; i < COUNT(shapes) * FILL_COUNT; i++, seed++) {
        const struct test_case t = {.shape = shapes[i / FILL_COUNT],
                                    .dtype = seed / 7 % 2 ? BN_F64 : BN_F32,
                                    .fill = i % FILL_COUNT,
                                    .seed = seed,
                                    .eps = seed / 2 % 2 ? 1e-5 : 1e-45,
                                    .post = seed / 3 % POST_COUNT,
                                    .affine = seed / 4 % 3 != 0,
                                    .frozen = seed % 5 == 0};
        if (chosen(seed, elements(t.shape), 3000)) check_gradients(&t, 1 + seed % 5);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_statistics),  cmocka_unit_test(test_statistics_of_single_values),
        cmocka_unit_test(test_empty_parts), cmocka_unit_test(test_nonfinite_parts),
        cmocka_unit_test(test_gradients),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
