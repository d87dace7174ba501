// SPDX-License-Identifier: Apache-2.0
//
// States and snapshots.
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "binary.h"
#include "json.h"
#include "json_fields.h"
#include "safetensors.h"
#include "safetensors_file.h"

// What a layer has, behind its name and a point, in the order in which it is written: the vectors, then the counter.
enum { WEIGHT, BIAS, RUNNING_MEAN, RUNNING_VAR, BATCHES, SUFFIXES };
#define VECTORS BATCHES
static const char *const suffixes[SUFFIXES] = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"};

// ---- vectors

// F64 stays where it lies, if it is aligned there.
static bool take_vector(struct msg_vector *vector, const struct file_tensor *from, const struct buffer *body,
                        struct budget *budget, struct msg_error *error) {
    if (from->dtype->wire < 0)
        return msg_fail(error, MSG_WRONG_TYPE, NULL, "%.150s is %s, not F64, F32, F16 or BF16", from->name,
                        from->dtype->name);
    if (from->rank != 1)
        return msg_fail(error, MSG_SHAPE_MISMATCH, NULL, "%.150s has rank %d, not 1", from->name, from->rank);
    const enum wire_dtype wire = (enum wire_dtype)from->dtype->wire;
    const size_t n = from->count, bytes = n * sizeof(double);
    *vector = (struct msg_vector){.given = true, .count = n, .values.budget = budget};
    if (wire == WIRE_F64 && from->at % sizeof(double) == 0) {
        vector->values = buffer_borrow(body, from->at, bytes);
    } else {
        if (!buffer_reserve(&vector->values, bytes + 1))
            return msg_fail(error, MSG_MEMORY_FULL, NULL, "the values do not fit the memory budget");
        vector->values.size = bytes;
        tensor_from_wire(vector->values.data, BN_F64, body->data + from->at, wire, n);
    }
    vector->first_nonfinite = bn_first_nonfinite(vector->values.data, n, BN_F64);
    vector->first_negative = msg_first_negative((const double *)(const void *)vector->values.data, n);
    return true;
}

static bool take_batches(struct msg_state *state, const struct file_tensor *from, const struct buffer *body,
                         struct msg_error *error) {
    const bool is_i64 = strcmp(from->dtype->name, "I64") == 0, is_i32 = strcmp(from->dtype->name, "I32") == 0;
    int64_t value = 0;
    if (!is_i64 && !is_i32)
        return msg_fail(error, MSG_WRONG_TYPE, NULL, "%.150s is %s, not I64", from->name, from->dtype->name);
    if (from->count != 1) return msg_fail(error, MSG_SHAPE_MISMATCH, NULL, "%.150s is not one number", from->name);
    if (is_i64) memcpy(&value, body->data + from->at, sizeof value);
    if (is_i32) {
        int32_t narrow = 0;
        memcpy(&narrow, body->data + from->at, sizeof narrow);
        value = narrow;
    }
    if (value < 0) return msg_fail(error, MSG_OUT_OF_RANGE, NULL, "%.150s is negative", from->name);
    state->has_num_batches_tracked = true;
    state->num_batches_tracked = (uint64_t)value;
    return true;
}

static bool take_part(struct msg_state *state, int suffix, struct file_tensor *from, const struct buffer *body,
                      struct budget *budget, struct msg_error *error) {
    struct msg_vector *const vectors[VECTORS] = {&state->gamma, &state->beta, &state->running_mean,
                                                 &state->running_var};
    from->used = true;
    return suffix == BATCHES ? take_batches(state, from, body, error)
                             : take_vector(vectors[suffix], from, body, budget, error);
}

// ---- configurations

// The configuration that a text of the metadata holds. *found is false where it is of another kind: it is no object, or
// one without num_features.
static bool take_config(struct msg_config *config, bool *found, const struct file_text *text, struct msg_error *error) {
    json_t *const value = safetensors_value(text);
    *found = json_object_get(value, "num_features") != NULL;
    const bool ok = !*found || field_set_config(config, value, "", error);
    json_decref(value);
    if (!ok && error->has_pointer) { // names the field, which is to be told with the layer
        safetensors_name_field(error);
        struct msg_error why = *error;
        error->code = MSG_OK;
        msg_fail(error, why.code, NULL, "the configuration of \"%.100s\" in __metadata__: %.120s", text->name,
                 why.detail);
    }
    return ok;
}

