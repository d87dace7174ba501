// SPDX-License-Identifier: Apache-2.0
#include "schedule.h"

#include "coefficients.h"
#include "cpu.h"

enum {
    TASK_ELEMENTS = 16384,   // that a thread takes at a time, at least
    LARGE_TASK = 65536,      // the same where there are tasks enough: longer streams read faster
    TASKS_PER_THREAD = 8,    // enough
    POOL_ELEMENTS = 65536,   // of the smallest tensor that is worth waking threads for, some 10 us each
    UNITS_PER_THREAD = 4,    // at least, where units are what threads share: else the last ones run alone
    SPREAD_ROWS = 64,        // that one spread of coefficients serves, at least
    CHANNELS_AT_ONCE = 4096, // of a task that merges
};

// One call, and how it is shared out.
struct call {
    const struct bn_pass *pass;
    double *a, *b; // [place][channel]; the pass's own where there is one place
    size_t task_elements;
    size_t per_task;
    // A block of elements: rows of a unit; in runs, part of one row where a row is two tasks or more.
    size_t chunk_rows;
    size_t chunk_length; // where there are several in a row
    size_t chunks_per_row;
};

static size_t elements_of(const struct call *call) {
    return bn_shape_elements(call->pass->cut.shape);
}

// Runs task over `count` pieces of equal work; the whole has `elements` elements.
static void share_out(struct call *call, size_t count, size_t elements, void (*task)(void *context, size_t i),
                      struct bn_pool *pool) {
    const size_t piece = bn_max(elements / count, 1);
    call->per_task = elements < POOL_ELEMENTS ? count : bn_divide_up(call->task_elements, piece);
    pool_for(pool, bn_divide_up(count, call->per_task), task, call);
}

// ---- a unit at once

static void unit_sums(const struct bn_pass *pass, size_t unit) {
    const struct bn_cut *const cut = &pass->cut;
    double n = 0;
    for (size_t place = 0; place < cut->places; place++) {
        const struct bn_block block = bn_cut_block(cut, unit, place);
        double *const a = pass->a + block.channel, *const b = pass->b + block.channel;
        const double more = (double)bn_cut_values(cut, place);
        if (place == 0) {
            pass->sums(pass->context, &block, a, b);
        } else {
            BN_SCRATCH double more_a[BN_UNIT_CHANNELS], more_b[BN_UNIT_CHANNELS];
            pass->sums(pass->context, &block, more_a, more_b);
            pass->merge(a, b, n, more_a, more_b, more, block.channels);
        }
        n += more;
    }
}

static void unit_task(void *context, size_t i) {
    const struct call *const call = context;
    const struct bn_pass *const pass = call->pass;
    const size_t end = bn_min((i + 1) * call->per_task, pass->cut.units);
    for (size_t unit = i * call->per_task; unit < end; unit++) {
        const struct bn_block block = bn_cut_rows(&pass->cut, unit, 0, pass->cut.shape.outer);
        unit_sums(pass, unit);
        if (pass->finish) pass->finish(pass->context, block.channel, block.channels);
        if (pass->apply) pass->apply(pass->context, &block);
    }
}

// ---- all sums, then all elements

static void sums_task(void *context, size_t i) {
    const struct call *const call = context;
    const struct bn_pass *const pass = call->pass;
    const size_t channels = pass->cut.shape.channels;
    const size_t end = bn_min((i + 1) * call->per_task, pass->cut.places * pass->cut.units);
    for (size_t j = i * call->per_task; j < end; j++) {
        const size_t place = j / pass->cut.units;
        const struct bn_block block = bn_cut_block(&pass->cut, j % pass->cut.units, place);
        const size_t at = place * channels + block.channel;
        pass->sums(pass->context, &block, call->a + at, call->b + at);
    }
}

static void merge_task(void *context, size_t i) {
    const struct call *const call = context;
    const struct bn_pass *const pass = call->pass;
    const size_t all = pass->cut.shape.channels;
    const size_t first = i * CHANNELS_AT_ONCE, channels = bn_min(CHANNELS_AT_ONCE, all - first);
    double n = (double)bn_cut_values(&pass->cut, 0);
    for (size_t c = first; c < first + channels; c++) {
        pass->a[c] = call->a[c];
        pass->b[c] = call->b[c];
    }
    for (size_t place = 1; place < pass->cut.places; place++) {
        const double more = (double)bn_cut_values(&pass->cut, place);
        pass->merge(pass->a + first, pass->b + first, n, call->a + place * all + first, call->b + place * all + first,
                    more, channels);
        n += more;
    }
    if (pass->finish) pass->finish(pass->context, first, channels);
}

