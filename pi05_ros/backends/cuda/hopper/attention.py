"""Attention of the action rows as one launch of thread-block clusters (attention.cu).

It replaces `attend` and `combine` of `kernels/attention.py` where `unsupported` allows it.
A cluster shares `rows` query rows and divides the keys among its blocks; how many rows and
blocks, how many warpgroups a block has and when the kernel behind is released is tuning data.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from pi05_ros.backends.cuda.hopper import launch as cuda
from pi05_ros.backends.cuda.hopper.compile import KernelError

log = logging.getLogger("pi05_ros.cuda")

HEAD_DIM, HEADS = 256, 8
MAX_HORIZON = 64
ROWS = (16, 32, 64)
CLUSTERS = (4, 8, 16)
GROUPS = (2, 4)
KEYS_OF_A_GROUP = 64
OUTPUTS = {"bf16": 0, "e4m3": 1, "image": 2, "bf16-image": 3}
MAX_SHARED = 227 * 1024
# Two blocks on one processor, which the device chooses while others idle, take a third longer. A
# block that asks for this much shared memory is alone there, as is one with more than half the
# registers. More clusters than that find room would take two turns.
ALONE = 113 * 1024 + 128
REGISTERS = 65536
REGISTERS_PER_THREAD = 4  # CUfunction_attribute, handed out by eights
ALONE_CLUSTERS = 14


def keys_of_a_block(prefix_rows: int, horizon: int, options: Mapping[str, int]) -> int:
    """Room for keys in one block of a cluster: its share of the prefix and of the tail.

    Whole steps of 16 keys; and the parts of the output later take the place of the keys.
    """
    cluster = options["cluster"]
    keys = -(-prefix_rows // cluster) - (-horizon // cluster)
    return max(-(-keys // 16) * 16, options["rows"])


def shared_bytes(keys: int, options: Mapping[str, int]) -> int:
    """Shared memory of a block, in the order in which attention.cu carves it up."""
    rows = options["rows"]
    return (
        (rows + 2 * keys) * 2 * HEAD_DIM
        + options["cluster"] * rows * 12  # largest logit, sum and weight of each slice
        + 16  # two barriers
    )


@functools.cache
def unavailable(device: torch.device) -> str | None:
    """Why the kernel cannot run on a device, whatever the workload; None where it can."""
    if device.type != "cuda":
        return "it is no CUDA device"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) != (9, 0):
        return f"it needs compute capability 9.0, this is {major}.{minor}"
    try:
        cuda.probe(device)
    except KernelError as error:
        reason = str(error).splitlines()[0]
        log.warning("attention of the actions runs on the slower Triton kernels: %s", reason)
        return reason
    return None


def unsupported(
    heads: int, head_dim: int, prefix_rows: int, horizon: int, options: Mapping[str, int]
) -> str | None:
    """Why this kernel cannot take a workload; None where it can."""
    if (heads, head_dim) != (HEADS, HEAD_DIM):
        return f"{heads} heads of {head_dim}; the kernel has {HEADS} of {HEAD_DIM}"
    if not 1 <= horizon <= MAX_HORIZON:
        return f"horizon {horizon}; accepted: 1 to {MAX_HORIZON}"
    rows, cluster, groups = options["rows"], options["cluster"], options["groups"]
    if rows not in ROWS or cluster not in CLUSTERS or groups not in GROUPS:
        return (
            f"rows {rows}, cluster {cluster}, groups {groups}; accepted: {ROWS}, {CLUSTERS}, "
            f"{GROUPS}"
        )
    keys = keys_of_a_block(prefix_rows, horizon, options)
    if keys > KEYS_OF_A_GROUP * GROUPS[-1]:
        return f"{keys} keys per block; accepted: {KEYS_OF_A_GROUP * GROUPS[-1]}"
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
        out: ``[horizon, 2048]``: bf16 or e4m3, as rows or as image (layout.cuh).
        scale: float32 ``[1]``, power of two by which e4m3 output is divided.
        amax: float32 ``[1]`` that keeps the largest magnitude of the output, or None.
        horizon: action rows, at most 64.
        prefix_rows: most rows that `length` may say.
        output: "bf16", "e4m3", "image" (of e4m3) or "bf16-image".
        options: rows, cluster, groups (more where the keys need it), trigger.
        dependent: start before the kernel in front has finished.

    Raises:
        KernelError: `unsupported`, or the driver refuses.

    """
    reason = unsupported(HEADS, q.shape[-1], prefix_rows, horizon, options)
    if reason is not None:
        raise KernelError(f"cluster attention: {reason}")
    keys = keys_of_a_block(prefix_rows, horizon, options)
    groups = options["groups"] if keys <= KEYS_OF_A_GROUP * options["groups"] else GROUPS[-1]
    defines = {
        "ROWS": options["rows"],
        "CLUSTER": options["cluster"],
        "KEYS": keys,
        "GROUPS": groups,
        "OUT": OUTPUTS[output],
        "MONITOR": int(amax is not None),
        "TRIGGER": options["trigger"],
    }
    queries = horizon * HEADS
    clusters = -(-queries // options["rows"])
    kernel = copy.copy(_kernel(tuple(defines.items()), q.device.index or 0))
    kernel.shared = shared_bytes(keys, options)
    alone = 2 * groups * 128 * (-(-kernel.attribute(REGISTERS_PER_THREAD) // 8) * 8) > REGISTERS
    if not alone and clusters <= ALONE_CLUSTERS:
        kernel.shared = max(kernel.shared, ALONE)
    kernel.launch(
        (options["cluster"], clusters),
        groups * 128,
        (q, k, v, length, out, scale, amax, queries, horizon),
        cluster=options["cluster"],
        dependent=dependent,
    )


@functools.cache
def _kernel(defines: tuple[tuple[str, int], ...], device: int) -> cuda.Kernel:
    module = cuda.load("attention.cu", dict(defines), torch.device("cuda", device))
    return module.kernel("attend", MAX_SHARED)
