# SPDX-License-Identifier: Apache-2.0
"""The container image, built by deploy/image and run as strictly as it promises: read-only root, no user of note, no
capabilities, its state on a volume that outlives the container.

Needs docker, or podman and root. With CI=true what is missing is installed; elsewhere the tests are skipped and say why.
"""
import atexit
import functools
import json
import os
import resource
import socket
import subprocess

import harness
import wire

IMAGE = "normd-test"
NAME = f"normd-test-{os.getpid()}"
X = [[150, 54, 26], [60, 18, 4], [160, 60, 48], [177, 53, 16], [180, 60, 24], [192, 90, 22], [172, 76, 38], [168, 83, 47],
     [172, 64, 17], [180, 90, 25]]


def run(*command, timeout=60.0, check=True, env=None):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=timeout, check=False, cwd=harness.ROOT, env=env)
    assert not check or done.returncode == 0, f"{' '.join(command)}: status {done.returncode}, {done.stdout}{done.stderr}"
    return done


class Engine:
    """How containers are run here: command line up to the verb, options of `run`, whether ports are published."""

    def __init__(self, command, options, publishes):
        self.command, self.options, self.publishes = command, options, publishes

    def __call__(self, *arguments, **more):
        return run(*self.command, *arguments, **more)

    def works(self):
        """Tries the image with everything that may be refused: limits, runtime, network."""
        network = ["-p", "127.0.0.1::8080"] if self.publishes else ["--network", "host"]
        done = self("run", "--rm", *self.options, *network, IMAGE, "--version", check=False)
        return done.returncode == 0, done.stderr.strip().splitlines()[-1:]

    @classmethod
    def candidates(cls, command):
        yield cls(command, [], True)
        if command[0] == "podman":
            # Where limits may not be raised podman's defaults fail; within the process's own they need not.
            limits = []
            for name, number, most in (("nofile", resource.RLIMIT_NOFILE, 20000), ("nproc", resource.RLIMIT_NPROC, 20000)):
                hard = resource.getrlimit(number)[1]
                value = most if hard == resource.RLIM_INFINITY else min(most, hard)
                limits += ["--ulimit", f"{name}={value}:{value}"]
            yield cls(command, limits, True)
            yield cls([*command, "--runtime", "runc", "--cgroup-manager", "cgroupfs"], limits, False)


@functools.lru_cache(maxsize=None)
def prepared():
    """Builds the image; returns an Engine or the reason why there is none."""
    if os.environ.get("CI") == "true":
        run("deploy/deps", "image", timeout=300, check=False)
    found = run("deploy/image", "--engine", check=False)
    if found.returncode != 0:
        return " ".join(found.stderr.split())
    command = found.stdout.split()
    if command[0] == "buildah":
        return "buildah alone builds images but does not run them as a container; there is no working docker or podman"
    built = run("deploy/image", timeout=540, check=False, env={**os.environ, "IMAGE": IMAGE})
    if built.returncode == 3:
        return " ".join(built.stderr.split())
    assert built.returncode == 0, f"deploy/image: status {built.returncode}, {built.stdout}{built.stderr}"
    why = []
    for engine in Engine.candidates(command):
        works, why = engine.works()
        if works:
            return engine
    return f"{command[0]} cannot run a container here: {' '.join(why)}"


def engine_or_skip():
    engine = prepared()
    return engine if isinstance(engine, Engine) else harness.skip(engine)


class Container:
    """One running container of the image on the volume NAME."""

    def __init__(self, engine, name):
        self.engine, self.name = engine, name
        options = [*engine.options, "--read-only", "--user", "65532", "--cap-drop", "all", "--security-opt",
                   "no-new-privileges", "-v", f"{NAME}:/data"]
        atexit.register(engine, "rm", "-f", name, check=False)
        if engine.publishes:
            engine("run", "-d", "--name", name, *options, "-p", "127.0.0.1::8080", IMAGE)
            address = engine("port", name, "8080/tcp").stdout.split()[0]
        else:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{probe.getsockname()[1]}"
            engine("run", "-d", "--name", name, *options, "--network", "host", "-e", f"NORMD_LISTEN={address}", IMAGE)
        self.api = wire.Client("127.0.0.1", int(address.rsplit(":", 1)[1]), 60)
        harness.wait_until(self.ready, 30, f"{name} ready")

    def ready(self):
        if self.state("Running") != "true":
            logs = self.engine("logs", self.name, check=False)
            raise AssertionError(f"the container ended: {logs.stdout}{logs.stderr}")
        try:
            return self.api.get("/readyz").status == 200
        except OSError:
            return False

    def state(self, field):
        return self.engine("inspect", "--format", "{{.State.%s}}" % field, self.name).stdout.strip()

    def inside(self, *command, env=()):
        """Exit status and stdout of a command in the container."""
        done = self.engine("exec", *(word for pair in env for word in ("-e", pair)), self.name, *command, check=False)
        return done.returncode, done.stdout.strip()

    def stop(self):
        """Ends it the polite way and removes it; the volume stays."""
        self.api.close()
        self.engine("stop", "-t", "30", self.name)
        assert self.state("ExitCode") == "0", self.state("ExitCode")
        self.engine("rm", self.name)


def test_image_says_how_it_is_run():
    engine = engine_or_skip()
    image = json.loads(engine("image", "inspect", IMAGE).stdout)[0]
    config = image["Config"]
    assert config["User"].split(":")[0] == "65532", config
    assert config["Entrypoint"] == ["normd"], config
    assert "/data" in config["Volumes"] and "8080/tcp" in config["ExposedPorts"], config
    assert {"NORMD_LISTEN=0.0.0.0:8080", "NORMD_DATA=/data"} <= set(config["Env"]), config
    assert config["StopSignal"] == "SIGTERM", config
    health = config.get("Healthcheck") or image["Healthcheck"]  # docker, podman
    assert health["Test"] == ["CMD", "normd", "healthcheck"], health


def test_state_survives_the_container():
    engine = engine_or_skip()
    atexit.register(engine, "volume", "rm", "-f", NAME, check=False)
    first = Container(engine, NAME + "-a")
    path = first.api.layer("health")
    reply = first.api.train(path, X)
    assert reply["version"] == 2 and reply["updated"] is True, reply
    assert [round(v, 6) for v in reply["batch_mean"]] == [161.1, 64.8, 26.7], reply
    before = first.api.get(path + "/state")
    assert before.status == 200, before

    assert first.inside("normd", "healthcheck")[0] == 0
    assert first.inside("normd", "healthcheck", env=["NORMD_LISTEN=127.0.0.1:1"])[0] != 0, "nothing listens on port 1"
    assert first.inside("id", "-u") == (0, "65532")
    assert first.inside("touch", "/written")[0] != 0, "the root is not read-only"
    assert first.inside("touch", "/data/written")[0] == 0, "/data is not writable"
    first.stop()

    second = Container(engine, NAME + "-b")
    after = second.api.get(path + "/state")
    assert after.status == 200 and after.body == before.body, (before, after)
    assert second.api.train(path, X)["version"] == 3
    second.stop()


harness.main()
