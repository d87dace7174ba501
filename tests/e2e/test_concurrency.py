# SPDX-License-Identifier: Apache-2.0
"""Many clients at once: every acknowledged change counts exactly once, in the order of versions, and a replay one by
one in that order gives the same bits. Readers see one moment."""
import json
import multiprocessing
import os
import pickle
import random
import select
import socket
import struct
import threading
import time

import harness
import test_wakeup
import wire

CLIENTS, LAYERS, TOTAL = 16, 8, 100_000
# Every 8th call is an SGD step, so that gamma and beta change between the train-forwards; in mode inference it also
# depends on the running statistics, which every train-forward changes.
CONFIGS = [{"convention": c, "num_features": 3, "dtype": d} for c in ("pytorch", "keras", "onnx", "paper")
           for d in ("f32", "f64")]
CONFIGS[1]["init"] = "first-batch"
CONFIGS[2]["momentum"] = None


def request(path, body):
    return b"POST /v1/layers/%b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (
        path.encode(), len(body), body)


def is_step(seed):
    return seed % 8 == 5


def call(seed):
    """(is a step, layer, body) of the call with this number; values differ from call to call."""
    rng = random.Random(seed)
    layer = rng.randrange(LAYERS)
    x = [[round(rng.gauss(seed % 7, 2), 3) for _ in range(3)] for _ in range(4)]
    if is_step(seed):
        dout = [[round(rng.gauss(0, 1), 3) for _ in range(3)] for _ in range(4)]
        body = {"x": x, "dout": dout, "step": {"lr": 0.01, "weight_decay": 0.001}}
        if seed % 16 == 13:
            body["mode"] = "inference"
        if seed % 32 < 16:
            body.update(activation="relu", residual=dout)
        return True, layer, json.dumps(body).encode()
    return False, layer, json.dumps({"x": x}).encode()


