"""Planted faults of convention are named first; a sound policy is accused of nothing."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from pi05_ros import resources
from pi05_ros.bags.bag import BagError, BagWriter
from pi05_ros.bags.cdr_messages import NS, image_message, joint_state_message, string_message
from pi05_ros.cli.main import main
from pi05_ros.policy import Observation, Policy
from pi05_ros.policy.interface import ActionMeaning
from pi05_ros.replay import against_demonstration
from pi05_ros.replay.against_demonstration import compare_bags
from pi05_ros.replay.convention_faults import best, column_hypotheses
from pi05_ros.replay.demonstration import RecordedJoints
from pi05_ros.replay.faults.frozen_cameras import StillImages
from pi05_ros.replay.faults.one_image import same_images
from pi05_ros.replay.faults.windows import Windows
from pi05_ros.replay.input_faults import Moment, image_faults

NAMES = ("joint1", "joint2", "joint3", "gripper")
HZ, HORIZON, LENGTH = 20, 16, 100


def motion(steps: np.ndarray, seed: int) -> np.ndarray:
    """Commands ``[T, 4]`` of a made-up demonstrator."""
    rng = np.random.default_rng(seed)
    phase, speed = rng.uniform(0, 6, 4), rng.uniform(0.5, 1.5, 4)
    angle = steps[:, None] / HZ * speed * 2 + phase
    values = np.array([0.3, -0.8, 1.2, 0.5]) + 0.4 * np.sin(angle)
    values[:, 3] = (np.sin(angle[:, 3]) > 0).astype(float)
    return values


def picture(seed: int, step: int, camera: int) -> np.ndarray:
    """Image that tells its camera, recording and step, in one corner."""
    image = np.full((24, 32, 3), 90, np.uint8)
    image[2:6, 6:10] = (200 + camera, seed, step)
    return image


def read_picture(image: np.ndarray, camera: int) -> int | None:
    red, _, step = (int(value) for value in image[3, 7])
    return step if red == 200 + camera else None


class OraclePolicy:
    """Knows the demonstrations; needs both cameras and the state to say what comes next."""

    def __init__(self, noise: float = 0.01, horizon: int = HORIZON) -> None:
        self.info = SimpleNamespace(action_names=NAMES, horizon=horizon, step_s=1 / HZ)
        self.robot = SimpleNamespace(
            name="oracle",
            state_names=NAMES,
            camera_roles=("base", "wrist"),
            required_roles=("base", "wrist"),
        )
        self._noise = noise

    def infer(self, obs: Observation, *, seed: int | None = None) -> Any:
        rng = np.random.default_rng(seed)
        steps = [
            read_picture(np.asarray(obs.images[role]), k)
            for k, role in enumerate(("base", "wrist"))
        ]
        base, wrist = steps
        recording = int(np.asarray(obs.images["base"])[3, 7, 1])
        start = np.asarray(obs.state, np.float64)
        if base is None or wrist is None:
            actions = start + rng.normal(0, 0.5, (HORIZON, 4))
        else:
            known = motion(np.arange(LENGTH + HORIZON), recording)
            # The state shifts what comes: a wrong one is seen in the chunk.
            actions = known[base : base + HORIZON] + (start - known[max(base - 1, 0)])
            actions[:, 3] = known[base : base + HORIZON, 3]
            actions[:, :2] += known[wrist : wrist + HORIZON, :2] - known[base : base + HORIZON, :2]
        actions = actions + rng.normal(0, self._noise, actions.shape)
        meanings = (ActionMeaning.ABSOLUTE,) * 4
        return SimpleNamespace(actions=actions, meanings=meanings, dt=1 / HZ)


def record(
    path: Path,
    seed: int,
    *,
    commands: bool = True,
    stale_steps: int = 0,
    state_steps: int = 0,
    show: Callable[[list[np.ndarray]], list[np.ndarray]] = list,
    state: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> Path:
    """A demonstration; measured joints follow the commands by one step."""
    done = motion(np.arange(LENGTH), seed)
    with BagWriter(path) as bag:
        bag.write("/prompt", NS, string_message("push the block"))
        for step in range(LENGTH):
            now = NS + step * NS // HZ
            seen = max(step - stale_steps, 0)
            for name, image in zip(
                ("base", "wrist"), show([picture(seed, seen, k) for k in range(2)]), strict=True
            ):
                bag.write(f"/{name}_camera/image_raw", now, image_message(image, now))
            measured = state(done[max(step - 1 - state_steps, 0)].copy())
            bag.write("/joint_states", now, joint_state_message(list(NAMES), measured, now))
            if commands:
                message = joint_state_message(list(NAMES), done[step], now)
                bag.write("/joint_commands", now, message)
    return path


@pytest.mark.parametrize("commands", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_a_sound_policy_is_accused_of_nothing(tmp_path: Path, seed: int, commands: bool) -> None:
    bag = record(tmp_path / "bag", seed, commands=commands)
    agreement = compare_bags([bag], OraclePolicy(noise=0.03), {}, count=12)
    assert agreement.agrees
    assert not agreement.faults
    assert agreement.commanded == commands


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    bags = [record(tmp_path_factory.mktemp("sound") / "bag", seed) for seed in (1, 2)]
    return compare_bags(bags, OraclePolicy(), {}, count=16).windows


@pytest.fixture(scope="module")
def sounds(sound: Windows) -> list[Windows]:
    """Windows of made-up demonstrations without a bag, 20 seeds, beside those of a bag."""
    found = [sound]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        starts = rng.integers(HORIZON, 60, 16)
        recordings = rng.integers(0, 1000, 4)
        done, state = [], []
        for k, start in enumerate(starts):
            steps = np.arange(start - HORIZON, start + 3 * HORIZON)
            values = motion(steps, int(recordings[k % 4]))
            done.append(values)
            state.append(values[HORIZON - 1])
        stacked = np.stack(done)
        chunks = stacked[:, HORIZON : 2 * HORIZON] + rng.normal(0, 0.02, (16, HORIZON, 4))
        w = Windows(NAMES, sound.grippers, chunks, np.stack(state), stacked, HORIZON, 1 / HZ)
        found.append(w)
    return found


def test_sound_chunks_have_no_fault(sounds: list[Windows]) -> None:
    assert not [w for w in sounds if best(w, list(column_hypotheses(w)))]


def sign(p: np.ndarray, s: np.ndarray) -> np.ndarray:
    return p * [1, -1, 1, 1]


ACTION_FAULTS: dict[str, tuple[str, set[str], Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "sign": ("sign", {"joint2"}, sign),
    "sign of the motion": (
        "sign", {"joint1"}, lambda p, s: np.where([1, 0, 0, 0], 2 * s - p, p),
    ),
    "offset": ("offset", {"joint3"}, lambda p, s: p + 0.7 * (np.arange(4) == 2)),
    "half the motion": (
        "scale", set(NAMES[:3]), lambda p, s: np.where([1, 1, 1, 0], s + (p - s) / 3, p),
    ),
    "twice as large": ("scale", {"joint2"}, lambda p, s: p * [1, 2, 1, 1]),
    "degrees": ("degrees", set(NAMES[:3]), lambda p, s: p * [57.3, 57.3, 57.3, 1]),
    "radians": ("degrees", {"joint3"}, lambda p, s: p / [1, 1, 57.3, 1]),
    "columns": ("swapped_columns", {"joint1", "joint3"}, lambda p, s: p[..., [2, 1, 0, 3]]),
    "gripper": ("gripper", {"gripper"}, lambda p, s: np.where([0, 0, 0, 1], 1 - p, p)),
    "percent": ("unit", {"gripper"}, lambda p, s: p * [1, 1, 1, 100]),
    "delta": ("delta_as_absolute", set(NAMES[:3]), lambda p, s: p - s * [1, 1, 1, 0]),
    "absolute": ("absolute_as_delta", set(NAMES[:3]), lambda p, s: p + s * [1, 1, 1, 0]),
    "gripper offset": ("offset", {"gripper"}, lambda p, s: p + 0.3 * (np.arange(4) == 3)),
    "gripper scale": ("scale", {"gripper"}, lambda p, s: p * [1, 1, 1, 0.5]),
    "gripper from -1 to 1": ("range", {"gripper"}, lambda p, s: p * [1, 1, 1, 2] - [0, 0, 0, 1]),
    "gripper turned, to 0.8": (
        "range or gripper", {"gripper"}, lambda p, s: p * [1, 1, 1, -0.8] + [0, 0, 0, 0.8],
    ),
    "joints rotated": ("column_order", set(NAMES[:3]), lambda p, s: p[..., [1, 2, 0, 3]]),
    "columns rotated": ("column_order", set(NAMES), lambda p, s: p[..., [3, 0, 1, 2]]),
    "joints reversed": (
        "swapped_columns", {"joint1", "joint3"}, lambda p, s: p[..., [2, 1, 0, 3]],
    ),
    "motions exchanged": (
        "swapped_columns", {"joint1", "joint3"}, lambda p, s: s + (p - s)[..., [2, 1, 0, 3]],
    ),
    "motions rotated": (
        "column_order", set(NAMES[:3]), lambda p, s: s + (p - s)[..., [1, 2, 0, 3]],
    ),
    "column doubled": ("repeated_column", {"joint2"}, lambda p, s: p[..., [0, 0, 2, 3]]),
    "column doubled, the rest moves up": (
        "repeated_column", {"joint2", "joint3"}, lambda p, s: p[..., [0, 0, 1, 3]],
    ),
    "exchanged, one sign reversed": (
        "swapped_columns", {"joint1", "joint3"}, lambda p, s: p[..., [2, 1, 0, 3]] * [1, 1, -1, 1],
    ),
    "columns in reverse order": ("column_order", set(NAMES), lambda p, s: p[..., ::-1]),
    "whole turn": ("turns", {"joint1"}, lambda p, s: p + 2 * np.pi * (np.arange(4) == 0)),
    "from 0 to 360 degrees": (
        "turns", {"joint2"}, lambda p, s: np.where([0, 1, 0, 0], p % (2 * np.pi), p),
    ),
    "velocities": (
        "velocity", set(NAMES[:3]),
        lambda p, s: np.where([1, 1, 1, 0], np.diff(p, axis=1, prepend=s) * HZ, p),
    ),
    "positions read as velocities": (
        "velocity", set(NAMES[:3]),
        lambda p, s: np.where([1, 1, 1, 0], s + np.cumsum(p, axis=1) / HZ, p),
    ),
    "steps read as positions": (
        "step_delta", set(NAMES[:3]),
        lambda p, s: np.where([1, 1, 1, 0], np.diff(p, axis=1, prepend=s), p),
    ),
    "a joint that stands still": (
        "constant_column", {"joint2"}, lambda p, s: np.where([0, 1, 0, 0], s, p),
    ),
    "a gripper that stands still": ("constant_column", {"gripper"}, lambda p, s: p * [1, 1, 1, 0]),
    "motion cut off": (
        "cut_off", set(NAMES[:3]),
        lambda p, s: np.where([1, 1, 1, 0], s + np.clip(p - s, -0.08, 0.08), p),
    ),
    "cumulated": (
        "cumulated_delta", set(NAMES[:3]),
        lambda p, s: np.where([1, 1, 1, 0], s + np.cumsum(p - s, axis=1), p),
    ),
    "not cumulated": (
        "step_delta", set(NAMES[:3]),
        lambda p, s: np.where([1, 1, 1, 0], s + np.diff(p - s, axis=1, prepend=0.0), p),
    ),
    "base of another joint": (
        "wrong_base", {"joint2"}, lambda p, s: p + (s[..., :1] - s[..., 1:2]) * [0, 1, 0, 0],
    ),
    "base of another time": (
        "wrong_base", set(NAMES[:3]),
        lambda p, s: p + (np.roll(s, 4, axis=0) - s) * [1, 1, 1, 0],
    ),
    "other statistics": (
        "normalization", set(NAMES),
        lambda p, s: np.where(
            [1, 1, 1, 0], s + (p - s) * [0.4, 2, 1.7, 1] + [0.1, -0.2, 0, 0], 0.4 * p + 0.5
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTION_FAULTS)
def test_faults_of_the_actions_are_named_first(sounds: list[Windows], name: str) -> None:
    kind, columns, plant = ACTION_FAULTS[name]
    for sound in sounds[:6]:
        wrong = dataclasses.replace(sound, chunks=plant(sound.chunks, sound.state[:, None]))
        first = best(wrong, list(column_hypotheses(wrong)))[0]
        assert first.kind in kind.split(" or "), first.text
        assert set(first.columns) == columns, first.text


PAIRS: dict[str, tuple[set[str], Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "sign and gripper": (
        {"sign", "gripper"}, lambda p, s: np.where([0, 0, 0, 1], 1 - p, p * [1, -1, 1, 1]),
    ),
    "degrees and percent": ({"degrees", "unit"}, lambda p, s: p * [57.3, 57.3, 57.3, 100]),
    "columns and offset": (
        {"swapped_columns", "offset"}, lambda p, s: p[..., [2, 1, 0, 3]] + [0, 0.7, 0, 0],
    ),
    "degrees of one and sign of another": (
        {"degrees", "sign"}, lambda p, s: p * [57.3, -1, 1, 1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_two_faults_at_once_are_both_named_first(sounds: list[Windows], name: str) -> None:
    kinds, plant = PAIRS[name]
    for sound in sounds[:6]:
        wrong = dataclasses.replace(sound, chunks=plant(sound.chunks, sound.state[:, None]))
        found = best(wrong, list(column_hypotheses(wrong)))
        assert {fault.kind for fault in found[:2]} == kinds, [f.text for f in found[:3]]
        assert ", and " in found[0].text
        assert found[0].left(np.ones(4, bool)) < 0.3


CHUNKS: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "first row": ("constant_chunk", lambda p, s: np.repeat(p[:, :1], HORIZON, 1)),
    "the state": ("constant_chunk", lambda p, s: np.repeat(s, HORIZON, 1)),
    "zeros": ("constant_chunk", lambda p, s: 0 * p),
    "backwards": ("reversed_time", lambda p, s: p[:, ::-1]),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_chunks_that_stand_still_or_run_backwards_are_named(
    sounds: list[Windows], name: str
) -> None:
    kind, plant = CHUNKS[name]
    for sound in sounds[:6]:
        wrong = dataclasses.replace(sound, chunks=plant(sound.chunks, sound.state[:, None]))
        assert best(wrong, list(column_hypotheses(wrong)))[0].kind == kind


OTHERS: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]] = {
    "other windows": lambda p, s, r: p[r.permutation(len(p))],
    "motions of other windows": lambda p, s, r: s + (p - s)[r.permutation(len(p))],
    "random walk": lambda p, s, r: s + np.cumsum(r.normal(0, 0.05, p.shape), axis=1),
    "noise": lambda p, s, r: p + r.normal(0, 1.0, p.shape) * np.std(p - s, axis=(0, 1)),
    "back to the state": lambda p, s, r: s + (p - s) * np.linspace(1, 0, HORIZON)[:, None],
    "to the middle": lambda p, s, r: (
        s + (p.mean((0, 1)) - s) * np.linspace(0, 1, HORIZON)[:, None]
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_policy_that_does_something_else_is_accused_of_nothing(
    sounds: list[Windows], name: str
) -> None:
    for seed, sound in enumerate(sounds[:6]):
        rng = np.random.default_rng(seed)
        chunks = OTHERS[name](sound.chunks, sound.state[:, None], rng)
        wrong = dataclasses.replace(sound, chunks=chunks)
        found = best(wrong, list(column_hypotheses(wrong)))
        assert not found, found[0].text


def test_the_size_of_a_joint_that_stands_still_is_not_accused(sounds: list[Windows]) -> None:
    """Anything that shrinks a chunk would explain it."""
    rng = np.random.default_rng(0)
    for sound in sounds[:6]:
        done = sound.done * [1, 1, 0, 1]
        chunks = sound.chunks * [1, 1, 0, 1] + rng.normal(0, 0.5, sound.chunks.shape) * [
            0,
            0,
            1,
            0,
        ]
        wrong = dataclasses.replace(
            sound, chunks=chunks, done=done, state=sound.state * [1, 1, 0, 1]
        )
        found = {fault.kind for fault in best(wrong, list(column_hypotheses(wrong)))}
        assert not found & {"unit", "degrees", "scale"}


def test_other_statistics_are_named_where_a_joint_stands_still(sounds: list[Windows]) -> None:
    for sound in sounds[:6]:
        moves, place = np.array([1, 1, 0, 1]), np.array([0, 0, 0.3, 0])
        done, state = sound.done * moves + place, sound.state * moves + place
        p, s = sound.chunks * moves + place, state[:, None]
        joints = s + 0.4 * (p - s) + 0.05
        chunks = np.where([1, 1, 1, 0], joints, 0.5 * p + 0.4)
        wrong = dataclasses.replace(sound, chunks=chunks, done=done, state=state)
        first = best(wrong, list(column_hypotheses(wrong)))[0]
        assert first.kind == "normalization", [
            f.text for f in best(wrong, list(column_hypotheses(wrong)))
        ]


@pytest.mark.parametrize("steps", [-5, 4])
def test_chunks_that_are_early_or_late_are_named(sound: Windows, steps: int) -> None:
    wrong = dataclasses.replace(sound, chunks=sound.slice(lag=steps))
    first = best(wrong, list(column_hypotheses(wrong)))[0]
    assert first.kind == "lag"
    assert first.number == pytest.approx(steps / HZ)


def test_a_wrong_step_time_is_named(sound: Windows) -> None:
    fast = dataclasses.replace(sound, chunks=sound.slice(pace=2.0), step_s=0.05)
    first = best(fast, list(column_hypotheses(fast)))[0]
    assert (first.kind, first.number) == ("step_time", 2.0)


INPUT_FAULTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "cameras": ("swapped_cameras", "base and wrist", {"show": lambda i: i[::-1]}),
    "mirrored": ("mirrored_image", "wrist", {"show": lambda i: [i[0], i[1][:, ::-1]]}),
    "upside down": ("flipped_image", "base", {"show": lambda i: [i[0][::-1], i[1]]}),
    "turned": ("rotated_image", "wrist", {"show": lambda i: [i[0], i[1][::-1, ::-1]]}),
    "BGR": ("color_order", "base", {"show": lambda i: [i[0][..., ::-1], i[1]]}),
    "stale": ("stale_image", "base and wrist are 0.4 s old", {"stale_steps": 8}),
    "degrees": ("state_degrees", "state", {"state": lambda s: s * [57.3, 57.3, 57.3, 1]}),
    "order": ("state_columns", "joint1 and joint2", {"state": lambda s: s[[1, 0, 2, 3]]}),
    "sign": ("state_sign", "joint2", {"state": lambda s: s * [1, -1, 1, 1]}),
    "turned left": ("rotated_image", "left", {"show": lambda i: [np.rot90(i[0]), i[1]]}),
    "ahead": ("stale_image", "base and wrist are 0.2 s ahead", {"stale_steps": -4}),
    "degrees of one joint": (
        "state_degrees",
        "joint2 is in degrees",
        {"state": lambda s: s * [1, 57.3, 1, 1]},
    ),
    "state rotated": ("state_order", "joints are one", {"state": lambda s: s[[1, 2, 0, 3]]}),
    "state doubled": (
        "state_wrong_joint",
        "joint2 is that of joint1",
        {"state": lambda s: s[[0, 0, 2, 3]]},
    ),
    "state offset": (
        "state_calibration",
        "joint1",
        {"state": lambda s: s + 0.9 * (np.arange(4) == 0)},
    ),
    "old state": ("stale_state", "0.4 s old", {"state_steps": 8}),
    "somewhat old state": ("stale_state", "0.25 s old", {"state_steps": 5}),
    "one image": ("one_image", "base and wrist show the same", {"show": lambda i: [i[0], i[0]]}),
}


@pytest.mark.parametrize("name", INPUT_FAULTS)
def test_faults_of_the_inputs_are_named_first(tmp_path: Path, name: str) -> None:
    kind, text, options = INPUT_FAULTS[name]
    bag = record(tmp_path / "bag", 3, **options)
    agreement = compare_bags([bag], OraclePolicy(), {}, count=12)
    assert not agreement.agrees
    assert agreement.faults[0].kind == kind, [fault.text for fault in agreement.faults]
    assert text in agreement.faults[0].text
    assert "most likely" in "\n".join(agreement.lines())


@pytest.mark.parametrize(("shown", "seen"), [(0, "base"), (1, "wrist")])
def test_a_policy_that_takes_one_image_for_both_cameras_is_told_with_its_slots(
    tmp_path: Path, shown: int, seen: str
) -> None:
    bag = record(tmp_path / "bag", 3)
    policy = OraclePolicy()
    known = motion(np.arange(LENGTH + HORIZON), 3)

    def misled(obs: Observation, *, seed: int | None = None) -> Any:
        """What it does right goes by one camera, and the other slot should show another."""
        step = read_picture(np.asarray(obs.images[seen]), shown) or 0
        actions = known[step : step + HORIZON] + np.array([0, np.sin(step), np.cos(step), 0])
        return SimpleNamespace(actions=actions, meanings=(ActionMeaning.ABSOLUTE,) * 4, dt=1 / HZ)

    policy.infer = misled  # type: ignore[method-assign]
    agreement = compare_bags([bag], policy, {}, count=12)
    first = agreement.faults[0]
    lost = {"base": "wrist", "wrist": "base"}[seen]
    assert first.kind == "one_image"
    assert first.text.startswith(f"the images of {lost} make no difference to the policy")
    assert f"it gets those of {seen} on the slots of both (base, wrist)" in first.text
    assert "nothing in the recording corrects it" in "\n".join(agreement.lines())


@pytest.mark.parametrize("level", [0, 90, 255])
def test_two_cameras_without_a_picture_are_not_one(level: int) -> None:
    plain = np.full((24, 32, 3), level, np.uint8)
    seen = Observation(images={"base": plain, "wrist": plain}, state=np.zeros(4, np.float32))
    assert not same_images([seen], ("base", "wrist"), np.zeros(4))
    marked = plain.copy()
    marked[0, 0, 0] = 50
    both = dataclasses.replace(seen, images={"base": marked, "wrist": marked})
    assert same_images([both], ("base", "wrist"), np.zeros(4))
    assert not same_images([both, seen], ("base", "wrist"), np.zeros(4))


@pytest.mark.parametrize("roles", [["base"], ["base", "wrist"]])
def test_bars_are_taken_from_the_cameras_that_have_them(roles: list[str]) -> None:
    plain = np.repeat((40 + np.arange(576).reshape(24, 24) % 97)[..., None], 3, -1).astype(
        np.uint8
    )
    barred = np.pad(plain[::2], ((6, 6), (0, 0), (0, 0)), constant_values=114)
    seen = Observation(images=dict.fromkeys(roles, plain), state=np.zeros(4, np.float32))
    seen = dataclasses.replace(seen, images={**seen.images, "base": barred})
    faults = [fault for fault in image_faults(roles) if "bars" in fault.text]
    assert (
        faults[0].text
        == "the images of base are stretched between bars that the policy does not know"
    )
    mended = faults[0].change(Moment(0, 0, 0, seen))
    assert mended is not None
    assert (np.asarray(mended.images["base"])[::2] == plain[::2]).all()
    if "wrist" in roles:
        assert (np.asarray(mended.images["wrist"]) == plain).all()


STILL: dict[str, tuple[str, int, int, bool, float]] = {
    # camera, from and to which step, frames go on, seconds
    "from the start": ("base", 0, LENGTH, True, 4.95),
    "in the middle": ("wrist", 30, 60, True, 1.5),
    "to the end": ("base", 60, LENGTH, True, 1.95),
    "no more frames": ("wrist", 40, LENGTH, False, 3.0),
    "a pause of the frames": ("wrist", 30, 50, False, 1.05),
}


def with_still_camera(path: Path, seed: int, case: str) -> Path:
    """A recording in which a camera hangs."""
    camera, first, last, frames, _ = STILL[case]
    done = motion(np.arange(LENGTH), seed)
    with BagWriter(path) as bag:
        bag.write("/prompt", NS, string_message("push the block"))
        for step in range(LENGTH):
            now = NS + step * NS // HZ
            for k, name in enumerate(("base", "wrist")):
                hangs = name == camera and first < step <= last
                if hangs and not frames:
                    continue
                shown = first if hangs else step
                image = picture(seed, shown, k)
                image[:, 16:] = 30 + 20 * (shown % 9)
                bag.write(f"/{name}_camera/image_raw", now, image_message(image, now))
            measured = done[max(step - 1, 0)]
            for topic, values in (("/joint_states", measured), ("/joint_commands", done[step])):
                bag.write(topic, now, joint_state_message(list(NAMES), values, now))
    return path


@pytest.mark.parametrize("case", STILL)
@pytest.mark.parametrize("seed", range(10))
def test_a_camera_that_stands_still_in_the_recording_is_named_first(
    tmp_path: Path, seed: int, case: str
) -> None:
    bag = with_still_camera(tmp_path / "demonstration", seed, case)
    agreement = compare_bags([bag], OraclePolicy(noise=0.002), {}, count=12)
    assert not agreement.agrees
    first = agreement.faults[0]
    camera, start, _, _, seconds = STILL[case]
    assert first.kind == "frozen_camera"
    assert f"images of {camera} stand still from {start / HZ:.2f} s" in first.text
    assert first.text.endswith("(demonstration)")
    assert first.number == pytest.approx(seconds, abs=0.06)
    report = "\n".join(agreement.lines())
    assert "nothing in the recording corrects it" in report
    # The windows outside of it are judged as always.
    partly = case != "from the start"
    assert (agreement.left_out > 0) == partly == agreement.follows
    assert not partly or "but the recording has a fault" in report


def test_another_fault_beside_a_still_camera_is_named_after_it(tmp_path: Path) -> None:
    bag = with_still_camera(tmp_path / "bag", 3, "in the middle")
    policy = OraclePolicy()
    infer = policy.infer
    policy.infer = lambda obs, *, seed=None: SimpleNamespace(  # type: ignore[method-assign]
        **{**vars(infer(obs, seed=seed)), "actions": infer(obs, seed=seed).actions * [1, -1, 1, 1]}
    )
    agreement = compare_bags([bag], policy, {}, count=16)
    assert [fault.kind for fault in agreement.faults[:2]] == ["frozen_camera", "sign"]
    agreement.write(tmp_path / "agreement.json")
    written = json.loads((tmp_path / "agreement.json").read_text())
    assert written["windows_left_out"] > 0
    assert written["windows"] + written["windows_left_out"] == 16


def test_a_camera_is_not_accused_while_the_arm_rests() -> None:
    still = np.full((24, 32, 3), 90, np.uint8)
    stamps = np.arange(100) * NS // 20
    values = np.zeros((100, 4))
    values[50:, 0] = np.linspace(0, 1, 50)  # rests for 2.5 s
    values[:, 3] = np.sin(np.arange(100))  # the gripper counts for nothing
    values[:, 1] += np.random.default_rng(0).normal(0, 0.003, 100)  # an encoder's noise
    state = RecordedJoints(NAMES, stamps, values)
    for moving, spans in ((False, 1), (True, 0)):
        camera = StillImages("base", state)
        for step in range(100):
            image = still.copy()
            image[:8, :8] += np.uint8(2 * step if moving and step > 50 else 0)
            camera.add(int(stamps[step]), int(stamps[step]) + NS // 20, image)
        assert len(camera.spans()) == spans


@pytest.mark.parametrize("left", [0, 24, 40])
@pytest.mark.parametrize("last", [30, 100])
def test_an_arm_that_is_out_of_view_is_no_still_camera(left: int, last: int) -> None:
    """It leaves the images, and comes into them, at the edge."""
    stamps = np.arange(100) * NS // 20
    camera = StillImages(
        "base", RecordedJoints(("joint1",), stamps, np.linspace(0, 1, 100)[:, None])
    )
    for step in range(100):
        image = np.full((48, 64, 3), 90, np.uint8)
        if not 5 < step < last:
            image[8:40, left : left + 8] = 100 + step
        camera.add(int(stamps[step]), int(stamps[step]) + NS // 20, image)
    assert len(camera.spans()) == (left != 0)


@pytest.mark.parametrize("shape", [(5, 7, 3), (8, 8, 3), (17, 30, 3)])
def test_one_changed_block_is_seen_in_images_of_any_size(shape: tuple[int, ...]) -> None:
    stamps = np.arange(40) * NS // 20
    values = np.linspace(0, 1, 40)[:, None]
    camera = StillImages("base", RecordedJoints(("joint1",), stamps, values))
    for step in range(40):
        image = np.full(shape, 255, np.uint8)
        image[:4, :4] = 10 * (step % 20)
        camera.add(int(stamps[step]), int(stamps[step]) + NS // 20, image)
    assert not camera.spans()


@pytest.mark.parametrize(
    ("kind", "number", "plant"),
    [
        ("brightness", 0, lambda image: image // 2),
        ("brightness", 1, lambda image: np.minimum(2 * image.astype(int), 255).astype(np.uint8)),
        ("stretched_image", 1, lambda image: image.repeat(4, axis=0)[::3]),
        ("stretched_image", 0, lambda image: np.pad(image[::2], ((8, 8), (0, 0), (0, 0)))),
        (
            "stretched_image",
            0,
            lambda image: np.pad(image[:, ::2], ((0, 0), (6, 6), (0, 0)), constant_values=200),
        ),
    ],
)
def test_brightness_and_aspect_ratio_are_put_right(
    kind: str, number: int, plant: Callable[[np.ndarray], np.ndarray]
) -> None:
    shade = 40 + np.arange(32)[:, None] + 2 * np.arange(24)
    image = np.repeat(shade[..., None], 3, axis=-1).astype(np.uint8)
    seen = Observation(images={"base": plant(image)}, state=np.zeros(4, np.float32))
    faults = [fault for fault in image_faults(["base"]) if fault.kind == kind]
    mended = faults[number].change(Moment(0, 0, 0, seen))
    assert mended is not None
    found = np.asarray(mended.images["base"])
    assert found.shape == image.shape
    assert abs(found.astype(int) - image).mean() < 1.5


def test_another_task_is_no_fault_of_convention(tmp_path: Path) -> None:
    bag = record(tmp_path / "bag", 3)
    policy = OraclePolicy()
    policy.infer = lambda obs, *, seed=None: SimpleNamespace(  # type: ignore[method-assign]
        actions=np.random.default_rng(seed).normal(0, 1, (HORIZON, 4)),
        meanings=(ActionMeaning.ABSOLUTE,) * 4,
        dt=1 / HZ,
    )
    agreement = compare_bags([bag], policy, {}, count=8)
    assert not agreement.faults
    assert "no fault of convention" in "\n".join(agreement.lines())


def test_recordings_shorter_than_a_chunk_are_refused(tmp_path: Path) -> None:
    bag = record(tmp_path / "bag", 3)
    with pytest.raises(BagError, match="no recording has 10 s of actions"):
        compare_bags([bag], OraclePolicy(horizon=200), {})


# -- the shipped policy on the simulated arm --------------------------------------------


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mujoco")
    from pi05_ros.sim.arm.tasks import TASKS
    from pi05_ros.sim.arm.world import World
    from pi05_ros.sim.training.record import record_episode

    folder = tmp_path_factory.mktemp("demonstrations")
    world = World()
    try:
        for index, task in enumerate(list(TASKS.values())[:2]):
            assert record_episode(world, task, index, folder / task.name)
    finally:
        world.close()
    return folder


def edit_profile(edit: Callable[[dict[str, Any]], None], path: Path) -> Path:
    profile = yaml.safe_load((resources.robots_dir() / "sim_arm.yaml").read_text())
    profile = copy.deepcopy(profile)
    edit(profile)
    path.write_text(yaml.safe_dump(profile))
    return path


def set_delta_off(profile: dict[str, Any]) -> None:
    for action in profile["actions"][:6]:
        action["delta"] = False


def turn_gripper(profile: dict[str, Any]) -> None:
    profile["actions"][6].update(scale=-1.0, offset=1.0)


def double_joint3(profile: dict[str, Any]) -> None:
    profile["actions"][2]["scale"] = profile["state"][2]["scale"] = 2.0


PROFILES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "sound": (lambda profile: None, ""),
    "delta": (set_delta_off, "delta_as_absolute"),
    "gripper": (turn_gripper, "gripper"),
    "scale": (double_joint3, "scale"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROFILES)
def test_faults_in_the_profile_of_the_simulated_arm(
    demonstrations: Path,
    tmp_path: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pi05_ros.sim.training.shipped import CHECKPOINT

    monkeypatch.setattr(against_demonstration, "FEW", 2)  # each costs an inference per fault

    edit, kind = PROFILES[name]
    robot = edit_profile(edit, tmp_path / "robot.yaml")
    options = [
        "--against-demonstration",
        "--out",
        str(tmp_path / "out"),
        "-p",
        "threads=1",
        "-p",
        "denoise_steps=1",
    ]
    options += ["--checkpoint", str(CHECKPOINT), "--robot", str(robot)]
    code = main(["replay", str(demonstrations), *options])
    report = json.loads((tmp_path / "out" / "agreement.json").read_text())
    assert (tmp_path / "out" / "agreement.png").is_file()
    assert code == bool(kind)
    assert report["agrees"] == (not kind)
    assert [fault["kind"] for fault in report["faults"][:1]] == [kind] * bool(kind)
    assert ("most likely" in capsys.readouterr().out) == bool(kind)


@pytest.mark.slow
def test_a_camera_that_hangs_upside_down_is_named(
    demonstrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pi05_ros.replay.input_faults import with_images
    from pi05_ros.sim.training.shipped import CHECKPOINT

    monkeypatch.setattr(against_demonstration, "FEW", 2)
    policy: Any = Policy.load(CHECKPOINT, robot="sim_arm", threads=1, denoise_steps=1)
    infer = policy.infer

    def upside_down(obs: Observation, **options: Any) -> Any:
        turned = np.ascontiguousarray(np.asarray(obs.images["wrist"])[::-1])
        return infer(with_images(obs, {"wrist": turned}), **options)

    policy.infer = upside_down
    agreement = compare_bags(sorted(demonstrations.iterdir()), policy, {}, count=8)
    assert agreement.faults[0].kind == "flipped_image"
    assert "wrist" in agreement.faults[0].text
