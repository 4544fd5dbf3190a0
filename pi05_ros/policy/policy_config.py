"""What a policy is loaded with: one value from launch parameters and options to the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pi05_ros.policy.argument_checks import check_count, check_seed
from pi05_ros.policy.interface import MAX_DENOISE_STEPS

if TYPE_CHECKING:
    from pi05_ros.backends import Precision


@dataclass(frozen=True)
class PolicyConfig:
    """Options of `Policy.load`.

    Attributes:
        checkpoint: an openpi or LeRobot directory (or its model.safetensors), a hub id
            ("hf://org/name@revision"), "random:tiny" / "random:pi05" for seeded random weights
            ("random:tiny:7" for weight seed 7), or the address of a policy server,
            ``ws://host:port``; then ``backend_options`` are the fields of `RemoteOptions`.
        robot: shipped profile or YAML file. None: what the checkpoint says, "sim_arm" for random
            weights.
        tokenizer: SentencePiece ``.model``, ``tokenizer.json``, a directory or hub id
            ("hf://google/paligemma-3b-pt-224") with one, or "bytes". None looks beside the
            checkpoint and in openpi's cache; random weights use bytes.
        backend: "auto", "eager", "cuda", "onnx", "tensorrt", "remote".
        precision: per stage ("auto", "fp32", "bf16", ...).
        denoise_steps: Euler steps of the flow; 0 takes those of the checkpoint's config.json
            (num_inference_steps or num_steps), or 10 where it says none.
        horizon: steps kept of each chunk; None keeps all.
        device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1".
        seed: of the flow noise; inference number i without a seed of its own uses seed + i.
        prompt: replaces the profile's default prompt.
        threads: CPU threads of torch in this whole process; None leaves torch's choice.
        camera_roles: LeRobot only: role -> image feature.
        lerobot_era: LeRobot only: "auto", "0.4", "0.5".
        control_hz: replaces the profile's rate.
        backend_options: passed to the backend.
        warm_up: warm up while the weights are still hashed, if they are; `Policy.warm_up` then has
            little left to do.

    Raises:
        PolicyError: a count or seed that is none.

    """

    checkpoint: str | Path
    robot: str | Path | None = None
    tokenizer: str | Path | None = None
    backend: str = "auto"
    precision: Precision | Mapping[str, str] | str | None = None
    denoise_steps: int = 0
    horizon: int | None = None
    device: str = "auto"
    seed: int = 0
    prompt: str | None = None
    threads: int | None = None
    camera_roles: Mapping[str, str] | None = None
    lerobot_era: str = "auto"
    control_hz: float | None = None
    backend_options: Mapping[str, Any] | None = None
    warm_up: bool = False

    def __post_init__(self) -> None:
        check_count("denoise_steps", self.denoise_steps, MAX_DENOISE_STEPS, least=0)
        check_seed(self.seed)
        if self.threads is not None:
            check_count("threads", self.threads, 1024)
