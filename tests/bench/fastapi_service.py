# SPDX-License-Identifier: Apache-2.0
"""Batch normalization as a service of FastAPI and PyTorch: what one would write without normd.

    BENCH_LAYERS=snapshot.json uvicorn fastapi_service:app --workers 2

The layers are those of a snapshot of normd in JSON. Each worker has its own copy of them, and nothing is kept on disk.
"""
import json
import os

import torch
from fastapi import FastAPI
from pydantic import BaseModel

torch.set_num_threads(1)  # there is a worker for each processor


class Batch(BaseModel):
    x: list[list[float]]


class Normalized(BaseModel):
    y: list[list[float]]


def load(path):
    """{name: BatchNorm1d} of a snapshot."""
    with open(path, encoding="utf-8") as f:
        states = json.load(f)["layers"]
    layers = {}
    for name, state in states.items():
        config = state["layer"]
        layer = torch.nn.BatchNorm1d(config["num_features"], eps=config["eps"], momentum=config["momentum"])
        names = (("weight", "gamma"), ("bias", "beta"), ("running_mean",) * 2, ("running_var",) * 2)
        values = {theirs: torch.tensor(state[ours]) for theirs, ours in names}
        layer.load_state_dict(values, strict=False)
        layers[name] = layer
    return layers


app = FastAPI()
LAYERS = load(os.environ["BENCH_LAYERS"])


def infer(name, x):
    with torch.inference_mode():
        return LAYERS[name].eval()(torch.tensor(x)).tolist()


def train(name, x):
    with torch.no_grad():
        return LAYERS[name].train()(torch.tensor(x)).tolist()


# `async`: PyTorch computes on this thread anyway, and a hop to the thread pool costs a small call more than the call.
@app.post("/layers/{name}/inference")
async def inference(name: str, batch: Batch):
    return {"y": infer(name, batch.x)}


@app.post("/layers/{name}/train-forward")
async def train_forward(name: str, batch: Batch):
    return {"y": train(name, batch.x)}


# The same with a declared reply: FastAPI hands that to pydantic's serializer, while a plain one is walked number by
# number in Python first. Few know, and it is several times as fast for large replies.
@app.post("/typed/{name}/inference")
async def typed_inference(name: str, batch: Batch) -> Normalized:
    return {"y": infer(name, batch.x)}


@app.post("/typed/{name}/train-forward")
async def typed_train_forward(name: str, batch: Batch) -> Normalized:
    return {"y": train(name, batch.x)}
