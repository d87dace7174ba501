# SPDX-License-Identifier: Apache-2.0
"""State survives: kill -9 under load, SIGTERM in every durability mode, restart with many layers; a data folder that is
in use, damaged, newer or full."""
import os
import signal
import sqlite3
import struct
import subprocess
import time

import harness
import load
import wire

X = [[1, 2, 3], [4, 5, 7]]


def test_kill_9_under_load():
    """At scale 1: 100 kills. No acknowledged change is lost, none is there in half, none comes back."""
    data, kills = harness.folder(), harness.scaled(100, 3)
    account, busiest = None, 0
    for i in range(kills):
        server = harness.Server(data=data)
        if account is None:
            account = load.Account(server)
        else:
            account.check(server.api())
        before = account.calls
        crowd = load.Crowd(server, account)
        target = before + 5 + i * 7 % 90  # kill at another point of progress each time
        harness.wait_until(lambda: account.calls >= target or crowd.errors, 30, "progress under load")
        server.kill()
        crowd.join()
        busiest = max(busiest, account.calls - before)
    with harness.Server(data=data) as server:
        account.check(server.api())
    assert account.calls > 20 * kills and len(account.deleted) >= kills // 10, (account.calls, busiest)


def test_kill_9_in_mode_interval():
    """What is lost is at most the last moments: a change that is older than the interval is there."""
    data = harness.folder()
    server = harness.Server("--durability", "interval", data=data)
    client = server.api()
    path = client.layer("old")
    client.train(path, X)
    time.sleep(harness.seconds(0.5))  # five intervals: the promise is about time, there is nothing else to wait for
    server.kill()
    with harness.Server(data=data) as server:
        assert server.api().state(path)["num_batches_tracked"] == 1


@harness.rows([("interval", "interval"), ("none", "none")])
def test_tag_of_what_was_lost_names_nothing(mode):
    """A crash takes the version back; the tag of the lost state must not name the one that gets its version next."""
    data = harness.folder()
    server = harness.Server("--durability", mode, data=data)
    path = server.api().layer("lost")
    server.stop()
    server = harness.Server("--durability", mode, data=data)
    reply = server.api().post(path + "/train-forward", {"x": X})
    tag, version = reply.headers["etag"], reply.json["version"]
    server.kill()  # most likely before it was saved; where not, the version stays as it is
    with harness.Server("--durability", mode, data=data) as server:
        client = server.api()
        while client.version(path) < version:
            client.train(path, [[7, 8, 9], [1, 2, 3]])
        wire.problem(client.patch(path, {"eps": 1}, {"If-Match": tag}), 412, "precondition_failed")
        assert client.get(path, {"If-None-Match": tag}).status == 200
        assert client.version(path) == version


@harness.rows([("sync", "sync"), ("interval", "interval"), ("none", "none")])
def test_sigterm_loses_nothing(mode):
    data = harness.folder()
    server = harness.Server("--durability", mode, data=data)
    account = load.Account(server)
    crowd = load.Crowd(server, account)
    harness.wait_until(lambda: account.calls >= harness.scaled(1000, 50) or crowd.errors, 60, "progress under load")
    crowd.stopping.set()
    crowd.join()
    snapshot = server.api().get("/v1/snapshot").body
    etag = server.api().get("/v1/layers/m0").headers["etag"]
    server.stop()
    with harness.Server("--durability", mode, data=data) as server:
        account.check(server.api())
        assert server.api().get("/v1/snapshot").body == snapshot, "the same bytes"
        again = server.api().get("/v1/layers/m0").headers["etag"]
        assert (again == etag) == (mode == "sync"), "the tag survives where nothing can be lost"


def test_sigterm_under_load():
    """Calls run while the server drains: what was acknowledged is there, what was refused or cut may be missing."""
    data, account = harness.folder(), None
    for _ in range(harness.scaled(10, 2)):
        server = harness.Server(data=data)
        if account is None:
            account = load.Account(server)
        else:
            account.check(server.api())
        before = account.calls
        crowd = load.Crowd(server, account)
        harness.wait_until(lambda: account.calls >= before + 50 or crowd.errors, 30, "progress under load")
        start = time.monotonic()
        server.stop()
        assert time.monotonic() - start < harness.seconds(5), "without waiting for the time-out"
        crowd.join()
    with harness.Server(data=data) as server:
        account.check(server.api())