// ---- one state

static int suffix_of(const char *name, const char *layer) {
    const size_t length = strlen(layer);
    if (strncmp(name, layer, length) == 0 && name[length] == '.') name += length + 1;
    for (int i = 0; i < SUFFIXES; i++) {
        if (strcmp(name, suffixes[i]) == 0) return i;
    }
    return -1;
}

static bool decode_state(struct msg_state *state, const struct safetensors_file *file, const char *name,
                         struct budget *budget, struct msg_error *error) {
    bool seen[SUFFIXES] = {false};
    for (size_t i = 0; i < file->tensor_count; i++) {
        struct file_tensor *const tensor = &file->tensors[i];
        const int suffix = suffix_of(tensor->name, name);
        if (suffix < 0)
            return msg_fail(error, MSG_UNKNOWN_FIELD, NULL, "\"%.100s\" is no part of the state of \"%.100s\"",
                            tensor->name, name);
        if (seen[suffix])
            return msg_fail(error, MSG_DUPLICATE_FIELD, NULL, "%s is given with and without the name of the layer",
                            suffixes[suffix]);
        seen[suffix] = true;
        if (!take_part(state, suffix, tensor, &state->body, budget, error)) return false;
    }
    for (size_t i = 0; i < file->text_count; i++) {
        if (strcmp(file->texts[i].name, name) != 0) continue;
        if (!take_config(&state->layer, &state->has_layer, &file->texts[i], error)) return false;
    }
    return true;
}

bool safetensors_decode_state(struct msg_state *state, const char *name, const struct codec_request *request,
                              struct msg_error *error) {
    struct safetensors_file file;
    buffer_move(&state->body, request->body);
    const bool ok = safetensors_open(&file, &state->body, request->budget, error) &&
                    decode_state(state, &file, name, request->budget, error);
    safetensors_close(&file);
    error->has_pointer = false;
    return ok;
}

// ---- snapshots

struct restore {
    struct msg_snapshot *snapshot;
    struct safetensors_file *file;
    struct budget *budget;
    struct msg_error *error;
};

static bool no_memory(struct msg_error *error) {
    return msg_fail(error, MSG_MEMORY_FULL, NULL, "the layers do not fit the memory budget");
}

static struct msg_snapshot_entry *add_entry(const struct restore *restore, const char *name, size_t length) {
    struct msg_snapshot *const snapshot = restore->snapshot;
    const size_t size = sizeof *snapshot->entries;
    if (!buffer_grow(&snapshot->storage, size)) {
        no_memory(restore->error);
        return NULL;
    }
    snapshot->entries = (struct msg_snapshot_entry *)(void *)snapshot->storage.data;
    struct msg_snapshot_entry *const entry = &snapshot->entries[snapshot->count++];
    snapshot->storage.size += size;
    memset(entry, 0, size);
    memcpy(entry->name, name, length);
    return entry;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct msg_snapshot_entry *)a)->name, ((const struct msg_snapshot_entry *)b)->name);
}

static void sort_entries(struct msg_snapshot *snapshot) {
    if (snapshot->count > 1) qsort(snapshot->entries, snapshot->count, sizeof *snapshot->entries, by_name);
}

static struct msg_snapshot_entry *find_entry(struct msg_snapshot *snapshot, const char *name, size_t count) {
    struct msg_snapshot_entry key;
    snprintf(key.name, sizeof key.name, "%.*s", MSG_NAME_MAX, name);
    return count > 0 ? bsearch(&key, snapshot->entries, count, sizeof key, by_name) : NULL;
}

static struct file_tensor *find_part(const struct safetensors_file *file, const char *layer, int suffix) {
    char name[MSG_NAME_MAX + 32];
    snprintf(name, sizeof name, "%.*s.%s", MSG_NAME_MAX, layer, suffixes[suffix]);
    return safetensors_find(file, name);
}

// An entry for each prefix that has both running statistics.
static bool add_prefixes(const struct restore *restore) {
    const struct safetensors_file *const file = restore->file;
    const char *const suffix = suffixes[RUNNING_MEAN];
    for (size_t i = 0; i < file->tensor_count; i++) {
        const char *const name = file->tensors[i].name, *const point = strrchr(name, '.');
        if (point == NULL || strcmp(point + 1, suffix) != 0) continue;
        const size_t length = (size_t)(point - name);
        if (!msg_name_valid(name, length)) continue;
        char layer[MSG_NAME_MAX + 1];
        snprintf(layer, sizeof layer, "%.*s", (int)length, name);
        if (find_part(file, layer, RUNNING_VAR) == NULL) continue;
        if (add_entry(restore, name, length) == NULL) return false;
    }
    sort_entries(restore->snapshot);
    return true;
}

