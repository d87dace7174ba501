// SPDX-License-Identifier: Apache-2.0
//
// Tensors in their three JSON forms: values, errors with their pointers, memory.
#include "scanned.h"

// Reads the text as the value of "/x". False: malformed. `tensor` is for tensor_free.
static bool read_tensor(struct tensor *tensor, struct msg_error *error, const char *text, size_t length,
                        enum bn_dtype dtype) {
    char *const copy = alone(text, length);
    struct scan scan;
    *tensor = (struct tensor){0};
    scan_start(&scan, copy, length, &budget, error);
    scan_push(&scan, "x");
    const bool ok = scan_tensor(&scan, tensor, dtype) && scan_finish(&scan);
    if (ok) assert_string_equal(scan.pointer, "/x");
    free(copy);
    return ok;
}

static const struct good_tensor {
    const char *text;
    enum tensor_form form;
    enum wire_dtype wire; // of base64
    int rank;
    size_t dim[TENSOR_MAX_RANK];
    double values[8];
    size_t first_nonfinite; // SIZE_MAX: none
} good_tensors[] = {
    {"[[1,2],[3,4]]", TENSOR_NESTED, 0, 2, {2, 2}, {1, 2, 3, 4}, SIZE_MAX},
    {" [ [ 1 , 2.5e0 ] , [ -3 , 4 ] ] ", TENSOR_NESTED, 0, 2, {2, 2}, {1, 2.5, -3, 4}, SIZE_MAX},
    {"[[1]]", TENSOR_NESTED, 0, 2, {1, 1}, {1}, SIZE_MAX},
    {"[[[1,2]],[[3,4]],[[5,6]]]", TENSOR_NESTED, 0, 3, {3, 1, 2}, {1, 2, 3, 4, 5, 6}, SIZE_MAX},
    {"[[[[[[[[7,8]]]]]]]]", TENSOR_NESTED, 0, 8, {1, 1, 1, 1, 1, 1, 1, 2}, {7, 8}, SIZE_MAX},
    {"[[-0.0,0,1e-400,-1e-400]]", TENSOR_NESTED, 0, 2, {1, 4}, {-0.0, 0, 0, -0.0}, SIZE_MAX},
    {"[[1,\"NaN\"],[\"Infinity\",\"-Infinity\"]]", TENSOR_NESTED, 0, 2, {2, 2}, {1, NAN, INFINITY, -INFINITY}, 1},
    {"[[1,\"\\u004eaN\"],[\"\\u0049nfinit\\u0079\",\"\\u002dInfinity\"]]",
     TENSOR_NESTED,
     0,
     2,
     {2, 2},
     {1, NAN, INFINITY, -INFINITY},
     1},
    {"[]", TENSOR_NESTED, 0, 0, {0}, {0}, SIZE_MAX},
    {"[[],[]]", TENSOR_NESTED, 0, 2, {2, 0}, {0}, SIZE_MAX},
    {"[[]]", TENSOR_NESTED, 0, 2, {1, 0}, {0}, SIZE_MAX},
    {"[[[],[]],[[],[]],[[],[]]]", TENSOR_NESTED, 0, 3, {3, 2, 0}, {0}, SIZE_MAX},
    {"{\"shape\":[2,2],\"data\":[1,2,3,4]}", TENSOR_FLAT, 0, 2, {2, 2}, {1, 2, 3, 4}, SIZE_MAX},
    {"{\"data\":[1,2,3,4,5,6],\"shape\":[1,3,2]}", TENSOR_FLAT, 0, 3, {1, 3, 2}, {1, 2, 3, 4, 5, 6}, SIZE_MAX},
    {"{ \"shape\" : [ 2e0 , 1.0 ] , \"data\" : [ \"-Infinity\" , 9 ] }", TENSOR_FLAT, 0, 2, {2, 1}, {-INFINITY, 9}, 0},
    {"{\"shape\":[0,3],\"data\":[]}", TENSOR_FLAT, 0, 2, {0, 3}, {0}, SIZE_MAX},
    {"{\"shape\":[2,0,9007199254740992],\"data\":[]}", TENSOR_FLAT, 0, 3, {2, 0, 9007199254740992}, {0}, SIZE_MAX},
    {"{\"shape\":[1,1,1,1,1,1,1,1],\"data\":[5]}", TENSOR_FLAT, 0, 8, {1, 1, 1, 1, 1, 1, 1, 1}, {5}, SIZE_MAX},
    {"{\"shape\":[1,2],\"dtype\":\"f32\",\"base64\":\"AACAPwAAAMA=\"}",
     TENSOR_BASE64,
     WIRE_F32,
     2,
     {1, 2},
     {1, -2},
     SIZE_MAX},
    {"{\"base64\":\"AACAPwAAAMA=\",\"dtype\":\"f32\",\"shape\":[2,1]}",
     TENSOR_BASE64,
     WIRE_F32,
     2,
     {2, 1},
     {1, -2},
     SIZE_MAX},
    {"{\"shape\":[1,1],\"dtype\":\"f64\",\"base64\":\"AAAAAAAA8D8=\"}",
     TENSOR_BASE64,
     WIRE_F64,
     2,
     {1, 1},
     {1},
     SIZE_MAX},
    {"{\"shape\":[1,3],\"dtype\":\"f16\",\"base64\":\"ADwAwAB8\"}",
     TENSOR_BASE64,
     WIRE_F16,
     2,
     {1, 3},
     {1, -2, INFINITY},
     2},
    {"{\"shape\":[1,3],\"dtype\":\"bf16\",\"base64\":\"gD8AwMB/\"}",
     TENSOR_BASE64,
     WIRE_BF16,
     2,
     {1, 3},
     {1, -2, NAN},
     2},
    {"{\"shape\":[1,3],\"dtype\":\"bf16\",\"base64\":\"gD8AwMB\\/\"}",
     TENSOR_BASE64,
     WIRE_BF16,
     2,
     {1, 3},
     {1, -2, NAN},
     2},
    {"{\"shape\":[1,3],\"dtype\":\"bf16\",\"base64\":\"\\u0067D8AwMB\\u002F\"}",
     TENSOR_BASE64,
     WIRE_BF16,
     2,
     {1, 3},
     {1, -2, NAN},
     2},
    {"{\"shape\":[0,4],\"dtype\":\"f64\",\"base64\":\"\"}", TENSOR_BASE64, WIRE_F64, 2, {0, 4}, {0}, SIZE_MAX},
    {"{\"sh\\u0061pe\":[1,1],\"data\":[3]}", TENSOR_FLAT, 0, 2, {1, 1}, {3}, SIZE_MAX},
};

