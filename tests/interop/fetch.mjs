// SPDX-License-Identifier: Apache-2.0
//
// The API by Node's own fetch, as a program would use it: node fetch.mjs URL prints TAP.
import assert from "node:assert/strict";

const base = process.argv[2];
const PEOPLE = [[150, 54, 26], [60, 18, 4], [160, 60, 48], [177, 53, 16], [180, 60, 24], [192, 90, 22], [172, 76, 38],
    [168, 83, 47], [172, 64, 17], [180, 90, 25]];

function near(got, want, tolerance = 1e-6) {
    assert.equal(got.length, want.length);
    const close = want.every((w, i) => Math.abs(got[i] - w) <= tolerance * Math.max(1, Math.abs(w)));
    assert.ok(close, `${got} is not ${want}`);
}

// A reply that nobody reads to its end would keep its connection, and the process with it.
async function whole(reply) {
    const body = await reply.arrayBuffer();
    return {status: reply.status, headers: reply.headers, body, json: () => JSON.parse(new TextDecoder().decode(body))};
}

async function call(method, path, body, headers = {}) {
    const json = body !== undefined && !(body instanceof Uint8Array);
    return whole(await fetch(base + path, {
        method,
        headers: {...(json ? {"Content-Type": "application/json"} : {}), ...headers},
        body: json ? JSON.stringify(body) : body,
    }));
}

async function ok(method, path, body, headers) {
    const reply = await call(method, path, body, headers);
    assert.equal(reply.status, 200, `${method} ${path}`);
    return reply.json();
}

async function layer(name, config = {}) {
    const reply = await call("PUT", `/v1/layers/${name}`, {num_features: 3, ...config});
    assert.equal(reply.status, 201);
    return `/v1/layers/${name}`;
}

