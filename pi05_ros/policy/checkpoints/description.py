"""What a loaded policy says about itself, and the end of its loading: the hash of its weights."""

from __future__ import annotations

import dataclasses

from pi05_ros.model.checkpoint.file_hash import RunningHash
from pi05_ros.phases import phase
from pi05_ros.policy.argument_checks import check_count
from pi05_ros.policy.checkpoints.hash_memory import remember
from pi05_ros.policy.checkpoints.loading import Loaded, log_findings
from pi05_ros.policy.checkpoints.recipe import DEFAULT_DENOISE_STEPS
from pi05_ros.policy.interface import PolicyInfo, PolicyLike
from pi05_ros.policy.policy_config import PolicyConfig


def describe_policy(loaded: Loaded, config: PolicyConfig) -> PolicyInfo:
    """What a policy says about itself; the hash is empty while it is computed.

    Raises:
        PolicyError: more steps of a chunk are to be kept than the checkpoint has.

    """
    recipe, profile = loaded.recipe, loaded.recipe.profile
    kept, digest = loaded.horizon, loaded.checkpoint_hash
    if config.horizon is not None:
        kept = check_count("horizon", config.horizon, loaded.horizon)
    stated, notes = recipe.denoise_steps, []
    if stated is not None and config.denoise_steps not in (0, stated):
        notes.append(
            f"denoise_steps {config.denoise_steps} is used, not {stated} of the checkpoint's files"
        )
    log_findings(notes, ())
    return PolicyInfo(
        checkpoint=str(config.checkpoint),
        checkpoint_hash="" if isinstance(digest, RunningHash) else digest,
        random_weights=loaded.random_weights,
        robot=profile.name,
        backend=loaded.engine.backend,
        backend_reason=loaded.engine.reason,
        device=str(loaded.engine.device),
        precision=loaded.engine.precision,
        denoise_steps=config.denoise_steps or stated or DEFAULT_DENOISE_STEPS,
        horizon=kept,
        step_s=profile.step_s,
        action_names=profile.action_names,
        camera_roles=profile.camera_roles,
        state_names=profile.state_names,
        tokenizer=loaded.tokenizer.name,
        assumptions=(*recipe.assumptions, *notes),
        doubts=recipe.doubts,
    )


def hashed_info(policy: PolicyLike, loaded: Loaded, *, warm_up: bool) -> PolicyInfo:
    """What a policy says about itself, with the hash of its weights; closes it if there is none.

    Args:
        policy: made of what was loaded.
        loaded: whose hash may still be running.
        warm_up: use that time to warm up.

    Raises:
        CheckpointError: the files changed meanwhile.

    """
    running = loaded.checkpoint_hash
    info: PolicyInfo = policy.info
    if not isinstance(running, RunningHash):
        return info
    try:
        if warm_up and running.running:
            with phase("warm-up"):
                policy.warm_up()
        with phase("hash of the weights"):
            digest = running.result()
        remember(running.since, digest)
        return dataclasses.replace(info, checkpoint_hash=digest)
    except BaseException:
        policy.close()
        raise
