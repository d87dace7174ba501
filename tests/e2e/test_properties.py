# SPDX-License-Identifier: Apache-2.0
"""What must hold for any input, through the server: affine equivariance, layouts agree, gradients against finite
differences, and the same bits for any number of threads."""
import base64
import math
import random
import struct

import harness
import reference
import wire

ROUNDS = harness.scaled(20, 3)


def tensor(rng, shape, spread=2.0, center=0.0):
    return reference.nest([rng.gauss(center, spread) for _ in range(math.prod(shape))], shape)


def create(name, **config):
    client = harness.shared().api()
    client.delete("/v1/layers/" + name)
    return client, client.layer(name, **config)


def test_affine_equivariance():
    """BN(a*x + b) is BN(x) for a > 0, up to eps; for a < 0 it is mirrored."""
    rng = random.Random(1)
    client, path = create("equivariant", num_features=4, dtype="f64", eps=1e-12)
    for _ in range(ROUNDS):
        x = tensor(rng, [rng.randint(3, 40), 4])
        y = client.train(path, x)["y"]
        scale, shift = 10 ** rng.uniform(-3, 3), rng.uniform(-100, 100)
        for sign in (1, -1):
            moved = [[sign * scale * v + shift for v in row] for row in x]
            again = client.train(path, moved)["y"]
            reference.close(again, [[sign * v for v in row] for row in y], 0, 1e-5,
                            f"a={sign * scale:.3g} b={shift:.3g}")


def test_normalized_batches_have_mean_0_and_variance_1():
    rng = random.Random(2)
    client, path = create("unit", num_features=3, dtype="f64")
    for _ in range(ROUNDS):
        x = tensor(rng, [rng.randint(2, 60), 3, rng.randint(1, 5)], 10 ** rng.uniform(0, 3), rng.uniform(-1e4, 1e4))
        y = client.train(path, x)["y"]
        for old, values in zip(reference.channels(x, 1), reference.channels(y, 1)):
            assert abs(reference.mean(values)) < 1e-9, reference.mean(values)
            want = reference.variance(old) / (reference.variance(old) + 1e-5)
            assert abs(reference.variance(values) - want) < 1e-9, (reference.variance(values), want)


def test_layouts_agree():
    """The same values with the channels on every axis give the same bits of statistics, y, and gradients' sums."""
    rng = random.Random(3)
    for _ in range(ROUNDS):
        shape = [rng.randint(1, 5) for _ in range(rng.randint(1, 4))]
        channels = rng.randint(1, 9)
        shape[0] += 1
        x, dout = tensor(rng, [shape[0], channels, *shape[1:]]), tensor(rng, [shape[0], channels, *shape[1:]])
        rank = len(shape) + 1
        config = {"num_features": channels, "dtype": rng.choice(("f32", "f64"))}
        client, path = create("layout", **config)
        want = client.train(path, x)
        grads = client.backward(path, dout, x=x)
        for axis in range(rank):
            order = [a for a in range(rank) if a != 1]  # the other axes keep their order, so that sums run alike
            order.insert(axis, 1)
            got = client.train(path, reference.permute(x, order), channel_axis=axis)
            tight = 1e-12 if config["dtype"] == "f64" else 1e-6
            reference.close(got["y"], reference.permute(want["y"], order), tight, tight, f"y, axis {axis}")
            reference.close(got["batch_mean"], want["batch_mean"], 1e-12, 1e-12, "batch_mean")
            reference.close(got["batch_var"], want["batch_var"], 1e-12, 1e-12, "batch_var")
            again = client.backward(path, reference.permute(dout, order), x=reference.permute(x, order),
                                    channel_axis=axis)
            reference.close(again["dx"], reference.permute(grads["dx"], order), tight * 10, tight * 10,
                            f"dx, axis {axis}")
            reference.close(again["dgamma"], grads["dgamma"], tight * 10, tight * 10, "dgamma")


def test_order_of_the_batch_does_not_matter():
    rng = random.Random(4)
    client, path = create("order", num_features=2, dtype="f64")
    for _ in range(ROUNDS):
        x = tensor(rng, [rng.randint(2, 50), 2])
        order = list(range(len(x)))
        rng.shuffle(order)
        want, got = client.train(path, x)["y"], client.train(path, [x[i] for i in order])["y"]
        reference.close(got, [want[i] for i in order], 1e-11, 1e-11)


