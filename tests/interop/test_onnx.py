# SPDX-License-Identifier: Apache-2.0
"""The node cases of ONNX's BatchNormalization (version 15), computed by the formulas of its definition in NumPy: layers
of the convention `onnx`, whose momentum weighs the old value and whose running variance is biased.

A rank of 1 is a batch of one channel there; a tensor here has its channels on an axis, so that it is [N, 1].
"""
import base64

import foreign
from foreign import harness

np = foreign.require("numpy")

# The cases of the standard's own node tests, all of shape (2, 3, 4, 5), and the ranks that its text allows.
NODES = [("batchnorm_example", (2, 3, 4, 5), 1e-5, 0.9), ("batchnorm_epsilon", (2, 3, 4, 5), 1e-2, 0.9),
         ("rank 2", (7, 4), 1e-5, 0.9), ("one channel", (9, 1), 1e-5, 0.9), ("rank 3", (3, 5, 8), 1e-3, 0.5),
         ("rank 5", (2, 3, 2, 3, 4), 1e-5, 0.25), ("momentum 0", (2, 3, 4), 1e-5, 0.0),
         ("momentum 1", (2, 3, 4), 1e-5, 1.0)]


def node_test_mode(x, scale, bias, mean, var, epsilon):
    """Y of the definition with training_mode=0."""
    dims = [1, -1] + [1] * (x.ndim - 2)
    scale, bias, mean, var = (v.reshape(dims) for v in (scale, bias, mean, var))
    return scale * (x - mean) / np.sqrt(var + epsilon) + bias


def node_training_mode(x, scale, bias, mean, var, epsilon, momentum):
    """Y, running_mean and running_var of the definition with training_mode=1."""
    axes = tuple(np.delete(np.arange(x.ndim), 1))
    current_mean, current_var = x.mean(axis=axes), x.var(axis=axes)
    y = node_test_mode(x, scale, bias, current_mean, current_var, epsilon)
    return y, mean * momentum + current_mean * (1 - momentum), var * momentum + current_var * (1 - momentum)


def inputs(shape, seed):
    """X, scale, B, input_mean, input_var as the node tests draw them, in f32."""
    random, channels = np.random.RandomState(seed), shape[1]
    return [a.astype("f4") for a in (random.randn(*shape), random.randn(channels), random.randn(channels),
                                     random.randn(channels), random.rand(channels))]


def node(name, shape, epsilon, momentum, dtype):
    """A layer that is the node with its inputs; returns the client, the path and the inputs in f64."""
    x, scale, bias, mean, var = (a.astype("f8") for a in inputs(shape, seed=len(name)))
    client, path = foreign.create("onnx.node", num_features=shape[1], convention="onnx", eps=epsilon,
                                  momentum=momentum, dtype=dtype)
    client.ok("PATCH", path + "/state", {"gamma": scale.tolist(), "beta": bias.tolist(),
                                         "running_mean": mean.tolist(), "running_var": var.tolist()})
    return client, path, (x, scale, bias, mean, var)


def tensor(x, dtype):
    data = x.astype("<f8" if dtype == "f64" else "<f4")
    return {"shape": list(x.shape), "dtype": dtype, "base64": base64.b64encode(data.tobytes()).decode()}


def array(reply):
    data = np.frombuffer(base64.b64decode(reply["base64"]), {"f32": "<f4", "f64": "<f8"}[reply["dtype"]])
    return data.reshape(reply["shape"])


def near(got, want, dtype):
    tolerance = 1e-12 if dtype == "f64" else 2e-6
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


CASES = [(f"{name} {dtype}", name, shape, epsilon, momentum, dtype)
         for name, shape, epsilon, momentum in NODES for dtype in ("f32", "f64")]


@harness.rows(CASES)
def test_training_mode_0(name, shape, epsilon, momentum, dtype):
    client, path, (x, *more) = node(name, shape, epsilon, momentum, dtype)
    reply = client.infer(path, tensor(x, dtype))
    near(array(reply["y"]), node_test_mode(x, *more, epsilon), dtype)
    assert reply["version"] == 2, reply["version"]


@harness.rows(CASES)
def test_training_mode_1(name, shape, epsilon, momentum, dtype):
    client, path, (x, *more) = node(name, shape, epsilon, momentum, dtype)
    y, running_mean, running_var = node_training_mode(x, *more, epsilon, momentum)
    reply = client.train(path, tensor(x, dtype))
    near(array(reply["y"]), y, dtype)
    state = client.state(path)
    near(state["running_mean"], running_mean, "f64")
    near(state["running_var"], running_var, "f64")


def test_defaults_of_the_operator():
    client, path = foreign.create("onnx.defaults", num_features=2, convention="onnx")
    config = client.ok("GET", path)["layer"]
    assert (config["eps"], config["momentum"], config["running_ddof"]) == (1e-5, 0.9, 0), config
    assert abs(config["new_weight"] - 0.1) < 1e-15, config


if __name__ == "__main__":
    harness.main()
