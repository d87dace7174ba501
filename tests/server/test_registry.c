// SPDX-License-Identifier: Apache-2.0
//
// The registry without its writer: the test's thread takes that part. What several threads see is in test_writer.c.
#include "fixture.h"

#include "../../server/registry.h"

static struct layer_state *state_of(int64_t channels, uint64_t id) {
    const struct msg_config config = config_of(channels, MSG_PYTORCH);
    struct layer_state *const state = layer_state_new(&config, id);
    assert_non_null(state);
    return state;
}

// Prepares a state of the layer; NULL: to be deleted.
static struct layer *prepare(struct registry *registry, const char *name, struct layer_state *state) {
    struct layer *const layer = registry_slot(registry, name);
    assert_non_null(layer);
    layer_state_release(layer->pending);
    layer->pending = state;
    layer->changed = true;
    return layer;
}

static void publish(struct registry *registry, const char *name, struct layer_state *state) {
    struct layer *const layer = prepare(registry, name, state);
    registry_publish(registry, &layer, 1);
}

static void test_find(void **state) {
    (void)state;
    struct registry *registry = registry_new();
    const struct layer_state *found = (const struct layer_state *)(const void *)registry;
    assert_null(registry_find(registry, "a", &found));
    assert_null(found);
    struct layer_state *const first = state_of(2, 1);
    struct layer *const slot = prepare(registry, "a", first);
    assert_null(registry_find(registry, "a", &found)); // not published yet
    assert_int_equal(registry_count(registry), 0);
    assert_ptr_equal(registry_peek(registry, "a"), slot);
    registry_publish(registry, &slot, 1);
    struct layer *const layer = registry_find(registry, "a", &found);
    assert_ptr_equal(layer, slot);
    assert_ptr_equal(found, first);
    assert_int_equal(layer->refs, 2);
    assert_int_equal(found->refs, 2);
    assert_true(!slot->changed && slot->pending == NULL);
    static const char *const others[] = {"", "A", "aa", "b", "0"};
    for (size_t i = 0; i < COUNT(others); i++) {
        const struct layer_state *none = NULL;
        assert_null(registry_find(registry, others[i], &none));
        assert_null(registry_peek(registry, others[i]));
    }
    layer_state_release(found);
    layer_release(layer);
    layer_release(NULL);
    registry_free(&registry);
    assert_null(registry);
    registry_free(&registry);
}

// Who holds a layer and its state keeps them, whatever becomes of them in the registry.
static void test_pins(void **state) {
    (void)state;
    struct registry *registry = registry_new();
    const struct layer_state *pinned = NULL, *now = NULL;
    publish(registry, "a", state_of(2, 1));
    struct layer *const layer = registry_find(registry, "a", &pinned);
    struct layer_state *const next = layer_state_clone(pinned);
    next->gamma[1] = 5;
    publish(registry, "a", next);
    assert_ptr_equal(registry_find(registry, "a", &now), layer);
    assert_true(now == next && pinned->gamma[1] == 1 && pinned->refs == 1);
    layer_state_release(now);
    layer_release(layer);
    publish(registry, "a", NULL);
    assert_null(registry_find(registry, "a", &now));
    assert_null(layer->state);
    assert_true(strcmp(layer->name, "a") == 0 && layer->refs == 1 && pinned->gamma[1] == 1);
    publish(registry, "a", state_of(2, 2));
    struct layer *const anew = registry_find(registry, "a", &now);
    assert_true(anew != layer && now->id == 2);
    layer_state_release(now);
    layer_state_release(pinned);
    layer_release(anew);
    layer_release(layer);
    registry_free(&registry);
}

static void test_counters(void **state) {
    (void)state;
    struct registry *registry = registry_new();
    struct layer_state *const first = state_of(1, 1);
    publish(registry, "a", first);
    struct layer *const layer = registry_peek(registry, "a");
    _Atomic uint64_t *const counters[] = {&layer->train_forward, &layer->inference, &layer->backward, &layer->skipped};
    for (size_t i = 0; i < COUNT(counters); i++) *counters[i] = i + 1;
    publish(registry, "a", layer_state_clone(first));
    for (size_t i = 0; i < COUNT(counters); i++) assert_int_equal(*counters[i], i + 1);
    publish(registry, "a", state_of(1, 2)); // another layer under the name
    assert_ptr_equal(registry_peek(registry, "a"), layer);
    for (size_t i = 0; i < COUNT(counters); i++) assert_int_equal(*counters[i], 0);
    registry_free(&registry);
}

