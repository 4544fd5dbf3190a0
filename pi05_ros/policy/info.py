"""What a policy says about itself."""

from __future__ import annotations

from dataclasses import dataclass

from pi05_ros.backends import Precision


@dataclass(frozen=True)
class PolicyInfo:
    """What is loaded, for status messages and logs.

    Attributes:
        checkpoint: as given to `Policy.load`.
        checkpoint_hash: "sha256:<hex>" of the weight file, or "random:<preset>:<seed>".
        random_weights: True if the actions mean nothing; such a policy must not move a real arm.
        robot: profile name.
        backend, backend_reason: engine, and why this one.
        device: e.g. "cpu", "cuda:0".
        precision: of each stage, resolved.
        denoise_steps: Euler steps of the flow unless an inference asks for others.
        horizon: steps kept of each chunk.
        step_s: seconds per step.
        action_names, camera_roles, state_names: as in the profile.
        tokenizer: file, or "bytes".
        assumptions: facts that no file told, in words.

    """

    checkpoint: str
    checkpoint_hash: str
    random_weights: bool
    robot: str
    backend: str
    backend_reason: str
    device: str
    precision: Precision
    denoise_steps: int
    horizon: int
    step_s: float
    action_names: tuple[str, ...]
    camera_roles: tuple[str, ...]
    state_names: tuple[str, ...]
    tokenizer: str
    assumptions: tuple[str, ...] = ()
