# SPDX-License-Identifier: Apache-2.0
"""The client: one method per operation of the API."""

import json
from types import TracebackType
from typing import Any, Dict, Iterator, Mapping, Optional, Sequence, Type, Union
from urllib.parse import quote, urlencode

from .connection import ConnectionPerThread, Reply
from .errors import TransportError, error_of
from .results import Backward, Inference, LayerInfo, Restored, State, TrainForward, VersionInfo
from .tensor import Tensor, dump, encode, is_array


class _Unset:
    """Stands for an argument that was not given, where None means null."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET = _Unset()
Vector = Union[Sequence[float], None, _Unset]


class Client:
    """A normd server. Thread-safe: each thread has a kept-alive connection of its own. Also a context manager.

    Nothing that changes state is ever repeated by the client itself, since it could be applied twice; a GET is, once,
    where the server closed the idle connection at the moment of the call. The others raise TransportError then, whose
    `sent` says whether the call may have been applied. (A connection that was already closed before the call is opened
    anew for every method, since nothing was sent.)

    Tensors are nested lists, NumPy arrays (float16, float32, float64; integers go as float64) or {"shape", "data"}.
    Replies hold what was given: floats in lists for lists, for an array an array of its dtype, with the vectors of
    the reply (batch_mean, dgamma, ...) as float64 arrays. NaN and infinities go and come where the layer allows them.

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
        body = {"x": encode(x), **_options(activation, residual, channel_axis)}
        if cache:
            body["cache"] = True
        reply = self._call("POST", _layer_path(name) + "/train-forward", body, if_match)
        return TrainForward.of(json.loads(reply.body), is_array(x), reply.etag)

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
        body = {"x": encode(x), **_options(activation, residual, channel_axis)}
        reply = self._call("POST", _layer_path(name) + "/inference", body, if_match)
        return Inference.of(json.loads(reply.body))

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
        body = {"dout": encode(dout), **_options(activation, residual, channel_axis)}
        if cache is not None:
            body["cache"] = cache
        if x is not None:
            body["x"] = encode(x)
        if mode != "train":
            body["mode"] = mode
        if step is not None:
            body["step"] = dict(step)
        reply = self._call("POST", _layer_path(name) + "/backward", body, if_match)
        return Backward.of(json.loads(reply.body), is_array(dout), reply.etag)

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

    def restore(self, snapshot: Mapping[str, Any], *, prefix: str = "", delete_missing: bool = False) -> Restored:
        """Creates or replaces the layers of the snapshot, all or none.

        delete_missing also deletes the layers that are not in it; with a prefix, only those whose names start with it.
        """
        query = {"prefix": prefix} if prefix else {}
        if delete_missing:
            query["delete_missing"] = "true"
        path = "/v1/snapshot" + ("?" + urlencode(query) if query else "")
        reply = json.loads(self._call("PUT", path, snapshot).body)
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

    def _call(
        self,
        method: str,
        path: str,
        body: Optional[Mapping[str, Any]] = None,
        if_match: Optional[str] = None,
        accept: str = "application/json",
    ) -> Reply:
        headers = {"Accept": accept, "User-Agent": "normd-python/0.1.0"}
        if if_match is not None:
            headers["If-Match"] = if_match
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = dump(body)
        reply = self._connections.exchange(method, path, data, headers)
        if not 200 <= reply.status < 300:
            raise error_of(reply.status, reply.content_type, reply.body, reply.retry_after)
        return reply


def _layer_path(name: str) -> str:
    if not name:
        raise ValueError("a layer's name is not empty")
    return "/v1/layers/" + quote(name, safe="")


def _options(activation: Optional[str], residual: Optional[Tensor], channel_axis: Optional[int]) -> Dict[str, Any]:
    """What all three calls may have beside their tensors."""
    fields = {
        "activation": activation,
        "residual": None if residual is None else encode(residual),
        "channel_axis": channel_axis,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _given(fields: Mapping[str, Any]) -> Dict[str, Any]:
    return {key: value for key, value in fields.items() if not isinstance(value, _Unset)}
