// SPDX-License-Identifier: Apache-2.0
//
// Numbers in and out: arrays of JSON read into tensors and written from them, beside jansson with the same text and
// the same values. They take turns; a figure is the median of the rounds, a ratio that of two times of one round.
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../proto/json.h"
#include "../../proto/spare.h"
#include "clock.h"

enum { VALUES = 1 << 20, COLUMNS = 1024, ROUNDS = 15 };

// ---- data

static double uniform(void) {
    static unsigned long long state = 1;
    state = state * 6364136223846793005 + 1442695040888963407;
    return ((double)(state >> 11) + 0.5) * 0x1p-53;
}

static double normal(void) {
    return sqrt(-2 * log(uniform())) * cos(2 * 3.14159265358979323846 * uniform());
}

static double whole(void) {
    return floor(256 * uniform());
}

static double wide(void) {
    return normal() * pow(10, 60 * uniform() - 30);
}

static const struct data {
    const char *name;
    double (*value)(void);
    enum bn_dtype dtype;
    const char *comma;
} kinds[] = {
    {"f32, normal", normal, BN_F32, ","},  {"f32, normal, spaces", normal, BN_F32, ", "},
    {"f32, 0 to 255", whole, BN_F32, ","}, {"f32, 1e-30 to 1e30", wide, BN_F32, ","},
    {"f64, normal", normal, BN_F64, ","},
};
#define KINDS (sizeof kinds / sizeof kinds[0])

// ---- contenders

struct job {
    struct tensor tensor; // [VALUES / COLUMNS, COLUMNS]
    struct buffer text;   // {"x":[[...]]}
    struct buffer out;
    json_t *tree;
    enum bn_dtype dtype;
};

static bool read_ours(struct job *job) {
    struct msg_call call = {0};
    struct msg_error error = {0};
    const struct json_body body = {(const char *)job->text.data, job->text.size, NULL, NULL};
    const bool ok = json_decode_call(&call, MSG_INFERENCE, body, job->dtype, &error) && call.x.count == VALUES;
    msg_call_free(&call);
    return ok;
}

static bool write_ours(struct job *job) {
    job->out.size = 0;
    return json_encode_inference(&job->out, &job->tensor, 1);
}

static bool read_jansson(struct job *job) {
    json_t *const tree = json_loadb((const char *)job->text.data, job->text.size, JSON_DECODE_INT_AS_REAL, NULL);
    const bool ok = tree != NULL;
    json_decref(tree);
    return ok;
}

static int append(const char *data, size_t size, void *out) {
    return buffer_append(out, data, size) ? 0 : -1;
}

static bool write_jansson(struct job *job) {
    job->out.size = 0;
    return json_dump_callback(job->tree, append, &job->out, JSON_COMPACT) == 0;
}

enum contender { READ_OURS, READ_JANSSON, WRITE_OURS, WRITE_JANSSON, CONTENDERS };

static bool (*const contenders[CONTENDERS])(struct job *job) = {read_ours, read_jansson, write_ours, write_jansson};

// ---- a row

static double value_of(const struct job *job, size_t i) {
    const unsigned char *const values = job->tensor.values.data;
    return job->dtype == BN_F32 ? (double)((const float *)(const void *)values)[i]
                                : ((const double *)(const void *)values)[i];
}

static bool make_values(struct job *job, const struct data *data) {
    struct tensor *const t = &job->tensor;
    *t = (struct tensor){.count = VALUES, .rank = 2, .dim = {VALUES / COLUMNS, COLUMNS}, .dtype = data->dtype};
    t->wire = data->dtype == BN_F32 ? WIRE_F32 : WIRE_F64;
    if (!buffer_reserve(&t->values, VALUES * bn_dtype_size(data->dtype))) return false;
    for (size_t i = 0; i < VALUES; i++) {
        const double value = data->value();
        if (data->dtype == BN_F32)
            ((float *)(void *)t->values.data)[i] = (float)value;
        else
            ((double *)(void *)t->values.data)[i] = value;
    }
    return true;
}

