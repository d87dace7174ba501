// SPDX-License-Identifier: Apache-2.0
#include "fixture.h"

#include <pthread.h>

#include "../../server/cache.h"

#define SECOND UINT64_C(1000000000)
#define TTL (10 * SECOND)
#define X_BYTES 1000
#define VECTORS_BYTES (PASS_VECTORS * sizeof(double)) // of one channel

// Layers whose ids are their index and one, and the memory that passes are charged to.
struct bench {
    struct registry *registry;
    struct layer *layers[3];
    struct budget budget;
    struct cache *cache;
    size_t each; // bytes that one pass takes in the cache
};

static void start(struct bench *bench, size_t passes) {
    *bench = (struct bench){.registry = registry_new(),
                            .budget = {.limit = 1 << 24},
                            .each = sizeof(struct pass) + X_BYTES + VECTORS_BYTES};
    const struct msg_config config = config_of(1, MSG_PYTORCH);
    for (size_t i = 0; i < COUNT(bench->layers); i++) {
        char name[8];
        snprintf(name, sizeof name, "l%zu", i);
        bench->layers[i] = registry_slot(bench->registry, name);
        bench->layers[i]->pending = layer_state_new(&config, i + 1);
        registry_publish(bench->registry, &bench->layers[i], 1);
    }
    bench->cache = cache_new(passes * bench->each, TTL);
    assert_non_null(bench->cache);
}

static void stop(struct bench *bench) {
    cache_free(&bench->cache);
    assert_null(bench->cache);
    for (size_t i = 0; i < COUNT(bench->layers); i++) {
        assert_int_equal(bench->layers[i]->cache_bytes, 0);
        assert_int_equal(bench->layers[i]->refs, 1);
        assert_int_equal(bench->layers[i]->state->refs, 1);
    }
    assert_int_equal(bench->budget.used, 0);
    registry_free(&bench->registry);
}

static struct pass *make(struct bench *bench, size_t layer) {
    struct pass *const pass = pass_new(1, &bench->budget);
    assert_non_null(pass);
    pass->layer = bench->layers[layer];
    layer_ref(pass->layer);
    pass->layer_id = layer + 1;
    pass->x.values.budget = &bench->budget;
    assert_true(buffer_reserve(&pass->x.values, X_BYTES));
    memset(pass->x.values.data, 7, X_BYTES);
    return pass;
}

struct id {
    char text[PASS_ID_LENGTH + 1];
};

// Keeps a pass; the cache's reference is the only one then.
static struct id keep(struct bench *bench, size_t layer, uint64_t now_ns) {
    struct pass *const pass = make(bench, layer);
    struct id id;
    strcpy(id.text, pass->id);
    cache_insert(bench->cache, pass, now_ns);
    assert_int_equal(pass->refs, 2);
    pass_release(pass);
    return id;
}

static bool has(struct bench *bench, const struct id *id, size_t layer, uint64_t now_ns) {
    struct pass *const pass = cache_find(bench->cache, id->text, layer + 1, now_ns);
    const bool found = pass != NULL;
    if (found) assert_string_equal(pass->id, id->text);
    pass_release(pass);
    return found;
}

static void expect_kept(struct bench *bench, size_t passes) {
    size_t bytes = 0;
    for (size_t i = 0; i < COUNT(bench->layers); i++) bytes += bench->layers[i]->cache_bytes;
    assert_int_equal(bytes, passes * bench->each);
    assert_int_equal(bench->budget.used, passes * (X_BYTES + VECTORS_BYTES));
}

static void test_pass(void **state) {
    (void)state;
    struct budget budget = {.limit = 100000};
    struct pass *const plain = pass_new(5, &budget), *const other = pass_new(5, &budget);
    assert_int_equal(budget.used, 2 * 5 * VECTORS_BYTES);
    for (int v = PASS_MEAN; v < PASS_VECTORS; v++)
        assert_ptr_equal(pass_vector(plain, v), pass_vector(plain, PASS_MEAN) + 5 * v);
    memset(pass_vector(other, PASS_GAMMA), 1, 5 * sizeof(double)); // a sanitizer sees a vector too short
    assert_int_equal(strspn(plain->id, "0123456789abcdef"), PASS_ID_LENGTH);
    assert_int_equal(strlen(plain->id), PASS_ID_LENGTH);
    assert_string_not_equal(plain->id, other->id);
    pass_release(plain);
    pass_release(other);
    pass_release(NULL);
    assert_int_equal(budget.used, 0);
    budget.limit = 5 * VECTORS_BYTES - 1;
    assert_null(pass_new(5, &budget));
    assert_int_equal(budget.used, 0);
}

