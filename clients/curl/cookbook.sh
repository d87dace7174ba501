#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# normd with curl: a cookbook that runs. Read it, copy from it, or run it:
#
#     NORMD=http://127.0.0.1:8080 clients/curl/cookbook.sh
#
# `shows` prints a reply and ends the script where the reply does not hold every text given; it is no part of the
# recipes. The layers are named cookbook.* and are deleted at the end.
set -eu
NORMD=${NORMD:-http://127.0.0.1:8080}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

shows() {
    reply=$(cat)
    printf '%s\n\n' "$reply" | cut -c 1-600
    for text in "$@"; do
        case $reply in *"$text"*) ;; *)
            echo "cookbook: expected $text" >&2
            exit 1 ;;
        esac
    done
}

recipe() {
    printf '== %s\n' "$1"
}

# What an earlier run may have left behind.
curl -sS -X DELETE "$NORMD/v1/layers/cookbook.people" -o /dev/null
curl -sS -X DELETE "$NORMD/v1/layers/cookbook.images" -o /dev/null
curl -sS -X DELETE "$NORMD/v1/layers/cookbook.raw" -o /dev/null

# ---- First steps

recipe 'Create a layer of three features. The same command again changes nothing.'
curl -sS -X PUT "$NORMD/v1/layers/cookbook.people" -d '{"num_features": 3, "convention": "cs231n"}' |
    shows '"name":"cookbook.people"' '"momentum":0.9' '"version":1'

recipe 'Normalize ten people (height, weight, age) and fold their statistics into the running ones.'
cat >people.json <<'EOF'
{"x": [[150,54,26],[60,18,4],[160,60,48],[177,53,16],[180,60,24],
       [192,90,22],[172,76,38],[168,83,47],[172,64,17],[180,90,25]]}
EOF
curl -sS "$NORMD/v1/layers/cookbook.people/train-forward" -d @people.json |
    shows '{"y":[[-0.3132' '"batch_mean":[161.1' '"count":10' '"num_batches_tracked":1' '"updated":true' '"version":2'

recipe 'What the layer has learned: a tenth of the batch, since cs231n keeps 0.9 of the old values.'
curl -sS "$NORMD/v1/layers/cookbook.people/state" |
    shows '"gamma":[1,1,1]' '"running_mean":[16.1' '"num_batches_tracked":1' '"version":2'

recipe 'Normalize one new person with the running statistics. Nothing changes.'
curl -sS "$NORMD/v1/layers/cookbook.people/inference" -d '{"x": [[175, 70, 30]]}' |
    shows '{"y":[[14.18' '"version":2}'

# ---- Gradients

recipe 'Keep a pass on the server, and ask for the gradients of it.'
cat >kept.json <<'EOF'
{"x": [[150,54,26],[60,18,4],[160,60,48]], "cache": true}
EOF
curl -sS "$NORMD/v1/layers/cookbook.people/train-forward" -d @kept.json | tee reply.json |
    shows '"cache":"' '"version":3'
cache=$(sed -n 's/.*"cache":"\([^"]*\)".*/\1/p' reply.json)
curl -sS "$NORMD/v1/layers/cookbook.people/backward" -d "{\"dout\": [[1,0,0],[0,1,0],[0,0,1]], \"cache\": \"$cache\"}" |
    tee cached.json | shows '{"dx":[[' '"dgamma":[' '"dbeta":[1,1,1]' '"version":3}'

recipe 'The same gradients without the server keeping anything: send x again.'
curl -sS "$NORMD/v1/layers/cookbook.people/backward" \
    -d '{"dout": [[1,0,0],[0,1,0],[0,0,1]], "x": [[150,54,26],[60,18,4],[160,60,48]]}' | shows "$(cat cached.json)"

