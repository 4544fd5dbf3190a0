"""Actions of a LeRobot checkpoint: which are relative, their names, and the profile's order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from pi05_ros.policy.checkpoints.lerobot_processors import (
    POSTPROCESSOR,
    PREPROCESSOR,
    RELATIVE,
    config_of,
    is_names,
)
from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.robots.profile import Ranges, RobotProfile

Steps = Sequence[Mapping[str, Any]]
_ABSOLUTE = "absolute_actions_processor"


def read_relative(
    config: Mapping[str, Any], pre: Steps, post: Steps, size: int, doubts: list[str]
) -> tuple[bool, ...]:
    """Which actions are relative to the state, as the processor steps say; () for none.

    Only the step's own ``action_names`` decide what ``exclude_joints`` leaves out, as in LeRobot.

    Raises:
        PolicyError: only one of the two steps is there or enabled, config.json says that training
            was relative and the steps do not, or names that cannot be told apart.

    """
    relative, absolute = config_of(pre, *RELATIVE), config_of(post, _ABSOLUTE)
    trained, added = bool(relative.get("enabled")), bool(absolute.get("enabled"))
    stated = config.get("use_relative_actions")
    if added and not trained:
        raise PolicyError(
            f"{POSTPROCESSOR} makes actions absolute, but {PREPROCESSOR} has no enabled step "
            f"{' or '.join(RELATIVE)} that would say which; enable both steps or neither"
        )
    if trained and not added:
        raise PolicyError(
            f"{PREPROCESSOR} trains on relative actions, but {POSTPROCESSOR} has no enabled "
            f"{_ABSOLUTE} step: differences would be executed as positions; enable both steps or "
            "neither"
        )
    if stated and not trained:
        raise PolicyError(
            f"config.json says use_relative_actions, but {PREPROCESSOR} and {POSTPROCESSOR} have "
            "no enabled steps for it: differences would be executed as positions; copy the "
            "processor files of the training run, or set use_relative_actions to false"
        )
    if not trained:
        return ()
    if stated is False:
        doubts.append(
            "config.json says use_relative_actions false, the processor files have it enabled: "
            "relative, as the processor files say"
        )
    exclude = relative.get("exclude_joints") or []
    if not is_names(exclude):
        raise PolicyError(f"exclude_joints is {exclude!r:.80}; accepted: a list of texts")
    names = relative.get("action_names")
    if any(exclude) and names is not None and not is_names(names):
        raise PolicyError(
            f"action_names of the relative step is {names!r:.80}, so what exclude_joints "
            f"{', '.join(exclude)} leaves out cannot be told; write one text per action into "
            f"{PREPROCESSOR}"
        )
    if any(exclude) and names is None:
        doubts.append(
            f"exclude_joints names {', '.join(exclude)}, but the step has no action_names, so "
            "every action is relative, as in LeRobot"
        )
    return relative_mask(exclude, names, size)


def relative_mask(
    exclude: Sequence[str], names: Sequence[str] | None, size: int
) -> tuple[bool, ...]:
    """Which actions are relative: all but those whose name contains an excluded word.

    As LeRobot's RelativeActionsProcessorStep: case is ignored; without names nothing is excluded.
    """
    words = [str(word).lower() for word in exclude if word]
    if not words or names is None:
        return (True,) * size
    mask = [not any(word in str(name).lower() for word in words) for name in names[:size]]
    mask += [True] * (size - len(mask))
    return tuple(mask)


def read_names(
    config: Mapping[str, Any], pre: Steps, size: int, assumptions: list[str]
) -> tuple[str, ...] | None:
    """Names of the actions, or None where the files have no usable ones.

    They are labels only. Nested lists, as of data sets of two arms, are flattened.
    """
    for value in (
        config_of(pre, *RELATIVE).get("action_names"),
        config.get("action_feature_names"),
    ):
        if value is None:
            continue
        names = list(_flat(value))
        if is_names(names) and len(names) == len(set(names)) == size and all(names):
            return tuple(names)
        assumptions.append(
            f"action names in the files are {value!r:.120}, which is not one name for each of "
            f"the {size} actions: not used"
        )
    return None


def _flat(value: Any, depth: int = 4) -> list[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list) or depth == 0:
        return [value]
    return [item for inner in value for item in _flat(inner, depth - 1)]


def in_order_of(
    profile: RobotProfile,
    names: Sequence[str] | None,
    relative: bool,
    assumptions: list[str],
    doubts: list[str],
) -> RobotProfile:
    """Profile with its columns in the order of the checkpoint's action names.

    Names are compared without LeRobot's ending ``.pos``. The files do not name the states; they
    are taken to be in the order of the actions, as LeRobot's data sets have them.

    Raises:
        PolicyError: a name that both have stands elsewhere, and the rest does not fit.

    """
    if names is None:
        assumptions.append(
            f"the files have no action names: columns are those of robot profile {profile.name!r} "
            "in its order"
        )
        return profile
    theirs, ours = [_bare(n) for n in names], [_bare(n) for n in profile.action_names]
    if theirs == ours:
        return profile
    if sorted(theirs) == sorted(ours):
        return _reorder(profile, theirs, relative, assumptions)
    for i, name in enumerate(theirs):
        if name in ours and ours[i] != name:
            _refuse(profile, names, i, "the other names differ, so it is not put in order here")
    pairs = [(a, b) for a, b in zip(names, profile.action_names, strict=True) if a != b]
    assumptions.append(
        f"actions of the checkpoint are taken for those of robot profile {profile.name!r} in its "
        "order: " + ", ".join(f"{a} is {b}" for a, b in pairs if _bare(a) != _bare(b))
    )
    doubts += [
        f"action {a!r} of the checkpoint is {b!r} in robot profile {profile.name!r}; is the order "
        "right?"
        for a, b in pairs
        if _contradict(a.lower(), b.lower())
    ]
    return profile


def _contradict(one: str, other: str) -> bool:
    """Whether two names are of different sides, or of a gripper and something else."""
    sides = [{word for word in ("left", "right") if word in name} for name in (one, other)]
    grippers = [any(w in name for w in ("gripper", "finger")) for name in (one, other)]
    return (all(sides) and not sides[0] & sides[1]) or grippers[0] != grippers[1]


def _reorder(
    profile: RobotProfile, theirs: Sequence[str], relative: bool, assumptions: list[str]
) -> RobotProfile:
    ours, states = (
        [_bare(n) for n in profile.action_names],
        [_bare(n) for n in profile.state_names],
    )
    actions = [ours.index(name) for name in theirs]
    first = next(i for i, place in enumerate(actions) if place != i)
    if sorted(states) == sorted(ours):
        state = [states.index(name) for name in theirs]
        moved = "actions and states"
    elif relative or len(states) == len(ours):
        _refuse(profile, theirs, first, "its states have other names, so they cannot follow")
    else:
        state, moved = list(range(len(states))), "actions"
    assumptions.append(
        f"{moved} are put into the order of the checkpoint's action names: column {first} is "
        f"{theirs[first]}, where robot profile {profile.name!r} has {ours[first]}"
    )
    ranges = profile.ranges
    return dataclasses.replace(
        profile,
        state_names=_pick(profile.state_names, state),
        state_maps=_pick(profile.state_maps, state),
        action_names=_pick(profile.action_names, actions),
        action_meanings=_pick(profile.action_meanings, actions),
        action_maps=_pick(profile.action_maps, actions),
        delta_mask=(),
        ranges=None
        if ranges is None
        else Ranges(
            _pick(ranges.state_low, state),
            _pick(ranges.state_high, state),
            _pick(ranges.action_low, actions),
            _pick(ranges.action_high, actions),
        ),
    )


def _pick(values: tuple[Any, ...], order: Sequence[int]) -> tuple[Any, ...]:
    return tuple(values[i] for i in order)


def _bare(name: str) -> str:
    return name.removesuffix(".pos")


def _refuse(profile: RobotProfile, names: Sequence[str], i: int, why: str) -> NoReturn:
    raise PolicyError(
        f"action {i} of the checkpoint is {names[i]!r}, robot profile {profile.name!r} has "
        f"{profile.action_names[i]!r} there; {why}; write the profile in the checkpoint's order: "
        f"{', '.join(names)}"
    )
