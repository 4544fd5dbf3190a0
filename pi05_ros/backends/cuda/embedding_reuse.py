"""Image and prompt embeddings that are reused from one prefill to the next.

They lie side by side in one buffer: image rows camera by camera, then the prompt. What a call
overwrites counts as changed, whether that call reuses embeddings or not.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor

from pi05_ros.backends.cuda.graphs import Graphs
from pi05_ros.backends.cuda.inputs import FrameInputs, Kind, View
from pi05_ros.backends.cuda.stages.launches import Launches


class EmbeddingReuse:
    """Encodes only those cameras whose key changed since the last call, and a changed prompt."""

    def __init__(
        self, inputs: FrameInputs, launches: Launches, graphs: Graphs, cameras: int
    ) -> None:
        self._inputs = inputs
        self._launches = launches
        self._graphs = graphs
        self._keys: list[Hashable] = [None] * cameras
        self._prompt: tuple[int, tuple[int, ...]] | None = None

    def forget(self) -> None:
        """Something else wrote the embeddings."""
        self._keys = [None] * len(self._keys)
        self._prompt = None

    def renew(
        self,
        views: Sequence[View],
        tokens: Tensor,
        keys: Sequence[Hashable],
        bucket: int,
        slot: int,
    ) -> None:
        """Make the embeddings those of `views` and `tokens`; a key of None is never kept."""
        for camera, (view, key) in enumerate(zip(views, keys, strict=True)):
            if key is not None and key == self._keys[camera]:
                continue
            self._keys[camera] = None
            self._inputs.load(camera, view)
            kind = view.kind

            def encode(camera: int = camera, kind: Kind = kind) -> None:
                self._launches.camera(camera, kind)
                self._launches.stages.vision(camera, 1)

            self._graphs.run(("camera", camera, kind), encode)
            self._keys[camera] = key
        for camera in range(len(views), len(self._keys)):  # the prompt lies there now
            self._keys[camera] = None
        prompt = (len(views), tuple(tokens.tolist()))
        if prompt != self._prompt:
            self._graphs.run(
                ("prompt", len(views), bucket, slot),
                lambda: self._launches.prompt(len(views), bucket, slot),
            )
            self._prompt = prompt