recipe 'Gradients and one step of gradient descent on gamma and beta, as one change: beta = 0 - 0.1 * 1.'
curl -sS "$NORMD/v1/layers/cookbook.people/backward" -d '{"dout": [[1,0,0],[0,1,0],[0,0,1]],
    "x": [[150,54,26],[60,18,4],[160,60,48]], "step": {"lr": 0.1, "weight_decay": 0}}' | shows '"version":4}'
curl -sS "$NORMD/v1/layers/cookbook.people/state" | shows '"beta":[-0.1,-0.1,-0.1]'

recipe 'Frozen batch normalization: the running statistics are constants.'
curl -sS "$NORMD/v1/layers/cookbook.people/backward" \
    -d '{"dout": [[1,1,1]], "x": [[175,70,30]], "mode": "inference"}' | shows '"dbeta":[1,1,1]' '"version":4}'

recipe 'The end of a residual block, relu(bn(x) + residual), in one call; and its gradients, that of the residual too.'
curl -sS "$NORMD/v1/layers/cookbook.people/train-forward" -d '{"x": [[150,54,26],[60,18,4],[160,60,48]],
    "residual": [[1,1,1],[9,0,0],[0,0,-9]], "activation": "relu", "cache": true}' | tee reply.json |
    shows '{"y":[[' ',0,0],[' ',0]],"batch_mean":[' '"version":5'
cache=$(sed -n 's/.*"cache":"\([^"]*\)".*/\1/p' reply.json)
curl -sS "$NORMD/v1/layers/cookbook.people/backward" -d "{\"dout\": [[1,2,3],[4,5,6],[7,8,9]], \"cache\": \"$cache\"}" |
    shows '"dresidual":[[1,2,3],[4,0,0],[7,8,0]]' '"version":5}'

# ---- Tensors

recipe 'Images: any rank from 2 to 8, and any channel axis. Here N x H x W x C.'
curl -sS -X PUT "$NORMD/v1/layers/cookbook.images" -d '{"num_features": 2, "channel_axis": -1, "dtype": "f64"}' |
    shows '"channel_axis":-1'
curl -sS "$NORMD/v1/layers/cookbook.images/train-forward" -d '{"x": [[[[1,10],[2,20]],[[3,30],[4,40]]]]}' |
    shows '"batch_mean":[2.5,25]' '"batch_var":[1.25,125]' '"count":4'

recipe 'Shape and data in a row; the reply comes in the same form.'
curl -sS "$NORMD/v1/layers/cookbook.images/inference" -d '{"x": {"shape": [1,2,2], "data": [1,2,3,4]}}' |
    shows '{"y":{"shape":[1,2,2],"data":['

recipe 'Raw little-endian f32 in base64: no number is printed or read on the way.'
curl -sS -X PUT "$NORMD/v1/layers/cookbook.raw" -d '{"num_features": 2}' | shows '"dtype":"f32"'
curl -sS "$NORMD/v1/layers/cookbook.raw/inference" \
    -d '{"x": {"shape": [1,2], "dtype": "f32", "base64": "AACAPwAAAEA="}}' | shows '"dtype":"f32","base64":"'

recipe 'A NumPy file as it is, numpy.save("x.npy", x); printf stands in for Python here. The reply is y as such a file.'
{
    printf '\223NUMPY\001\000\166\000'
    printf '%-117s\n' "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }"
    printf '\000\000\200?\000\000\000@' # 1 and 2
} >x.npy
curl -sS "$NORMD/v1/layers/cookbook.raw/inference" --data-binary @x.npy -o y.npy -D head.txt
tr -d '\r' <head.txt | shows 'Content-Type: application/x-npy' 'Normd-Version: 1'
head -c 127 y.npy | tail -c +11 | shows "'descr': '<f4'" "'shape': (1, 2)"

recipe 'The same, with an option in the query and the reply in JSON. bf16 has no dtype in NumPy: ?dtype=bf16 for |V2.'
curl -sS "$NORMD/v1/layers/cookbook.raw/inference?activation=relu" -H 'Content-Type: application/x-npy' \
    -H 'Accept: application/json' --data-binary @x.npy | shows '{"y":[[0.9999' '"version":1}'