static void test_tensors(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(good_tensors); i++) {
        for (int dtype = BN_F32; dtype <= BN_F64; dtype++) {
            const struct good_tensor *const row = &good_tensors[i];
            struct msg_error error = {0};
            struct tensor tensor;
            const bool ok = read_tensor(&tensor, &error, row->text, strlen(row->text), (enum bn_dtype)dtype);
            expect_outcome(row->text, &error, MSG_OK, NULL);
            assert_true(ok && tensor.present);
            assert_int_equal(tensor.form, row->form);
            assert_int_equal(tensor.wire, row->form == TENSOR_BASE64 ? row->wire
                                          : dtype == BN_F32          ? WIRE_F32
                                                                     : WIRE_F64);
            assert_int_equal(tensor.rank, row->rank);
            assert_int_equal(tensor.dtype, dtype);
            size_t count = row->rank > 0 ? 1 : 0;
            for (int l = 0; l < row->rank; l++) {
                assert_int_equal(tensor.dim[l], row->dim[l]);
                count *= row->dim[l];
            }
            assert_int_equal(tensor.count, count);
            assert_int_equal(tensor.values.size, count * bn_dtype_size(tensor.dtype));
            assert_int_equal(tensor.first_nonfinite, row->first_nonfinite < count ? row->first_nonfinite : count);
            for (size_t k = 0; k < count; k++) {
                const double value = value_of(&tensor, k);
                if (isnan(row->values[k]) ? !isnan(value) : bits_of_f64(value) != bits_of_f64(row->values[k])) {
                    fail_msg("%s: value %zu is %g", row->text, k, value);
                }
            }
            assert_int_equal(budget.used, tensor.values.capacity);
            tensor_free(&tensor);
            assert_int_equal(budget.used, 0);
        }
    }
}

