#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Includes, symbols and headers keep to their layers. Prints TAP; run by `make check-layers` after a build.

kernels/ < proto/ < server/ state < server/ service < server/main.c: a file includes only from its own layer and from
lower ones, and each library of others stays behind the files that wrap it. BUILD names the build folder, CC the
compiler.
"""
import fnmatch
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = os.environ.get("BUILD", "build")
CC = os.environ.get("CC", "cc").split()
LAYERS = ("kernels", "proto", "server")

# header -> the only files that may include it
OWNERS = {
    "jansson.h": "proto/*",
    "libpq-fe.h": "server/store_postgres.c",
    "microhttpd.h": "server/http*",
    "sqlite3.h": "server/store_sqlite.c",
    "uv.h": "server/*",
}
# archive -> symbols that it must not need
FOREIGN = {
    "kernels": ("json_", "MHD_", "uv_", "sqlite3_", "PQ"),
    "proto": ("MHD_", "uv_", "sqlite3_", "PQ"),
}
KERNEL_EXPORTS = ("bn_", "pool_", "cpu_", "tier_", "tiers_", "scalar_", "avx2_", "avx512_", "neon_")
PROTO_EXPORTS = ("ahead_", "base64_", "binary_", "budget_", "buffer_", "codec", "field_", "json_", "msg_", "npy_",
                 "number_", "oip_", "proto_", "rest_", "safetensors_", "scan_", "spare_", "tensor_", "wire_")
# server/ has two layers in one folder, and main.c above both. Every other file is service.
STATE = ("server/layer", "server/registry", "server/restore", "server/store*", "server/writer")
# What state never knows, besides the HTTP library: how messages are written.
NOT_FOR_STATE = ("proto/codec", "proto/binary", "proto/json*", "proto/npy*", "proto/oip*", "proto/safetensors*", "proto/scan*", "proto/number*", "proto/base64*")
# Anyone in server/ may include these; they include nothing of ours but their own header.
LEAVES = ("server/address", "server/config", "server/log", "server/metrics", "server/taken",
          "server/version")

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.MULTILINE)
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)


def sources():
    return [p for layer in LAYERS for p in sorted((ROOT / layer).iterdir()) if p.suffix in (".c", ".h", ".inc")]


def relative(path):
    return path.relative_to(ROOT).as_posix()


def includes():
    """(file, header as a path from the root where it is ours, else as written) of every #include."""
    for path in sources():
        for _, name in INCLUDE.findall(path.read_text()):
            near = [p for p in (path.parent / name, ROOT / name) if p.is_file()]
            yield relative(path), relative(near[0].resolve()) if near else name


def symbols(archive, *flags):
    """Names that `nm` prints for build/libnormd-{archive}.a."""
    path = ROOT / BUILD / f"libnormd-{archive}.a"
    out = subprocess.run(["nm", "-P", *flags, str(path)], check=True, capture_output=True, text=True).stdout
    return sorted({line.split()[0] for line in out.splitlines() if line and not line.endswith(":")})


def libraries_stay_behind_their_wrappers():
    return [f"{name} includes {header}, only {OWNERS[header]} may"
            for name, header in includes() if header in OWNERS and not fnmatch.fnmatch(name, OWNERS[header])]


def includes_go_downwards():
    bad = []
    for name, header in includes():
        folder, other = name.split("/")[0], header.split("/")[0]
        if other in LAYERS and "/" in header and LAYERS.index(other) > LAYERS.index(folder):
            bad.append(f"{name} includes {header}")
        if other in ("tests", "clients"):
            bad.append(f"{name} includes {header}")
    return bad


def matches(path, patterns):
    return any(fnmatch.fnmatch(path.rsplit(".", 1)[0], pattern) for pattern in patterns)


def server_layer(path):
    """0: a leaf, 1: state, 2: service, 3: main.c."""
    if matches(path, LEAVES):
        return 0
    return 1 if matches(path, STATE) else 3 if path == "server/main.c" else 2


def server_keeps_state_below_service():
    bad = [f"{name} includes {header}" for name, header in includes()
           if name.startswith("server/") and header.startswith("server/") and server_layer(header) > server_layer(name)]
    return bad + [f"{name} includes {header}" for name, header in includes()
                  if name.startswith("server/") and server_layer(name) == 1 and matches(header, NOT_FOR_STATE)]


def every_layer_of_server_is_found():
    """A renamed file must not leave its layer in silence."""
    paths = [relative(path) for path in sources() if path.parent.name == "server"]
    return [f"no file is {pattern}" for pattern in STATE if not any(matches(path, (pattern,)) for path in paths)]


def proto_sees_only_the_public_header_of_kernels():
    return [f"{name} includes {header}" for name, header in includes()
            if name.startswith("proto/") and header.startswith("kernels/") and header != "kernels/bn.h"]


def leaves_include_nothing_of_ours():
    return [f"{name} includes {header}" for name, header in includes()
            if name.rsplit(".", 1)[0] in LEAVES and header.split("/")[0] in LAYERS and "/" in header
            and header.rsplit(".", 1)[0] != name.rsplit(".", 1)[0]]


def json_t_stays_in_proto():
    return [f"{relative(path)} shows json_t" for path in sources()
            if path.suffix == ".h" and path.parent.name != "proto"
            and re.search(r"\bjson_t\b", COMMENT.sub("", path.read_text()))]


def archives_need_nothing_of_higher_layers():
    return [f"libnormd-{archive}.a needs {symbol}" for archive, prefixes in FOREIGN.items()
            for symbol in symbols(archive, "-u") if symbol.startswith(prefixes)]


def exports_have_their_prefix():
    return [f"libnormd-{archive}.a exports {name}"
            for archive, prefixes in (("kernels", KERNEL_EXPORTS), ("proto", PROTO_EXPORTS))
            for name in symbols(archive, "-g", "--defined-only") if not name.startswith(prefixes)]


def header_compiles_alone(path):
    run = subprocess.run([*CC, f"@{BUILD}/cflags", "-fsyntax-only", "-Werror", "-include", relative(path), "-x", "c",
                          os.devnull], cwd=ROOT, capture_output=True, text=True, check=False)
    return run.stderr.splitlines() if run.returncode else []


def generated_table_is_what_its_script_makes():
    run = subprocess.run([sys.executable, "proto/powers.py", "proto/powers.c"], cwd=ROOT, capture_output=True, text=True,
                         check=False)
    return (run.stdout + run.stderr).splitlines() or ["it differs"] if run.returncode else []


def main():
    checks = [(check.__name__.replace("_", " "), check) for check in (
        libraries_stay_behind_their_wrappers, includes_go_downwards, server_keeps_state_below_service,
        every_layer_of_server_is_found, proto_sees_only_the_public_header_of_kernels, leaves_include_nothing_of_ours,
        json_t_stays_in_proto, archives_need_nothing_of_higher_layers, exports_have_their_prefix,
        generated_table_is_what_its_script_makes)]
    checks += [(f"{relative(p)} compiles alone", lambda p=p: header_compiles_alone(p))
               for p in sources() if p.suffix == ".h"]
    print(f"1..{len(checks)}")
    failed = 0
    for number, (name, check) in enumerate(checks, 1):
        findings = check()
        print(f"{'not ok' if findings else 'ok'} {number} - {name}")
        for finding in findings:
            print(f"# {finding}")
        failed += bool(findings)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