static void test_publish_many(void **state) {
    (void)state;
    struct registry *registry = registry_new();
    struct layer *layers[3] = {prepare(registry, "c", state_of(1, 3)), prepare(registry, "a", state_of(1, 1)),
                               prepare(registry, "b", state_of(1, 2))};
    registry_publish(registry, layers, 3);
    assert_int_equal(registry_count(registry), 3);
    prepare(registry, "a", NULL);
    prepare(registry, "b", state_of(4, 2));
    prepare(registry, "c", NULL);
    registry_publish(registry, layers, 3);
    assert_int_equal(registry_count(registry), 1);
    assert_null(registry_peek(registry, "a"));
    assert_null(registry_peek(registry, "c"));
    assert_int_equal(registry_peek(registry, "b")->state->config.num_features, 4);
    registry_publish(registry, NULL, 0);
    registry_free(&registry);
}

static void test_discard(void **state) {
    (void)state;
    struct registry *registry = registry_new();
    struct layer_state *const kept = state_of(1, 1);
    publish(registry, "old", kept);
    struct layer *layers[3] = {prepare(registry, "old", state_of(9, 1)), prepare(registry, "new", state_of(9, 2)),
                               prepare(registry, "never", NULL)};
    registry_discard(registry, layers, 3);
    assert_int_equal(registry_count(registry), 1);
    assert_null(registry_peek(registry, "new"));
    assert_null(registry_peek(registry, "never"));
    assert_true(layers[0]->state == kept && !layers[0]->changed && layers[0]->pending == NULL);
    struct layer *const doomed = prepare(registry, "old", NULL);
    registry_discard(registry, &doomed, 1);
    assert_ptr_equal(registry_peek(registry, "old")->state, kept);
    assert_int_equal(registry_state_bytes(registry), layer_state_bytes(&kept->config));
    registry_free(&registry);
}

static void test_state_bytes(void **state) {
    (void)state;
    struct registry *registry = registry_new();
    const struct msg_config small = config_of(1, MSG_PYTORCH), large = config_of(1000, MSG_PYTORCH);
    assert_int_equal(registry_state_bytes(registry), 0);
    publish(registry, "a", state_of(1, 1));
    assert_int_equal(registry_state_bytes(registry), layer_state_bytes(&small));
    publish(registry, "b", state_of(1000, 2));
    publish(registry, "a", state_of(1000, 1));
    assert_int_equal(registry_state_bytes(registry), 2 * layer_state_bytes(&large));
    publish(registry, "b", state_of(1, 2));
    publish(registry, "a", NULL);
    assert_int_equal(registry_state_bytes(registry), layer_state_bytes(&small));
    publish(registry, "b", NULL);
    assert_int_equal(registry_state_bytes(registry), 0);
    registry_free(&registry);
}

// ---- lists

static const char *const names[] = {"B", "a", "a.b", "a.c", "aa", "b", "b0", "c"}; // in byte order

static struct registry *filled(void) {
    struct registry *const registry = registry_new();
    for (size_t i = 0; i < COUNT(names); i++) publish(registry, names[i * 3 % COUNT(names)], state_of(1, i));
    prepare(registry, "a.invisible", state_of(1, 1));
    return registry;
}