static enum bn_status run_sums(struct call *call, struct bn_pool *pool) {
    const struct bn_pass *const pass = call->pass;
    const size_t channels = pass->cut.shape.channels, places = pass->cut.places;
    BN_SCRATCH struct bn_room room;
    room.allocated = NULL;
    call->a = pass->a;
    call->b = pass->b;
    if (places > 1) {
        if (!bn_room_take(&room, 2 * places, channels)) return BN_NO_MEMORY;
        call->a = room.doubles;
        call->b = room.doubles + places * channels;
    }
    share_out(call, places * pass->cut.units, elements_of(call), sums_task, pool);
    pool_for(pool, bn_divide_up(channels, CHANNELS_AT_ONCE), merge_task, call);
    bn_room_free(&room);
    return BN_OK;
}

static size_t chunks(const struct call *call) {
    const struct bn_cut *const cut = &call->pass->cut;
    return bn_divide_up(cut->shape.outer, call->chunk_rows) * call->chunks_per_row * cut->units;
}

static struct bn_block chunk_at(const struct call *call, size_t i) {
    const struct bn_cut *const cut = &call->pass->cut;
    const size_t unit = i % cut->units, part = i / cut->units % call->chunks_per_row;
    const size_t rows = i / cut->units / call->chunks_per_row;
    const struct bn_block block = bn_cut_rows(cut, unit, rows * call->chunk_rows, call->chunk_rows);
    return call->chunks_per_row == 1 ? block : bn_block_part(block, part * call->chunk_length, call->chunk_length);
}

static void elements_task(void *context, size_t i) {
    const struct call *const call = context;
    const size_t end = bn_min((i + 1) * call->per_task, chunks(call));
    for (size_t j = i * call->per_task; j < end; j++) {
        const struct bn_block block = chunk_at(call, j);
        call->pass->apply(call->pass->context, &block);
    }
}

static void run_elements(struct call *call, struct bn_pool *pool) {
    const struct bn_cut *const cut = &call->pass->cut;
    const size_t row = cut->unit_channels * cut->shape.inner;
    call->chunk_rows = bn_divide_up(bn_divide_up(call->task_elements, row), cut->join) * cut->join;
    // What is spread over columns should serve many rows.
    if (bn_cut_spreads(cut)) call->chunk_rows = bn_max(call->chunk_rows, SPREAD_ROWS * cut->join);
    call->chunks_per_row = 1;
    if (cut->layout == BN_RUNS && row >= 2 * call->task_elements) {
        call->chunk_length = bn_divide_up(call->task_elements, BN_CHUNK) * BN_CHUNK;
        call->chunks_per_row = bn_divide_up(row, call->chunk_length);
    }
    share_out(call, chunks(call), elements_of(call), elements_task, pool);
}

// ---- the choice

// A unit at once keeps its values in the cache: a thread's own, or its share of what all have together.
static bool at_once(const struct bn_pass *pass, struct bn_pool *pool) {
    const struct bn_cut *const cut = &pass->cut;
    const size_t threads = bn_pool_threads(pool), elements = bn_shape_elements(cut->shape);
    if (!pass->sums) return false;
    if (elements < POOL_ELEMENTS) return true;
    if (threads > 1 && cut->units < UNITS_PER_THREAD * threads) return false;
    const size_t bytes = elements / cut->units * pass->bytes;
    if (bytes <= cpu_cache_bytes(2)) return true;
    return cut->layout != BN_COLUMNS && bytes <= cpu_cache_bytes(3) / 2 / threads;
}

enum bn_status bn_pass_run(const struct bn_pass *pass, struct bn_pool *pool) {
    const size_t share = bn_shape_elements(pass->cut.shape) / bn_pool_threads(pool) / TASKS_PER_THREAD;
    struct call call = {.pass = pass, .task_elements = bn_min(bn_max(share, TASK_ELEMENTS), LARGE_TASK)};
    if (at_once(pass, pool)) {
        share_out(&call, pass->cut.units, elements_of(&call), unit_task, pool);
        return BN_OK;
    }
    if (pass->sums) {
        const enum bn_status status = run_sums(&call, pool);
        if (status != BN_OK) return status;
    } else if (pass->finish) {
        pass->finish(pass->context, 0, pass->cut.shape.channels);
    }
    if (pass->apply) run_elements(&call, pool);
    return BN_OK;
}
