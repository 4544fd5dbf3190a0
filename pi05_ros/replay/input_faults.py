"""Faults of a policy's inputs: each is a correction of the observation, to run the policy again.

Exchanged, mirrored, turned and miscolored images; states in another unit, order or sign.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pi05_ros.policy.interface import Observation

OF_A_BAR = 16
"""Levels by which the pixels of a bar differ at most from the corner."""
_Array = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Moment:
    """One observation, its time, and the seed of its chunk; `demonstration` is an index."""

    demonstration: int
    time_ns: int
    seed: int
    observation: Observation


@dataclass(frozen=True)
class InputFault:
    """One fault.

    Attributes:
        kind, text, columns, number: as in `convention_faults.Hypothesis`.
        change: the corrected observation; None if the recording does not hold what it needs.
        undo: corrects the actions ``[N, H, A]`` of given names if they have the same fault.

    """

    kind: str
    text: str
    columns: tuple[str, ...]
    number: float
    change: Callable[[Moment], Observation | None]
    undo: Callable[[np.ndarray, Sequence[str]], np.ndarray] | None = None


def camera_groups(roles: Sequence[str]) -> list[tuple[str, ...]]:
    """Each camera, and all of them."""
    return [(role,) for role in roles] + ([tuple(roles)] if len(roles) > 1 else [])


def with_images(observation: Observation, images: Mapping[str, np.ndarray]) -> Observation:
    """The observation with other images of some cameras."""
    return dataclasses.replace(observation, images={**observation.images, **images})


def image_faults(roles: Sequence[str]) -> Iterator[InputFault]:
    """Cameras exchanged; images mirrored, turned, of the other color order."""
    for a, b in itertools.combinations(roles, 2):
        text = f"the cameras {a} and {b} are exchanged"
        yield InputFault("swapped_cameras", text, (), 1.0, _exchange(a, b))
    turns: tuple[tuple[str, str, _Array], ...] = (
        ("mirrored_image", "mirrored left to right", lambda image: image[:, ::-1]),
        ("flipped_image", "mirrored top to bottom", lambda image: image[::-1]),
        ("rotated_image", "turned by 180 degrees", lambda image: image[::-1, ::-1]),
        ("color_order", "in BGR instead of RGB", lambda image: image[..., ::-1]),
    )
    turns += (
        ("rotated_image", "turned by 90 degrees to the left", lambda image: np.rot90(image, -1)),
        ("rotated_image", "turned by 90 degrees to the right", lambda image: np.rot90(image)),
        ("cropped_image", "wider than what the policy knows (0.8)", _crop(0.8)),
        ("cropped_image", "wider than what the policy knows (0.6)", _crop(0.6)),
        ("cropped_image", "a part of what the policy knows (0.8)", _widen(0.8)),
        ("cropped_image", "a part of what the policy knows (0.6)", _widen(0.6)),
    )
    turns += (
        ("stretched_image", "stretched between bars that the policy does not know", _without_bars),
    )
    single = len(turns)
    turns += tuple(
        (
            "brightness",
            f"about {1 / gain:.1f} times as bright as what the policy knows",
            _gain(gain),
        )
        for gain in (2.0, 0.5)
    )
    turns += tuple(
        ("stretched_image", f"of another aspect ratio than what the policy knows ({word})", change)
        for word, change in (
            ("4:3 made square", _tall(3 / 4)),
            ("16:9 made square", _tall(9 / 16)),
            ("square made 4:3", _tall(4 / 3)),
        )
    )
    for group in camera_groups(roles):
        for kind, word, turn in turns if len(group) == len(roles) else turns[:single]:
            text = f"the images of {' and '.join(group)} are {word}"
            yield InputFault(kind, text, (), 1.0, _turn(group, turn))


def state_faults(names: Sequence[str]) -> Iterator[InputFault]:
    """States in degrees, with the wrong sign, the wrong way round, in another order."""
    joints = [j for j, name in enumerate(names) if "gripper" not in name and "finger" not in name]
    grippers = [j for j in range(len(names)) if j not in joints]
    for factor, word in (
        (180 / math.pi, "radians where the policy takes degrees"),
        (math.pi / 180, "degrees where the policy takes radians"),
    ):
        for kept in (joints, *([j] for j in joints if len(joints) > 1)):
            columns = tuple(names[j] for j in kept)
            text = f"the state of {columns[0]} is in {word}"
            if len(kept) > 1:
                text = f"the state is in {word}"
            yield _state_fault(
                "state_degrees", text, columns, factor, kept, _scale(factor), _scale(1 / factor)
            )
    for j in grippers:
        text = f"the state of {names[j]} is the wrong way round"
        yield _state_fault("state_gripper", text, (names[j],), -1.0, [j], _one_minus, _one_minus)
    for j in joints:
        text = f"the state of {names[j]} has the wrong sign"
        yield _state_fault("state_sign", text, (names[j],), -1.0, [j], _scale(-1.0), _scale(-1.0))
        for quarters in (1, -1, 2):
            angle = quarters * math.pi / 2
            text = f"the zero of the state of {names[j]} is off by {-90 * quarters} degrees"
            yield _state_fault(
                "state_offset", text, (names[j],), -angle, [j], _plus(angle), _plus(-angle)
            )
    for i, j in itertools.combinations(range(len(names)), 2):
        text = f"the states of {names[i]} and {names[j]} are exchanged"
        yield _state_fault(
            "state_columns", text, (names[i], names[j]), 1.0, [i, j], _reverse, _reverse
        )

    for group, what in ((joints, "joints"), (list(range(len(names))), "columns")):
        if len(group) < 3 or (what == "columns" and not grippers):
            continue
        for kept, word, turn, back in (
            (group, "one place late", _roll(-1), _roll(1)),
            (group, "one place early", _roll(1), _roll(-1)),
            (group, "in reverse order", _reverse, _reverse),
        ):
            text = f"the states of the {what} are {word}"
            columns = tuple(names[j] for j in kept)
            yield _state_fault("state_order", text, columns, 1.0, kept, turn, back)


def _state_fault(
    kind: str,
    text: str,
    columns: tuple[str, ...],
    number: float,
    indices: list[int],
    change: _Array,
    undo: _Array,
) -> InputFault:
    def changed(moment: Moment) -> Observation:
        state = np.array(moment.observation.state)
        state[indices] = change(state[indices])
        return dataclasses.replace(moment.observation, state=state)

    def undone(chunks: np.ndarray, names: Sequence[str]) -> np.ndarray:
        places = [list(names).index(name) for name in columns if name in names]
        chunks = chunks.copy()
        if len(places) == len(columns):
            chunks[..., places] = undo(chunks[..., places])
        return chunks

    return InputFault(kind, text, columns, number, changed, undone)


def _scale(factor: float) -> _Array:
    def change(values: np.ndarray) -> np.ndarray:
        return values * factor

    return change


def _plus(offset: float) -> _Array:
    def change(values: np.ndarray) -> np.ndarray:
        return values + offset

    return change


def _one_minus(values: np.ndarray) -> np.ndarray:
    return np.asarray(1 - values)


def _reverse(values: np.ndarray) -> np.ndarray:
    return values[..., ::-1]


def _roll(places: int) -> _Array:
    def change(values: np.ndarray) -> np.ndarray:
        return np.roll(values, places, axis=-1)

    return change


def _crop(share: float) -> _Array:
    """The middle of an image."""

    def change(image: np.ndarray) -> np.ndarray:
        height, width = (round(share * side) for side in image.shape[:2])
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        return image[top : top + height, left : left + width]

    return change


def _widen(share: float) -> _Array:
    """An image smaller, with its edges around it: what it lacks is not known."""

    def change(image: np.ndarray) -> np.ndarray:
        rows, columns = (
            np.clip(
                np.round((np.arange(side) - side / 2 + 0.5) / share + side / 2 - 0.5), 0, side - 1
            ).astype(int)
            for side in image.shape[:2]
        )
        return np.asarray(image[rows][:, columns])

    return change


def _gain(gain: float) -> _Array:
    """An image so many times as bright."""

    def change(image: np.ndarray) -> np.ndarray:
        return np.clip(gain * image.astype(np.float32), 0, 255).astype(np.uint8)

    return change


def _tall(share: float) -> _Array:
    """An image with so many times its height, stretched."""

    def change(image: np.ndarray) -> np.ndarray:
        return _stretched(image, max(round(share * image.shape[0]), 1), image.shape[1])

    return change


def _without_bars(image: np.ndarray) -> np.ndarray:
    """What is between bars of one color at the edges, stretched to the whole image."""
    bright = np.abs(image.astype(np.int16) - image[0, 0]).max(axis=-1) > OF_A_BAR
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    if not len(rows):
        return image
    inner = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return _stretched(inner, *image.shape[:2])


def _stretched(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image in another size, nearest pixels."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip((height, width), image.shape[:2], strict=True)
    )
    return np.asarray(image[rows][:, columns])


def _exchange(a: str, b: str) -> Callable[[Moment], Observation]:
    def change(moment: Moment) -> Observation:
        images = moment.observation.images
        return with_images(
            moment.observation, {a: np.asarray(images[b]), b: np.asarray(images[a])}
        )

    return change


def _turn(group: Sequence[str], turn: _Array) -> Callable[[Moment], Observation]:
    def change(moment: Moment) -> Observation:
        images = moment.observation.images
        return with_images(
            moment.observation,
            {role: np.ascontiguousarray(turn(np.asarray(images[role]))) for role in group},
        )

    return change