// A Float32Array as an .npy file of version 1.
function npy(values, shape) {
    const text = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape.join(", ")}), }`;
    const head = text.padEnd(Math.ceil((text.length + 11) / 64) * 64 - 11) + "\n";
    const bytes = new Uint8Array(10 + head.length + values.byteLength);
    bytes.set([0x93, ...new TextEncoder().encode("NUMPY"), 1, 0, head.length & 255, head.length >> 8]);
    bytes.set(new TextEncoder().encode(head), 10);
    bytes.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), 10 + head.length);
    return bytes;
}

function readNpy(buffer) {
    const start = 10 + new DataView(buffer).getUint16(8, true);
    const head = new TextDecoder().decode(new Uint8Array(buffer, 10, start - 10));
    assert.match(head, /'descr': '<f4', 'fortran_order': False/);
    const shape = head.match(/'shape': \(([^)]*)\)/)[1].split(",").filter((s) => s.trim()).map(Number);
    return {shape, values: new Float32Array(buffer.slice(start))};
}

const tests = {
    async "json: a layer from its creation to its end"() {
        const path = await layer("node.people", {convention: "cs231n"});
        const forward = await ok("POST", `${path}/train-forward`, {x: PEOPLE, cache: true});
        near(forward.batch_mean, [161.1, 64.8, 26.7], 1e-12);
        near(forward.batch_var, [1255.29, 421.96, 175.01], 1e-12);
        near(forward.y[0], [-0.3132932, -0.5257607, -0.05291351]);
        assert.deepEqual([forward.count, forward.updated, forward.version], [10, true, 2]);
        const grads = await ok("POST", `${path}/backward`, {dout: PEOPLE.map(() => [1, 2, 3]), cache: forward.cache});
        near(grads.dbeta, [10, 20, 30], 1e-12);
        const state = await ok("GET", `${path}/state`);
        near(state.running_mean, [16.11, 6.48, 2.67], 1e-12);
        const person = await ok("POST", `${path}/inference`, {x: [[175, 70, 30]]});
        near(person.y[0], [14.181576, 9.778558, 6.532931]);
        assert.equal((await call("DELETE", path)).status, 204);
        assert.equal((await call("GET", path)).status, 404);
    },
    async "json: numbers keep their bits"() {
        const path = await layer("node.bits", {dtype: "f64"});
        const beta = [0.1 + 0.2, 5e-324, 1.7976931348623157e308];
        const state = await ok("PATCH", `${path}/state`, {beta});
        assert.deepEqual(state.beta, beta);
        await ok("PUT", `${path}/state`, state);
        assert.deepEqual((await ok("GET", `${path}/state`)).beta, beta);
    },
    async "json: a body in chunks without a length"() {
        const path = await layer("node.chunks");
        const parts = ['{"x": [[1, 2', ", 3], [4,", " 5, 6]]}"];
        const body = new ReadableStream({
            pull(controller) {
                if (parts.length === 0) controller.close();
                else controller.enqueue(new TextEncoder().encode(parts.shift()));
            },
        });
        const reply = await whole(await fetch(`${base}${path}/inference`, {
            method: "POST", body, duplex: "half", headers: {"Content-Type": "application/json"},
        }));
        assert.equal(reply.status, 200);
        near(reply.json().y[1], [4, 5, 6], 1e-5);
    },
    async "npy: there and back"() {
        const path = await layer("node.npy");
        const body = npy(new Float32Array(PEOPLE.flat()), [10, 3]);
        const reply = await call("POST", `${path}/train-forward`, body, {"Content-Type": "application/x-npy"});
        assert.equal(reply.status, 200);
        assert.equal(reply.headers.get("content-type"), "application/x-npy");
        assert.deepEqual(["normd-version", "normd-count", "normd-updated"].map((h) => reply.headers.get(h)),
            ["2", "10", "true"]);
        const {shape, values} = readNpy(reply.body);
        assert.deepEqual(shape, [10, 3]);
        near([...values.slice(0, 3)], [-0.3132932, -0.5257607, -0.05291351]);
        const same = await call("POST", `${path}/inference?activation=relu`, body, {"Accept": "application/json"});
        assert.ok(same.json().y.every((row) => row.every((v) => v >= 0)));
    },
    async "base64: the buffer of a typed array"() {
        const path = await layer("node.base64", {dtype: "f64"});
        const x = new Float64Array([1, 2, 3, 5, 7, 11]);
        const base64 = Buffer.from(x.buffer).toString("base64");
        const {y} = await ok("POST", `${path}/inference`, {x: {shape: [2, 3], dtype: "f64", base64}});
        assert.deepEqual([y.shape, y.dtype], [[2, 3], "f64"]);
        const bytes = Buffer.from(y.base64, "base64");
        const values = new Float64Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
        near([...values], [...x].map((v) => v / Math.sqrt(1 + 1e-5)), 1e-14);
    },
    async "errors: a problem with code and pointer"() {
        const path = await layer("node.errors");
        const reply = await call("POST", `${path}/train-forward`, {x: [[1, 2, 3], [4, 5]]});
        assert.equal(reply.status, 422);
        assert.equal(reply.headers.get("content-type"), "application/problem+json");
        const {code, pointer, status} = reply.json();
        assert.deepEqual([code, pointer, status], ["ragged", "/x/1", 422]);
    },
    async "conditions: an ETag, and its match"() {
        const path = await layer("node.etag");
        const tag = (await call("GET", path)).headers.get("etag");
        assert.match(tag, /^"[^"]+"$/);
        assert.equal((await call("GET", path, undefined, {"If-None-Match": tag})).status, 304);
        assert.equal((await call("PATCH", path, {eps: 0.5}, {"If-Match": tag})).status, 200);
        assert.equal((await call("PATCH", path, {eps: 0.25}, {"If-Match": tag})).status, 412);
    },
    async "concurrency: a hundred calls at once, each applied once"() {
        const path = await layer("node.many");
        const calls = Array.from({length: 100}, () => ok("POST", `${path}/train-forward`, {x: PEOPLE}));
        const versions = (await Promise.all(calls)).map((reply) => reply.version).sort((a, b) => a - b);
        assert.deepEqual(versions, Array.from({length: 100}, (_, i) => i + 2));
    },
    async "an abandoned call leaves the server well"() {
        const path = await layer("node.abort");
        const aborted = fetch(`${base}${path}/inference`, {method: "POST", body: "{", signal: AbortSignal.timeout(1)});
        await Promise.allSettled([aborted]);
        assert.equal((await ok("POST", `${path}/inference`, {x: [[1, 2, 3]]})).version, 1);
    },
};

let number = 0;
let failed = 0;
for (const [name, test] of Object.entries(tests)) {
    number++;
    try {
        await test();
        console.log(`ok ${number} - ${name}`);
    } catch (error) {
        failed++;
        console.log(`not ok ${number} - ${name}\n${error.stack.replace(/^/gm, "# ")}`);
    }
}
console.log(`1..${number}`);
// Node waits for the body of a 304 with a Content-Length, which RFC 9110, 8.6, allows, until the server closes: not here.
process.exit(failed > 0 ? 1 : 0);
