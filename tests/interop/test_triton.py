# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's tritonclient against /v2, by its blocking client and by the one for asyncio: a layer is a model of version
1, infer is inference, or what the parameter `mode` says."""
import asyncio
import contextlib
import functools

import foreign
from foreign import harness

np, http, aio, utils, ml_dtypes = foreign.require("numpy", "tritonclient.http", "tritonclient.http.aio",
                                                  "tritonclient.utils", "ml_dtypes")

EPS = 1e-5
NUMPY_TYPES = {"FP16": "f2", "FP32": "f4", "FP64": "f8", "BF16": ml_dtypes.bfloat16}
TOLERANCES = {"FP16": 2e-3, "FP32": 2e-6, "FP64": 1e-12, "BF16": 8e-3}
PEOPLE = np.array([[150, 54, 26], [60, 18, 4], [160, 60, 48], [177, 53, 16], [180, 60, 24]], "f4")


# ---- two clients as one

class Blocking:
    """The blocking client's methods, to be awaited as those of the other."""

    def __init__(self, client):
        self._client = client

    def __getattr__(self, name):
        method = getattr(self._client, name)

        async def call(*arguments, **more):
            return method(*arguments, **more)

        return call


@contextlib.asynccontextmanager
async def opened(kind):
    server = harness.shared()
    url, seconds = f"{server.host}:{server.port}", harness.seconds(30)
    if kind == "asyncio":
        async with aio.InferenceServerClient(url, conn_timeout=seconds) as client:
            yield client
        return
    with http.InferenceServerClient(url, concurrency=8, connection_timeout=seconds, network_timeout=seconds) as client:
        yield Blocking(client)


def by_both(table=((),)):
    """Marks a coroutine that is run with either client, once per row of the table: (name, arguments...)."""
    def mark(case):
        @functools.wraps(case)
        def run(kind, *arguments):
            async def within():
                async with opened(kind) as client:
                    await case(client, *arguments)

            asyncio.run(within())

        run.rows = [(", ".join((kind, *row[:1])), kind, *row[1:]) for kind in ("blocking", "asyncio") for row in table]
        return run

    return mark


def layer(name, **config):
    """Creates the layer; returns the client and the path of its own API."""
    return foreign.create(name, **{"num_features": 3, **config})


# ---- tensors

def given(name, array, datatype="FP32", binary=True):
    array = np.ascontiguousarray(array, NUMPY_TYPES[datatype])
    tensor = http.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def wanted(*names, binary=True):
    return [http.InferRequestedOutput(name, binary_data=binary) for name in names]


def array_of(result, name):
    """The output as f64, and its datatype."""
    return result.as_numpy(name).astype("f8"), result.get_output(name)["datatype"]


def scalars(result):
    return result.get_response().get("parameters", {})


def near(got, want, tolerance=2e-6):
    want = np.asarray(want, "f8")
    assert got.shape == want.shape, (got.shape, want.shape)
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


async def refused(status, words, call):
    """The call's exception has this status and these words."""
    try:
        result = await call
    except utils.InferenceServerException as error:
        assert str(error.status()) == str(status), f"{error.status()}: {error.message()}"
        for word in words:
            assert word in error.message(), f"no {word!r} in {error.message()!r}"
        return
    raise AssertionError(f"not refused: {result.get_response()}")


# ---- server and models

@by_both()
async def test_health(client):
    layer("t.health")
    assert await client.is_server_live() and await client.is_server_ready()
    assert await client.is_model_ready("t.health") and await client.is_model_ready("t.health", "1")
    assert not await client.is_model_ready("t.nobody")


@by_both()
async def test_server_metadata(client):
    server = await client.get_server_metadata()
    version = harness.shared().api().ok("GET", "/version")["version"]
    assert (server["name"], server["version"]) == ("normd", version), server
    assert "binary_tensor_data" in server["extensions"], server


