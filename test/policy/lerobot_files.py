"""Writes LeRobot pi05 directories of both eras (without weights unless asked)."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

STATE_FILE = "policy_preprocessor_step_2_normalizer_processor.safetensors"
ACTION_FILE = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"


def stats(n, seed):
    rng = np.random.default_rng(seed)
    low = rng.normal(size=n).astype(np.float32)
    return {
        "mean": low,
        "std": rng.uniform(0.5, 2, n).astype(np.float32),
        "q01": low,
        "q99": low + rng.uniform(1, 2, n).astype(np.float32),
        "q10": low + np.float32(0.1),
        "q90": low + np.float32(0.9),
        "min": low - 1,
        "max": low + 3,
        "count": np.array([100], dtype=np.float32),
    }


def write_lerobot(
    folder: Path,
    *,
    states=6,
    actions=6,
    mode="QUANTILES",
    cameras=("observation.images.top", "observation.images.wrist_left"),
    relative=None,
    names=None,
    rename=None,
    with_stats=True,
    config=None,
    resolution=224,
    registry="relative_actions_processor",
):
    """relative: list of excluded joints, or None for absolute actions."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = {c: {"type": "VISUAL", "shape": [3, 48, 64]} for c in cameras}
    inputs["observation.state"] = {"type": "STATE", "shape": [states]}
    data = {
        "type": "pi05",
        "n_obs_steps": 1,
        "input_features": inputs,
        "output_features": {"action": {"type": "ACTION", "shape": [actions]}},
        "chunk_size": 10,
        "n_action_steps": 10,
        "max_state_dim": 32,
        "max_action_dim": 32,
        "image_resolution": [resolution, resolution],
        "empty_cameras": 0,
        "tokenizer_max_length": 200,
        **(config or {}),
    }
    (folder / "config.json").write_text(json.dumps(data))
    norm_map = {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}
    features = {**inputs, **data["output_features"]}
    shared = {"eps": 1e-8, "features": features, "norm_map": norm_map}
    pre = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": rename or {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        {"registry_name": "normalizer_processor", "config": shared},
        {"registry_name": "pi05_prepare_state_tokenizer_processor_step", "config": {}},
        {"registry_name": "tokenizer_processor", "config": {"max_length": 180}},
        {"registry_name": "device_processor", "config": {"device": "cpu"}},
    ]
    post = [
        {"registry_name": "unnormalizer_processor", "config": dict(shared)},
        {"registry_name": "device_processor", "config": {"device": "cpu"}},
    ]
    if relative is not None:
        settings = {"enabled": True, "exclude_joints": relative, "action_names": names}
        pre.insert(2, {"registry_name": registry, "config": settings})
        absolute = {"registry_name": "absolute_actions_processor", "config": {"enabled": True}}
        post.insert(1, absolute)
    if with_stats:
        state, action = stats(states, 1), stats(actions, 2)
        save_file({f"observation.state.{k}": v for k, v in state.items()}, folder / STATE_FILE)
        save_file({f"action.{k}": v for k, v in action.items()}, folder / ACTION_FILE)
        next(s for s in pre if s["registry_name"] == "normalizer_processor")["state_file"] = (
            STATE_FILE
        )
        post[0]["state_file"] = ACTION_FILE
    (folder / "policy_preprocessor.json").write_text(json.dumps({"name": "pre", "steps": pre}))
    (folder / "policy_postprocessor.json").write_text(json.dumps({"name": "post", "steps": post}))
    return folder


def edit(path: Path, change):
    """Rewrite a JSON file after change(data)."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