static const struct bad_text bad_tensors[] = {
    {"1", MSG_WRONG_TYPE, "/x"},
    {"null", MSG_WRONG_TYPE, "/x"},
    {"\"[[1]]\"", MSG_WRONG_TYPE, "/x"},
    {"[1]", MSG_SHAPE_MISMATCH, "/x"},
    {"[1,2,3]", MSG_SHAPE_MISMATCH, "/x"},
    {"[[[[[[[[[1]]]]]]]]]", MSG_SHAPE_MISMATCH, "/x"},
    {"[[[[[[[[[]]]]]]]]]", MSG_SHAPE_MISMATCH, "/x"},
    {"[[1,2],[3]]", MSG_RAGGED, "/x/1"},
    {"[[1],[2,3]]", MSG_RAGGED, "/x/1"},
    {"[[1,2],[3,4],[]]", MSG_RAGGED, "/x/2"},
    {"[[],[1]]", MSG_RAGGED, "/x/1"},
    {"[[[1],[2]],[[3]]]", MSG_RAGGED, "/x/1"},
    {"[[[1],[2]],[[3],[4,5]]]", MSG_RAGGED, "/x/1/1"},
    {"[[1,[2]]]", MSG_RAGGED, "/x/0/1"},
    {"[[[1],2]]", MSG_RAGGED, "/x/0/1"},
    {"[1,[2]]", MSG_RAGGED, "/x/1"},
    {"[[1],2]", MSG_RAGGED, "/x/1"},
    {"[[[]],[]]", MSG_RAGGED, "/x/1"},
    {"[[],[[]]]", MSG_RAGGED, "/x/1"},
    {"[[1,null]]", MSG_WRONG_TYPE, "/x/0/1"},
    {"[[1,true]]", MSG_WRONG_TYPE, "/x/0/1"},
    {"[[1],[{}]]", MSG_WRONG_TYPE, "/x/1/0"},
    {"[[1],[\"2\"]]", MSG_WRONG_TYPE, "/x/1/0"},
    {"[[1],[\"nan\"]]", MSG_WRONG_TYPE, "/x/1/0"},
    {"[[1],[\"NaN \"]]", MSG_WRONG_TYPE, "/x/1/0"},
    {"[[1],[\"NaN\\u0000\"]]", MSG_WRONG_TYPE, "/x/1/0"},
    {"[[1],[\"\\u004eA\"]]", MSG_WRONG_TYPE, "/x/1/0"},
    {"[[1,1e400]]", MSG_OVERFLOW, "/x/0/1"},
    {"[[[1,2],[3,-1e309]]]", MSG_OVERFLOW, "/x/0/1/1"},
    {"{}", MSG_MISSING_FIELD, "/x"},
    {"{\"shape\":[1,1]}", MSG_MISSING_FIELD, "/x"},
    {"{\"data\":[1]}", MSG_MISSING_FIELD, "/x"},
    {"{\"shape\":[1,1],\"base64\":\"AAAAAA==\"}", MSG_MISSING_FIELD, "/x"},
    {"{\"shape\":[1,1],\"data\":[1],\"base64\":\"AAAAAA==\",\"dtype\":\"f32\"}", MSG_CONFLICTING_FIELDS, "/x"},
    {"{\"shape\":[1,1],\"data\":[1],\"dtype\":\"f32\"}", MSG_CONFLICTING_FIELDS, "/x"},
    {"{\"shape\":[1,1],\"data\":[1],\"more\":1}", MSG_UNKNOWN_FIELD, "/x/more"},
    {"{\"shape\":[1,1],\"shape\":[1,1],\"data\":[1]}", MSG_DUPLICATE_FIELD, "/x/shape"},
    {"{\"shape\":[1,1],\"data\":[1],\"dat\\u0061\":[1]}", MSG_DUPLICATE_FIELD, "/x/data"},
    {"{\"shape\":3,\"data\":[1]}", MSG_WRONG_TYPE, "/x/shape"},
    {"{\"shape\":[[1,1]],\"data\":[1]}", MSG_WRONG_TYPE, "/x/shape"},
    {"{\"shape\":[1],\"data\":[1]}", MSG_SHAPE_MISMATCH, "/x/shape"},
    {"{\"shape\":[],\"data\":[1]}", MSG_SHAPE_MISMATCH, "/x/shape"},
    {"{\"shape\":[1,1,1,1,1,1,1,1,1],\"data\":[1]}", MSG_SHAPE_MISMATCH, "/x/shape"},
    {"{\"shape\":[1,-1],\"data\":[1]}", MSG_OUT_OF_RANGE, "/x/shape/1"},
    {"{\"shape\":[1.5,1],\"data\":[1]}", MSG_OUT_OF_RANGE, "/x/shape/0"},
    {"{\"shape\":[\"NaN\",1],\"data\":[1]}", MSG_OUT_OF_RANGE, "/x/shape/0"},
    {"{\"shape\":[1,\"Infinity\"],\"data\":[1]}", MSG_OUT_OF_RANGE, "/x/shape/1"},
    {"{\"shape\":[1,9007199254740994],\"data\":[1]}", MSG_OUT_OF_RANGE, "/x/shape/1"},
    {"{\"shape\":[9007199254740992,9007199254740992],\"data\":[1]}", MSG_OUT_OF_RANGE, "/x/shape"},
    {"{\"shape\":[1,2],\"data\":[1]}", MSG_SHAPE_MISMATCH, "/x/data"},
    {"{\"shape\":[1,2],\"data\":[1,2,3]}", MSG_SHAPE_MISMATCH, "/x/data"},
    {"{\"shape\":[1,1],\"dtype\":\"f3\\u0032\",\"base64\":\"AAAA\"}", MSG_SHAPE_MISMATCH, "/x/base64"},
    {"{\"shape\":[1,2],\"data\":[[1,2]]}", MSG_WRONG_TYPE, "/x/data"},
    {"{\"shape\":[1,2],\"data\":[[],[]]}", MSG_WRONG_TYPE, "/x/data"},
    {"{\"shape\":[1,2],\"data\":\"1\"}", MSG_WRONG_TYPE, "/x/data"},
    {"{\"shape\":[1,2],\"data\":[1,1e400]}", MSG_OVERFLOW, "/x/data/1"},
    {"{\"shape\":[1,1],\"dtype\":\"f8\",\"base64\":\"AAAAAA==\"}", MSG_OUT_OF_RANGE, "/x/dtype"},
    {"{\"shape\":[1,1],\"dtype\":32,\"base64\":\"AAAAAA==\"}", MSG_WRONG_TYPE, "/x/dtype"},
    {"{\"shape\":[1,1],\"dtype\":\"f32\",\"base64\":1}", MSG_WRONG_TYPE, "/x/base64"},
    {"{\"shape\":[1,1],\"dtype\":\"f32\",\"base64\":\"AAAAA\"}", MSG_OUT_OF_RANGE, "/x/base64"},
    {"{\"shape\":[1,1],\"dtype\":\"f32\",\"base64\":\"AAA*AA==\"}", MSG_OUT_OF_RANGE, "/x/base64"},
    {"{\"shape\":[1,1],\"dtype\":\"f32\",\"base64\":\"AAAAAAA=\"}", MSG_SHAPE_MISMATCH, "/x/base64"},
    {"{\"shape\":[1,2],\"dtype\":\"f32\",\"base64\":\"AAAAAA==\"}", MSG_SHAPE_MISMATCH, "/x/base64"},
    {"{\"shape\":[0,1],\"dtype\":\"f32\",\"base64\":\"AAAAAA==\"}", MSG_SHAPE_MISMATCH, "/x/base64"},
    {"{\"shape\":[1,1],\"dtype\":\"f32\",\"base64\":\"AAAA\\u00e9A==\"}", MSG_OUT_OF_RANGE, "/x/base64"},
};