// A residual is counted and given back as x is.
static void test_residual(void **state) {
    (void)state;
    struct bench bench;
    start(&bench, 3);
    struct pass *const pass = make(&bench, 0);
    pass->residual.values.budget = &bench.budget;
    assert_true(buffer_reserve(&pass->residual.values, 2 * bench.each)); // takes the place of two more passes
    cache_insert(bench.cache, pass, 0);
    pass_release(pass);
    assert_int_equal(bench.layers[0]->cache_bytes, 3 * bench.each);
    assert_int_equal(bench.budget.used, X_BYTES + VECTORS_BYTES + 2 * bench.each);
    keep(&bench, 1, 1);
    expect_kept(&bench, 1);
    stop(&bench);
}

static void test_find(void **state) {
    (void)state;
    struct bench bench;
    start(&bench, 10);
    const struct id a = keep(&bench, 0, 0), b = keep(&bench, 1, 0);
    expect_kept(&bench, 2);
    assert_true(has(&bench, &a, 0, 0));
    assert_true(has(&bench, &b, 1, 0));
    assert_false(has(&bench, &a, 1, 0)); // another layer's
    assert_false(has(&bench, &b, 0, 0));
    static const char *const others[] = {"", "x", "0123456789abcdef0123456789abcdef",
                                         "ffffffffffffffffffffffffffffffffffffffffffffffff"};
    for (size_t i = 0; i < COUNT(others); i++) assert_null(cache_find(bench.cache, others[i], 1, 0));
    char prefix[PASS_ID_LENGTH + 1], longer[PASS_ID_LENGTH + 2];
    snprintf(prefix, sizeof prefix, "%.31s", a.text);
    snprintf(longer, sizeof longer, "%s0", a.text);
    assert_null(cache_find(bench.cache, prefix, 1, 0));
    assert_null(cache_find(bench.cache, longer, 1, 0));
    assert_true(has(&bench, &a, 0, 0)); // not consumed
    stop(&bench);
}

static void test_order(void **state) {
    (void)state;
    struct bench bench;
    start(&bench, 3);
    const struct id a = keep(&bench, 0, 1), b = keep(&bench, 1, 2), c = keep(&bench, 2, 3);
    assert_true(has(&bench, &a, 0, 4)); // now b is the one least recently used
    const struct id d = keep(&bench, 0, 5);
    expect_kept(&bench, 3);
    assert_false(has(&bench, &b, 1, 6));
    assert_false(has(&bench, &c, 0, 6)); // asked for under another layer's name: not a use of it
    const struct id e = keep(&bench, 0, 7);
    assert_false(has(&bench, &c, 2, 8));
    assert_true(has(&bench, &a, 0, 8));
    assert_true(has(&bench, &d, 0, 9));
    assert_true(has(&bench, &e, 0, 9));
    expect_kept(&bench, 3);
    stop(&bench);
}

static void test_budget(void **state) {
    (void)state;
    struct bench bench;
    start(&bench, 5);
    const size_t budget = 5 * bench.each;
    assert_true(cache_fits(bench.cache, 0));
    assert_true(cache_fits(bench.cache, budget - sizeof(struct pass)));
    assert_false(cache_fits(bench.cache, budget - sizeof(struct pass) + 1));
    assert_false(cache_fits(bench.cache, budget));
    assert_false(cache_fits(bench.cache, SIZE_MAX));
    for (int i = 0; i < 100; i++) {
        keep(&bench, (size_t)i % 3, 0);
        expect_kept(&bench, i < 5 ? (size_t)i + 1 : 5);
    }
    struct pass *const large = make(&bench, 0); // takes the place of three
    assert_true(buffer_reserve(&large->x.values, X_BYTES + 2 * bench.each));
    cache_insert(bench.cache, large, 0);
    pass_release(large);
    size_t bytes = 0;
    for (size_t i = 0; i < 3; i++) bytes += bench.layers[i]->cache_bytes;
    assert_int_equal(bytes, budget);
    stop(&bench);
    struct cache *none = cache_new(0, TTL);
    assert_false(cache_fits(none, 0));
    cache_free(&none);
    cache_free(&none);
}