@by_both([("f32", "f32", "FP32"), ("f64", "f64", "FP64")])
async def test_model_metadata_and_config(client, dtype, datatype):
    layer("t.model." + dtype, dtype=dtype)
    for version in ("", "1"):
        model = await client.get_model_metadata("t.model." + dtype, version)
        assert (model["name"], model["versions"]) == ("t.model." + dtype, ["1"]), model
        for kind, name in (("inputs", "x"), ("outputs", "y")):
            found = {tensor["name"]: tensor for tensor in model[kind]}
            assert found[name]["datatype"] == datatype and found[name]["shape"] == [-1, 3], model
        config = await client.get_model_config("t.model." + dtype, version)
        assert config["name"] == "t.model." + dtype, config
        assert "x" in [tensor["name"] for tensor in config["input"]], config
        assert {tensor["data_type"] for tensor in config["input"] if tensor["name"] == "x"} == {"TYPE_" + datatype}
    await refused(404, ["t.nobody"], client.get_model_metadata("t.nobody"))


@by_both()
async def test_statistics(client):
    layer("t.stats")
    for _ in range(3):
        await client.infer("t.stats", [given("x", PEOPLE)])
    await refused(422, ["t.stats"], client.infer("t.stats", [given("x", PEOPLE[:, :2])]))
    (stats,) = (await client.get_inference_statistics("t.stats"))["model_stats"]
    assert (stats["name"], stats["version"]) == ("t.stats", "1"), stats
    counts = {key: stats["inference_stats"][key]["count"] for key in ("success", "fail")}
    assert counts == {"success": 3, "fail": 1} and stats["inference_stats"]["success"]["ns"] > 0, stats


@by_both()
async def test_repository_index(client):
    layer("t.index")
    index = {model["name"]: model for model in await client.get_model_repository_index()}
    assert index["t.index"]["version"] == "1" and index["t.index"]["state"] == "READY", index["t.index"]


@by_both()
async def test_loading_and_unloading(client):
    """A layer is there or not: loading it changes nothing, and unloading is not what deletes it."""
    api, path = layer("t.load")
    await client.load_model("t.load")
    await refused(404, ["t.nobody"], client.load_model("t.nobody"))
    await refused(501, ["t.load", "DELETE /v1/layers/t.load"], client.unload_model("t.load"))
    assert api.version(path) == 1 and await client.is_model_ready("t.load")


@by_both()
async def test_what_there_is_not(client):
    layer("t.not")
    assert not await client.is_model_ready("t.not", "2")
    await refused(404, ["t.not"], client.get_model_metadata("t.not", "2"))
    await refused(404, [], client.get_log_settings())
    await refused(404, [], client.get_trace_settings("t.not"))
    await refused(404, [], client.get_system_shared_memory_status())
    x = given("x", PEOPLE)
    await refused(501, ["t.not", "sequence"], client.infer("t.not", [x], sequence_id=7, sequence_start=True))
    await refused(501, ["t.not", "priorit"], client.infer("t.not", [x], priority=1))
    near((await client.infer("t.not", [x], timeout=30_000_000)).as_numpy("y"), PEOPLE / np.sqrt(1 + EPS))


# ---- inference

FORMS = [(f"{datatype} {'binary' if sent else 'JSON'} in, {'binary' if got else 'JSON'} out", datatype, sent, got)
         for datatype in NUMPY_TYPES for sent in (True, False) for got in (True, False)
         if sent or datatype != "BF16"]  # which tritonclient sends as binary alone


@by_both(FORMS)
async def test_inference(client, datatype, sent, got):
    api, path = layer("t.infer", dtype="f64" if datatype == "FP64" else "f32")
    api.ok("PATCH", path + "/state", {"running_mean": [100, 50, 20], "running_var": [400, 100, 25],
                                      "gamma": [1, 2, -1], "beta": [0, 1, 0.5]})
    result = await client.infer("t.infer", [given("x", PEOPLE, datatype, sent)], outputs=wanted("y", binary=got),
                                request_id="an id")
    y, kind = array_of(result, "y")
    want = (PEOPLE.astype("f8") - [100, 50, 20]) / np.sqrt(np.array([400, 100, 25]) + EPS) * [1, 2, -1] + [0, 1, 0.5]
    near(y, want, TOLERANCES[datatype])
    response = result.get_response()
    assert kind == datatype and ("data" in result.get_output("y")) == (not got), response
    assert (response["model_name"], response["model_version"], response["id"]) == ("t.infer", "1", "an id"), response
    assert scalars(result)["state_version"] == 2, response