def test_everything_survives():
    """Configuration of every kind and hard doubles, over two restarts."""
    data = harness.folder()
    values = [5e-324, 1.7976931348623157e308, -0.0, 1 / 3]
    with harness.Server(data=data) as server:
        client = server.api()
        for i, config in enumerate(({"convention": "paper"}, {"affine": False}, {"track_running_stats": False},
                                    {"dtype": "f64"},
                                    {"init": "first-batch", "channel_axis": -1}, {"nonfinite": "propagate",
                                                                                  "single_value": "beta"},
                                    {"eps": 0.1 + 0.2, "momentum": 1 / 3})):
            client.layer(f"kind.{i}", num_features=4, **config)
        client.ok("PATCH", "/v1/layers/kind.3/state", {"gamma": values, "beta": values[::-1]})
        client.ok("PATCH", "/v1/layers/kind.5/state", {"running_mean": ["NaN", "Infinity", "-Infinity", -0.0]})
        client.ok("PATCH", "/v1/layers/kind.6", {"momentum": None})
        layers, snapshot = client.ok("GET", "/v1/layers"), client.get("/v1/snapshot").body
    for _ in range(2):
        with harness.Server(data=data) as server:
            client = server.api()
            assert client.get("/v1/snapshot").body == snapshot
            for old, new in zip(layers["layers"], client.ok("GET", "/v1/layers")["layers"]):
                assert (old["name"], old["layer"], old["version"]) == (new["name"], new["layer"], new["version"])
                assert set(new["counters"].values()) == {0}, "counters start at 0 with the process"


def test_cache_is_gone_after_a_restart():
    data = harness.folder()
    with harness.Server(data=data) as server:
        client = server.api()
        path = client.layer("pass")
        kept = client.train(path, X, cache=True)["cache"]
    with harness.Server(data=data) as server:
        client = server.api()
        client.train(path, X, cache=True)
        wire.problem(client.post(path + "/backward", {"dout": X, "cache": kept}), 410, "cache_gone")


def test_10000_layers_are_ready_in_2_seconds():
    data, count = harness.folder(), harness.scaled(10000, 500)
    state = {"gamma": [1.5] * 8, "beta": [0.1] * 8, "running_mean": [1 / 3] * 8, "running_var": [2 / 3] * 8,
             "num_batches_tracked": 9,
             "layer": {"num_features": 8}}
    with harness.Server(data=data) as server:
        reply = server.api().put("/v1/snapshot", {"layers": {f"layer.{i}": state for i in range(count)}})
        assert reply.status == 200 and len(reply.json["layers"]) == count
    for end in ("after SIGTERM", "after SIGKILL"):
        server = harness.Server(data=data)
        assert len(server.api().ok("GET", "/v1/snapshot")["layers"]) == count
        server.kill()
        took = server.start_seconds
        assert took < harness.seconds(2), f"{end}: ready after {took:.2f} s with {count} layers"


# ---- refusing to start

def refuses(data, *words):
    """The server ends by itself, not with 0, and says why on stderr in one line that has all the words."""
    start = time.monotonic()
    status, out, err = harness.run_binary("--listen", "127.0.0.1:0", "--data", data)
    assert status not in (0, 2) and status > 0, (status, err)
    assert "ready" not in out, out
    assert time.monotonic() - start < harness.seconds(5), "quickly"
    lines = [line for line in err.splitlines() if all(word in line for word in words)]
    assert lines, f"no line with {words}: {err!r}"
    return err


def filled(layers=3):
    """A data folder with a few layers in it, the path of the database, and the snapshot."""
    data = harness.folder()
    with harness.Server(data=data) as server:
        client = server.api()
        for i in range(layers):
            path = client.layer(f"layer.{i}", num_features=64)
            client.train(path, [[i + j * 0.5 + 1 for j in range(64)], [j * 0.25 - i for j in range(64)]])
        snapshot = client.get("/v1/snapshot").body
    return data, database(data), snapshot


def database(data):
    found = [f for f in sorted(os.listdir(data)) if is_database(os.path.join(data, f))]
    assert len(found) == 1, os.listdir(data)
    return os.path.join(data, found[0])


def is_database(path):
    with open(path, "rb") as f:
        return f.read(16) == b"SQLite format 3\0"


def test_second_server_on_the_same_folder():
    with harness.Server() as server:
        client = server.api()
        path = client.layer("mine")
        err = refuses(server.data, server.data)
        assert "use" in err or "lock" in err, err
        assert client.train(path, X)["version"] == 2, "the first goes on"
    with harness.Server(data=server.data) as again:
        assert again.api().version(path) == 2


