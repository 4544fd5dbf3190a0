"""Parameters of the policy node: one dataclass is the only place that names, types, describes,
bounds and defaults them.

The node declares from it, validates with it and reads into it; the table of docs/node.md is
printed from it: ``python -m pi05_ros.runtime.parameters --markdown``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pi05_ros.backends.choices import BACKENDS, DENOISE_PRECISIONS, PRECISIONS
from pi05_ros.policy.chunking.kv_reuse import MODES
from pi05_ros.policy.interface import MAX_SEED
from pi05_ros.runtime.parameter_checks import (
    check_camera_map,
    check_control_hz,
    check_reuse,
    check_roles,
)
from pi05_ros.runtime.parameter_specs import (
    ParameterError,
    Spec,
    from_values,
    main,
    param,
    specs_of,
)

__all__ = ["SPECS", "ParameterError", "PolicyParameters", "Spec"]

REMOTE = "remote"
TRANSPORTS = ("raw", "compressed")
RELIABILITIES = ("auto", "best_effort", "reliable")
ZERO_STAMPS = ("reject", "receive_time")
ISOLATIONS = ("thread", "process")
LEROBOT_ERAS = ("auto", "0.4", "0.5")


@dataclass(frozen=True)
class PolicyParameters:
    """Every parameter of the policy node; dots in ROS names are underscores here."""

    checkpoint: str = param(
        "",
        "Weights: a path (directory or safetensors file), or `random:tiny` / `random:pi05` for "
        "seeded random weights that must not move a robot. Required.",
    )
    robot: str = param(
        "",
        "Robot profile: a name from config/robots or a path to a YAML file. Empty: the one the "
        "checkpoint brings, `sim_arm` for random weights.",
    )
    tokenizer: str = param(
        "",
        "Path of the SentencePiece tokenizer. Empty: the one beside the checkpoint; random "
        "weights use bytes.",
    )
    backend: str = param(
        "auto",
        "What runs the model. `remote`: a policy server, whose address `ws://host:port` is the "
        "checkpoint (such a checkpoint implies it).",
        choices=(*BACKENDS, REMOTE),
    )
    remote_deadline_s: float = param(
        1.0, "Remote: seconds an answer of the policy server is waited for.", within=(0.01, 60.0)
    )
    remote_jpeg_quality: int = param(
        0, "Remote: send JPEG of this quality to `pi05 serve`; 0 sends pixels.", within=(0, 95)
    )
    remote_resize: bool = param(
        False, "Remote: shrink images to the model's 224 x 224 before they are sent."
    )
    remote_key_file: str = param(
        "", "Remote: file with the server's API key in its first line, mode 0600. Empty: no key."
    )
    allow_fallback: bool = param(
        False,
        "With backend `tensorrt`: run on another backend if there are no verified engines. "
        "`/diagnostics` then warns.",
    )
    precision_vision: str = param(
        "auto", "Arithmetic of the vision stage.", name="precision.vision", choices=PRECISIONS
    )
    precision_prefill: str = param(
        "auto", "Arithmetic of the prefill stage.", name="precision.prefill", choices=PRECISIONS
    )
    precision_denoise: str = param(
        "auto",
        "Arithmetic of the denoise stage.",
        name="precision.denoise",
        choices=DENOISE_PRECISIONS,
    )
    device: str = param("auto", "Torch device: `auto`, `cpu`, `cuda` or `cuda:1`.")
    threads: int = param(
        0, "CPU threads of the model; 0 leaves the choice to torch.", within=(0, 1024)
    )
    seed: int = param(
        0,
        "Seed of the flow noise; inference n of an activation is drawn with seed + n, and each "
        "chunk carries its own. (Random weights have theirs in the name: `random:tiny:7`.)",
        within=(0, MAX_SEED),
    )
    denoise_steps: int = param(
        0,
        "Flow integration steps per chunk; 0: the checkpoint's own, 10 where it names none.",
        dynamic=True,
        within=(0, 20),
    )
    control_hz: float = param(
        0.0,
        "Steps per second of a chunk; 0: what checkpoint or robot profile say.",
        within=(0.0, 1000.0),
        check=check_control_hz,
    )
    lerobot_era: str = param(
        "auto",
        "LeRobot checkpoints: release whose conventions hold (`0.4` up to 0.4.4, `0.5` since "
        "0.5.0); `auto` tells them apart by the files.",
        choices=LEROBOT_ERAS,
    )
    camera_map: tuple[str, ...] = param(
        ("",),
        "LeRobot checkpoints: which image feature a camera role shows, one `role=feature` each, "
        "for example `base=observation.images.top`. Empty: from the names of the features.",
        check=check_camera_map,
    )
    horizon: int = param(
        0, "Steps kept of each chunk; 0 keeps all that the robot profile has.", within=(0, 1000)
    )
    rate_hz: float = param(
        10.0, "Inferences per second that are asked for.", dynamic=True, within=(0.1, 200.0)
    )
    chunk_mode: str = param(
        "plain",
        "How a chunk continues the one before: `plain` does not; `identity` (backends eager, "
        "cuda) and `vjp`, `vjp-scaled` (eager) guide the flow (real-time chunking), `trained` "
        "(eager, cuda) needs weights trained for it.",
        choices=MODES,
    )
    kv_reuse: str = param(
        "1",
        "Vision and prefill are computed for every n-th observation, or `dynamic`: where an "
        "image has changed much or the arm slows down, at most every second time. A KV cache is "
        "kept for half of a chunk's steps (see `horizon`) at most, whatever n says.",
        check=check_reuse,
    )
    vision_cache_levels: int = param(
        -1,
        "Keep a camera's image tokens while its image changes by no more than this mean gray "
        "difference (0 to 255 levels; backends eager, cuda). -1: never.",
        within=(-1, 255),
    )
    overlap: bool = param(
        False,
        "Start vision and prefill of the newest observation while the actions of the one before "
        "are still denoised (backends cuda, eager, onnx). More chunks per second where `rate_hz` "
        "asks for more than one inference after the other can give; each chunk comes later.",
    )
    prompt: str = param(
        "",
        "Language instruction. The prompt topic sets it too, the last writer wins. Empty or "
        "blank: the robot profile's default prompt.",
        dynamic=True,
    )
    camera_roles: tuple[str, ...] = param(
        ("",),
        "Cameras that are subscribed to, all of which must deliver (base, wrist, wrist_2). "
        "Empty: all of the robot profile.",
        check=check_roles,
    )
    camera_transport_base: str = param(
        "raw",
        "Message of the base camera: Image on `base_camera/image_raw` or CompressedImage on "
        "`base_camera/image_raw/compressed`.",
        name="camera_transport.base",
        choices=TRANSPORTS,
    )
    camera_transport_wrist: str = param(
        "raw", "The same for `wrist_camera`.", name="camera_transport.wrist", choices=TRANSPORTS
    )
    camera_transport_wrist_2: str = param(
        "raw", "The same for `wrist_camera_2`.", name="camera_transport.wrist_2",
        choices=TRANSPORTS,
    )  # fmt: skip
    camera_reliability: str = param(
        "auto",
        "QoS of the camera subscriptions. auto is reliable while every publisher of the topic is, "
        "otherwise best effort.",
        choices=RELIABILITIES,
    )
    max_age_s: float = param(
        0.5,
        "Oldest sample (header stamp against the node's clock) that may start an inference.",
        dynamic=True,
        within=(0.001, 3600.0),
    )
    max_camera_age_s: float = param(
        0.0, "max_age_s for cameras alone; 0 takes max_age_s.", dynamic=True, within=(0.0, 3600.0)
    )
    max_joint_age_s: float = param(
        0.0,
        "max_age_s for joint_states alone; 0 takes max_age_s.",
        dynamic=True,
        within=(0.0, 3600.0),
    )
    on_change_joints: tuple[str, ...] = param(
        ("",),
        "Joints whose publisher speaks only when they change (some grippers): max_on_change_age_s "
        "holds for them instead of max_age_s, and the stamp of an observation is that of the "
        "others. A publisher that has not spoken since the node is configured is waited for.",
    )
    max_on_change_age_s: float = param(
        60.0,
        "Oldest value of the joints in on_change_joints.",
        dynamic=True,
        within=(0.001, 86400.0),
    )
    max_skew_s: float = param(
        0.25,
        "Largest distance between the stamps of the samples of one observation.",
        dynamic=True,
        within=(0.001, 3600.0),
    )
    camera_delay_s: float = param(
        0.0,
        "From what an image shows to its header stamp; ages, skew and the time of a chunk go by "
        "what images show.",
        dynamic=True, within=(0.0, 1.0)
    )  # fmt: skip
    command_delay_s: float = param(
        0.0,
        "The executor's command_delay_s: so much more of a chunk is tied to the one before.",
        within=(0.0, 1.0)
    )  # fmt: skip
    future_tolerance_s: float = param(
        0.05,
        "How far a stamp may lie ahead of the node's clock; more means unsynchronized clocks.",
        dynamic=True,
        within=(0.0, 3600.0),
    )
    zero_stamps: str = param(
        "reject",
        "What to do with samples whose header stamp is 0: refuse them, or take the time of "
        "receipt (hides transport delay).",
        choices=ZERO_STAMPS,
    )
    dead_source_timeout_s: float = param(
        2.0,
        "A source is dead after this time without a message (monotonic clock).",
        dynamic=True,
        within=(0.05, 3600.0),
    )
    max_answer_age_s: float = param(
        1.0,
        "A chunk is dropped if the observation it answers is older than this when it is ready.",
        dynamic=True,
        within=(0.001, 3600.0),
    )
    camera_wait_s: float = param(
        0.04,
        "At a tick, wait this long for the next frame of every camera so that the newest image "
        "is used; at most half a period. 0 starts at once.",
        dynamic=True,
        within=(0.0, 1.0),
    )
    isolation: str = param(
        "thread",
        "Where the engine computes: `process` keeps the node alive whatever happens to the "
        "engine, and starts it again; `thread` needs less memory.",
        choices=ISOLATIONS,
    )
    engine_restart_s: float = param(
        1.0,
        "With isolation `process`: wait before a lost engine is started again; doubled for each "
        "further start, up to 30 s.",
        within=(0.1, 30.0),
    )
    engine_timeout_s: float = param(
        0.0,
        "With isolation `process`: an inference that takes longer hangs, and the engine is "
        "started again; 0: 20 times the 99th percentile of the newest 200, at least 2 s; ten "
        "times that for the first inference with other images, prompt or steps.",
        within=(0.0, 600.0),
    )
    stop_timeout_s: float = param(
        2.0,
        "How long deactivate, cleanup and shutdown wait for a running inference.",
        dynamic=True,
        within=(0.0, 3.0),
    )

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> PolicyParameters:
        """Dataclass from ROS names and values, each checked; a name that is absent is default."""
        return from_values(cls, values)

    def transport(self, role: str) -> str:
        """Transport of one camera role; roles without a parameter of their own are raw."""
        return str(getattr(self, f"camera_transport_{role}", "raw"))

    def max_age(self, source_is_camera: bool) -> float:
        """Age limit in seconds of a camera or of the joint states."""
        special = self.max_camera_age_s if source_is_camera else self.max_joint_age_s
        return special or self.max_age_s

    @property
    def camera_features(self) -> dict[str, str]:
        """Camera role -> image feature that was asked for, empty if the files decide."""
        return {
            role: feature
            for role, _, feature in (pair.partition("=") for pair in self.camera_map if pair)
        }

    @property
    def roles(self) -> tuple[str, ...]:
        """Camera roles that were asked for, empty if the robot profile decides."""
        return tuple(role for role in self.camera_roles if role)


SPECS: dict[str, Spec] = specs_of(PolicyParameters)


if __name__ == "__main__":
    sys.exit(main(SPECS, "policy node"))