static void expect_bad(const struct bad_text *row) {
    for (int dtype = BN_F32; dtype <= BN_F64; dtype++) {
        struct msg_error error = {0};
        struct tensor tensor;
        assert_true(read_tensor(&tensor, &error, row->text, strlen(row->text), (enum bn_dtype)dtype)); // JSON it is
        expect_outcome(row->text, &error, row->code, row->pointer);
        assert_false(tensor.present);
        tensor_free(&tensor);
        assert_int_equal(budget.used, 0);
    }
}

static void test_bad_tensors(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(bad_tensors); i++) expect_bad(&bad_tensors[i]);
}

// A number beside an empty row is ragged too; there is no shape that it would fit.
static void test_number_beside_empty_row(void **state) {
    (void)state;
    static const struct bad_text rows[] = {
        {"[[],1]", MSG_RAGGED, "/x/1"},
        {"[[],1,2]", MSG_RAGGED, "/x/1"},
        {"[[[]],[1]]", MSG_RAGGED, "/x/1/0"},
        {"[[[],1]]", MSG_RAGGED, "/x/0/1"},
        {"[[[],[]],[3,4]]", MSG_RAGGED, "/x/1/0"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) expect_bad(&rows[i]);
}

// An escaped newline is not the letter n.
static void test_base64_control_escapes(void **state) {
    (void)state;
    static const char escapes[] = "nrtbf\"\\";
    for (const char *e = escapes; *e != '\0'; e++) {
        char text[100];
        snprintf(text, sizeof text, "{\"shape\":[1,1],\"dtype\":\"f32\",\"base64\":\"AAAA\\%cA==\"}", *e);
        expect_bad(&(struct bad_text){text, MSG_OUT_OF_RANGE, "/x/base64"});
    }
}

static void test_f32_overflow(void **state) {
    (void)state;
    static const char *const texts[] = {"[[1,3.5e38]]", "{\"shape\":[1,2],\"data\":[1,-3.5e38]}",
                                        "{\"shape\":[1,1],\"dtype\":\"f64\",\"base64\":\"AAAAAAAA8E8=\"}"};
    static const char *const pointers[] = {"/x/0/1", "/x/data/1", "/x/base64"};
    for (size_t i = 0; i < COUNT(texts); i++) {
        struct msg_error error = {0};
        struct tensor tensor;
        assert_true(read_tensor(&tensor, &error, texts[i], strlen(texts[i]), BN_F32));
        expect_outcome(texts[i], &error, MSG_OVERFLOW, pointers[i]);
        tensor_free(&tensor);
        error = (struct msg_error){0};
        assert_true(read_tensor(&tensor, &error, texts[i], strlen(texts[i]), BN_F64));
        expect_outcome(texts[i], &error, MSG_OK, NULL);
        assert_int_equal(tensor.first_nonfinite, tensor.count);
        tensor_free(&tensor);
    }
}

// Malformed is malformed, whatever was refused before it.
static void test_malformed_wins(void **state) {
    (void)state;
    static const char *const texts[] = {
        "[[1,2],[3],]",
        "[[1,2],[3] [4]]",
        "[[1,null],[}]",
        "[[1e400,01]]",
        "[[1,NaN]]",
        "[[1,nul]]",
        "[[1,-]]",
        "[[1,]]",
        "[[1,2]",
        "[[1]]]",
        "[[1] [2]]",
        "[[1,+1]]",
        "[[\"x]]",
        "[[1,\"a\\x\"]]",
        "{\"shape\":[1,-1],\"data\":[1}",
        "{\"shape\":[1],\"data\":[1],}",
        "{\"more\":1,\"shape\":[01]}",
        "{\"shape\":[1,1],\"data\":[1]",
        "{\"shape\":[1,1],\"dtype\":\"f8\",\"base64\":\"A}",
        "{shape:[1,1]}",
        "{\"shape\":[1,1] \"data\":[1]}",
        "tru",
        "1 2",
    };
    for (size_t i = 0; i < COUNT(texts); i++) {
        struct msg_error error = {0};
        struct tensor tensor;
        assert_false(read_tensor(&tensor, &error, texts[i], strlen(texts[i]), BN_F32));
        expect_outcome(texts[i], &error, MSG_MALFORMED_JSON, NULL);
        tensor_free(&tensor);
        assert_int_equal(budget.used, 0);
    }
}

static void test_tensor_prefixes(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(good_tensors) + COUNT(bad_tensors); i++) {
        const char *const text =
            i < COUNT(good_tensors) ? good_tensors[i].text : bad_tensors[i - COUNT(good_tensors)].text;
        size_t whole = strlen(text);
        while (text[whole - 1] == ' ') whole--;
        if (text[0] != '[' && text[0] != '{' && text[0] != ' ') continue;
        for (size_t length = 0; length < whole; length++) {
            struct msg_error error = {0};
            struct tensor tensor;
            if (read_tensor(&tensor, &error, text, length, BN_F64)) fail_msg("\"%.*s\" is taken", (int)length, text);
            expect_outcome(text, &error, MSG_MALFORMED_JSON, NULL);
            tensor_free(&tensor);
            assert_int_equal(budget.used, 0);
        }
    }
}

