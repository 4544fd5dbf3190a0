"""Model inputs of recorded observations: what calibration and the checks run on.

A sample is one observation after the policy's preprocessing, with a fixed noise, so that runs
on different engines see exactly the same. Sets are kept as one safetensors file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pi05_ros.backends.files import write_atomically
from pi05_ros.backends.quantization.calibration import CalibrationError
from pi05_ros.backends.staged.shapes import StageShapes
from pi05_ros.model import Pi05Config
from pi05_ros.small_files import MissingFileError, parse_json, require_regular

MINIMUM = 8


@dataclass(frozen=True)
class Sample:
    """One observation as the model sees it.

    Attributes:
        name: where it came from (file, or bag and stamp).
        images: float32 ``[v, 3, S, S]`` in [-1, 1], the valid cameras in slot order.
        tokens: int64 ``[n]`` prompt ids without padding.
        noise: float32 ``[H, A]``.
        synthetic: made up, not recorded.

    """

    name: str
    images: Tensor
    tokens: Tensor
    noise: Tensor
    synthetic: bool = False

    @property
    def digest(self) -> str:
        """sha256 of all values."""
        state = hashlib.sha256()
        for tensor in (self.images.float(), self.tokens.long(), self.noise.float()):
            state.update(str(tuple(tensor.shape)).encode())
            state.update(tensor.contiguous().numpy().tobytes())
        return state.hexdigest()


def fixed_noise(horizon: int, action_dim: int, seed: int) -> Tensor:
    """Standard normal noise ``[H, A]`` that is the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(horizon, action_dim, generator=generator)


def synthetic_samples(
    config: Pi05Config, count: int, *, views: int, prompt_tokens: int, horizon: int, seed: int = 0
) -> list[Sample]:
    """Smooth random images and random prompts: for tests and dry runs, never for a robot."""
    generator = torch.Generator().manual_seed(seed)
    size = config.vision.image_size
    samples = []
    for index in range(count):
        coarse = torch.rand(views, 3, 8, 8, generator=generator) * 2 - 1
        images = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
        images += 0.1 * torch.randn(images.shape, generator=generator)
        length = int(torch.randint(4, prompt_tokens + 1, (), generator=generator))
        tokens = torch.randint(0, config.vocab, (length,), generator=generator)
        noise = fixed_noise(horizon, config.action_dim, seed * 1000 + index)
        images = images.clamp(-1, 1)
        samples.append(Sample(f"synthetic-{seed}-{index}", images, tokens, noise, True))
    return samples


def set_digest(samples: Iterable[Sample]) -> str:
    """sha256 over the digests of a set."""
    state = hashlib.sha256()
    for sample in samples:
        state.update(sample.digest.encode())
    return state.hexdigest()


def edge_cases(samples: Sequence[Sample], prompt_tokens: int) -> list[Sample]:
    """Cases that recorded data may not hold: one camera missing, shortest and longest prompt."""
    first = samples[0]
    cases = []
    if first.images.shape[0] > 1:
        cases.append(
            Sample("edge: last camera missing", first.images[:-1], first.tokens, first.noise, True)
        )
    short = first.tokens[:1]
    cases.append(Sample("edge: one-token prompt", first.images, short, first.noise, True))
    full = first.tokens.repeat(prompt_tokens // len(first.tokens) + 1)[:prompt_tokens]
    cases.append(Sample("edge: full prompt", first.images, full, first.noise, True))
    return cases


def require_real(
    samples: Sequence[Sample], *, allow_synthetic: bool, minimum: int = MINIMUM
) -> None:
    """Refuse what would calibrate badly or verify nothing.

    Raises:
        CalibrationError: too few samples, repeated ones, or made-up ones without permission.

    """
    if len(samples) < minimum:
        raise CalibrationError(
            f"{len(samples)} observations are too few; at least {minimum} recorded ones are "
            "needed (32 are plenty)"
        )
    made_up = [sample.name for sample in samples if sample.synthetic]
    if made_up and not allow_synthetic:
        raise CalibrationError(
            f"{len(made_up)} of {len(samples)} observations are synthetic ({made_up[0]}); random "
            "data say nothing about a robot. For a dry run: --allow-synthetic"
        )
    different = {sample.digest for sample in samples}
    if len(different) < minimum:
        raise CalibrationError(
            f"only {len(different)} of {len(samples)} observations differ; at least {minimum} "
            "different ones are needed"
        )


def require_fit(samples: Sequence[Sample], shapes: StageShapes, vocabulary: int) -> None:
    """Samples must fit the stages; sets may come from another robot or checkpoint.

    Raises:
        CalibrationError: naming the first sample that does not.

    """
    size, actions = shapes.image_size, (shapes.horizon, shapes.action_dim)
    for sample in samples:
        views, tokens = len(sample.images), sample.tokens
        problem = ""
        if not 1 <= views <= shapes.views or tuple(sample.images.shape[1:]) != (3, size, size):
            problem = (
                f"images {list(sample.images.shape)}; accepted: 1 to {shapes.views} cameras of "
                f"[3, {size}, {size}]"
            )
        elif not torch.isfinite(sample.images).all():
            problem = "images that are not finite"
        elif tokens.ndim != 1 or not 1 <= len(tokens) <= shapes.prompt_tokens:
            problem = f"{tokens.numel()} prompt tokens; accepted: 1 to {shapes.prompt_tokens}"
        elif int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary:
            problem = f"tokens outside the vocabulary of {vocabulary}"
        elif tuple(sample.noise.shape) != actions:
            problem = f"noise {list(sample.noise.shape)}, needed is {list(actions)}"
        if problem:
            raise CalibrationError(f"observation {sample.name} has {problem}")


def save_samples(path: Path, samples: Iterable[Sample]) -> str:
    """Write a set; returns its `set_digest`.

    Raises:
        BackendError: the disk is full or the folder cannot be written.

    """
    tensors: dict[str, Tensor] = {}
    names = []
    samples = list(samples)
    for index, sample in enumerate(samples):
        tensors[f"{index:04d}/images"] = sample.images.float().contiguous()
        tensors[f"{index:04d}/tokens"] = sample.tokens.long().contiguous()
        tensors[f"{index:04d}/noise"] = sample.noise.float().contiguous()
        names.append({"name": sample.name, "synthetic": sample.synthetic})
    write_atomically(path, save(tensors, metadata={"samples": json.dumps(names)}))
    return set_digest(samples)


def load_samples(path: Path) -> tuple[list[Sample], str]:
    """Read a set and its hash.

    Raises:
        CalibrationError: missing or damaged.

    """
    try:
        require_regular(path)
        with safe_open(path, framework="pt") as file:
            names = parse_json((file.metadata() or {})["samples"], "its metadata")
            samples = [
                Sample(
                    str(entry["name"]),
                    file.get_tensor(f"{index:04d}/images"),
                    file.get_tensor(f"{index:04d}/tokens"),
                    file.get_tensor(f"{index:04d}/noise"),
                    bool(entry["synthetic"]),
                )
                for index, entry in enumerate(names)
            ]
    except MissingFileError:
        raise CalibrationError(
            f"no samples at {path}; make them with: pi05 calibrate --for tensorrt"
        ) from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CalibrationError(f"{path} is not a set of samples: {error}") from None
    return samples, set_digest(samples)
