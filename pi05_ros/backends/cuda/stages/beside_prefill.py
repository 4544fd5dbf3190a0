"""The first step of the flow beside prefill, on a branch of its own of the same graph.

Of the prefix, layer l of that step needs the keys and values of layer l alone. So the branch
begins early and waits in front of each layer for the kernel that writes them. (In front of q, k,
v, not of attention: these are written behind the prompt, where that kernel fills the rest of the
bucket.) The steps behind need no further waits. Prefill leaves processors idle: those that its
tiles do not divide among, and those between two kernels.

Who waits is launched without dependent launch and so starts when the keys and values are complete.
All kernels behind start later than that one, so they may read these above their own wait, as in a
denoising that comes behind prefill. The arithmetic is the same, and so are the results.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Gate = Callable[[int], None]


class BesidePrefill:
    """Runs prefix and flow as two branches that meet at the end."""

    def __init__(self, device: torch.device) -> None:
        self._branch = torch.cuda.Stream(device)

    def run(
        self, prefix: Callable[[Callable[[], None]], None], denoise: Callable[[Gate], None]
    ) -> None:
        """Enqueue the prefix on the current stream and the flow on the branch.

        Args:
            prefix: calls its argument behind the keys and values of each layer.
            denoise: calls the gate, with the layer, before each layer of the first step.

        """
        main = torch.cuda.current_stream(self._branch.device)
        begun = main.record_event()
        layers: list[torch.cuda.Event] = []
        prefix(lambda: layers.append(main.record_event()))
        self._branch.wait_event(begun)
        with torch.cuda.stream(self._branch):
            denoise(lambda layer: self._branch.wait_event(layers[layer]))
        main.wait_stream(self._branch)