class Line:
    """A keep-alive connection without http.client's cost."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=harness.seconds(60))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest = b""

    def call(self, data):
        """(status, body)"""
        self.socket.sendall(data)
        got = self.rest
        while True:
            end = got.find(b"\r\n\r\n")
            if end >= 0:
                head = got[:end].lower()
                at = head.index(b"content-length:") + 15
                size = int(head[at:].split(b"\r\n", 1)[0])
                if len(got) >= end + 4 + size:
                    self.rest = got[end + 4 + size:]
                    return int(got[9:12]), got[end + 4:end + 4 + size]
            piece = self.socket.recv(65536)
            assert piece, "the server closed the connection"
            got += piece


def version_of(body):
    at = body.rindex(b'"version":') + 10
    return int(body[at:].split(b"}", 1)[0].split(b",", 1)[0])


def client_process(port, seeds, path):
    """Makes the calls one after another and writes (layer, version, seed, reply) of each."""
    line, records = Line(port), []
    for seed in seeds:
        step, layer, body = call(seed)
        status, reply = line.call(request(f"c{layer}/" + ("backward" if step else "train-forward"), body))
        assert status == 200, reply
        records.append((layer, version_of(reply), seed, reply))
    with open(path, "wb") as f:
        pickle.dump(records, f)


def replay_process(port, calls, layer, queue):
    """Makes the calls of one layer in version order and compares every reply, byte for byte."""
    line, wrong = Line(port), []
    for version, seed, reply in calls:
        step, _, body = call(seed)
        status, again = line.call(request(f"c{layer}/" + ("backward" if step else "train-forward"), body))
        if status != 200 or again != reply:
            wrong.append((version, seed, reply.decode(), again.decode()))
    queue.put((layer, len(wrong), wrong[:1]))


def in_processes(targets):
    """Runs (function, arguments) in processes of their own; all must end with 0."""
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=function, args=arguments) for function, arguments in targets]
    for p in running:
        p.start()
    for p in running:
        p.join()
    assert all(p.exitcode == 0 for p in running), [p.exitcode for p in running]


def test_100000_train_forwards_from_16_clients():
    total = harness.scaled(TOTAL * 8 // 7 + 8, 1000)
    files = harness.folder()
    with harness.Server() as server:
        client = server.api()
        for i, config in enumerate(CONFIGS):
            client.layer_of(f"c{i}", config)
        in_processes([(client_process, (server.port, range(i, total, CLIENTS), os.path.join(files, str(i))))
                      for i in range(CLIENTS)])
        records = []
        for i in range(CLIENTS):
            with open(os.path.join(files, str(i)), "rb") as f:
                records += pickle.load(f)
        assert len(records) == total
        states = [client.state(f"/v1/layers/c{i}") for i in range(LAYERS)]
        counters = [client.ok("GET", f"/v1/layers/c{i}")["counters"] for i in range(LAYERS)]
    trains = [r for r in records if not is_step(r[2])]
    assert harness.SCALE < 1 or len(trains) >= TOTAL, len(trains)
    assert sum(s["num_batches_tracked"] for s in states) == len(trains), "the sum is exactly what was acknowledged"
    assert sum(c["train_forward"] for c in counters) == len(trains)
    assert sum(c["backward"] for c in counters) == total - len(trains)
    orders = []
    for i in range(LAYERS):
        mine = sorted((version, seed, reply) for layer, version, seed, reply in records if layer == i)
        assert [r[0] for r in mine] == list(range(2, len(mine) + 2)), f"versions of layer {i} have a gap or come twice"
        assert states[i]["version"] == len(mine) + 1, (i, states[i]["version"], len(mine))
        assert states[i]["num_batches_tracked"] == sum(not is_step(r[1]) for r in mine), i
        orders.append(mine)
    with harness.Server("--durability", "none") as server:
        client = server.api()
        for i, config in enumerate(CONFIGS):
            client.layer_of(f"c{i}", config)
        results = multiprocessing.get_context("fork").Queue()
        in_processes([(replay_process, (server.port, orders[i], i, results)) for i in range(LAYERS)])
        wrong = [results.get() for _ in range(LAYERS)]
        assert not any(count for _, count, _ in wrong), [w for w in wrong if w[1]]
        for i in range(LAYERS):
            again = client.state(f"/v1/layers/c{i}")
            assert wire.bits(again) == wire.bits(states[i]), f"the state of layer {i} has other bits"


class Threads:
    """Runs functions(stop event) in threads until `stop` is set; the first exception fails the test."""

    def __init__(self, *functions):
        self.stop, self.errors = threading.Event(), []
        self.threads = [threading.Thread(target=self._run, args=(f,)) for f in functions]
        for t in self.threads:
            t.start()

    def _run(self, function):
        try:
            function(self.stop)
        except BaseException as error:  # pylint: disable=broad-except
            self.errors.append(error)
            self.stop.set()

    def finish(self):
        self.stop.set()
        for t in self.threads:
            t.join()
        if self.errors:
            raise self.errors[0]


@harness.rows([("train", "train", False), ("inference", "inference", False), ("inference, cached", "inference", True)])
def test_steps_are_of_the_version_before(mode, cached):
    """Large calls, which take a while, among changes of gamma and of the running statistics: each reply and the state
    are what one after another gives."""
    server = harness.shared()
    client = server.api()
    path = client.layer(f"steps.{mode}.{cached}", num_features=2, dtype="f64")
    rng = random.Random(7)
    x = [[rng.gauss(1, 2), rng.gauss(-1, 3)] for _ in range(20000)]
    dout = [[rng.gauss(0, 1), rng.gauss(0, 1)] for _ in range(20000)]
    step = {"dout": dout, "mode": mode, "step": {"lr": 1e-5}, "activation": "relu", "residual": dout}
    first = client.train(path, x, cache=True)
    step.update({"cache": first["cache"]} if cached else {"x": x})
    if cached:
        del step["activation"], step["residual"]
    start, records = client.state(path), []

    def work(suffix, body):
        def run(stop):
            api = server.api()
            while not stop.is_set():
                records.append((suffix, body, api.ok("POST", path + suffix, body)))
        return run

    threads = Threads(work("/backward", step), work("/backward", step), work("/train-forward", {"x": [[1, 2], [3, 5]]}))
    try:
        harness.wait_until(lambda: sum(r[0] == "/backward" for r in records[:]) >= harness.scaled(20, 6)
                           or threads.errors, 60, "steps")
    finally:
        threads.finish()
    end = client.state(path)
    records.sort(key=lambda r: r[2]["version"])
    assert [r[2]["version"] for r in records] == list(range(3, len(records) + 3))
    client.ok("PUT", path + "/state", start)
    for suffix, body, reply in records:
        again = client.ok("POST", path + suffix, body)
        again["version"] = reply["version"]
        assert wire.bits(again) == wire.bits(reply), f"version {reply['version']}, {suffix}"
    state = client.state(path)
    state["version"] = end["version"]
    assert wire.bits(state) == wire.bits(end)


def test_inference_belongs_to_its_version():
    """A layer with momentum 1 has the mean of its last batch; y of an inference tells which batch that was."""
    server = harness.shared()
    client = server.api()
    path = client.layer("reader", num_features=1, momentum=1, dtype="f64", eps=2.0)
    means, seen = {1: 0.0}, []
    wanted = harness.scaled(300, 20)

    def train(first):
        def run(stop):
            api, k = server.api(), first
            while not stop.is_set():
                got = api.train(path, [[k - 1], [k + 1]])  # unbiased variance 2, so that 1/sqrt(var + eps) is 1/2
                means[got["version"]] = float(k)
                k += 2
        return run

    def infer(stop):
        api = server.api()
        while not stop.is_set():
            got = api.infer(path, [[0]])
            seen.append((got["version"], got["y"][0][0]))

    threads = Threads(train(1), train(2), infer, infer, infer)
    try:
        harness.wait_until(lambda: len({v for v, _ in seen[:] if v in means}) > wanted or threads.errors, 60,
                           "inferences under training")
    finally:
        threads.finish()
    for version, y in seen:
        if version in means and version > 1:
            assert y == -means[version] / 2, (version, y, means[version])


def test_versions_never_go_back():
    """A reader that saw a version, or its own acknowledged change, never sees an older one."""
    server = harness.shared()
    client = server.api()
    path = client.layer("forward", num_features=1)
    lowest = [1]
    rounds = []

    def train(stop):
        api = server.api()
        while not stop.is_set():
            version = api.train(path, [[1], [2]])["version"]
            assert api.version(path) >= version and api.infer(path, [[1]])["version"] >= version, "own changes are read"
            lowest[0] = max(lowest[0], version)
            rounds.append(version)

    def read(stop):
        api, last = server.api(), 0
        while not stop.is_set():
            floor = lowest[0]
            for version in (api.version(path), api.state(path)["version"], api.infer(path, [[1]])["version"]):
                assert version >= max(last, floor), (version, last, floor)
                last = version

    threads = Threads(train, train, read, read)
    try:
        harness.wait_until(lambda: len(rounds) > harness.scaled(1000, 50) or threads.errors, 60, "rounds")
    finally:
        threads.finish()


def test_snapshot_is_one_moment():
    """Two layers are always restored together: no reader sees one of them alone."""
    server = harness.shared()
    client = server.api()

    def both(k):
        state = {"gamma": [k] * 50, "beta": [-k] * 50, "running_mean": [0] * 50, "running_var": [1] * 50,
                 "num_batches_tracked": k,
                 "layer": {"num_features": 50}}
        return {"layers": {"twin.a": state, "twin.b": state}}

    client.ok("PUT", "/v1/snapshot", both(0))
    versions, reads = [], []

    def write(first):
        def run(stop):
            api, k = server.api(), first
            while not stop.is_set():
                got = api.ok("PUT", "/v1/snapshot", both(k))["layers"]
                assert got["twin.a"] == got["twin.b"], got
                versions.append(got["twin.a"])
                k += 2
        return run

    def read(stop):
        api = server.api()
        while not stop.is_set():
            layers = api.ok("GET", "/v1/snapshot?prefix=twin.")["layers"]
            a, b = layers["twin.a"], layers["twin.b"]
            assert a == b, "two moments in one snapshot"
            k = a["num_batches_tracked"]
            assert set(a["gamma"]) == {k} and set(a["beta"]) == {-k}, "half a state"
            reads.append(a["version"])

    threads = Threads(write(1), write(2), read, read)
    try:
        harness.wait_until(lambda: len(set(reads[:])) > harness.scaled(100, 6) and len(versions) > harness.scaled(300, 20)
                           or threads.errors, 60, "snapshots under load")
    finally:
        threads.finish()
    assert sorted(versions) == list(range(2, len(versions) + 2)), "each restore has its own version"


def test_if_match_lets_one_through():
    """Of those who read a tag and then change the layer under If-Match, exactly one succeeds for each version."""
    server = harness.shared()
    client = server.api()
    path = client.layer("contested", num_features=1)
    won, lost = [], []

    def work(stop):
        api = server.api()
        while not stop.is_set():
            tag = api.get(path).headers["etag"]
            reply = api.post(path + "/train-forward", {"x": [[1], [2]]}, {"If-Match": tag})
            assert reply.status in (200, 412), reply
            if reply.status == 200:
                won.append(reply.json["version"])
                assert reply.headers["etag"] != tag
            else:
                lost.append(1)

    threads = Threads(work, work, work, work)
    try:
        harness.wait_until(lambda: len(won) > harness.scaled(500, 30) and lost or threads.errors, 60, "changes")
    finally:
        threads.finish()
    assert sorted(won) == list(range(2, len(won) + 2)) and client.version(path) == len(won) + 1
    assert client.ok("GET", path)["counters"]["train_forward"] == len(won), "the refused ones were not applied"


def test_passes_under_eviction():
    """Passes come and go in a small cache: backward from one that is there gives the bits of backward from x."""
    x = [[[i * j % 7 + 0.25 * k for k in range(8)] for j in range(3)] for i in range(20)]
    dout = [[[i + j - k for k in range(8)] for j in range(3)] for i in range(20)]
    with harness.Server("--durability", "none", "--cache-budget", "64K") as server:
        client = server.api()
        path = client.layer("passes", num_features=3, momentum=0)
        want = client.backward(path, dout, x=x)
        ids, outcomes = [], []

        def make(stop):
            api = server.api()
            while not stop.is_set():
                ids.append(api.train(path, x, cache=True)["cache"])

        def use(stop):
            api = server.api()
            while not stop.is_set():
                for i in ids[-40::7]:
                    reply = api.post(path + "/backward", {"dout": dout, "cache": i})
                    assert reply.status in (200, 410), reply
                    outcomes.append(reply.status)
                    if reply.status == 200:
                        assert all(reply.json[k] == want[k] for k in ("dx", "dgamma", "dbeta"))

        threads = Threads(make, make, use, use)
        try:
            harness.wait_until(lambda: min(outcomes.count(200), outcomes.count(410)) > harness.scaled(200, 10)
                               or threads.errors, 60, "both outcomes")
        finally:
            threads.finish()
        assert len(set(ids)) == len(ids), "ids are unique"
        assert 0 < client.ok("GET", path)["memory"]["cache_bytes"] <= 65536


def test_clients_that_leave():
    """A client that is gone before its reply: the change happened whole or not at all, and nothing stays behind."""
    server = harness.shared()
    client = server.api()
    path = client.layer("leavers", num_features=64)
    row = [i * 0.5 for i in range(64)]
    body = json.dumps({"x": [row] * 2000 + [[0] * 64]}).encode()
    count = harness.scaled(60, 10)
    before = wire.sockets(server.port)
    for _ in range(count):
        with wire.connect(server) as s:
            s.sendall(request("leavers/train-forward", body))
    harness.wait_until(lambda: wire.sockets(server.port) <= before, 60, "the calls have ended")
    state = client.state(path)
    assert 0 <= state["num_batches_tracked"] <= count and state["version"] == 1 + state["num_batches_tracked"], state
    assert client.train(path, [row, row])["version"] == state["version"] + 1


@harness.rows([("small", 2, False), ("large", 2000, True)])
def test_calls_of_clients_that_leave_are_counted(rows, slow):
    """A change that was made is counted once, also where the reset of the connection overtakes the reply."""
    with harness.Server() as server:  # durability sync: time enough to leave before the commit
        client = server.api()
        path = client.layer("leavers", num_features=64)
        body = json.dumps({"x": [[i % 7 for i in range(64)]] * (rows - 1) + [[8] * 64]}).encode()
        for i in range(harness.scaled(60, 20)):
            with wire.connect(server) as s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                s.sendall(request("leavers/train-forward", body))
                end = time.monotonic() + harness.seconds(10)
                while slow and not wire.all_read(server):  # a reset would take the rest of the body with it
                    assert time.monotonic() < end, "the call is not read"
                select.select([], [], [], 0.0001 * (i % 10))

        def counts():
            stats = client.ok("GET", "/v2/models/leavers/stats")["model_stats"][0]
            return (client.version(path) - 1, client.ok("GET", path)["counters"]["train_forward"],
                    stats["inference_count"])

        harness.wait_until(lambda: counts()[0] > 1, 20, "some are made")
        client.train(path, [[1] * 64] * (rows - 1) + [[2] * 64])
        harness.wait_until(lambda: len(set(counts())) == 1, 20, f"changes, counted, in the statistics: {counts()}")


@harness.rows([("by closing", struct.pack("ii", 0, 0)), ("by a reset", struct.pack("ii", 1, 0))])
def test_who_leaves_a_queue_is_not_served(linger):
    """The two workers are held by large calls; those who wait behind them leave, but for one."""
    leavers, held = 10, 4
    with test_wakeup.one_io_thread() as server:
        client = server.api()
        path = client.layer("queue", num_features=64)
        row = b"[" + b",".join(b"%d.25" % (i % 7) for i in range(64)) + b"]"
        large = b'{"x":[' + b",".join([row] * harness.scaled(40_000, 10_000) + [row.replace(b"25", b"75")]) + b"]}"
        small = json.dumps({"x": [[i * 0.5 for i in range(64)]] * 100 + [[0] * 64]}).encode()
        crowd = [wire.connect(server, harness.seconds(60)) for _ in range(held + leavers + 1)]
        calls = [request("queue/train-forward", large)] * held + [request("queue/train-forward", small)] * (leavers + 1)
        for part in (slice(None, -1), slice(-1, None)):  # so that all are complete at the same time
            for s, data in zip(crowd, calls):
                s.sendall(data[part])
            harness.wait_until(lambda: wire.all_read(server), 20, "all calls have arrived")
        for s in crowd[held:-1]:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            s.close()
        for s in crowd[:held] + crowd[-1:]:
            reply = wire.read_reply(s, harness.seconds(60))
            assert reply.status == 200, reply
            s.close()
        assert client.version(path) == 1 + held + 1, "no call was computed for nobody"
        counters = client.ok("GET", path)["counters"]
        assert counters["train_forward"] == held + 1, counters

        def counts():
            stats = client.ok("GET", "/v2/models/queue/stats")["model_stats"][0]
            return stats["inference_count"], stats["inference_stats"]["fail"]["count"]

        harness.wait_until(lambda: counts() == (held + 1, leavers), 10, f"done and failed: {counts()}")


def test_creating_and_deleting_the_same_name():
    """Of those who create at once with different configurations one wins; the others get 200 or 409."""
    server = harness.shared()
    outcomes = []

    def work(features):
        def run(stop):
            api = server.api()
            while not stop.is_set():
                reply = api.put("/v1/layers/fought", {"num_features": features})
                assert reply.status in (200, 201, 409), reply
                outcomes.append(reply.status)
                if reply.status == 201:
                    train = api.post("/v1/layers/fought/train-forward", {"x": [[1] * features, [2] * features]})
                    assert train.status in (200, 404, 422), train
                    assert api.delete("/v1/layers/fought").status in (204, 404)
        return run

    threads = Threads(*(work(f) for f in (1, 1, 2, 3)))
    try:
        harness.wait_until(lambda: all(outcomes.count(s) > harness.scaled(100, 5) for s in (200, 201, 409))
                           or threads.errors, 60, "every outcome")
    finally:
        threads.finish()


def test_a_call_that_outlives_its_layer():
    """Deleting under training: each reply is 200 with a version of a living layer, or 404; a new layer starts at 1."""
    server = harness.shared()
    client = server.api()
    path = client.layer("mayfly", num_features=1)
    done = []

    def train(stop):
        api = server.api()
        while not stop.is_set():
            reply = api.post(path + "/train-forward", {"x": [[1], [2]]})
            assert reply.status in (200, 404), reply
            if reply.status == 200:
                body = reply.json
                assert body["version"] == body["num_batches_tracked"] + 1, body
                done.append(body["version"])

    threads = Threads(train, train, train)
    try:
        for _ in range(harness.scaled(100, 10)):
            seen = len(done)
            harness.wait_until(lambda: len(done) > seen or threads.errors, 20, "training")
            assert client.delete(path).status == 204
            client.layer("mayfly", num_features=1)
    finally:
        threads.finish()
    assert min(done) == 2


harness.main()