def test_garbage_database():
    data, path, _ = filled()
    size = os.path.getsize(path)
    with open(path, "wb") as f:
        f.write(b"this is not a database, and it is long enough to be one. " * (size // 50))
    refuses(data, os.path.basename(path))
    with open(path, "rb") as f:
        assert f.read(4) == b"this", "it is left alone"


def test_truncated_database():
    data, path, _ = filled()
    os.truncate(path, os.path.getsize(path) // 2 // 4096 * 4096)
    refuses(data, os.path.basename(path))


def test_newer_schema():
    data, path, snapshot = filled()
    db = sqlite3.connect(path)
    version = db.execute("PRAGMA user_version").fetchone()[0]
    assert version >= 1, version
    db.execute(f"PRAGMA user_version = {version + 1}")
    db.close()
    refuses(data, os.path.basename(path), "newer")
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {version}")
    db.close()
    with harness.Server(data=data) as server:
        assert server.api().get("/v1/snapshot").body == snapshot, "refusing damaged nothing"


def test_foreign_database():
    data = harness.folder()
    path = os.path.join(data, os.path.basename(filled(1)[1]))
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE other (a)")
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()
    refuses(data, os.path.basename(path))


def test_flipped_bytes_in_a_state():
    """One flipped bit anywhere in a stored state is found at start-up."""
    data, path, snapshot = filled()
    with open(path, "rb") as f:
        raw = f.read()
    gamma = struct.pack("<64d", *[1.0] * 64)  # every layer's gamma, 512 bytes, stands in the file as it is
    at = raw.find(gamma)
    assert at > 0, "the state is stored as little-endian doubles"
    for offset in (0, 7, 300, 511):
        damaged = bytearray(raw)
        damaged[at + offset] ^= 0x10
        with open(path, "wb") as f:
            f.write(damaged)
        refuses(data, os.path.basename(path))
    with open(path, "wb") as f:
        f.write(raw)
    with harness.Server(data=data) as server:
        assert server.api().get("/v1/snapshot").body == snapshot


def test_folder_that_cannot_be_made():
    blocker = os.path.join(harness.folder(), "file")
    with open(blocker, "w", encoding="ascii") as f:
        f.write("x")
    status, _, err = harness.run_binary("--listen", "127.0.0.1:0", "--data", os.path.join(blocker, "data"))
    assert status > 0 and "data" in err, (status, err)


def test_folder_is_made():
    data = os.path.join(harness.folder(), "new")
    with harness.Server(data=data) as server:
        server.api().layer("a")
    assert os.path.isdir(data) and not os.stat(data).st_mode & 0o007, "not for everyone"


# ---- no space

def namespace():
    """A command that gives a process a mount namespace of its own, or None."""
    for command in (["unshare", "-m"], ["unshare", "-rm"]):
        try:
            script = "mount -t tmpfs -o size=1m tmpfs /mnt"
            if subprocess.run([*command, "sh", "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              check=False).returncode == 0:
                return command
        except FileNotFoundError:
            pass
    return None


def test_no_space_left():
    command = namespace()
    if command is None:
        harness.skip("no right to mount a small tmpfs (needs root or user namespaces)")
    data = harness.folder()
    script = 'mount -t tmpfs -o size=6m tmpfs "$0" && head -c 1000000 /dev/zero >"$0/ballast" && exec "$@"'
    server = harness.Server(data=data, prefix=[*command, "sh", "-c", script, data])
    client = server.api()
    path = client.layer("kept")
    client.train(path, X)
    full, made = None, 0
    for made in range(200):
        reply = client.put(f"/v1/layers/fill.{made}", {"num_features": 10000})
        if reply.status != 201:
            full = reply
            break
    wire.problem(full, 507, "store_full")
    wire.problem(client.get(f"/v1/layers/fill.{made}"), 404)
    assert client.state(path)["num_batches_tracked"] == 1 and client.infer(path, X)["version"] == 2, "reads go on"
    assert client.get("/livez").status == 200
    before = client.get("/v1/snapshot").body
    inside = f"/proc/{server.pid}/root{data}/ballast"
    recovered = os.path.exists(inside)
    if recovered:
        os.remove(inside)
        assert client.train(path, X)["version"] == 3, "there is space again"
        before = client.get("/v1/snapshot").body
    assert server.running()
    assert client.get("/v1/snapshot").body == before
    server.signal(signal.SIGTERM)
    assert server.wait() == 0, server.stderr()
    assert recovered or made > 0


harness.main()
