# SPDX-License-Identifier: Apache-2.0
"""Client threads that change layers of a server which may be killed at any moment, and the account of what was
acknowledged. Every value carries a marker, so that the state of a layer tells which call it comes from:

- `m0`..: a layer with momentum 1 takes batches of mean k and unbiased variance 2k*k; its running statistics are then
  those of its last call, its version is the number of calls + 1, and num_batches_tracked the number of calls;
- `s`: a layer takes train-forwards and SGD steps that add exactly 1 to every beta;
- `r0`..`r2`: PUT of a snapshot gives all three the gamma k;
- `d.k`: layers are created and deleted.
"""
import http.client
import threading


MARKED = ("m0", "m1", "m2", "m3")
RESTORED = ("r0", "r1", "r2")
STEP = {"x": [[0.0, 1.0], [1.0, 3.0]], "dout": [[-1.0, -0.5], [0.0, -0.5]], "mode": "inference", "step": {"lr": 1}}


def restored(k):
    state = {"gamma": [k, k], "beta": [0, 0], "running_mean": [0, 0], "running_var": [1, 1], "num_batches_tracked": k,
             "layer": {"num_features": 2}}
    return {"layers": {name: state for name in RESTORED}}


class Account:
    """What clients know. `sent` and `acked` count calls; what is between is in flight and may have happened."""

    def __init__(self, server):
        client = server.api()
        for name in MARKED:
            client.layer(name, num_features=2, momentum=1)
        client.layer("s", num_features=2)
        client.ok("PUT", "/v1/snapshot", restored(0))
        self.lock = threading.Lock()
        self.marker = 0
        self.sent = {name: 0 for name in (*MARKED, "s.train", "s.step")}
        self.acked = dict(self.sent)
        self.last = {name: (1, None) for name in MARKED}  # largest acknowledged version and its marker
        self.flying = {}  # thread -> marker of a restore in flight
        self.restored = 0
        self.created, self.deleted, self.unknown = set(), set(), set()
        self.calls = 0

    def next_marker(self):
        with self.lock:
            self.marker += 1
            return self.marker

    def start(self, key):
        with self.lock:
            self.sent[key] += 1

    def done(self, key):
        with self.lock:
            self.acked[key] += 1
            self.calls += 1

    # ---- the calls

    def train(self, client, name):
        k = self.next_marker()
        self.start(name)
        version = client.train("/v1/layers/" + name, [[0, k], [2 * k, k]])["version"]
        self.done(name)
        with self.lock:
            if version > self.last[name][0]:
                self.last[name] = (version, k)

    def mixed(self, client, turn):
        key = "s.train" if turn % 3 else "s.step"
        self.start(key)
        if turn % 3:
            client.train("/v1/layers/s", [[1, 2], [3, 5]])
        else:
            client.ok("POST", "/v1/layers/s/backward", STEP)
        self.done(key)

    def restore(self, client):
        k = self.next_marker()
        with self.lock:
            self.flying[k] = True
        client.ok("PUT", "/v1/snapshot", restored(k))
        with self.lock:
            del self.flying[k]
            self.restored = max(self.restored, k)
            self.calls += 1

    def come_and_go(self, client):
        name = f"d.{self.next_marker()}"
        path = "/v1/layers/" + name
        with self.lock:
            self.unknown.add(name)
        client.layer(name, num_features=1)
        with self.lock:
            self.unknown.discard(name)
            self.created.add(name)
            victims = sorted(self.created, key=lambda n: int(n[2:]))[:-3]
            self.created -= set(victims)
            self.unknown |= set(victims)
            self.calls += 1
        for victim in victims:
            assert client.delete("/v1/layers/" + victim).status == 204
            with self.lock:
                self.unknown.discard(victim)
                self.deleted.add(victim)
                self.calls += 1
        assert client.get(path).status == 200

    # ---- after a restart

    def check(self, client):
        """Compares the server with the account, and takes over what turned out to have happened."""
        for name in MARKED:
            state = client.state("/v1/layers/" + name)
            version, batches = state["version"], state["num_batches_tracked"]
            low, high = self.acked[name], self.sent[name]
            assert batches == version - 1, (name, state)
            assert low <= batches <= high, f"{name}: {batches} batches, {low} acknowledged, {high} sent"
            k = state["running_mean"][1]
            if batches:
                assert state["running_mean"] == [k, k] and state["running_var"] == [2 * k * k,
                                                                                    0], f"half of a change: {state}"
            acked_version, marker = self.last[name]
            assert version >= acked_version, (name, version, acked_version)
            if version == acked_version and marker is not None:
                assert k == marker, (name, k, marker)
            self.sent[name] = self.acked[name] = batches
            self.last[name] = (version, k)
        state = client.state("/v1/layers/s")
        steps, batches = state["beta"][0], state["num_batches_tracked"]
        assert state["beta"] == [steps, steps] and state["version"] == 1 + steps + batches, state
        for key, count in (("s.step", steps), ("s.train", batches)):
            assert self.acked[key] <= count <= self.sent[key], (key, count, self.acked[key], self.sent[key])
            self.sent[key] = self.acked[key] = int(count)
        layers = client.ok("GET", "/v1/snapshot?prefix=r")["layers"]
        marks = {(tuple(s["gamma"]), s["num_batches_tracked"], s["version"]) for s in layers.values()}
        assert len(layers) == 3 and len(marks) == 1, f"half of a restore: {layers}"
        k = marks.pop()[1]
        assert k == self.restored or k in self.flying, (k, self.restored, self.flying)
        self.restored, self.flying = k, {}
        there = {layer["name"] for layer in client.ok("GET", "/v1/layers?prefix=d.&limit=1000")["layers"]}
        assert not there & self.deleted, f"deleted layers came back: {there & self.deleted}"
        assert self.created <= there, f"acknowledged layers are gone: {self.created - there}"
        assert there <= self.created | self.unknown, there
        self.created, self.unknown = there, set()


class Crowd:
    """Threads that call until the server is gone. A refusal or a wrong reply while it lives is kept in `errors`."""

    def __init__(self, server, account):
        self.server, self.account = server, account
        self.stopping = threading.Event()
        self.errors = []
        jobs = [lambda c, i, n=name: account.train(c, n) for name in (*MARKED, "m0", "m1")]
        jobs += [lambda c, i: account.mixed(c, i), lambda c, i: account.mixed(c, i), lambda c, i: account.restore(c),
                 lambda c, i: account.come_and_go(c)]
        self.threads = [threading.Thread(target=self.run, args=(job,)) for job in jobs]
        for thread in self.threads:
            thread.start()

    def run(self, job):
        client, turn = self.server.api(), 0
        while not self.stopping.is_set():
            try:
                job(client, turn)
            except (OSError, http.client.HTTPException):
                return  # killed, or shutting down
            except AssertionError as error:
                if '"draining"' not in str(error):
                    self.errors.append(error)
                return
            except Exception as error:  # pylint: disable=broad-except
                self.errors.append(error)
                return
            turn += 1
        client.close()

    def join(self):
        for thread in self.threads:
            thread.join()
        if self.errors:
            raise self.errors[0]