@harness.rows([("train", "train"), ("inference", "inference")])
def test_gradient_against_finite_differences(mode):
    """d(sum(y*w))/dx, /dgamma and /dbeta by central differences of the forward call, in f64."""
    rng = random.Random(5)
    client, path = create("gradient", num_features=2, dtype="f64")
    gamma, beta = [1.5, -0.5], [0.25, 2.0]
    fixed = {"gamma": gamma, "beta": beta, "running_mean": [0.3, -0.2], "running_var": [1.7, 0.6],
             "num_batches_tracked": 3}
    client.ok("PUT", path + "/state", fixed)
    shape = [3, 2, 2]
    x, w = tensor(rng, shape), tensor(rng, shape)

    def loss(x, gamma=None, beta=None):
        client.ok("PUT", path + "/state", {**fixed, "gamma": gamma or fixed["gamma"], "beta": beta or fixed["beta"]})
        call = client.train if mode == "train" else client.infer
        return math.fsum(a * b for a, b in zip(reference.flatten(call(path, x)["y"]), reference.flatten(w)))

    h = 1e-5
    flat = reference.flatten(x)

    def moved(i, d):
        return reference.nest(flat[:i] + [flat[i] + d] + flat[i + 1:], shape)

    dx = [(loss(moved(i, h)) - loss(moved(i, -h))) / (2 * h) for i in range(len(flat))]
    dgamma, dbeta = [], []
    for c in range(2):
        up, down = [list(gamma), list(gamma)], [list(beta), list(beta)]
        up[0][c] += h
        up[1][c] -= h
        down[0][c] += h
        down[1][c] -= h
        dgamma.append((loss(x, gamma=up[0]) - loss(x, gamma=up[1])) / (2 * h))
        dbeta.append((loss(x, beta=down[0]) - loss(x, beta=down[1])) / (2 * h))
    client.ok("PUT", path + "/state", fixed)
    got = client.backward(path, w, x=x, mode=mode)
    reference.close(reference.flatten(got["dx"]), dx, 1e-6, 1e-8, "dx")
    reference.close(got["dgamma"], dgamma, 1e-6, 1e-8, "dgamma")
    reference.close(got["dbeta"], dbeta, 1e-6, 1e-8, "dbeta")


def test_gradient_of_train_sums_to_zero():
    """dx is orthogonal to constants and to y: adding to x, or scaling it, does not change y."""
    rng = random.Random(6)
    client, path = create("orthogonal", num_features=3, dtype="f64", eps=1e-300)
    for _ in range(ROUNDS):
        shape = [rng.randint(2, 30), 3]
        x, dout = tensor(rng, shape), tensor(rng, shape)
        if shape[0] == 2:
            continue  # y is +-1 whatever x is, and dx nothing but rounding
        dx = client.backward(path, dout, x=x)["dx"]
        for d, values in zip(reference.channels(dx, 1), reference.channels(x, 1)):
            size = max(abs(v) for v in d) * len(d)
            m = reference.mean(values)
            assert abs(math.fsum(d)) <= 1e-11 * size, math.fsum(d)
            assert abs(math.fsum(a * (v - m) for a,
                                 v in zip(d, values))) <= 1e-10 * size * max(abs(v - m) for v in values)


def random_b64(rng, shape, dtype, center):
    values = [rng.gauss(center, 1) for _ in range(math.prod(shape))]
    raw = struct.pack(f"<{len(values)}{'f' if dtype == 'f32' else 'd'}", *values)
    return {"shape": shape, "dtype": dtype, "base64": base64.b64encode(raw).decode()}


@harness.rows([
    (f"{dtype} {'x'.join(map(str, shape))} axis {axis}", dtype, shape, axis) for dtype in ("f32", "f64")
    for shape, axis in (([40000, 7], 1), ([3, 5, 12345], 1), ([2, 300, 111], 1), ([1, 2, 50021], 1), ([50, 60, 33], -1),
                        ([17, 4099, 3], 0))
])
def test_threads_give_the_same_bits(dtype, shape, axis):
    rng = random.Random(7)
    x, dout = random_b64(rng, shape, dtype, 1e3), random_b64(rng, shape, dtype, 0)
    answers = []
    for threads in (1, 2, 3, 8):
        client = harness.shared("--threads", str(threads)).api()
        client.delete("/v1/layers/bits")
        path = client.layer("bits", num_features=shape[axis], channel_axis=axis, dtype=dtype)
        calls = [client.train(path, x), client.backward(path, dout, x=x, step={"lr": 1e-3}), client.infer(path, x),
                 client.backward(path, dout, x=x, mode="inference"), client.state(path)]
        answers.append(wire.bits(calls))
    assert len(set(answers)) == 1, "bits depend on the number of threads"


def test_whole_batch_equals_its_mean_over_parts():
    """Statistics of a batch follow from those of its halves (Chan's merge), whatever the sizes."""
    rng = random.Random(8)
    client, path = create("parts", num_features=2, dtype="f64")
    for _ in range(ROUNDS):
        a, b = tensor(rng, [rng.randint(2, 40), 2], 1, 5), tensor(rng, [rng.randint(2, 40), 2], 3, -5)
        one, two, both = (client.train(path, x) for x in (a, b, a + b))
        n, m = one["count"], two["count"]
        for c in range(2):
            delta = two["batch_mean"][c] - one["batch_mean"][c]
            mean = one["batch_mean"][c] + delta * m / (n + m)
            var = (one["batch_var"][c] * n + two["batch_var"][c] * m + delta * delta * n * m / (n + m)) / (n + m)
            assert abs(both["batch_mean"][c] - mean) < 1e-12 and abs(both["batch_var"][c] - var) < 1e-12 * var + 1e-12


harness.main()
