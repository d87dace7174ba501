# SPDX-License-Identifier: Apache-2.0
"""What calls return. `etag`, where it is not None, goes into the `if_match` of a later call on the same layer."""

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional

from .tensor import Tensor, decode, floats, vector


@dataclass(frozen=True)
class LayerInfo:
    """A layer: its whole configuration and its counters, which count from the start of the server."""

    name: str
    config: Dict[str, Any]
    version: int
    counters: Dict[str, int]
    memory: Dict[str, int]
    etag: Optional[str] = None

    @classmethod
    def of(cls, reply: Mapping[str, Any], etag: Optional[str]) -> "LayerInfo":
        return cls(reply["name"], reply["layer"], reply["version"], reply["counters"], reply["memory"], etag)


@dataclass(frozen=True)
class TrainForward:
    """`count` is the number of values per channel, `batch_var` is biased. `updated` is False where the batch was not
    folded into the running statistics. `cache` is the id to give to backward, None unless one was asked for."""

    y: Tensor
    batch_mean: Any
    batch_var: Any
    count: int
    num_batches_tracked: Optional[int]
    updated: bool
    version: int
    cache: Optional[str]
    etag: Optional[str]

    @classmethod
    def of(cls, reply: Mapping[str, Any], numpy: bool, etag: Optional[str]) -> "TrainForward":
        return cls(
            y=decode(reply["y"], numpy),
            batch_mean=vector(reply["batch_mean"], numpy),
            batch_var=vector(reply["batch_var"], numpy),
            count=reply["count"],
            num_batches_tracked=reply["num_batches_tracked"],
            updated=reply["updated"],
            version=reply["version"],
            cache=reply.get("cache"),
            etag=etag,
        )


@dataclass(frozen=True)
class Inference:
    """`version` is that of the state that y was computed with."""

    y: Tensor
    version: int

    @classmethod
    def of(cls, reply: Mapping[str, Any], numpy: bool) -> "Inference":
        return cls(decode(reply["y"], numpy), reply["version"])


@dataclass(frozen=True)
class Backward:
    """Gradients; dgamma and dbeta are None for a layer that is not affine, dresidual where there was no residual."""

    dx: Tensor
    dgamma: Any
    dbeta: Any
    version: int
    etag: Optional[str]
    dresidual: Optional[Tensor] = None

    @classmethod
    def of(cls, reply: Mapping[str, Any], numpy: bool, etag: Optional[str]) -> "Backward":
        return cls(
            dx=decode(reply["dx"], numpy),
            dgamma=vector(reply["dgamma"], numpy),
            dbeta=vector(reply["dbeta"], numpy),
            version=reply["version"],
            etag=etag,
            dresidual=decode(reply.get("dresidual"), numpy),
        )


@dataclass(frozen=True)
class State:
    """The state of a layer in f64; None for what the layer does not have. `put_state` takes it back, bit for bit."""

    gamma: Optional[List[float]]
    beta: Optional[List[float]]
    running_mean: Optional[List[float]]
    running_var: Optional[List[float]]
    num_batches_tracked: Optional[int]
    version: int
    config: Dict[str, Any]
    etag: Optional[str] = None

    @classmethod
    def of(cls, reply: Mapping[str, Any], etag: Optional[str]) -> "State":
        return cls(
            gamma=floats(reply["gamma"]),
            beta=floats(reply["beta"]),
            running_mean=floats(reply["running_mean"]),
            running_var=floats(reply["running_var"]),
            num_batches_tracked=reply["num_batches_tracked"],
            version=reply["version"],
            config=reply["layer"],
            etag=etag,
        )

    def body(self) -> Dict[str, Any]:
        return {
            "gamma": self.gamma,
            "beta": self.beta,
            "running_mean": self.running_mean,
            "running_var": self.running_var,
            "num_batches_tracked": self.num_batches_tracked,
            "layer": self.config,
        }


@dataclass(frozen=True)
class Restored:
    """The version of each layer that a snapshot created or replaced, and the names in it that were passed over."""

    versions: Dict[str, int]
    ignored: List[str]


@dataclass(frozen=True)
class VersionInfo:
    """The server's version, the SIMD tier in use, its number of kernel threads and the kind of its store."""

    version: str
    cpu: str
    threads: int
    store: str