// One for each configuration in the metadata, which need not have statistics.
static bool add_configurations(const struct restore *restore) {
    struct msg_snapshot *const snapshot = restore->snapshot;
    const size_t known = snapshot->count;
    for (size_t i = 0; i < restore->file->text_count; i++) {
        const struct file_text *const text = &restore->file->texts[i];
        const size_t length = strlen(text->name);
        struct msg_config config = {0};
        bool found = false;
        if (!msg_name_valid(text->name, length)) continue;
        if (!take_config(&config, &found, text, restore->error)) return false;
        if (!found) continue;
        struct msg_snapshot_entry *entry = find_entry(snapshot, text->name, known);
        if (entry == NULL) entry = add_entry(restore, text->name, length);
        if (entry == NULL) return false;
        entry->state.has_layer = true;
        entry->state.layer = config;
    }
    sort_entries(snapshot);
    return true;
}

// The tensors of an entry, and what its layer is where nothing says that.
static bool fill_entry(const struct restore *restore, struct msg_snapshot_entry *entry) {
    struct msg_state *const state = &entry->state;
    const struct buffer *const body = &restore->snapshot->body;
    for (int suffix = 0; suffix < SUFFIXES; suffix++) {
        struct file_tensor *const from = find_part(restore->file, entry->name, suffix);
        if (from != NULL && !take_part(state, suffix, from, body, restore->budget, restore->error)) return false;
    }
    // Files of before PyTorch 0.4.1 do not count; PyTorch takes that for 0.
    if (state->running_mean.given && !state->has_num_batches_tracked) state->has_num_batches_tracked = true;
    entry->has_guess = !state->has_layer;
    entry->guess = (struct msg_config){.given = MSG_NUM_FEATURES | MSG_AFFINE,
                                       .num_features = (int64_t)state->running_mean.count,
                                       .affine = state->gamma.given};
    if (entry->has_guess && (state->running_mean.count == 0 || state->running_mean.count > MSG_CHANNELS_MAX))
        return msg_fail(restore->error, MSG_OUT_OF_RANGE, NULL, "\"%.128s\" has %zu channels, not 1 to %d", entry->name,
                        state->running_mean.count, MSG_CHANNELS_MAX);
    return true;
}

static bool list_ignored(const struct restore *restore) {
    struct msg_snapshot *const snapshot = restore->snapshot;
    for (size_t i = 0; i < restore->file->tensor_count; i++) {
        const struct file_tensor *const tensor = &restore->file->tensors[i];
        if (tensor->used) continue;
        if (!buffer_append(&snapshot->ignored_names, &tensor->name, sizeof tensor->name))
            return no_memory(restore->error);
        snapshot->ignored++;
    }
    return true;
}

static bool decode_snapshot(const struct restore *restore) {
    struct msg_snapshot *const snapshot = restore->snapshot;
    if (!buffer_reserve(&snapshot->storage, sizeof *snapshot->entries)) return no_memory(restore->error);
    snapshot->entries = (struct msg_snapshot_entry *)(void *)snapshot->storage.data;
    if (!add_prefixes(restore) || !add_configurations(restore)) return false;
    for (size_t i = 0; i < snapshot->count; i++) {
        if (!fill_entry(restore, &snapshot->entries[i])) return false;
    }
    return list_ignored(restore);
}

bool safetensors_decode_snapshot(struct msg_snapshot *snapshot, const struct codec_request *request,
                                 struct msg_error *error) {
    struct safetensors_file file;
    const struct restore restore = {snapshot, &file, request->budget, error};
    buffer_move(&snapshot->body, request->body);
    snapshot->storage.budget = request->budget;
    snapshot->ignored_names.budget = request->budget;
    const bool ok = safetensors_open(&file, &snapshot->body, request->budget, error) && decode_snapshot(&restore);
    safetensors_close(&file);
    error->has_pointer = false;
    return ok;
}

// ---- writing