static void test_time_to_live(void **state) {
    (void)state;
    struct bench bench;
    start(&bench, 10);
    const struct id a = keep(&bench, 0, 100 * SECOND), b = keep(&bench, 0, 105 * SECOND);
    cache_expire(bench.cache, 100 * SECOND + TTL);
    expect_kept(&bench, 2);
    assert_true(has(&bench, &a, 0, 100 * SECOND + TTL));      // just in time, and it lives on from here
    assert_false(has(&bench, &b, 0, 105 * SECOND + TTL + 1)); // before anybody has swept
    expect_kept(&bench, 2);
    cache_expire(bench.cache, 105 * SECOND + TTL + 1);
    expect_kept(&bench, 1);
    assert_true(has(&bench, &a, 0, 119 * SECOND));
    cache_expire(bench.cache, 119 * SECOND + TTL);
    expect_kept(&bench, 1);
    assert_true(has(&bench, &a, 0, 50 * SECOND)); // a clock that was read earlier on another thread
    cache_expire(bench.cache, UINT64_MAX);
    expect_kept(&bench, 0);
    stop(&bench);
}

// Makes another layer under the name, or none (id 0).
static void replace(struct bench *bench, size_t layer, uint64_t id) {
    const struct msg_config config = config_of(1, MSG_PYTORCH);
    bench->layers[layer]->pending = id != 0 ? layer_state_new(&config, id) : NULL;
    registry_publish(bench->registry, &bench->layers[layer], 1);
}

static void test_drop_stale(void **state) {
    (void)state;
    struct bench bench;
    start(&bench, 30);
    struct id ids[30];
    for (size_t i = 0; i < COUNT(ids); i++) ids[i] = keep(&bench, i % 3, i);
    cache_drop_stale(bench.cache);
    expect_kept(&bench, 30);
    replace(&bench, 1, 2); // a new state of the same layer
    cache_drop_stale(bench.cache);
    expect_kept(&bench, 30);
    replace(&bench, 1, 77);
    cache_drop_stale(bench.cache);
    expect_kept(&bench, 20);
    assert_int_equal(bench.layers[1]->cache_bytes, 0);
    for (size_t i = 0; i < COUNT(ids); i++) assert_int_equal(has(&bench, &ids[i], i % 3, 50), i % 3 != 1);
    struct pass *const late = make(&bench, 1); // of a forward that ran while its layer was replaced
    cache_insert(bench.cache, late, 60);
    assert_int_equal(late->refs, 1);
    assert_null(cache_find(bench.cache, late->id, 2, 60));
    pass_release(late);
    expect_kept(&bench, 20);
    struct layer *const deleted = bench.layers[2];
    layer_ref(deleted);
    replace(&bench, 2, 0);
    assert_int_equal(deleted->refs, 11); // its passes and ours
    cache_drop_stale(bench.cache);
    assert_int_equal(deleted->refs, 1);
    assert_int_equal(deleted->cache_bytes, 0);
    layer_release(deleted);
    bench.layers[2] = registry_slot(bench.registry, "l2");
    replace(&bench, 2, 3);
    expect_kept(&bench, 10);
    stop(&bench);
}

static void test_reclaim(void **state) {
    (void)state;
    struct bench bench;
    start(&bench, 10);
    struct id ids[5];
    for (size_t i = 0; i < COUNT(ids); i++) ids[i] = keep(&bench, 0, i);
    assert_false(cache_reclaim(bench.cache, 0));
    expect_kept(&bench, 5);
    assert_true(cache_reclaim(bench.cache, 1));
    expect_kept(&bench, 4);
    assert_true(cache_reclaim(bench.cache, bench.each + 1));
    expect_kept(&bench, 2);
    for (size_t i = 0; i < COUNT(ids); i++) assert_int_equal(has(&bench, &ids[i], 0, 5), i >= 3);
    assert_true(cache_reclaim(bench.cache, SIZE_MAX));
    expect_kept(&bench, 0);
    assert_false(cache_reclaim(bench.cache, 1));
    stop(&bench);
}

