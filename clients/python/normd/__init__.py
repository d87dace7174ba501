# SPDX-License-Identifier: Apache-2.0
"""Client of normd, batch normalization over HTTP. Standard library only; NumPy arrays go and come where NumPy is there.

    import normd

    client = normd.Client("http://127.0.0.1:8080")
    client.create_layer("people", 3, convention="cs231n")
    reply = client.train_forward("people", [[150, 54, 26], [60, 18, 4], [160, 60, 48]])
    print(reply.y, reply.batch_mean)
"""

from .client import Client
from .errors import (
    BadRequest,
    CacheGone,
    Conflict,
    DeadlineExceeded,
    Invalid,
    NormdError,
    NotFound,
    PreconditionFailed,
    StoreFailed,
    StoreFull,
    TooLarge,
    TransportError,
    Unavailable,
    Unsupported,
)
from .results import Backward, Inference, LayerInfo, Restored, State, TrainForward, VersionInfo
from .tensor import Tensor

__version__ = "0.1.0"

__all__ = [
    "Backward",
    "BadRequest",
    "CacheGone",
    "Client",
    "Conflict",
    "DeadlineExceeded",
    "Inference",
    "Invalid",
    "LayerInfo",
    "NormdError",
    "NotFound",
    "PreconditionFailed",
    "Restored",
    "State",
    "StoreFailed",
    "StoreFull",
    "Tensor",
    "TooLarge",
    "TrainForward",
    "TransportError",
    "Unavailable",
    "Unsupported",
    "VersionInfo",
]
