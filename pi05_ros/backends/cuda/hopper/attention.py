"""Attention of the action rows as one launch of thread-block clusters (attention.cu).

It replaces `attend` and `combine` of `kernels/attention.py` where `unsupported` allows it.
A cluster shares `rows` query rows and divides the keys among its blocks; how many rows and
blocks, how many warpgroups a block has and when the kernel behind is released is tuning data.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from pi05_ros.backends.cuda.hopper import launch as cuda
from pi05_ros.backends.cuda.hopper.compile import KernelError

HEAD_DIM, HEADS = 256, 8
MAX_KEYS = 192  # of one block
ROWS = (16, 32, 64)
CLUSTERS = (4, 8, 16)
GROUPS = (2, 4)
OUTPUTS = {"bf16": 0, "e4m3": 1, "image": 2}
MAX_SHARED = 227 * 1024


def keys_of_a_block(prefix_rows: int, horizon: int, options: Mapping[str, int]) -> int:
    """Room for keys in one block of a cluster: its share of the prefix and of the tail.

    Whole steps of 16 keys; and the parts of O, a row each of the queries, later take the place of
    the keys.
    """
    cluster = options["cluster"]
    keys = -(-prefix_rows // cluster) - (-horizon // cluster)
    return max(-(-keys // 16) * 16, options["rows"])


def shared_bytes(keys: int, options: Mapping[str, int]) -> int:
    """Shared memory of a block, in the order in which attention.cu carves it up."""
    rows = options["rows"]
    return (
        (rows + 2 * keys) * 2 * HEAD_DIM
        + rows * (-(-keys // 64) * 64 + 4) * 4  # logits
        + options["cluster"] * rows * 12  # largest logit, sum and weight of each slice
        + 16  # two barriers
    )


def unsupported(
    heads: int, head_dim: int, prefix_rows: int, horizon: int, options: Mapping[str, int]
) -> str | None:
    """Why this kernel cannot take a workload; None where it can."""
    if (heads, head_dim) != (HEADS, HEAD_DIM):
        return f"{heads} heads of {head_dim}; the kernel has {HEADS} of {HEAD_DIM}"
    rows, cluster, groups = options["rows"], options["cluster"], options["groups"]
    if rows not in ROWS or cluster not in CLUSTERS or groups not in GROUPS:
        return (
            f"rows {rows}, cluster {cluster}, groups {groups}; accepted: {ROWS}, {CLUSTERS}, "
            f"{GROUPS}"
        )
    keys = keys_of_a_block(prefix_rows, horizon, options)
    if keys > MAX_KEYS:
        return f"{keys} keys per block; the kernel holds {MAX_KEYS}"
    need = shared_bytes(keys, options)
    if need > MAX_SHARED:
        return f"{need} bytes of shared memory; a block has {MAX_SHARED}"
    return None


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    length: Tensor,
    out: Tensor,
    scale: Tensor,
    amax: Tensor | None,
    *,
    horizon: int,
    prefix_rows: int,
    output: str,
    options: Mapping[str, int],
    dependent: bool,
) -> None:
    """Enqueue softmax(q k') v on the current stream.

    Args:
        q: bf16 ``[>= horizon * 8, 256]``, row = action row * 8 + head, carries log2(e) / 16.
        k: bf16 ``[>= length + horizon, 256]``; rows below `length` were final before this launch,
            the `horizon` rows behind may come from the kernel in front.
        v: as k.
        length: int32 ``[1]``, at most `prefix_rows`.
        out: ``[horizon, 2048]``: bf16, or e4m3 as rows or as image (layout.cuh).
        scale: float32 ``[1]``, power of two by which e4m3 output is divided.
        amax: float32 ``[1]`` that keeps the largest magnitude of the output, or None.
        horizon: action rows, at most 64.
        prefix_rows: most rows that `length` may say.
        output: "bf16", "e4m3" or "image".
        options: rows, cluster, groups, trigger.
        dependent: start before the kernel in front has finished.

    Raises:
        KernelError: `unsupported`, or the driver refuses.

    """
    reason = unsupported(HEADS, q.shape[-1], prefix_rows, horizon, options)
    if reason is not None:
        raise KernelError(f"cluster attention: {reason}")
    keys = keys_of_a_block(prefix_rows, horizon, options)
    defines = {
        "ROWS": options["rows"],
        "CLUSTER": options["cluster"],
        "KEYS": keys,
        "GROUPS": options["groups"],
        "OUT": OUTPUTS[output],
        "MONITOR": int(amax is not None),
        "TRIGGER": options["trigger"],
    }
    kernel = _kernel(tuple(defines.items()), shared_bytes(keys, options), q.device.index or 0)
    queries = horizon * HEADS
    kernel.launch(
        (options["cluster"], -(-queries // options["rows"])),
        options["groups"] * 128,
        (q, k, v, length, out, scale, amax, queries, horizon),
        cluster=options["cluster"],
        dependent=dependent,
    )


@functools.cache
def _kernel(defines: tuple[tuple[str, int], ...], shared: int, device: int) -> cuda.Kernel:
    module = cuda.load("attention.cu", dict(defines), torch.device("cuda", device))
    return module.kernel("attend", shared)
