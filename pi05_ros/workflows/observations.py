"""Observations for calibration and checks: from saved files, sample sets and recorded bags."""

from __future__ import annotations

import importlib.util
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pi05_ros.backends import Engine, EngineTimings, Precision
from pi05_ros.backends.engine import Guidance, Images, KVCache
from pi05_ros.backends.quantization.calibration import CalibrationError
from pi05_ros.backends.quantization.samples import (
    Sample,
    load_samples,
    require_fit,
    synthetic_samples,
)
from pi05_ros.backends.staged.engine import model_images
from pi05_ros.model.sampler import DENOISE_STEPS
from pi05_ros.policy import Observation, Policy
from pi05_ros.policy.errors import PolicyError
from pi05_ros.small_files import FileError, require_regular
from pi05_ros.workflows.engine_requests import SampleRequest, Say
from pi05_ros.workflows.subject import Subject


class SampleRecorder(Engine):
    """Engine of a policy that keeps what the model would have been given."""

    backend = "recorder"
    precision = Precision()
    device = torch.device("cpu")
    reason = "collects observations"

    def __init__(self, image_size: int, horizon: int) -> None:
        self.image_size = image_size
        self.horizon = horizon
        self.name = ""
        self.samples: list[Sample] = []

    @property
    def timings(self) -> EngineTimings:
        """Nothing is computed."""
        return EngineTimings()

    def prefill(
        self,
        images: Images,
        tokens: torch.Tensor,
        *,
        camera_keys: Sequence[Hashable] | None = None,
    ) -> KVCache:
        """Keep the images and tokens."""
        return model_images(images, self.image_size, self.device), tokens.cpu()

    def denoise(
        self,
        cache: KVCache,
        noise: torch.Tensor,
        *,
        steps: int = DENOISE_STEPS,
        guidance: Guidance | None = None,
        frozen: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Keep the noise; the answer is zeros."""
        images, tokens = cache
        self.samples.append(Sample(self.name, images, tokens, noise.cpu().float()))
        return torch.zeros_like(noise)

    def close(self) -> None:
        """Nothing to free."""


def save_observation(path: Path, observation: Observation) -> None:
    """Write one observation: ``image.<role>`` uint8, ``state``, and the prompt as metadata."""
    tensors = {f"image.{role}": np.ascontiguousarray(v) for role, v in observation.images.items()}
    tensors["state"] = np.asarray(observation.state, dtype=np.float64)
    metadata = {"stamp_ns": str(observation.stamp_ns)}
    if observation.prompt is not None:
        metadata["prompt"] = observation.prompt
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata)


def load_observation(path: Path) -> Observation:
    """Read what `save_observation` wrote.

    Raises:
        CalibrationError: not such a file.

    """
    try:
        require_regular(path)
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state = tensors.pop("state")
    except (FileError, SafetensorError, OSError, KeyError) as error:
        raise CalibrationError(f"{path} is not a saved observation: {error}") from None
    images = {name.removeprefix("image."): value for name, value in tensors.items()}
    stamp = metadata.get("stamp_ns", "0")
    if not stamp.isdecimal():
        raise CalibrationError(f"{path} is not a saved observation: stamp_ns is {stamp!r}")
    return Observation(
        images=images, state=state, prompt=metadata.get("prompt"), stamp_ns=int(stamp)
    )


def collect_samples(
    request: SampleRequest, subject: Subject, warn: Say = lambda text: None
) -> list[Sample]:
    """Observations from files or bags, as the model sees them.

    Raises:
        CalibrationError: nothing given, unreadable, or not of this robot and checkpoint.

    """
    if request.topics and not request.bags:
        raise CalibrationError("--map names topics of --bag, and there is none")
    shapes = subject.shapes
    files = list(_observation_files(request.observations))
    samples: list[Sample] = []
    for path in files:
        if _is_sample_set(path):
            samples += load_samples(path)[0]
    recorder = SampleRecorder(shapes.image_size, shapes.horizon)
    policy = subject.policy.with_engine(recorder)
    policy.set_prompt(request.prompt or "")
    for path in files:
        if not _is_sample_set(path):
            recorder.name = str(path)
            _infer(policy, path)
    for bag in request.bags:
        _read_bag(bag, request, policy, recorder, warn)
    samples += recorder.samples
    if not samples and request.allow_synthetic:
        return synthetic_samples(
            subject.model.config,
            request.count,
            views=shapes.views,
            prompt_tokens=shapes.prompt_tokens,
            horizon=shapes.horizon,
        )
    if not samples:
        raise CalibrationError(
            "no observations: give --observations or --bag (or, for a dry run, --allow-synthetic)"
        )
    chosen = spread(samples, request.count)
    require_fit(chosen, shapes, subject.model.config.vocab)
    return chosen


def _infer(policy: Policy, path: Path) -> None:
    try:
        policy.infer(load_observation(path))
    except PolicyError as error:
        raise CalibrationError(f"{path} is not an observation of this robot: {error}") from error


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most ``count`` samples, evenly over the whole sequence."""
    if len(samples) <= count:
        return list(samples)
    picked = np.linspace(0, len(samples) - 1, count).round().astype(int)
    return [samples[int(index)] for index in picked]


def _observation_files(paths: Iterable[Path]) -> Iterable[Path]:
    for path in paths:
        if path.is_dir():
            inside = sorted(path.glob("*.safetensors"))
            if not inside:
                raise CalibrationError(f"{path} holds no .safetensors files")
            yield from inside
        else:
            yield path


def _is_sample_set(path: Path) -> bool:
    try:
        require_regular(path)
        with safe_open(path, framework="np") as file:
            return "samples" in (file.metadata() or {})
    except (FileError, SafetensorError, OSError) as error:
        raise CalibrationError(f"{path} cannot be read: {error}") from None


def require_bag_reader(request: SampleRequest) -> None:
    """Raise CalibrationError if bags are to be read and cannot be; before weights are loaded."""
    if request.bags and importlib.util.find_spec("rosbags") is None:
        raise CalibrationError(
            "reading bags needs the package rosbags (pip install rosbags), which needs no ROS"
        )


def _read_bag(
    path: Path,
    request: SampleRequest,
    policy: Policy,
    recorder: SampleRecorder,
    warn: Say,
) -> None:
    """Replay a bag offline at a rate that gives the wanted number of observations."""
    require_bag_reader(request)
    from pi05_ros.bags.bag import Bag
    from pi05_ros.bags.topics import parse_map
    from pi05_ros.replay.offline import OfflineReplay
    from pi05_ros.replay.run import choose
    from pi05_ros.runtime.parameters import PolicyParameters

    recorder.name = str(path)
    with Bag(path) as bag:
        chosen = choose(bag, policy.robot, parse_map(list(request.topics)))
        # A little faster than needed: some ticks find no complete observation.
        rate = min(10.0, max(0.2, 1.5 * request.count / max(bag.seconds, 0.1)))
        parameters = replace(PolicyParameters(), rate_hz=rate, prompt=request.prompt or "")
        replay = OfflineReplay(bag, chosen.sources, policy, parameters, chosen.roles)
        before = len(recorder.samples)
        for chunk in replay:
            recorder.name = f"{path} after {chunk.record.received_ns} ns"
        if len(recorder.samples) == before:
            counts = replay.counts
            reasons = [
                *(f"{number} x {what}" for what, number in counts.skipped.items()),
                *(f"dropped {what}: {counts.errors.get(what, '')}" for what in counts.dropped),
            ]
            raise CalibrationError(
                f"{path} gave no observation of robot {policy.robot.name!r}: "
                f"{'; '.join(reasons) or 'it ends before the first tick'}"
            )
        for name in chosen.absent:
            warn(f"{path} has no {name}; its observations are without")