// The shortest texts, as most writers of JSON have them today.
static bool make_text(struct job *job, const struct data *data) {
    bool ok = buffer_print(&job->text, "{\"x\":[");
    for (size_t i = 0; ok && i < VALUES; i++) {
        char number[NUMBER_F64_MAX + NUMBER_SLACK];
        const double value = value_of(job, i);
        char *const end =
            job->dtype == BN_F32 ? number_write_f32(number, (float)value) : number_write_f64(number, value);
        const char *const before = i == 0 ? "[" : i % COLUMNS == 0 ? "],[" : data->comma;
        ok = buffer_append(&job->text, before, strlen(before)) &&
             buffer_append(&job->text, number, (size_t)(end - number));
    }
    return ok && buffer_print(&job->text, "]]}");
}

static bool make_tree(struct job *job) {
    job->tree = json_array();
    for (size_t i = 0; i < VALUES; i++) {
        if (i % COLUMNS == 0) json_array_append_new(job->tree, json_array());
        if (json_array_append_new(json_array_get(job->tree, i / COLUMNS), json_real(value_of(job, i))) != 0)
            return false;
    }
    return true;
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values) {
    qsort(values, ROUNDS, sizeof values[0], ascending);
    return values[ROUNDS / 2];
}

static bool measure(double ns[CONTENDERS][ROUNDS], struct job *job) {
    for (int round = -1; round < ROUNDS; round++) { // the first one warms up
        for (int i = 0; i < CONTENDERS; i++) {
            const double begin = clock_ns();
            if (!contenders[i](job)) return false;
            if (round >= 0) ns[i][round] = (clock_ns() - begin) / VALUES;
        }
    }
    return true;
}

struct figures {
    double read_ns, read_ratio, write_ns, write_ratio; // a ratio is jansson's time by ours
};

static struct figures figures_of(double ns[CONTENDERS][ROUNDS]) {
    double read_ratio[ROUNDS], write_ratio[ROUNDS];
    for (int i = 0; i < ROUNDS; i++) {
        read_ratio[i] = ns[READ_JANSSON][i] / ns[READ_OURS][i];
        write_ratio[i] = ns[WRITE_JANSSON][i] / ns[WRITE_OURS][i];
    }
    return (struct figures){median(ns[READ_OURS]), median(read_ratio), median(ns[WRITE_OURS]), median(write_ratio)};
}

static bool run(struct figures *figures, const struct data *data) {
    static double ns[CONTENDERS][ROUNDS];
    struct job job = {.dtype = data->dtype};
    const bool ok = make_values(&job, data) && make_text(&job, data) && make_tree(&job) && measure(ns, &job);
    if (ok) {
        *figures = figures_of(ns);
        printf("| %s | %.1f | %.1f | %.1f | %.1f | %.1f |\n", data->name, (double)job.text.size / VALUES,
               figures->read_ns, figures->read_ratio, figures->write_ns, figures->write_ratio);
        fflush(stdout);
    }
    tensor_free(&job.tensor);
    buffer_free(&job.text);
    buffer_free(&job.out);
    json_decref(job.tree);
    return ok;
}

// Of the first row. A miss is no error.
static void judge(struct figures f) {
    const struct {
        const char *name;
        double figure, target;
        bool most;
    } targets[] = {{"ns to read a number", f.read_ns, 25, true},
                   {"ns to write a number", f.write_ns, 35, true},
                   {"times as fast as jansson, reading", f.read_ratio, 15, false},
                   {"times as fast as jansson, writing", f.write_ratio, 15, false}};
    for (size_t i = 0; i < sizeof targets / sizeof targets[0]; i++) {
        const bool met =
            targets[i].most ? targets[i].figure <= targets[i].target : targets[i].figure >= targets[i].target;
        printf("target: %s: %s, at %s %g: %s, %.1f\n", kinds[0].name, targets[i].name,
               targets[i].most ? "most" : "least", targets[i].target, met ? "met" : "MISSED", targets[i].figure);
    }
}

int main(void) {
    struct figures figures[KINDS];
    spare_limit((size_t)64 << 20); // as a server of some memory
    printf("| values | bytes | read ns | x jansson | write ns | x jansson |\n|---|--:|--:|--:|--:|--:|\n");
    for (size_t i = 0; i < KINDS; i++) {
        if (!run(&figures[i], &kinds[i])) {
            fprintf(stderr, "%s: failed\n", kinds[i].name);
            return 1;
        }
    }
    printf("\n");
    judge(figures[0]);
    return 0;
}
