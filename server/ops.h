// SPDX-License-Identifier: Apache-2.0
//
// One function per operation of the API: decodes the body, checks it against the layer, runs kernels, and either fills
// in the reply or prepares the change that the writer is to make (then job->finish makes the reply). They run on an I/O
// thread or a worker, one thread at a time for a job; job->layer and job->state are set where the route has a name.
#ifndef NORMD_SERVER_OPS_H
#define NORMD_SERVER_OPS_H

#include "job.h"

enum job_result ops_train_forward(struct job *job);
enum job_result ops_inference(struct job *job);
enum job_result ops_backward(struct job *job);

// The same once job->call is decoded.
enum job_result ops_run_train_forward(struct job *job);
enum job_result ops_run_inference(struct job *job);
enum job_result ops_run_backward(struct job *job);

enum job_result ops_list_layers(struct job *job);
enum job_result ops_get_layer(struct job *job);
enum job_result ops_put_layer(struct job *job);
enum job_result ops_patch_layer(struct job *job);
enum job_result ops_delete_layer(struct job *job);

enum job_result ops_get_state(struct job *job);
enum job_result ops_put_state(struct job *job);
enum job_result ops_patch_state(struct job *job);
enum job_result ops_get_snapshot(struct job *job);
enum job_result ops_put_snapshot(struct job *job);

enum job_result ops_livez(struct job *job);
enum job_result ops_readyz(struct job *job);
enum job_result ops_version(struct job *job);
enum job_result ops_openapi(struct job *job);

// The Open Inference Protocol.
enum job_result ops_oip_server(struct job *job);
enum job_result ops_oip_live(struct job *job);
enum job_result ops_oip_ready(struct job *job);
enum job_result ops_oip_model(struct job *job);
enum job_result ops_oip_model_ready(struct job *job);
enum job_result ops_oip_config(struct job *job);
enum job_result ops_oip_stats(struct job *job);
enum job_result ops_oip_all_stats(struct job *job);
enum job_result ops_oip_infer(struct job *job);
enum job_result ops_oip_index(struct job *job);
enum job_result ops_oip_load(struct job *job);
enum job_result ops_oip_unload(struct job *job);

// Not in this build: it says so.
enum job_result ops_metrics(struct job *job);

#endif
