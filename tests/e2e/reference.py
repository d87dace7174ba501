# SPDX-License-Identifier: Apache-2.0
"""Batch normalization in plain Python, f64 with exactly rounded sums: what the server's replies are compared with."""
import math


def shape_of(x):
    shape = []
    while isinstance(x, list):
        shape.append(len(x))
        if not x:
            break
        x = x[0]
    return shape


def flatten(x):
    if not isinstance(x, list):
        return [x]
    return [v for row in x for v in flatten(row)]


def nest(values, shape):
    """Row-major values as nested lists."""
    if len(shape) == 1:
        return list(values)
    step = len(values) // shape[0] if shape[0] else 0
    return [nest(values[i * step:(i + 1) * step], shape[1:]) for i in range(shape[0])]


def channel_of(index, shape, axis):
    """The channel of the element at a row-major index."""
    inner = math.prod(shape[axis + 1:])
    return index // inner % shape[axis]


def permute(x, axes):
    """numpy.transpose for nested lists."""
    shape, values = shape_of(x), flatten(x)
    strides = [math.prod(shape[i + 1:]) for i in range(len(shape))]
    new = [shape[a] for a in axes]
    out = []
    for i in range(len(values)):
        rest, source = i, 0
        for j in range(len(new) - 1, -1, -1):
            source += rest % new[j] * strides[axes[j]]
            rest //= new[j]
        out.append(values[source])
    return nest(out, new)


def channels(x, axis):
    """The values of each channel, in row-major order."""
    shape = shape_of(x)
    axis %= len(shape)
    split = [[] for _ in range(shape[axis])]
    for i, v in enumerate(flatten(x)):
        split[channel_of(i, shape, axis)].append(v)
    return split


def join(split, shape, axis):
    """The reverse of channels()."""
    axis %= len(shape)
    feeds = [iter(c) for c in split]
    return nest([next(feeds[channel_of(i, shape, axis)]) for i in range(math.prod(shape))], shape)


def mean(values):
    return math.fsum(values) / len(values)


def variance(values):
    m = mean(values)
    return math.fsum((v - m) * (v - m) for v in values) / len(values)


def normalize(x, axis, means, variances, eps, gamma=None, beta=None):
    split = channels(x, axis)
    out = []
    for c, values in enumerate(split):
        invstd = 1 / math.sqrt(variances[c] + eps)
        g, b = (gamma[c], beta[c]) if gamma is not None else (1.0, 0.0)
        out.append([(v - means[c]) * invstd * g + b for v in values])
    return join(out, shape_of(x), axis)


def train(x, axis=1, eps=1e-5, gamma=None, beta=None):
    """(y, batch_mean, batch_var)."""
    split = channels(x, axis)
    means, variances = [mean(c) for c in split], [variance(c) for c in split]
    return normalize(x, axis, means, variances, eps, gamma, beta), means, variances


def backward(x, dout, axis=1, eps=1e-5, gamma=None, stats=None):
    """(dx, dgamma, dbeta); stats (means, variances) are constants of the gradient, None: the batch's own."""
    xs, ds = channels(x, axis), channels(dout, axis)
    out, dgamma, dbeta = [], [], []
    for c, (values, grads) in enumerate(zip(xs, ds)):
        m, v = (mean(values), variance(values)) if stats is None else (stats[0][c], stats[1][c])
        invstd, n = 1 / math.sqrt(v + eps), len(values)
        g = gamma[c] if gamma is not None else 1.0
        xhat = [(w - m) * invstd for w in values]
        dgamma.append(math.fsum(d * h for d, h in zip(grads, xhat)))
        dbeta.append(math.fsum(grads))
        if stats is None:
            out.append([g * invstd * (d - dbeta[c] / n - h * dgamma[c] / n) for d, h in zip(grads, xhat)])
        else:
            out.append([g * invstd * d for d in grads])
    return join(out, shape_of(x), axis), dgamma, dbeta


def post(y, activation=None, residual=None):
    """What follows the normalization: activation(y + residual)."""
    out = flatten(y)
    if residual is not None:
        out = [a + b for a, b in zip(out, flatten(residual))]
    if activation == "relu":
        out = [v if v > 0 or v != v else 0.0 for v in out]
    return nest(out, shape_of(y))


def masked(dout, y, activation=None, residual=None):
    """The gradient of y, which is before post(): dout, or 0 where the activation is flat. That of residual too."""
    if activation is None:
        return dout
    kept = [0.0 if v <= 0 else d for d, v in zip(flatten(dout), flatten(post(y, None, residual)))]
    return nest(kept, shape_of(y))


def close(got, want, rtol, atol=0.0, what=""):
    """Fails unless shapes are equal and every value is within atol + rtol*|want|."""
    assert shape_of(got) == shape_of(want), f"{what}: shape {shape_of(got)}, want {shape_of(want)}"
    for i, (a, b) in enumerate(zip(flatten(got), flatten(want))):
        assert isinstance(a, (int, float)) and abs(a - b) <= atol + rtol * abs(b), f"{what}[{i}]: {a!r}, want {b!r}"
