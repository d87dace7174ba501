// SPDX-License-Identifier: Apache-2.0
//
// The life of a job with a real queue and writer: who goes first.
#include "deeds.h"

#include "../../server/job.h"
#include "../../server/routes.h"

#define JOBS 4

// The service with one worker, and what jobs tell about themselves.
struct hall {
    struct bench bench;
    struct budget memory;
    struct service service;
    sem_t resumed, entered, opened;
    char order[JOBS + 1];
    size_t finished;
};

static struct hall hall;

static void start(void) {
    memset(&hall, 0, sizeof hall);
    start_writer(&hall.bench, DURABILITY_SYNC, SIZE_MAX);
    hall.memory.limit = 1 << 20;
    hall.service = (struct service){.memory = &hall.memory,
                                    .registry = hall.bench.registry,
                                    .writer = hall.bench.writer,
                                    .queue = job_queue_new(1),
                                    .request_timeout_ns = 60 * UINT64_C(1000000000)};
    assert_non_null(hall.service.queue);
    sem_init(&hall.resumed, 0, 0);
    sem_init(&hall.entered, 0, 0);
    sem_init(&hall.opened, 0, 0);
}

static void stop(void) {
    job_queue_free(&hall.service.queue);
    stop_writer(&hall.bench);
}

static void wait_for(sem_t *semaphore) {
    while (sem_wait(semaphore) != 0) {}
}

static void resumed(struct job *job) {
    (void)job;
    sem_post(&hall.resumed);
}

static bool stays(const struct job *job) {
    (void)job;
    return false;
}

static bool has_left(const struct job *job) {
    (void)job;
    return true;
}

static void suspend(struct job *job) {
    (void)job;
}

static void start_job(struct job **job, const struct route *route, char name) {
    *job = job_new(&hall.service);
    assert_non_null(*job);
    (*job)->route = route;
    (*job)->resume = resumed;
    (*job)->left = name == 'l' ? has_left : stays;
    (*job)->name[0] = name;
    assert_false(job_start(*job, suspend));
}

static void note(struct job *job) {
    hall.order[hall.finished++] = job->name[0];
}

static bool change_nothing(struct change *change, struct txn *txn) {
    (void)change;
    (void)txn;
    return true;
}

static enum job_result ask_for_change(struct job *job) {
    job->change.apply = change_nothing;
    job->finish = note;
    return JOB_COMMIT;
}

static enum job_result hold_worker(struct job *job) {
    (void)job;
    sem_post(&hall.entered);
    wait_for(&hall.opened);
    return JOB_REPLY;
}

static enum job_result note_at_once(struct job *job) {
    note(job);
    return JOB_REPLY;
}

static const struct route changing = {"POST", "/change", ask_for_change, ROUTE_HEAVY | ROUTE_BODY, "", 0, 0, {NULL}},
                          holding = {"POST", "/hold", hold_worker, ROUTE_HEAVY, "", 0, 0, {NULL}},
                          plain = {"POST", "/plain", note_at_once, ROUTE_HEAVY, "", 0, 0, {NULL}};

// With the only worker busy, three committed jobs and one that only came wait for it: the committed ones go first, in
// their order.
static void test_committed_go_first_in_order(void **state) {
    (void)state;
    start();
    struct gate gate;
    struct job *jobs[JOBS], *holder;
    close_gate(&gate, &hall.bench);
    for (size_t i = 0; i < 3; i++) start_job(&jobs[i], &changing, (char)('a' + i));
    start_job(&holder, &holding, 'h'); // runs when the others are with the writer
    wait_for(&hall.entered);
    start_job(&jobs[3], &plain, 'd');
    open_gate(&gate);
    assert_int_equal(perform(&hall.bench, deed_of(create_layers, "behind", NULL)), MSG_OK);
    assert_int_equal(hall.finished, 0); // all three are committed, and wait
    sem_post(&hall.opened);
    for (size_t i = 0; i < JOBS + 1; i++) wait_for(&hall.resumed);
    assert_string_equal(hall.order, "abcd");
    for (size_t i = 0; i < JOBS; i++) job_free(&jobs[i]);
    job_free(&holder);
    stop();
}

// One call whose client has closed meanwhile, between two others: it is not worked on.
static void test_left_client_costs_no_work(void **state) {
    (void)state;
    start();
    struct job *holder, *jobs[3];
    start_job(&holder, &holding, 'h');
    wait_for(&hall.entered);
    for (size_t i = 0; i < COUNT(jobs); i++) start_job(&jobs[i], i == 1 ? &changing : &plain, "alb"[i]);
    for (size_t i = 0; i < COUNT(jobs); i++) jobs[i]->queued_ns -= UINT64_C(1000000000);
    sem_post(&hall.opened);
    for (size_t i = 0; i < COUNT(jobs) + 1; i++) wait_for(&hall.resumed);
    assert_string_equal(hall.order, "ab");
    expect_error(&jobs[1]->error, MSG_QUEUE_FULL, NULL);
    assert_int_equal(jobs[0]->error.code, MSG_OK);
    assert_int_equal(jobs[2]->error.code, MSG_OK);
    for (size_t i = 0; i < COUNT(jobs); i++) job_free(&jobs[i]);
    job_free(&holder);
    stop();
}

// Which bodies are read while they arrive, and that half of the memory is left to others.
static void test_reads_ahead(void **state) {
    (void)state;
    static const struct route calling = {"POST", "/call", note_at_once, ROUTE_CALL | ROUTE_BODY, "", 0, 0, {NULL}};
    static const struct {
        const struct route *route;
        struct job_forms forms;
        size_t size, used;
        bool reads;
    } cases[] = {
        {&calling, {.reads = CODEC_JSON}, 20000, 0, true},
        {&calling, {.reads = CODEC_OIP}, 20000, 0, true},
        {&calling, {.reads = CODEC_OIP, .padding = 16}, 20000, 0, true},
        {&calling, {.reads = CODEC_JSON}, 16000, 0, false},
        {&calling, {.reads = CODEC_NPY}, 20000, 0, false},
        {&calling, {.reads = CODEC_SAFETENSORS}, 20000, 0, false},
        {&calling, {.reads = CODEC_OIP, .has_header = true}, 20000, 0, false},
        {&calling, {.reads = CODEC_OIP, .body_coding = CODING_GZIP}, 20000, 0, false},
        {&plain, {.reads = CODEC_JSON}, 20000, 0, false},
        {&calling, {.reads = CODEC_JSON}, 20000, 600 << 10, false},
    };
    const struct msg_config config = {.num_features = 1, .dtype = BN_F32};
    start();
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct job *job = job_new(&hall.service);
        assert_non_null(job);
        job->route = cases[i].route;
        job->forms = cases[i].forms;
        job->state = layer_state_new(&config, 1);
        assert_true(buffer_pad(&job->body, cases[i].forms.padding) && buffer_print(&job->body, "{\"x\":["));
        while (job->body.size < cases[i].size) assert_true(buffer_print(&job->body, "1.5,"));
        assert_true(budget_charge(&hall.memory, cases[i].used));
        job_read_ahead(job);
        if ((ahead_bytes(job->ahead) > 0) != cases[i].reads)
            fail_msg("case %zu: %zu bytes", i, ahead_bytes(job->ahead));
        budget_release(&hall.memory, cases[i].used);
        job_free(&job);
    }
    assert_int_equal(hall.memory.used, 0);
    stop();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_committed_go_first_in_order),
        cmocka_unit_test(test_left_client_costs_no_work),
        cmocka_unit_test(test_reads_ahead),
    };
    return cmocka_run_group_tests_name("job", tests, NULL, NULL);
}
