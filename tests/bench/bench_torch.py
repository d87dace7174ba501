#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bench_torch.py FD ROOM CHANNELS: batch normalization by PyTorch, as a peer of bench_kernels.

peers.h has the protocol, tensors.h the memory. PyTorch 1.13 makes a new tensor of every result; the allocator is told
to keep what is freed, so that a call is not charged for fresh pages.
"""
import ctypes
import mmap
import sys
import time

EPS = 1e-5
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


class Peer:
    """The memory, and the call that was prepared last."""

    def __init__(self, torch, fd, room, channels):
        self.torch = torch
        self.room = room
        self.channels = channels
        self.memory = mmap.mmap(fd, 3 * room + 16 * channels)
        self.call = None

    def array(self, index, channels):
        """gamma, beta, mean or var."""
        offset = 3 * self.room + 4 * self.channels * index
        return self.torch.frombuffer(self.memory, dtype=self.torch.float32, count=channels, offset=offset)

    def tensor(self, index, dtype, last, n, c, h, w):
        """x, dout or y as (N,C,H,W), or (N,C) where there is no plane."""
        flat = self.torch.frombuffer(self.memory, dtype=dtype, count=n * c * h * w, offset=index * self.room)
        if h * w == 1:
            return flat.view(n, c)
        return flat.view(n, h, w, c).permute(0, 3, 1, 2) if last else flat.view(n, c, h, w)

    def prepare(self, call, layout, dtype, threads, *dims):
        """Sets self.call and leaves its result in y."""
        torch = self.torch
        torch.set_num_threads(int(threads))
        kind = {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
        dims = [int(d) for d in dims]
        x, dout, y = (self.tensor(i, kind, layout == "last", *dims) for i in range(3))
        # bf16 takes parameters in float32, as mixed precision training has them; f64 wants its own type.
        kind = torch.float64 if dtype == "f64" else torch.float32
        gamma, beta, mean, var = (self.array(i, dims[1]).to(kind) for i in range(4))
        invstd = (var.double() + EPS).rsqrt().to(kind)
        calls = {
            "train-forward": lambda: torch.native_batch_norm(x, gamma, beta, None, None, True, 0.1, EPS),
            "inference": lambda: torch.native_batch_norm(x, gamma, beta, mean, var, False, 0.1, EPS),
            "backward": lambda: torch.ops.aten.native_batch_norm_backward(
                dout, x, gamma, None, None, mean, invstd, True, EPS, [True, True, True]),
        }
        self.call = calls[call]
        y.copy_(self.call()[0])

    def run(self, reps):
        """Nanoseconds of the calls, after one that is not timed."""
        call = self.call
        call()
        start = time.perf_counter_ns()
        for _ in range(reps):
            call()
        return time.perf_counter_ns() - start

    def follow(self, line):
        """The reply to one order."""
        word, *rest = line.split()
        if word == "run":
            return self.run(int(rest[0]))
        try:
            self.prepare(*rest)
        except RuntimeError as refusal:
            return "no " + str(refusal).split("\n")[0][:200]
        return "ok"


def main():
    """Follows orders to their end."""
    try:
        import torch
    except ImportError as why:
        sys.exit(f"bench_torch.py: {why}")
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    peer = Peer(torch, *(int(word) for word in sys.argv[1:]))
    print("ready", torch.__version__, flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            print(peer.follow(line), flush=True)


if __name__ == "__main__":
    main()
