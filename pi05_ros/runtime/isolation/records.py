"""Policy description and action chunks as maps of plain values, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from pi05_ros.backends.engine import EngineHealth, Precision
from pi05_ros.policy.interface import (
    ActionChunk,
    ActionMeaning,
    ActionUnit,
    PolicyInfo,
    StageTimings,
)
from pi05_ros.policy.pose_groups import PoseGroup


def pack_info(info: PolicyInfo) -> dict[str, Any]:
    """`PolicyInfo` as a map."""
    return dataclasses.asdict(info)


def unpack_info(values: Mapping[str, Any]) -> PolicyInfo:
    """The inverse of `pack_info`."""
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    fields["precision"] = Precision(**values["precision"])
    return PolicyInfo(**fields)


def pack_chunk(chunk: ActionChunk) -> dict[str, Any]:
    """`ActionChunk` as a map; arrays are bytes of float32, row-major."""
    normalized = np.ascontiguousarray(chunk.normalized, np.float32)
    return {
        "actions": np.ascontiguousarray(chunk.actions, np.float32).tobytes(),
        "normalized": normalized.tobytes(),
        "shapes": [list(chunk.actions.shape), list(normalized.shape)],
        "names": list(chunk.names),
        "meanings": [int(item) for item in chunk.meanings],
        "units": [int(item) for item in chunk.units],
        "dt": float(chunk.dt),
        "prompt": chunk.prompt,
        "seed": int(chunk.seed),
        "denoise_steps": int(chunk.denoise_steps),
        "timings": dataclasses.asdict(chunk.timings),
        "kv_age": int(chunk.kv_age),
        "pose_groups": [group.as_dict() for group in chunk.pose_groups],
    }


def unpack_chunk(values: Mapping[str, Any]) -> ActionChunk:
    """The inverse of `pack_chunk`."""
    actions, normalized = (
        np.frombuffer(values[name], np.float32).reshape(shape)
        for name, shape in zip(("actions", "normalized"), values["shapes"], strict=True)
    )
    return ActionChunk(
        actions=actions,
        normalized=normalized,
        names=tuple(values["names"]),
        meanings=tuple(ActionMeaning(item) for item in values["meanings"]),
        units=tuple(ActionUnit(item) for item in values["units"]),
        dt=values["dt"],
        prompt=values["prompt"],
        seed=values["seed"],
        denoise_steps=values["denoise_steps"],
        timings=StageTimings(**values["timings"]),
        kv_age=values["kv_age"],
        pose_groups=tuple(PoseGroup.of(item) for item in values["pose_groups"]),
    )


def pack_health(health: EngineHealth) -> dict[str, Any]:
    """`EngineHealth` as a map."""
    return {"values": dict(health.values), "warning": health.warning}


def unpack_health(values: Mapping[str, Any]) -> EngineHealth:
    """The inverse of `pack_health`."""
    return EngineHealth(dict(values["values"]), values["warning"])