recipe 'A batch that is large, from a pipe, without -d reading it into the command line.'
printf '{"x": [[1,2],[3,4]]}' |
    curl -sS "$NORMD/v1/layers/cookbook.raw/train-forward" -H 'Content-Type: application/json' --data-binary @- |
    shows '"batch_mean":[2,3]'

# ---- Saving and restoring

recipe 'A snapshot of every layer whose name starts with cookbook., at one moment, into a file.'
curl -sS "$NORMD/v1/snapshot?prefix=cookbook." -o snapshot.json
shows '{"layers":{"cookbook.images":{"gamma":[1,1]' '"cookbook.people":{' <snapshot.json

recipe 'Train on, regret it, and restore the file: all layers or none. The states are the same to the last bit.'
curl -sS "$NORMD/v1/layers/cookbook.people/train-forward" -d @people.json | shows '"updated":true'
curl -sS -X PUT "$NORMD/v1/snapshot" -H 'Content-Type: application/json' --data-binary @snapshot.json |
    shows '{"layers":{' '"cookbook.people":' '"ignored":[]}'
curl -sS "$NORMD/v1/snapshot?prefix=cookbook." | sed 's/"version":[0-9]*/"version":0/g' >after.json
sed 's/"version":[0-9]*/"version":0/g' snapshot.json | cmp - after.json

recipe 'A snapshot for PyTorch: load_state_dict(safetensors.torch.load_file("snapshot.safetensors"), strict=True).'
curl -sS "$NORMD/v1/snapshot?prefix=cookbook." -H 'Accept: application/vnd.safetensors' -o snapshot.safetensors
tail -c +9 snapshot.safetensors | head -c 600 | shows '{"__metadata__":{"cookbook.images":"{' 'num_features'

recipe 'And back. A checkpoint of PyTorch loads in the same way: what is no batch normalization is listed as ignored.'
curl -sS -X PUT "$NORMD/v1/snapshot" --data-binary @snapshot.safetensors | shows '"cookbook.images":' '"cookbook.people":' '"ignored":[]}'

recipe 'Set a part of the state by hand.'
curl -sS -X PATCH "$NORMD/v1/layers/cookbook.people/state" -d '{"gamma": [2, 2, 0.5]}' | shows '"gamma":[2,2,0.5]'

# ---- Two people at the same layer

recipe 'ETag names the state of a layer.'
curl -sS -i "$NORMD/v1/layers/cookbook.people" | tee reply.txt | shows 'HTTP/1.1 200' '"name":"cookbook.people"'
etag=$(tr -d '\r' <reply.txt | sed -n 's/^[Ee][Tt][Aa][Gg]: //p')

recipe 'Not changed since: 304 and no body.'
curl -sS -i "$NORMD/v1/layers/cookbook.people/state" -H "If-None-Match: $etag" | shows 'HTTP/1.1 304'

recipe 'Change it only where nobody else has: the first wins, the second gets 412.'
curl -sS -X PATCH "$NORMD/v1/layers/cookbook.people" -H "If-Match: $etag" -d '{"momentum": 0.99}' |
    shows '"momentum":0.99'
curl -sS -X PATCH "$NORMD/v1/layers/cookbook.people" -H "If-Match: $etag" -d '{"momentum": 0.5}' |
    shows '"status":412' '"code":"precondition_failed"'

# ---- Errors: application/problem+json with a code, and a pointer into the body where there is one

recipe 'A row that is too short.'
curl -sS "$NORMD/v1/layers/cookbook.people/train-forward" -d '{"x": [[1,2,3],[4,5]]}' |
    shows '"status":422' '"code":"ragged"' '"pointer":"/x/1"'

recipe 'A misspelt option never passes silently.'
curl -sS -X PUT "$NORMD/v1/layers/cookbook.people" -d '{"num_features": 3, "momentun": 0.9}' |
    shows '"status":400' '"code":"unknown_field"' '"pointer":"/momentun"'

