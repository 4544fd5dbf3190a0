"""Makes the policy that the parameters ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pi05_ros.backends.engine import Precision
from pi05_ros.phases import phase
from pi05_ros.policy.interface import PolicyLike
from pi05_ros.policy.remote.key_file import read_keys
from pi05_ros.policy.remote.remote_options import is_remote
from pi05_ros.runtime.parameter_specs import to_values
from pi05_ros.runtime.parameters import REMOTE, ParameterError, PolicyParameters

if TYPE_CHECKING:
    from pi05_ros.policy import Policy


IN_PROCESS = "pi05_ros.runtime.policy_loading:load_policy"


def host_policy(parameters: PolicyParameters) -> PolicyLike:
    """The policy of a node: in this process, or with isolation `process` in one of its own.

    Raises:
        ParameterError: parameters that do not go together.
        Exception: see `load_policy`.

    """
    if parameters.isolation != "process" or is_remote(parameters.checkpoint):
        return load_policy(parameters)
    if parameters.overlap:
        raise ParameterError("overlap needs isolation:=thread; with process leave it false")
    if not parameters.checkpoint:
        return load_policy(parameters)  # which says so
    from pi05_ros.policy.checkpoints.loading import read_recipe
    from pi05_ros.runtime.isolation.isolated_policy import IsolatedPolicy, IsolationOptions

    recipe = read_recipe(
        parameters.checkpoint,
        robot=parameters.robot or None,
        camera_roles=parameters.camera_features or None,
        lerobot_era=parameters.lerobot_era,
        control_hz=parameters.control_hz or None,
    )
    options = IsolationOptions(
        timeout_s=parameters.engine_timeout_s, backoff_s=parameters.engine_restart_s
    )
    return IsolatedPolicy(IN_PROCESS, to_values(parameters), recipe.profile, options)


def load_policy(
    parameters: PolicyParameters, continuing: Callable[..., PolicyLike] | None = None
) -> PolicyLike:
    """`Policy.load` with the node's parameters.

    Args:
        parameters: of the node.
        continuing: makes the policy whose chunks continue or reuse something, if they shall;
            `ContinuingPolicy` by default.

    Raises:
        ParameterError: no checkpoint was named.
        ValueError, OSError, RuntimeError: from loading, one line each.

    """
    if not parameters.checkpoint:
        raise ParameterError(
            "parameter checkpoint is empty; give the path of a pi0.5 checkpoint, or random:tiny "
            "(or random:pi05) for seeded random weights that must not move a robot"
        )
    with phase("imports"):
        from pi05_ros.policy import Policy

    options: dict[str, Any] = {"allow_fallback": True} if parameters.allow_fallback else {}
    server_side = False
    if options and parameters.backend != "tensorrt":
        raise ParameterError(
            f"parameter allow_fallback is for backend tensorrt, not {parameters.backend}"
        )
    if parameters.backend == REMOTE or is_remote(parameters.checkpoint):
        options, server_side = _remote_options(parameters), True
    policy = Policy.load(
        parameters.checkpoint,
        robot=parameters.robot or None,
        tokenizer=parameters.tokenizer or None,
        backend=parameters.backend,
        precision=Precision(
            vision=parameters.precision_vision,
            prefill=parameters.precision_prefill,
            denoise=parameters.precision_denoise,
        ),
        denoise_steps=parameters.denoise_steps,
        camera_roles=parameters.camera_features or None,
        lerobot_era=parameters.lerobot_era,
        control_hz=parameters.control_hz or None,
        horizon=parameters.horizon or None,
        device=parameters.device,
        seed=parameters.seed,
        threads=parameters.threads or None,
        backend_options=options,
        warm_up=not (parameters.overlap or _continues(parameters)),
    )
    if server_side:  # continues its chunks there
        return policy
    try:
        return _continuing(policy, parameters, continuing)
    except Exception:
        policy.close()
        raise


def _remote_options(parameters: PolicyParameters) -> dict[str, Any]:
    """Fields of `RemoteOptions`; raises ParameterError for what the server has to do."""
    if parameters.overlap or parameters.vision_cache_levels >= 0:
        raise ParameterError(
            "parameters overlap and vision_cache_levels are for a policy in this process; with "
            f"{parameters.checkpoint or 'backend remote'} leave them at their defaults"
        )
    key = read_keys(Path(parameters.remote_key_file))[0] if parameters.remote_key_file else b""
    return {
        "deadline_s": parameters.remote_deadline_s,
        "jpeg_quality": parameters.remote_jpeg_quality,
        "resize": parameters.remote_resize,
        "api_key": key.decode(),
        "chunk_mode": parameters.chunk_mode,
        "kv_reuse": parameters.kv_reuse,
        "command_delay_s": parameters.command_delay_s,
    }


def _continuing(
    policy: Policy, parameters: PolicyParameters, make: Callable[..., PolicyLike] | None
) -> PolicyLike:
    """The policy with overlap, and wrapped if chunks shall continue or reuse anything."""
    if parameters.overlap:
        policy.allow_overlap()
    if not _continues(parameters):
        return policy
    levels = parameters.vision_cache_levels
    change = float(levels) if levels >= 0 else None
    from pi05_ros.policy.chunking.continuing import ContinuingPolicy

    make = make or ContinuingPolicy
    later = {"command_delay_s": parameters.command_delay_s} if parameters.command_delay_s else {}
    return make(policy, parameters.chunk_mode, parameters.kv_reuse, change, **later)


def _continues(parameters: PolicyParameters) -> bool:
    """Whether chunks continue or reuse anything of those before."""
    plain = parameters.chunk_mode == "plain" and parameters.kv_reuse == "1"
    return not plain or parameters.vision_cache_levels >= 0