// What is given back once the numbers are counted, and numbers of any length.
static void test_large(void **state) {
    (void)state;
    enum { ROWS = 3000 };
    static const char *const rows[] = {"1,2", "-0.12345678901234567,1.0000000000000000000000000001e-10", "0.5,0.25 "};
    for (size_t r = 0; r < COUNT(rows); r++) {
        char *const text = malloc(ROWS * 70 + 10);
        assert_non_null(text);
        char *at = stpcpy(text, "[");
        for (int i = 0; i < ROWS; i++) at += sprintf(at, "%s[%s]", i > 0 ? ",\n" : "", rows[r]);
        at = stpcpy(at, "]");
        struct msg_error error = {0};
        struct tensor tensor;
        assert_true(read_tensor(&tensor, &error, text, (size_t)(at - text), BN_F64));
        assert_int_equal(tensor.count, 2 * ROWS);
        assert_int_equal(tensor.dim[0], ROWS);
        for (size_t i = 0; i < tensor.count; i++)
            assert_int_equal(bits_of_f64(value_of(&tensor, i)), bits_of_f64(value_of(&tensor, i % 2)));
        assert_true(tensor.values.capacity < tensor.values.size + tensor.values.size / 8 + 16384);
        tensor_free(&tensor);
        assert_int_equal(budget.used, 0);
        free(text);
    }
}