recipe 'A layer that is not there, and -f for scripts that want the exit status (22).'
curl -sS "$NORMD/v1/layers/cookbook.nobody" | shows '"status":404' '"code":"layer_not_found"'
status=0
curl -fsS "$NORMD/v1/layers/cookbook.nobody" 2>/dev/null || status=$?
echo "exit status $status" | shows 'exit status 22'

recipe 'A cached pass that has expired: send x instead.'
curl -sS "$NORMD/v1/layers/cookbook.people/backward" -d '{"dout": [[1,0,0]], "cache": "long-gone"}' |
    shows '"status":410' '"code":"cache_gone"'

# ---- Open Inference Protocol: a layer is a model, for clients of KServe and Triton

recipe 'What the protocol tells of a layer: x and y, of any number of rows.'
curl -sS "$NORMD/v2/models/cookbook.raw" |
    shows '"versions":["1"]' '"inputs":[{"name":"x","datatype":"FP32","shape":[-1,2]}]'

recipe 'Inference. Whatever curl says of the body is not looked at here.'
curl -sS "$NORMD/v2/models/cookbook.raw/infer" \
    -d '{"id": "7", "inputs": [{"name": "x", "shape": [1,2], "datatype": "FP32", "data": [1,2]}]}' |
    shows '"id":"7"' '"state_version":' '{"name":"y","datatype":"FP32","shape":[1,2],"data":['

recipe 'train-forward, with a parameter of the request; of its outputs, the mean of the batch alone.'
curl -sS "$NORMD/v2/models/cookbook.raw/versions/1/infer" -d '{"parameters": {"mode": "train-forward"},
    "inputs": [{"name": "x", "shape": [2,2], "datatype": "FP32", "data": [[1,2],[3,4]]}],
    "outputs": [{"name": "batch_mean"}]}' | shows '"count":2,"updated":true' '"shape":[2],"data":[2,3]}]}'

recipe 'Binary tensors: raw bytes behind the JSON, whose length stands in the head. The reply has y as FP16 in JSON.'
header='{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP16","parameters":{"binary_data_size":4}}]}'
{ printf '%s' "$header"; printf '\000<\000@'; } >request.bin # 1 and 2
curl -sS "$NORMD/v2/models/cookbook.raw/infer" -H "Inference-Header-Content-Length: ${#header}" \
    --data-binary @request.bin | shows '"datatype":"FP16","shape":[1,2],"data":['

recipe 'Nothing but bytes: x of the shape that the model has, and y as it lies in memory behind the JSON of the reply.'
printf '\000\000\200?\000\000\000@' | # 1 and 2
    curl -sS "$NORMD/v2/models/cookbook.raw/infer" -H 'Inference-Header-Content-Length: 0' --data-binary @- -o y.bin \
        -D head.txt
length=$(tr -d '\r' <head.txt | sed -n 's/^Inference-Header-Content-Length: //p')
head -c "$length" y.bin | shows '{"name":"y","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}'

# ---- The server

recipe 'Is it there, does it take calls, what is it?'
curl -sS "$NORMD/livez" | shows 'ok'
curl -sS "$NORMD/readyz" | shows 'ok'
curl -sS "$NORMD/version" | shows '"version":"' '"cpu":"' '"threads":' '"store":"sqlite"'

recipe 'Every layer, a page at a time.'
curl -sS "$NORMD/v1/layers?prefix=cookbook.&limit=2" | shows '"name":"cookbook.images"' '"next_cursor":"'

recipe 'Clean up: a snapshot of nothing, restored over one prefix.'
curl -sS -X PUT "$NORMD/v1/snapshot?prefix=cookbook.&delete_missing=true" -d '{"layers": {}}' |
    shows '{"layers":{},"ignored":[]}'
curl -sS "$NORMD/v1/layers?prefix=cookbook." | shows '{"layers":[],"next_cursor":null}'
echo 'cookbook: every reply was as expected'
