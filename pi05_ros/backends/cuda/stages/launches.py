"""The parts of graphs: a camera, all cameras, prompt, prefill, the whole prefix, noise."""

from __future__ import annotations

from collections.abc import Callable

from pi05_ros.backends.cuda.inputs import FrameInputs, Kind
from pi05_ros.backends.cuda.stages.beside_prefill import BesidePrefill, Gate
from pi05_ros.backends.cuda.stages.denoise import DenoiseKernels
from pi05_ros.backends.cuda.stages.modulation import Modulation
from pi05_ros.backends.cuda.stages.patches import ResizeTables
from pi05_ros.backends.cuda.stages.prefill import PrefixKernels
from pi05_ros.backends.cuda.triton import preprocess

Kinds = tuple[Kind, ...]


class Launches:
    """Enqueue parts of an inference on the static buffers."""

    def __init__(
        self,
        stages: PrefixKernels,
        denoise: DenoiseKernels,
        inputs: FrameInputs,
        beside: BesidePrefill | None = None,
    ) -> None:
        self.stages = stages
        self._denoise = denoise
        self.inputs = inputs
        self.buffers = stages.buffers
        self.weights = stages.weights
        self.beside = beside  # None: the flow comes behind prefill
        self._resize: dict[tuple[int, int, int], ResizeTables] = {}

    def camera(self, camera: int, kind: Kind) -> None:
        """Image of one camera -> its patch rows."""
        frame = self.inputs.buffer(camera, kind)
        if kind[0] == "pixels":
            self.stages.pixels_to_patches(frame, camera)
            return
        key = (camera, kind[1], kind[2])
        if key not in self._resize:
            size = self.weights.config.vision.image_size
            self._resize[key] = ResizeTables.build(kind[1], kind[2], size, frame.device)
        self.stages.frame_to_patches(frame, camera, self._resize[key])

    def vision(self, kinds: Kinds) -> None:
        """Images -> image tokens."""
        for camera, kind in enumerate(kinds):
            self.camera(camera, kind)
        if kinds:
            self.stages.vision(0, len(kinds))

    def prompt(self, views: int, bucket: int, slot: int) -> None:
        """Prompt ids -> their rows behind the image tokens."""
        self.stages.embed_prompt(views, bucket, self.buffers.slots[slot])

    def prefill(
        self, views: int, bucket: int, slot: int, cached: Callable[[], None] | None = None
    ) -> None:
        """Embeddings -> keys and values; `cached` as for `PrefixKernels.prefill`."""
        rows = views * self.buffers.tokens + bucket
        self.stages.prefill(rows, self.buffers.slots[slot], cached)

    def prefix(
        self, kinds: Kinds, bucket: int, slot: int, cached: Callable[[], None] | None = None
    ) -> None:
        """Images and prompt -> keys and values; `cached` as for `PrefixKernels.prefill`."""
        self.vision(kinds)
        self.prompt(len(kinds), bucket, slot)
        self.prefill(len(kinds), bucket, slot, cached)

    def inference(
        self, kinds: Kinds, bucket: int, horizon: int, mod: Modulation, drawn: bool
    ) -> None:
        """Images, prompt and noise -> actions, in slot 0."""
        rows = len(kinds) * self.buffers.tokens + bucket

        def prefix(cached: Callable[[], None] | None = None) -> None:
            self.prefix(kinds, bucket, 0, cached)

        def denoise(gate: Gate | None = None) -> None:
            self.denoise(horizon, mod, 0, rows, drawn=drawn, gate=gate)

        if self.beside is not None:
            self.beside.run(prefix, denoise)
        else:
            prefix()
            denoise()

    def denoise(
        self,
        horizon: int,
        mod: Modulation,
        slot: int,
        rows: int,
        guided: bool = False,
        drawn: bool = False,
        gate: Gate | None = None,
    ) -> None:
        """Noise -> actions, see `DenoiseKernels.run`; `drawn`: the noise comes from the seed."""
        if drawn:
            self.noise(horizon)
        self._denoise.run(horizon, mod, self.buffers.slots[slot], rows, guided, gate)

    def noise(self, horizon: int) -> None:
        """Draw the noise from the seed on the device."""
        count = horizon * self.weights.config.action_dim
        preprocess.normal_noise[(-(-count // 256),)](
            self.buffers.seed, self.buffers.noise, count, BLOCK=256
        )