// With any limit the reading succeeds or says that memory is short, and gives all of it back.
static void test_budget(void **state) {
    (void)state;
    static const char *const texts[] = {
        "[[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32,33]]",
        "{\"shape\":[1,20],\"data\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20]}",
        "{\"data\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20],\"shape\":[1,20]}",
        "{\"shape\":[1,3],\"dtype\":\"bf16\",\"base64\":\"gD8AwMB\\/\"}",
        "{\"shape\":[1,8],\"dtype\":\"bf16\",\"base64\":\"gD8AwMB/gD8AwMB/gD8AwA==\"}",
    };
    const size_t limit = budget.limit;
    for (size_t i = 0; i < COUNT(texts); i++) {
        bool fitted = false;
        for (budget.limit = 0; budget.limit < 1000; budget.limit++) {
            struct msg_error error = {0};
            struct tensor tensor;
            assert_true(read_tensor(&tensor, &error, texts[i], strlen(texts[i]), BN_F64));
            expect_outcome(texts[i], &error, tensor.present ? MSG_OK : MSG_MEMORY_FULL, NULL);
            fitted = tensor.present;
            if (fitted) assert_true(value_of(&tensor, 0) == 1);
            assert_true(budget.limit > 0 || !fitted);
            tensor_free(&tensor);
            assert_int_equal(budget.used, 0);
        }
        assert_true(fitted);
    }
    budget.limit = limit;
}

static void test_pointers(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t index;
        const char *pointer;
    } rows[] = {
        {"[[1,2,3],[4,5,6]]", 0, "/dout/0/0"},
        {"[[1,2,3],[4,5,6]]", 4, "/dout/1/1"},
        {"[[[1,2],[3,4]],[[5,6],[7,8]]]", 5, "/dout/1/0/1"},
        {"{\"shape\":[2,2],\"data\":[1,2,3,4]}", 3, "/dout/data/3"},
        {"{\"shape\":[1,1],\"dtype\":\"f64\",\"base64\":\"AAAAAAAA8D8=\"}", 0, "/dout/base64"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct msg_error error = {0};
        struct tensor tensor;
        char pointer[MSG_POINTER_MAX];
        assert_true(read_tensor(&tensor, &error, rows[i].text, strlen(rows[i].text), BN_F64));
        scan_tensor_pointer(pointer, "dout", &tensor, rows[i].index);
        assert_string_equal(pointer, rows[i].pointer);
        tensor_free(&tensor);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_tensors, fresh_budget),
        cmocka_unit_test_setup(test_bad_tensors, fresh_budget),
        cmocka_unit_test_setup(test_number_beside_empty_row, fresh_budget),
        cmocka_unit_test_setup(test_base64_control_escapes, fresh_budget),
        cmocka_unit_test_setup(test_f32_overflow, fresh_budget),
        cmocka_unit_test_setup(test_malformed_wins, fresh_budget),
        cmocka_unit_test_setup(test_tensor_prefixes, fresh_budget),
        cmocka_unit_test_setup(test_large, fresh_budget),
        cmocka_unit_test_setup(test_budget, fresh_budget),
        cmocka_unit_test_setup(test_pointers, fresh_budget),
    };
    return cmocka_run_group_tests_name("scan_tensor", tests, NULL, NULL);
}
