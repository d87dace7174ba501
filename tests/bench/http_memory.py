# SPDX-License-Identifier: Apache-2.0
"""The most memory that one call takes, beyond what the server had before: a new server for each."""
import json
import os
import re
from collections import namedtuple

import http_forms
from http_contests import prepare
from http_servers import read_proc, start_normd
from http_settings import ONLY, Skipped

FEATURES = 1024
FIRST_ROWS = 64  # of a call before, which starts threads and pages in code: the server keeps those
# Half as many rows for backward, whose body has two tensors.
Call = namedtuple("Call", "call rows inputs output forms")
CALLS = (
    Call("inference", 4096, ("x",), "y", ("json", "base64", "npy", "safetensors", "oip")),
    Call("train-forward", 4096, ("x",), "y", ("json", "base64", "npy", "safetensors", "oip")),
    Call("backward", 2048, ("dout", "x"), "dx", ("json", "base64", "safetensors", "oip")),
)


def status_bytes(server, field):
    return 1024 * int(re.search(rf"^{field}:\s+(\d+)", read_proc(server.process.pid, "status"), re.MULTILINE).group(1))


def reset_peak(server):
    """VmHWM becomes what it is now."""
    with open(f"/proc/{server.process.pid}/clear_refs", "w", encoding="ascii") as f:
        f.write("5")


def one_call(server, call, form, rows):
    x = http_forms.tensor(rows, FEATURES)
    body, headers = http_forms.encode(form, call.call, {name: x for name in call.inputs})
    path = form.path.format(layer="bench0", call=call.call)
    server.settle()
    reset_peak(server)
    before = status_bytes(server, "VmRSS")
    reply = server.call("POST", path, body, headers)
    peak = status_bytes(server, "VmHWM") - before
    if call.output == "y":
        http_forms.check(form.title, form.decode(reply, "y"), http_forms.normalized(
            call.call, x, json.loads(server.call("GET", "/v1/layers/bench0/state").body)))
    tensors = x.nbytes * (len(call.inputs) + 1)
    of = len(body) if form.binary else len(body) + tensors + len(reply.body)
    return {"body_bytes": len(body), "tensor_bytes": tensors, "reply_bytes": len(reply.body), "before_bytes": before,
            "peak_bytes": peak, "multiple": peak / of, "binary": form.binary}


def measure(folder, call, form):
    row = {"call": f"{call.call} {call.rows}x{FEATURES}", "form": form.name, "title": form.title}
    server = start_normd(folder)
    try:
        prepare(server, FEATURES, 1)
        one_call(server, call, form, FIRST_ROWS)
        row.update(one_call(server, call, form, call.rows))
    except Skipped as why:
        row["skipped"] = str(why)
    finally:
        server.stop()
    return row


def run_memory(folder):
    for call in CALLS:
        for name in call.forms:
            if ONLY.search(f"memory {call.call} {name}"):
                yield measure(os.path.join(folder, f"memory-{call.call}-{name}"), call, http_forms.FORMS[name])
