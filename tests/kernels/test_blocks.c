// SPDX-License-Identifier: Apache-2.0
//
// The cut of a tensor, as arithmetic: its blocks cover every element once and keep to their limits.
#include "../../kernels/blocks.h"
#include "cases.h"
#include "shapes.h"

static void fail_shape(struct bn_shape shape, const char *what, size_t unit, size_t place) {
    fail_msg("{%zu, %zu, %zu}, unit %zu, place %zu: %s", shape.outer, shape.channels, shape.inner, unit, place, what);
}

static void check_limits(const struct bn_cut *cut, const struct bn_block *block, size_t unit, size_t place) {
    struct bn_view views[2];
    const size_t most = cut->layout == BN_JOINED ? BN_JOINED_COLUMNS : BN_SPREAD_COLUMNS;
    const size_t count = bn_block_views(views, cut, block);
    if (block->rows.rows == 0 || block->rows.length == 0) fail_shape(cut->shape, "an empty block", unit, place);
    if (cut->layout == BN_RUNS && (block->rows.rows > 5 || block->rows.length > 4096))
        fail_shape(cut->shape, "more than five stretches of 4096", unit, place);
    for (size_t i = 0; i < count && bn_cut_spreads(cut); i++) {
        if (views[i].rows.length > most) fail_shape(cut->shape, "too many columns", unit, place);
    }
    if (bn_block_values(block) != bn_cut_values(cut, place)) fail_shape(cut->shape, "bn_cut_values", unit, place);
}

static void mark(unsigned char *seen, const struct bn_cut *cut, const struct bn_block *block, size_t unit,
                 size_t place) {
    const size_t n = bn_shape_elements(cut->shape);
    for (size_t r = 0; r < block->rows.rows; r++) {
        const size_t first = block->offset + r * block->rows.stride;
        if (first + block->rows.length > n) fail_shape(cut->shape, "beyond the end", unit, place);
        for (size_t i = first; i < first + block->rows.length; i++) {
            if (seen[i]++ != 0) fail_shape(cut->shape, "an element twice", unit, place);
        }
    }
}

static void check_cover(struct bn_shape shape) {
    const struct bn_cut cut = bn_cut_of(shape);
    const size_t n = bn_shape_elements(shape);
    unsigned char *const seen = calloc(n, 1);
    for (size_t unit = 0; unit < cut.units; unit++) {
        for (size_t place = 0; place < cut.places; place++) {
            const struct bn_block block = bn_cut_block(&cut, unit, place);
            check_limits(&cut, &block, unit, place);
            mark(seen, &cut, &block, unit, place);
        }
    }
    if (memchr(seen, 0, n) != NULL) fail_shape(shape, "an element is left out", 0, 0);
    free(seen);
}

static void test_every_element_once(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(shapes); i++) check_cover(shapes[i]);
    for (size_t i = 0; i < COUNT(large_shapes); i++) check_cover(large_shapes[i]);
    for (size_t n = 1; n <= 45000; n += n < 4200 ? 1 : 41) check_cover((struct bn_shape){1, 1, n});
    for (size_t n = 4000; n <= 45000; n += 97) check_cover((struct bn_shape){1, 3, n});
    for (size_t c = 1; c < 1100; c += 7) check_cover((struct bn_shape){400, c, 1});
    for (size_t n = 2; n < 600; n++) check_cover((struct bn_shape){3, 37, n});
}

// A lone plane is read in five streams but for its end, whatever its size.
static void test_lone_planes_are_stacked(void **state) {
    (void)state;
    uint64_t random = 1;
    for (size_t i = 0; i < 50000; i++) {
        const size_t bits = 13 + random_bits(&random) % 28;
        size_t n = i < 10000 ? 4097 + i : random_bits(&random) >> (64 - bits);
        if (i % 5 == 0) n = 20480 * (n % 100000 + 1) + i % 3 - 1;
        if (n <= 4096) continue;
        const struct bn_shape shape = {1, i % 2 ? 1 : 7, n};
        const struct bn_cut cut = bn_cut_of(shape);
        const size_t unit = cut.units - 1, last = cut.places - 1;
        const struct bn_block first = bn_cut_block(&cut, unit, 0), end = bn_cut_block(&cut, unit, last);
        if (first.rows.rows != 5 || first.rows.stride != first.rows.length) fail_shape(shape, "not stacked", unit, 0);
        if (cut.stacked * 5 * cut.length > n || n - cut.stacked * 5 * cut.length > n / 5)
            fail_shape(shape, "too much is not stacked", unit, last);
        if (end.offset + (end.rows.rows - 1) * end.rows.stride + end.rows.length != shape.channels * n)
            fail_shape(shape, "the last block is not at the end", unit, last);
        check_limits(&cut, &end, unit, last);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_element_once),
        cmocka_unit_test(test_lone_planes_are_stacked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
