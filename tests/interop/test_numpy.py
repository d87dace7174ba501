# SPDX-License-Identifier: Apache-2.0
"""Files of numpy.save sent as they are, replies read by numpy.load, values against the formulas in NumPy."""
import io
import os

import foreign
from foreign import files, harness, wire

np = foreign.require("numpy")

EPS = 1e-5
TYPES = [("<f2", 1e-3), ("<f4", 1e-6), ("<f8", 1e-12), (">f2", 1e-3), (">f4", 1e-6), (">f8", 1e-12)]
SHAPES = [(16, 3), (5, 3, 7), (2, 3, 4, 5), (2, 3, 2, 3, 4)]


def saved(array):
    room = io.BytesIO()
    np.save(room, array, allow_pickle=False)
    return room.getvalue()


def loaded(reply):
    assert reply.status == 200 and reply.headers["content-type"] == files.NPY, reply
    return np.load(io.BytesIO(reply.body), allow_pickle=False)


def post(client, path, array):
    return client.post(path, saved(array), {"Content-Type": files.NPY})


def sample(shape, descr, seed=1):
    return (np.random.RandomState(seed).randn(*shape) * 3 + 1).astype(descr)


def along(vector, rank, axis=1):
    """The vector of C so that it broadcasts against a tensor."""
    shape = [1] * rank
    shape[axis] = -1
    return np.asarray(vector).reshape(shape)


def others(rank, axis=1):
    return tuple(i for i in range(rank) if i != axis % rank)


def normalized(x, mean, var, gamma, beta, axis=1):
    mean, var, gamma, beta = (along(v, x.ndim, axis) for v in (mean, var, gamma, beta))
    return (x - mean) / np.sqrt(var + EPS) * gamma + beta


def near(got, want, tolerance):
    assert got.shape == want.shape, (got.shape, want.shape)
    np.testing.assert_allclose(got.astype("f8"), want, rtol=tolerance, atol=tolerance)


def layer(name, descr, **more):
    return foreign.create(name, num_features=3, dtype="f64" if descr.endswith("8") else "f32", **more)


@harness.rows([(f"{descr} {shape}{' Fortran' if order == 'F' else ''}", descr, tolerance, shape, order)
               for descr, tolerance in TYPES for shape in SHAPES for order in "CF"])
def test_train_forward(descr, tolerance, shape, order):
    client, path = layer("np.train", descr)
    client.ok("PATCH", path + "/state", {"gamma": [1.5, -2, 0.25], "beta": [0.5, 0, -1]})
    x = np.asarray(sample(shape, descr), order=order)
    reply = post(client, path + "/train-forward", x)
    y = loaded(reply)
    assert y.dtype == x.dtype and y.flags.c_contiguous, (y.dtype, y.flags)
    wide = x.astype("f8")
    mean, var = wide.mean(others(x.ndim)), wide.var(others(x.ndim))
    near(y, normalized(wide, mean, var, [1.5, -2, 0.25], [0.5, 0, -1]), tolerance)
    count = x.size // 3
    wanted = {"normd-version": "3", "normd-count": str(count), "normd-updated": "true",
              "normd-num-batches-tracked": "1"}
    assert {key: reply.headers[key] for key in wanted} == wanted, reply.headers
    state = client.state(path)
    near(np.array(state["running_mean"]), 0.1 * mean, 1e-12)
    near(np.array(state["running_var"]), 0.9 + 0.1 * var * count / (count - 1), 1e-12)


@harness.rows([(descr, descr, tolerance) for descr, tolerance in TYPES])
def test_inference(descr, tolerance):
    client, path = layer("np.inference", descr)
    mean, var = [0.5, -1.0, 2.0], [4.0, 0.25, 1.0]
    client.ok("PATCH", path + "/state", {"running_mean": mean, "running_var": var})
    x = sample((2, 3, 4, 5), descr)
    reply = post(client, path + "/inference", x)
    near(loaded(reply), normalized(x.astype("f8"), mean, var, [1] * 3, [0] * 3), tolerance)
    assert reply.headers["normd-version"] == "2" and "normd-count" not in reply.headers, reply.headers


@harness.rows([(descr, descr, tolerance) for descr, tolerance in TYPES])
def test_backward_through_the_cache(descr, tolerance):
    client, path = layer("np.backward", descr)
    x, dout = sample((4, 3, 6), descr), sample((4, 3, 6), descr, seed=2)
    forward = post(client, path + "/train-forward?cache=true", x)
    reply = post(client, f"{path}/backward?cache={forward.headers['normd-cache']}&step_lr=0.5", dout)
    wide, d = x.astype("f8"), dout.astype("f8")
    mean, var = along(wide.mean((0, 2)), 3), along(wide.var((0, 2)), 3)
    xhat = (wide - mean) / np.sqrt(var + EPS)
    dbeta, dgamma = d.sum((0, 2)), (d * xhat).sum((0, 2))
    n = x.size // 3
    want = (d - along(dbeta, 3) / n - xhat * along(dgamma, 3) / n) / np.sqrt(var + EPS)
    near(loaded(reply), want, 3 * tolerance)
    assert reply.headers["normd-version"] == "3", reply.headers
    state = client.state(path)
    near(np.array(state["gamma"]), 1 - 0.5 * dgamma, max(tolerance, 1e-6) if descr[-1] != "8" else 1e-12)
    near(np.array(state["beta"]), -0.5 * dbeta, 1e-12)


def test_channels_on_the_last_axis():
    client, path = layer("np.last", "f4")
    x = sample((2, 4, 5, 3), "f4")
    want = loaded(post(client, path + "/inference", np.ascontiguousarray(np.moveaxis(x, -1, 1))))
    got = loaded(post(client, path + "/inference?channel_axis=-1", x))
    assert np.array_equal(got, np.moveaxis(want, 1, -1)), "the axis changes the bits"


def test_views_and_empty_batches():
    client, path = layer("np.views", "f8")
    whole = sample((9, 5), "f8")
    got = loaded(post(client, path + "/inference", whole[::2, 1:4]))
    assert np.array_equal(got, loaded(post(client, path + "/inference", whole[::2, 1:4].copy())))
    reply = post(client, path + "/train-forward", np.zeros((0, 3)))
    assert loaded(reply).shape == (0, 3) and reply.headers["normd-updated"] == "false", reply.headers


def test_a_file_on_disk_mapped_in():
    client, path = layer("np.disk", "f4")
    x, name = sample((64, 3), "f4"), os.path.join(harness.folder(), "y.npy")
    with open(name, "wb") as f:
        f.write(post(client, path + "/inference", x).body)
    y = np.load(name, mmap_mode="r")
    near(np.asarray(y), x.astype("f8") / np.sqrt(1 + EPS), 1e-6)


@harness.rows([("complex", np.ones((2, 3), "c16"), "wrong_type"), ("text", np.full((2, 3), "a"), "wrong_type"),
               ("integers", np.ones((2, 3), "i8"), "wrong_type"), ("rank 1", np.ones(3, "f4"), "shape_mismatch"),
               ("4 channels", np.ones((2, 4), "f4"), "shape_mismatch"), ("NaN", np.full((2, 3), np.nan), "non_finite")])
def test_refused(array, code):
    client, path = layer("np.refused", "f4")
    wire.problem(post(client, path + "/train-forward", array), 422, code)
    assert client.version(path) == 1


if __name__ == "__main__":
    harness.main()