@by_both()
async def test_outputs_that_nobody_named(client):
    """They come all, and binary."""
    layer("t.all")
    result = await client.infer("t.all", [given("x", PEOPLE)])
    assert [output["name"] for output in result.get_response()["outputs"]] == ["y"]
    assert result.get_output("y")["parameters"]["binary_data_size"] == PEOPLE.nbytes
    near(result.as_numpy("y"), PEOPLE / np.sqrt(1 + EPS))


CODINGS = (None, "gzip", "deflate")


@by_both([(f"{sent} in, {got} out", sent, got) for sent in CODINGS for got in CODINGS])
async def test_compression(client, sent, got):
    layer("t.compressed")
    x = np.repeat(PEOPLE, 2000, axis=0)
    result = await client.infer("t.compressed", [given("x", x)], request_compression_algorithm=sent,
                                response_compression_algorithm=got)
    near(result.as_numpy("y"), x / np.sqrt(1 + EPS))
    json_alone = await client.infer("t.compressed", [given("x", PEOPLE, binary=False)],
                                    outputs=wanted("y", binary=False), request_compression_algorithm=sent,
                                    response_compression_algorithm=got)
    near(json_alone.as_numpy("y"), PEOPLE / np.sqrt(1 + EPS))


@by_both()
async def test_options_of_inference(client):
    layer("t.options")
    x = np.arange(24, dtype="f4").reshape(2, 4, 3) - 12
    axis = await client.infer("t.options", [given("x", x)], parameters={"channel_axis": -1})
    near(axis.as_numpy("y"), x / np.sqrt(1 + EPS))
    residual = np.ones((5, 3), "f4") * -100
    result = await client.infer("t.options", [given("x", PEOPLE), given("residual", residual)],
                                parameters={"activation": "relu"})
    near(result.as_numpy("y"), np.maximum(PEOPLE / np.sqrt(1 + EPS) - 100, 0), 1e-5)


@by_both()
async def test_empty_batch(client):
    layer("t.empty")
    result = await client.infer("t.empty", [given("x", np.zeros((0, 3)))])
    assert result.as_numpy("y").shape == (0, 3)


# ---- training

def statistics(x):
    return x.astype("f8").mean(0), x.astype("f8").var(0)


@by_both([(f"{datatype} {'binary' if binary else 'JSON'}", datatype, binary)
          for datatype in ("FP32", "FP64") for binary in (True, False)])
async def test_train_forward_and_backward(client, datatype, binary):
    api, path = layer("t.train", dtype=datatype.replace("FP", "f"))
    tolerance, x = TOLERANCES[datatype], PEOPLE.astype("f8")
    forward = await client.infer("t.train", [given("x", x, datatype, binary)],
                                 outputs=wanted("y", "batch_mean", "batch_var", binary=binary),
                                 parameters={"mode": "train-forward", "cache": True})
    mean, var = statistics(x)
    xhat = (x - mean) / np.sqrt(var + EPS)
    near(array_of(forward, "y")[0], xhat, tolerance)
    near(array_of(forward, "batch_mean")[0], mean, 1e-12)
    near(array_of(forward, "batch_var")[0], var, 1e-12)
    for name, kind in (("y", datatype), ("batch_mean", "FP64"), ("batch_var", "FP64")):
        assert array_of(forward, name)[1] == kind, name
    more = scalars(forward)
    assert (more["state_version"], more["count"], more["num_batches_tracked"], more["updated"]) == (2, 5, 1, True), more
    dout = np.cos(np.arange(15.0)).reshape(5, 3)
    dbeta, dgamma = dout.sum(0), (dout * xhat).sum(0)
    dx = (dout - dbeta / 5 - xhat * dgamma / 5) / np.sqrt(var + EPS)
    for inputs, options in (([], {"cache": more["cache"]}), ([given("x", x, datatype, binary)], {})):
        back = await client.infer("t.train", [given("dout", dout, datatype, binary), *inputs],
                                  outputs=wanted("dx", "dgamma", "dbeta", binary=binary),
                                  parameters={"mode": "backward", **options})
        near(array_of(back, "dx")[0], dx, 10 * tolerance)
        near(array_of(back, "dgamma")[0], dgamma, 10 * tolerance)
        near(array_of(back, "dbeta")[0], dbeta, 10 * tolerance)
        assert scalars(back)["state_version"] == 2
    step = await client.infer("t.train", [given("dout", dout, datatype, binary), given("x", x, datatype, binary)],
                              parameters={"mode": "backward", "lr": 0.5, "weight_decay": 0.1})
    assert scalars(step)["state_version"] == 3
    near(np.array(api.state(path)["gamma"]), 1 - 0.5 * (dgamma + 0.1), 10 * tolerance)


