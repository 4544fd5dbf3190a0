"""A table of learned rows that costs nothing on the meta device.

torch draws an embedding's initial values there too, through its compiler, whose import takes
two seconds of every start: all weights are shapes until a checkpoint fills them.
"""

from __future__ import annotations

import torch
from torch import nn


def embedding(rows: int, width: int) -> nn.Embedding:
    """``nn.Embedding(rows, width)``, with its usual initial values unless it is on meta."""
    table = nn.Embedding(rows, width, _weight=torch.empty(rows, width))
    if not table.weight.is_meta:
        table.reset_parameters()
    return table
