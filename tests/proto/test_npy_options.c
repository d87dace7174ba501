// SPDX-License-Identifier: Apache-2.0
//
// The options of npy files, which stand in the query.
#include "files.h"

static void test_options(void **state) {
    (void)state;
    enum { T = 1 << TRAIN, I = 1 << INFERENCE, B = 1 << BACKWARD };
    static const struct {
        unsigned kinds; // of which this is an option
        const char *name, *value;
        enum msg_code code;
    } rows[] = {
        {T, "cache", "true", MSG_OK},
        {T, "cache", "false", MSG_OK},
        {T, "cache", "1", MSG_BAD_PARAMETER},
        {T, "cache", "", MSG_BAD_PARAMETER},
        {B, "cache", "", MSG_BAD_PARAMETER},
        {B, "cache", "0123456789012345678901234567890123456789012345678901234567890123", MSG_OK},
        {B, "cache", "01234567890123456789012345678901234567890123456789012345678901234", MSG_CACHE_GONE},
        {T | I | B, "channel_axis", "-1", MSG_OK},
        {T | I | B, "channel_axis", "7", MSG_OK},
        {T | I | B, "channel_axis", "-8", MSG_OK},
        {T | I | B, "channel_axis", "8", MSG_BAD_PARAMETER},
        {T | I | B, "channel_axis", "-9", MSG_BAD_PARAMETER},
        {T | I | B, "channel_axis", "99999999999999999999", MSG_BAD_PARAMETER},
        {T | I | B, "channel_axis", "1.0", MSG_BAD_PARAMETER},
        {T | I | B, "channel_axis", "", MSG_BAD_PARAMETER},
        {T | I | B, "channel_axis", " 1", MSG_BAD_PARAMETER},
        {T | I | B, "channel_axis", "+1", MSG_BAD_PARAMETER},
        {T | I | B, "channel_axis", "-", MSG_BAD_PARAMETER},
        {T | I, "activation", "relu", MSG_OK},
        {T | I, "activation", "gelu", MSG_BAD_PARAMETER},
        {B, "mode", "train", MSG_OK},
        {B, "mode", "inference", MSG_OK},
        {B, "mode", "Train", MSG_BAD_PARAMETER},
        {B, "step_lr", "0.1", MSG_OK},
        {B, "step_lr", "-1e-3", MSG_OK},
        {B, "step_lr", "1e999", MSG_BAD_PARAMETER},
        {B, "step_lr", "0.1x", MSG_BAD_PARAMETER},
        {B, "step_lr", "NaN", MSG_BAD_PARAMETER},
        {B, "step_lr", "", MSG_BAD_PARAMETER},
        {B, "step_weight_decay", "0.1", MSG_MISSING_FIELD},
        {T | I | B, "dtype", "bf16", MSG_CONFLICTING_FIELDS}, // the file has f4
        {T | I | B, "dtype", "f4", MSG_BAD_PARAMETER},
        {0, "residual", "x", MSG_BAD_PARAMETER},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        for (enum kind kind = TRAIN; kind <= BACKWARD; kind++) {
            struct msg_options options = {.option = {{rows[i].name, rows[i].value}}, .count = 1};
            const bool is_cache = strcmp(rows[i].name, "cache") == 0;
            if (kind == BACKWARD && !is_cache) options.option[options.count++] = (struct msg_option){"cache", "id"};
            const bool foreign = (rows[i].kinds & 1u << kind) == 0;
            if (foreign && is_cache && kind == BACKWARD) continue; // its value is an id there
            const enum msg_code code = foreign ? MSG_BAD_PARAMETER : rows[i].code;
            struct decoded d = decode_npy(npy_file(1, NPY_OF_FOUR, four, sizeof four), kind, BN_F32, &options);
            if (d.error.code != code)
                fail_msg("%s=%s, kind %d: %s (%s)", rows[i].name, rows[i].value, (int)kind,
                         msg_codes[d.error.code].name, d.error.detail);
            release(&d);
        }
    }
}

static void test_option_values(void **state) {
    (void)state;
    const struct msg_options train = {.option = {{"cache", "true"}, {"channel_axis", "-2"}, {"activation", "relu"}},
                                      .count = 3};
    struct decoded d = decode_npy(npy_file(1, NPY_OF_FOUR, four, sizeof four), TRAIN, BN_F32, &train);
    assert_true(d.ok && d.call.keep && d.call.has_channel_axis);
    assert_int_equal(d.call.channel_axis, -2);
    assert_int_equal(d.call.activation, BN_RELU);
    assert_false(d.call.dout.present);
    release(&d);
    const struct msg_options back = {
        .option = {{"cache", "id"}, {"mode", "inference"}, {"step_lr", "0.25"}, {"step_weight_decay", "1e-3"}},
        .count = 4};
    d = decode_npy(npy_file(1, NPY_OF_FOUR, four, sizeof four), BACKWARD, BN_F32, &back);
    assert_true(d.ok && d.call.has_step && d.call.dout.present && !d.call.x.present);
    assert_string_equal(d.call.cache, "id");
    assert_int_equal(d.call.mode, MSG_MODE_INFERENCE);
    assert_true(d.call.lr == 0.25 && d.call.weight_decay == 1e-3);
    release(&d);
    d = decode_npy(npy_file(1, NPY_OF_FOUR, four, sizeof four), BACKWARD, BN_F32, NULL);
    assert_int_equal(d.error.code, MSG_MISSING_FIELD);
    release(&d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_options, fresh_budget),
        cmocka_unit_test_setup(test_option_values, fresh_budget),
    };
    return cmocka_run_group_tests_name("npy options", tests, NULL, NULL);
}
