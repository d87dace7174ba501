# SPDX-License-Identifier: Apache-2.0
"""The client: one method per operation of the API."""

import json
from types import TracebackType
from typing import Any, Dict, Iterator, Mapping, Optional, Sequence, Tuple, Type, Union
from urllib.parse import quote, urlencode

from . import safetensors
from .connection import ConnectionPerThread, Reply
from .errors import TransportError, error_of
from .results import Backward, Inference, LayerInfo, Restored, State, TrainForward, VersionInfo
from .tensor import Tensor, dump, encode, is_array, raw_of


class _Unset:
    """Stands for an argument that was not given, where None means null."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET = _Unset()
Vector = Union[Sequence[float], None, _Unset]
Buffer = Union[bytes, bytearray, memoryview]


class Client:
    """A normd server. Thread-safe: each thread has a kept-alive connection of its own. Also a context manager.

    Nothing that changes state is ever repeated by the client itself, since it could be applied twice; a GET is, once,
    where the server closed the idle connection at the moment of the call. The others raise TransportError then, whose
    `sent` says whether the call may have been applied. (A connection that was already closed before the call is opened
    anew for every method, since nothing was sent.)

    Tensors are nested lists, NumPy arrays (float16, float32, float64; integers go as float64) or {"shape", "data"} with
    data in a flat list or an array.array of "f" or "d". Replies hold what was given: floats in lists for lists, for an
    array an array of its dtype, with the vectors of the reply (batch_mean, dgamma, ...) as float64 arrays where it is
    NumPy's, else as lists. A call whose tensors are all arrays is sent and answered as a safetensors file, so that no
    number is written as text. NaN and infinities go and come where the layer allows them.

    timeout is in seconds and holds for each step on the socket; None waits for ever.
    """

    def __init__(self, base_url: str = "http://127.0.0.1:8080", timeout: Optional[float] = 60.0) -> None:
        self._connections = ConnectionPerThread(base_url, timeout)

    def close(self) -> None:
        """Closes the connections of all threads; the client remains usable."""
        self._connections.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        value: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    # ---- layers

    def create_layer(
        self,
        name: str,
        num_features: int,
        *,
        convention: Union[str, _Unset] = UNSET,
        momentum: Union[float, None, _Unset] = UNSET,
        eps: Union[float, _Unset] = UNSET,
        affine: Union[bool, _Unset] = UNSET,
        track_running_stats: Union[bool, _Unset] = UNSET,
        channel_axis: Union[int, _Unset] = UNSET,
        dtype: Union[str, _Unset] = UNSET,
        init: Union[str, _Unset] = UNSET,
        nonfinite: Union[str, _Unset] = UNSET,
        single_value: Union[str, _Unset] = UNSET,
        new_weight: Union[float, None, _Unset] = UNSET,
        running_ddof: Union[int, _Unset] = UNSET,
        if_match: Optional[str] = None,
    ) -> LayerInfo:
        """Creates the layer, or does nothing where it exists with the same configuration. Conflict: with another one.

        convention is "pytorch", "cs231n", "onnx", "keras" or "paper" and fills what is not given; momentum None is the
        cumulative average. new_weight and running_ddof are read-only and ignored by the server: they are here so that
        `create_layer("copy", **client.layer("people").config)` works.
        """
        config = {
            "num_features": num_features,
            "convention": convention,
            "momentum": momentum,
            "eps": eps,
            "affine": affine,
            "track_running_stats": track_running_stats,
            "channel_axis": channel_axis,
            "dtype": dtype,
            "init": init,
            "nonfinite": nonfinite,
            "single_value": single_value,
            "new_weight": new_weight,
            "running_ddof": running_ddof,
        }
        reply = self._call("PUT", _layer_path(name), _given(config), if_match)
        return LayerInfo.of(json.loads(reply.body), reply.etag)

    def patch_layer(
        self,
        name: str,
        *,
        momentum: Union[float, None, _Unset] = UNSET,
        eps: Union[float, _Unset] = UNSET,
        nonfinite: Union[str, _Unset] = UNSET,
        single_value: Union[str, _Unset] = UNSET,
        if_match: Optional[str] = None,
    ) -> LayerInfo:
        """Changes the settings that are given and keeps the state."""
        change = {"momentum": momentum, "eps": eps, "nonfinite": nonfinite, "single_value": single_value}
        reply = self._call("PATCH", _layer_path(name), _given(change), if_match)
        return LayerInfo.of(json.loads(reply.body), reply.etag)

    def layers(self, prefix: str = "", page_size: int = 1000) -> Iterator[LayerInfo]:
        """The layers whose names start with prefix, in the order of their names, fetched page by page."""
        query: Dict[str, Any] = {"prefix": prefix, "limit": page_size} if prefix else {"limit": page_size}
        while True:
            page = json.loads(self._call("GET", "/v1/layers?" + urlencode(query)).body)
            for layer in page["layers"]:
                yield LayerInfo.of(layer, None)
            if page["next_cursor"] is None:
                return
            query["cursor"] = page["next_cursor"]

    def layer(self, name: str) -> LayerInfo:
        """Configuration, version, counters and memory of a layer."""
        reply = self._call("GET", _layer_path(name))
        return LayerInfo.of(json.loads(reply.body), reply.etag)

    def delete_layer(self, name: str, *, if_match: Optional[str] = None) -> None:
        """Deletes the layer, its state and its cached passes."""
        self._call("DELETE", _layer_path(name), None, if_match)

    # ---- computing

    def train_forward(
        self,
        name: str,
        x: Tensor,
        *,
        cache: bool = False,
        activation: Optional[str] = None,
        residual: Optional[Tensor] = None,
        channel_axis: Optional[int] = None,
        if_match: Optional[str] = None,
    ) -> TrainForward:
        """Normalizes x with its own statistics and folds them into the running ones.

        y is activation(bn(x) + residual): activation is "relu" or None, residual a tensor of the shape of x or None.
        cache keeps the pass on the server, for backward.
        """
        fields = {"cache": cache or None, "activation": activation, "channel_axis": channel_axis}
        reply, etag = self._compute(name, "train-forward", {"x": x, "residual": residual}, fields, if_match)
        return TrainForward.of(reply, is_array(x), etag)

    def inference(
        self,
        name: str,
        x: Tensor,
        *,
        activation: Optional[str] = None,
        residual: Optional[Tensor] = None,
        channel_axis: Optional[int] = None,
        if_match: Optional[str] = None,
    ) -> Inference:
        """Normalizes x with the running statistics; changes nothing. activation and residual as in train_forward."""
        fields = {"activation": activation, "channel_axis": channel_axis}
        reply, _ = self._compute(name, "inference", {"x": x, "residual": residual}, fields, if_match)
        return Inference.of(reply, is_array(x))

    def backward(
        self,
        name: str,
        dout: Tensor,
        *,
        cache: Optional[str] = None,
        x: Optional[Tensor] = None,
        mode: str = "train",
        step: Optional[Mapping[str, float]] = None,
        activation: Optional[str] = None,
        residual: Optional[Tensor] = None,
        channel_axis: Optional[int] = None,
        if_match: Optional[str] = None,
    ) -> Backward:
        """Gradients, from the cached pass of a train_forward or from its x: give exactly one of the two.

        mode "inference" takes the running statistics as constants. step {"lr": 0.1, "weight_decay": 0} also applies one
        SGD step to gamma and beta. From x, activation and residual are those of the forward; a cached pass has its own.
        CacheGone: the pass is not there any more, call again with x (and with those).
        """
        fields = {
            "cache": cache,
            "mode": None if mode == "train" else mode,
            "step": None if step is None else dict(step),
            "activation": activation,
            "channel_axis": channel_axis,
        }
        tensors = {"dout": dout, "x": x, "residual": residual}
        reply, etag = self._compute(name, "backward", tensors, fields, if_match)
        return Backward.of(reply, is_array(dout), etag)

    # ---- state

    def state(self, name: str) -> State:
        """The state of the layer: gamma, beta, running statistics, number of batches."""
        reply = self._call("GET", _layer_path(name) + "/state")
        return State.of(json.loads(reply.body), reply.etag)

    def put_state(self, name: str, state: Union[State, Mapping[str, Any]], *, if_match: Optional[str] = None) -> State:
        """Replaces the whole state. Conflict: the state is of a layer with another configuration."""
        body = state.body() if isinstance(state, State) else state
        reply = self._call("PUT", _layer_path(name) + "/state", body, if_match)
        return State.of(json.loads(reply.body), reply.etag)

    def patch_state(
        self,
        name: str,
        *,
        gamma: Vector = UNSET,
        beta: Vector = UNSET,
        running_mean: Vector = UNSET,
        running_var: Vector = UNSET,
        num_batches_tracked: Union[int, None, _Unset] = UNSET,
        if_match: Optional[str] = None,
    ) -> State:
        """Replaces the fields that are given."""
        change = {
            "gamma": gamma,
            "beta": beta,
            "running_mean": running_mean,
            "running_var": running_var,
            "num_batches_tracked": num_batches_tracked,
        }
        reply = self._call("PATCH", _layer_path(name) + "/state", _given(change), if_match)
        return State.of(json.loads(reply.body), reply.etag)

    def snapshot(self, prefix: str = "") -> Dict[str, Any]:
        """Every layer whose name starts with prefix, at one moment, as plain JSON: json.dump keeps every bit."""
        query = "?" + urlencode({"prefix": prefix}) if prefix else ""
        snapshot: Dict[str, Any] = json.loads(self._call("GET", "/v1/snapshot" + query).body)
        return snapshot

    def checkpoint(self, prefix: str = "") -> bytes:
        """The snapshot as a safetensors file, with the names that PyTorch gives to what layers have."""
        query = "?" + urlencode({"prefix": prefix}) if prefix else ""
        return self._call("GET", "/v1/snapshot" + query, accept=safetensors.MEDIA_TYPE).body

    def restore(
        self, snapshot: Union[Mapping[str, Any], Buffer], *, prefix: str = "", delete_missing: bool = False
    ) -> Restored:
        """Creates or replaces the layers of the snapshot, all or none. It may be bytes (or a bytearray, or
        another buffer): JSON text, or a safetensors file, that of a checkpoint or of PyTorch; tensors in it that are of
        no layer are named in `ignored`.

        delete_missing also deletes the layers that are not in it; with a prefix, only those whose names start with it.
        """
        query = {"prefix": prefix} if prefix else {}
        if delete_missing:
            query["delete_missing"] = "true"
        path = "/v1/snapshot" + ("?" + urlencode(query) if query else "")
        body = snapshot if isinstance(snapshot, Mapping) else bytes(memoryview(snapshot))
        reply = json.loads(self._call("PUT", path, body).body)
        return Restored(reply["layers"], reply["ignored"])

    # ---- the server

    def live(self) -> bool:
        """True where the process answers."""
        return self._probe("/livez")

    def ready(self) -> bool:
        """True where the server takes calls; False while it starts or drains, and where it cannot be reached."""
        return self._probe("/readyz")

    def version(self) -> VersionInfo:
        """What is running there."""
        reply = json.loads(self._call("GET", "/version").body)
        return VersionInfo(reply["version"], reply["cpu"], reply["threads"], reply["store"])

    def openapi(self) -> str:
        """The OpenAPI description of the server, as YAML."""
        return self._call("GET", "/openapi.yaml", accept="*/*").body.decode("utf-8")

    def _probe(self, path: str) -> bool:
        try:
            return self._connections.exchange("GET", path, None, {}).status == 200
        except TransportError:
            return False

    def _compute(
        self,
        name: str,
        operation: str,
        tensors: Mapping[str, Optional[Tensor]],
        fields: Mapping[str, Any],
        if_match: Optional[str],
    ) -> Tuple[Mapping[str, Any], Optional[str]]:
        """One of the three calls with what is not None of it: the fields of the reply, and its ETag."""
        path = _layer_path(name) + "/" + operation
        given = {key: value for key, value in tensors.items() if value is not None}
        more = {key: value for key, value in fields.items() if value is not None}
        raws = {key: raw_of(value) for key, value in given.items()}
        packed = {key: raw for key, raw in raws.items() if raw is not None}
        if len(packed) < len(given):
            body = {**{key: encode(value) for key, value in given.items()}, **more}
            reply = self._call("POST", path, body, if_match)
            return json.loads(reply.body), reply.etag
        reply = self._call("POST", path, safetensors.pack(packed, more), if_match, safetensors.MEDIA_TYPE)
        return safetensors.unpack(reply.body), reply.etag

    def _call(
        self,
        method: str,
        path: str,
        body: Union[Mapping[str, Any], bytes, None] = None,
        if_match: Optional[str] = None,
        accept: str = "application/json",
    ) -> Reply:
        """A body of bytes is a safetensors file, or JSON text."""
        headers = {"Accept": accept, "User-Agent": "normd-python/0.1.0"}
        if if_match is not None:
            headers["If-Match"] = if_match
        data = None
        if body is not None:
            packed = isinstance(body, bytes) and safetensors.is_file(body)
            headers["Content-Type"] = safetensors.MEDIA_TYPE if packed else "application/json"
            data = body if isinstance(body, bytes) else dump(body)
        reply = self._connections.exchange(method, path, data, headers)
        if not 200 <= reply.status < 300:
            raise error_of(reply.status, reply.content_type, reply.body, reply.retry_after)
        return reply


def _layer_path(name: str) -> str:
    if not name:
        raise ValueError("a layer's name is not empty")
    return "/v1/layers/" + quote(name, safe="")


def _given(fields: Mapping[str, Any]) -> Dict[str, Any]:
    return {key: value for key, value in fields.items() if not isinstance(value, _Unset)}