static void test_list(void **state) {
    (void)state;
    struct registry *registry = filled();
    static const struct {
        const char *prefix, *after;
        size_t limit;
        const char *expected; // names with a space behind each
        bool more;
    } rows[] = {
        {"", NULL, 100, "B a a.b a.c aa b b0 c ", false},
        {"", NULL, 8, "B a a.b a.c aa b b0 c ", false},
        {"", NULL, 7, "B a a.b a.c aa b b0 ", true},
        {"", NULL, 1, "B ", true},
        {"", "B", 1, "a ", true},
        {"", "b0", 1, "c ", false},
        {"", "c", 1, "", false},
        {"", "zzz", 5, "", false},
        {"", "a.bb", 2, "a.c aa ", true},
        {"a", NULL, 100, "a a.b a.c aa ", false},
        {"a", NULL, 4, "a a.b a.c aa ", false},
        {"a", NULL, 3, "a a.b a.c ", true},
        {"a.", NULL, 100, "a.b a.c ", false},
        {"a.", "a.b", 100, "a.c ", false},
        {"a.", "B", 100, "a.b a.c ", false},
        {"a.", "a.b", 1, "a.c ", false},
        {"a.", "b", 100, "", false},
        {"a.i", NULL, 100, "", false},
        {"b0", NULL, 100, "b0 ", false},
        {"b00", NULL, 100, "", false},
        {"z", NULL, 100, "", false},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct registry_item *items = NULL;
        size_t count = 0;
        bool more = false;
        char got[100] = "";
        assert_true(registry_list(registry, rows[i].prefix, rows[i].after, rows[i].limit, &items, &count, &more));
        for (size_t k = 0; k < count; k++) {
            strcat(strcat(got, items[k].layer->name), " ");
            assert_ptr_equal(items[k].state, items[k].layer->state);
        }
        if (strcmp(got, rows[i].expected) != 0 || more != rows[i].more) {
            fail_msg("row %zu: \"%s\" more %d, expected \"%s\"", i, got, more, rows[i].expected);
        }
        registry_items_free(&items, count);
        assert_null(items);
    }
    assert_int_equal(registry_peek(registry, "a")->refs, 1);
    registry_free(&registry);
}

static void append(void *context, const char *name) {
    strcat(strcat(context, name), " ");
}

// The newest states count, published or not.
static void test_each_slot(void **state) {
    (void)state;
    struct registry *registry = filled();
    char got[100] = "";
    prepare(registry, "a.c", NULL);
    registry_each_slot(registry, "a", append, got);
    assert_string_equal(got, "a a.b a.invisible aa ");
    got[0] = '\0';
    registry_each_slot(registry, "", append, got);
    assert_string_equal(got, "B a a.b a.invisible aa b b0 c ");
    got[0] = '\0';
    registry_each_slot(registry, "x", append, got);
    assert_string_equal(got, "");
    registry_free(&registry);
}

static void test_many(void **state) {
    (void)state;
    enum { MANY = 2000 };
    struct registry *registry = registry_new();
    char name[16];
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "l%d", i * 7919 % MANY);
        publish(registry, name, state_of(1, (uint64_t)(i * 7919 % MANY)));
    }
    for (int i = 0; i < MANY; i += 3) {
        snprintf(name, sizeof name, "l%d", i);
        publish(registry, name, NULL);
    }
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "l%d", i);
        const struct layer_state *found = NULL;
        struct layer *const layer = registry_find(registry, name, &found);
        assert_int_equal(layer == NULL, i % 3 == 0);
        if (layer != NULL) assert_int_equal(found->id, i);
        layer_release(layer);
        layer_state_release(found);
    }
    assert_int_equal(registry_count(registry), MANY - (MANY + 2) / 3);
    registry_free(&registry);
}

static void test_next(void **state) {
    (void)state;
    struct registry *registry = registry_new();
    const struct layer_state *found = NULL;
    assert_null(registry_next(registry, "", &found));
    publish(registry, "b", state_of(1, 1));
    publish(registry, "d", state_of(1, 2));
    struct layer *const hidden = prepare(registry, "c", state_of(1, 3)); // not published
    static const struct {
        const char *after, *next;
    } rows[] = {{"", "b"}, {"a", "b"}, {"b", "d"}, {"ba", "d"}, {"c", "d"}, {"d", NULL}, {"e", NULL}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct layer *const layer = registry_next(registry, rows[i].after, &found);
        assert_int_equal(layer == NULL, rows[i].next == NULL);
        assert_int_equal(found == NULL, rows[i].next == NULL);
        if (layer == NULL) continue;
        assert_string_equal(layer->name, rows[i].next);
        assert_ptr_equal(found, layer->state);
        assert_int_equal(layer->refs, 2);
        assert_int_equal(found->refs, 2);
        layer_state_release(found);
        layer_release(layer);
    }
    registry_discard(registry, &hidden, 1);
    registry_free(&registry);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_find),    cmocka_unit_test(test_pins),         cmocka_unit_test(test_counters),
        cmocka_unit_test(test_discard), cmocka_unit_test(test_publish_many), cmocka_unit_test(test_state_bytes),
        cmocka_unit_test(test_list),    cmocka_unit_test(test_each_slot),    cmocka_unit_test(test_many),
        cmocka_unit_test(test_next),
    };
    return cmocka_run_group_tests_name("registry", tests, NULL, NULL);
}