@by_both()
async def test_frozen_backward(client):
    api, path = layer("t.frozen", dtype="f64")
    api.ok("PATCH", path + "/state", {"running_mean": [1, 2, 3], "running_var": [4, 9, 16]})
    dout = np.ones((5, 3))
    back = await client.infer("t.frozen", [given("dout", dout, "FP64"), given("x", PEOPLE, "FP64")],
                              parameters={"mode": "backward", "frozen": True})
    near(back.as_numpy("dx"), dout / np.sqrt(np.array([4, 9, 16]) + EPS), 1e-12)


@by_both()
async def test_one_output_of_several(client):
    layer("t.one")
    result = await client.infer("t.one", [given("x", PEOPLE)], outputs=wanted("batch_mean"),
                                parameters={"mode": "train-forward"})
    assert [output["name"] for output in result.get_response()["outputs"]] == ["batch_mean"]
    near(result.as_numpy("batch_mean"), statistics(PEOPLE)[0], 1e-12)


def test_many_at_once_by_asyncio():
    """Each train-forward is applied once, whatever the order."""
    layer("t.many")

    async def run():
        async with opened("asyncio") as client:
            calls = [client.infer("t.many", [given("x", PEOPLE)], parameters={"mode": "train-forward"})
                     for _ in range(40)]
            return [scalars(result)["state_version"] for result in await asyncio.gather(*calls)]

    assert sorted(asyncio.run(run())) == list(range(2, 42))


def test_many_at_once_by_greenlets():
    layer("t.green")
    server = harness.shared()
    with http.InferenceServerClient(f"{server.host}:{server.port}", concurrency=8) as client:
        calls = [client.async_infer("t.green", [given("x", PEOPLE)], parameters={"mode": "train-forward"})
                 for _ in range(40)]
        versions = [scalars(call.get_result(timeout=harness.seconds(30)))["state_version"] for call in calls]
    assert sorted(versions) == list(range(2, 42))


# ---- errors

@by_both()
async def test_errors_name_the_layer(client):
    api, path = layer("t.errors")
    x = given("x", PEOPLE)
    await refused(404, ["t.nobody"], client.infer("t.nobody", [x]))
    await refused(422, ["t.errors"], client.infer("t.errors", [given("x", PEOPLE[:, :2])]))
    await refused(422, ["t.errors"], client.infer("t.errors", [given("x", PEOPLE * np.nan)]))
    await refused(400, ["t.errors", '"dout"'], client.infer("t.errors", [given("dout", PEOPLE), x]))
    await refused(400, ["t.errors", "momentum"], client.infer("t.errors", [x], parameters={"momentum": 0.5}))
    await refused(400, ["t.errors", "batch_mean"], client.infer("t.errors", [x], outputs=wanted("batch_mean")))
    await refused(422, ["t.errors", "mode"], client.infer("t.errors", [x], parameters={"mode": "sideways"}))
    await refused(410, ["t.errors"], client.infer("t.errors", [given("dout", PEOPLE)], parameters={
        "mode": "backward", "cache": "gone"}))
    assert api.version(path) == 1, "a refused call has changed something"


@by_both()
async def test_an_input_of_another_type(client):
    layer("t.integers")
    tensor = http.InferInput("x", [5, 3], "INT32")
    tensor.set_data_from_numpy(PEOPLE.astype("i4"))
    await refused(422, ["t.integers", "INT32"], client.infer("t.integers", [tensor]))


if __name__ == "__main__":
    harness.main()