// As the hook of the budget that passes are charged to: a charge that does not fit takes the oldest passes' memory.
static void test_reclaim_hook(void **state) {
    (void)state;
    struct bench bench;
    start(&bench, 10);
    const struct id a = keep(&bench, 0, 0), b = keep(&bench, 0, 1);
    bench.budget.reclaim = cache_reclaim;
    bench.budget.context = bench.cache;
    bench.budget.limit = bench.budget.used + 10;
    assert_true(budget_charge(&bench.budget, 10));
    assert_int_equal(bench.layers[0]->cache_bytes, 2 * bench.each);
    assert_true(budget_charge(&bench.budget, 1));
    assert_false(has(&bench, &a, 0, 2));
    assert_true(has(&bench, &b, 0, 2));
    assert_false(budget_charge(&bench.budget, bench.budget.limit));
    assert_false(has(&bench, &b, 0, 2));
    budget_release(&bench.budget, 11);
    bench.budget.reclaim = NULL;
    stop(&bench);
}

// A pass that a backward has in hand lives on, and its memory stays charged until then.
static void test_outlives_eviction(void **state) {
    (void)state;
    struct bench bench;
    start(&bench, 1);
    const struct id a = keep(&bench, 0, 0);
    struct pass *const pass = cache_find(bench.cache, a.text, 1, 0);
    assert_non_null(pass);
    keep(&bench, 1, 1);
    assert_null(cache_find(bench.cache, a.text, 1, 1));
    assert_int_equal(bench.layers[0]->cache_bytes, 0);
    assert_int_equal(pass->refs, 1);
    assert_int_equal(pass->x.values.data[X_BYTES - 1], 7);
    assert_int_equal(bench.budget.used, 2 * (X_BYTES + VECTORS_BYTES));
    pass_release(pass);
    assert_int_equal(bench.budget.used, X_BYTES + VECTORS_BYTES);
    struct pass *const kept = make(&bench, 2); // and so over the cache's own end
    cache_insert(bench.cache, kept, 2);
    cache_free(&bench.cache);
    assert_int_equal(kept->refs, 1);
    assert_string_equal(kept->layer->name, "l2");
    pass_release(kept);
    stop(&bench);
}

static struct bench shared;

static void *use_cache(void *context) {
    const size_t layer = (size_t)(uintptr_t)context;
    for (uint64_t i = 0; i < 500; i++) {
        struct pass *const pass = make(&shared, layer);
        struct id id;
        strcpy(id.text, pass->id);
        cache_insert(shared.cache, pass, i);
        pass_release(pass);
        struct pass *const found = cache_find(shared.cache, id.text, layer + 1, i);
        if (found != NULL && found->x.values.data[0] != 7) return found;
        pass_release(found);
        if (i % 50 == 0) cache_drop_stale(shared.cache);
        if (i % 70 == 0) cache_expire(shared.cache, i);
        if (i % 90 == 0) cache_reclaim(shared.cache, 3000);
    }
    return NULL;
}

static void test_threads(void **state) {
    (void)state;
    start(&shared, 7);
    pthread_t threads[3];
    for (size_t i = 0; i < COUNT(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, use_cache, (void *)(uintptr_t)i), 0);
    for (size_t i = 0; i < COUNT(threads); i++) {
        void *result = NULL;
        pthread_join(threads[i], &result);
        assert_null(result);
    }
    stop(&shared);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pass),         cmocka_unit_test(test_residual),
        cmocka_unit_test(test_find),         cmocka_unit_test(test_order),
        cmocka_unit_test(test_budget),       cmocka_unit_test(test_time_to_live),
        cmocka_unit_test(test_drop_stale),   cmocka_unit_test(test_reclaim),
        cmocka_unit_test(test_reclaim_hook), cmocka_unit_test(test_outlives_eviction),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests_name("cache", tests, NULL, NULL);
}
