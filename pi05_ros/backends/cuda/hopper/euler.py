"""Launches of `euler.cu`: the kernel between two steps of the flow, on Hopper."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pi05_ros.backends.cuda.hopper import launch
from pi05_ros.model import Pi05Config

ROWS = 8  # action rows of a cluster
COLUMNS = 128  # of a block
THREADS = 256
WIDTHS = (512, 1024)
ACTIONS = 32


def unsupported(config: Pi05Config) -> str | None:
    """Why the kernel cannot run between the steps of a model; None where it can."""
    if config.expert.width not in WIDTHS:
        return f"width {config.expert.width}; the kernel takes {WIDTHS}"
    if config.action_dim != ACTIONS:
        return f"{config.action_dim} values per action; the kernel takes {ACTIONS}"
    return None


class EulerStep:
    """The compiled kernel of one model size; `coded`: the next input is e4m3, not bf16."""

    def __init__(self, config: Pi05Config, device: torch.device, coded: bool = True) -> None:
        width = config.expert.width
        self._cluster = width // COLUMNS
        constants = {"WIDTH": width, "CODED": int(coded)}
        self._kernel = launch.load("euler.cu", constants, device).kernel("euler_step")

    def launch(self, horizon: int, args: Sequence[launch.Argument], dependent: bool) -> None:
        """Enqueue it for `horizon` rows, `args` in the kernel's order."""
        groups = -(-horizon // ROWS)
        self._kernel.launch(
            (self._cluster * groups,), THREADS, args, cluster=self._cluster, dependent=dependent
        )