// What a layer takes in the header, as text on the stack.
struct text {
    char text[SAFETENSORS_LAYER_MAX];
    size_t length;
};

__attribute__((format(printf, 2, 3))) static void put(struct text *text, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    text->length += (size_t)vsnprintf(text->text + text->length, sizeof text->text - text->length, format, arguments);
    va_end(arguments);
}

static void make_metadata(struct text *text, const char *name, const struct msg_state_view *state, bool first) {
    char room[1024];
    struct buffer config = {.data = (unsigned char *)room, .capacity = sizeof room}; // borrowed, and not outgrown
    text->length = 0;
    put(text, "%s\"%s\":\"", first ? "" : ",", name);
    if (json_encode_config(&config, state->layer, state->new_weight, state->running_ddof)) {
        for (size_t i = 0; i < config.size; i++) put(text, room[i] == '"' ? "\\%c" : "%c", room[i]);
    }
    put(text, "\"");
}

static void make_index(struct text *text, const char *name, const struct msg_state_view *state, uint64_t *data) {
    const double *const vectors[VECTORS] = {state->gamma, state->beta, state->running_mean, state->running_var};
    text->length = 0;
    for (int i = 0; i < VECTORS; i++) {
        if (vectors[i] == NULL) continue;
        const uint64_t end = *data + state->channels * sizeof(double);
        put(text, ",\"%s.%s\":{\"dtype\":\"F64\",\"shape\":[%zu],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", name,
            suffixes[i], state->channels, *data, end);
        *data = end;
    }
    if (!state->tracks) return;
    put(text, ",\"%s.%s\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", name,
        suffixes[BATCHES], *data, *data + sizeof(int64_t));
    *data += sizeof(int64_t);
}

static const char opening[] = "{\"__metadata__\":{";

void safetensors_measure(struct safetensors_states *file, const char *name, const struct msg_state_view *state) {
    struct text text;
    if (file->header == 0) file->header = sizeof opening - 1 + 2; // and the braces that close
    make_metadata(&text, name, state, file->layers == 0);
    file->header += text.length;
    make_index(&text, name, state, &file->data);
    file->header += text.length;
    file->layers++;
}

static size_t padding(uint64_t header) {
    return (size_t)(-header % sizeof(uint64_t));
}

bool safetensors_begin(struct safetensors_states *file, struct buffer *out) {
    if (file->header == 0) file->header = sizeof opening - 1 + 2;
    const uint64_t length = file->header + padding(file->header);
    file->layers = 0;
    return buffer_append(out, &length, sizeof length) && buffer_append(out, opening, sizeof opening - 1);
}

bool safetensors_metadata(struct safetensors_states *file, struct buffer *out, const char *name,
                          const struct msg_state_view *state) {
    struct text text;
    make_metadata(&text, name, state, file->layers++ == 0);
    return buffer_append(out, text.text, text.length);
}

bool safetensors_begin_index(struct safetensors_states *file, struct buffer *out) {
    file->data = 0;
    return buffer_append(out, "}", 1);
}

bool safetensors_index(struct safetensors_states *file, struct buffer *out, const char *name,
                       const struct msg_state_view *state) {
    struct text text;
    make_index(&text, name, state, &file->data);
    return buffer_append(out, text.text, text.length);
}

bool safetensors_begin_data(struct safetensors_states *file, struct buffer *out) {
    return buffer_append(out, "}       ", 1 + padding(file->header));
}

bool safetensors_data(struct buffer *out, const struct msg_state_view *state, size_t *next) {
    const double *const vectors[VECTORS] = {state->gamma, state->beta, state->running_mean, state->running_var};
    size_t start = 0; // of the vector at hand, among all values
    for (int i = 0; i < VECTORS; i++) {
        if (vectors[i] == NULL) continue;
        const size_t done = *next - start, room = (out->capacity - out->size) / sizeof(double);
        if (done < state->channels) {
            const size_t left = state->channels - done, n = left < room ? left : room;
            if (!buffer_append(out, vectors[i] + done, n * sizeof(double))) return false;
            *next += n;
            if (n < left) return false;
        }
        start += state->channels;
    }
    if (!state->tracks || *next > start) return true;
    if (out->capacity - out->size < sizeof(uint64_t)) return false;
    *next += 1;
    return buffer_append(out, &state->num_batches_tracked, sizeof(uint64_t));
}
