"""Cameras whose images stand still in a recording while the arm moves.

A driver that hangs repeats its last image, or sends none. Nothing in the recording corrects that,
so it is found in the images, without the policy. What tells it from an arm at rest is the joints,
and from an arm that is out of view, that the images change in their middle just before or after:
what leaves the view or comes into it is seen at the edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pi05_ros.bags.cdr_messages import NS
from pi05_ros.bags.lerobot_recording import DatasetRecording
from pi05_ros.replay.demonstration import Demonstration, RecordedJoints
from pi05_ros.replay.faults.windows import STILL, Hypothesis

KIND = "frozen_camera"
MIN_STILL_NS = NS // 2
"""Images that stand still for less are not told."""
MIN_MOTION = 0.15
"""Motion of a joint meanwhile, as a share of its range in the recording."""
MIN_RANGE = 0.2
"""Smallest range [rad, m] of a joint that the share is taken of: encoders are noisy."""
SAME, SAME_IN_VIDEO = 0.1, 10.0
"""Levels by which the means of a block of pixels differ at most in pictures of one image. A
camera's noise makes more in a bag; in the videos of a dataset the compression makes up to 8."""
BLOCK = 8
"""Side of a block in pixels."""
EDGE = 1 / 6
"""Share of the width and height that is the edge of an image, on each side."""
SAMPLE_NS = NS // 10
"""In a comparison with a policy images are looked at so often."""


@dataclass(frozen=True)
class FrozenSpan:
    """Time in which a camera shows one image.

    Attributes:
        role: of the camera.
        start_ns, end_ns: from the image's stamp to that of another one.
        joint: that moves most for its range.
        motion: how far it moves meanwhile [rad or m].

    """

    role: str
    start_ns: int
    end_ns: int
    joint: str
    motion: float

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return (self.end_ns - self.start_ns) / NS

    def text(self, origin_ns: int) -> str:
        """What happens, with times after an origin."""
        start, end = ((t - origin_ns) / NS for t in (self.start_ns, self.end_ns))
        return (
            f"the images of {self.role} stand still from {start:.2f} s to {end:.2f} s while "
            f"{self.joint} moves by {self.motion:.2g}"
        )


class StillImages:
    """Finds where the images of one camera stand still.

    Args:
        role: of the camera.
        state: measured joints.
        same: see `SAME`.

    """

    def __init__(self, role: str, state: RecordedJoints, same: float = SAME) -> None:
        self._role, self._state, self._same = role, state, same
        joints = [j for j, n in enumerate(state.names) if "gripper" not in n and "finger" not in n]
        self._joints = joints or list(range(len(state.names)))
        ranges = np.ptp(state.values[:, self._joints], axis=0)
        self._ranges = np.maximum(ranges, max(MIN_RANGE, STILL * float(ranges.max())))
        self._image: np.ndarray | None = None
        self._blocks = np.zeros(0)  # of the first image of those that are alike
        self._came: np.ndarray | None = None  # blocks in which it differs from the one before
        self._start_ns = self._until_ns = 0
        self._spans: list[FrozenSpan] = []

    def add(self, stamp_ns: int, until_ns: int, image: np.ndarray) -> None:
        """Take an image ``[H, W, 3]`` uint8 and when the next one comes; later ones come later."""
        if image is not self._image:
            blocks = _blocks(image)
            changed = self._changed(self._blocks, blocks)
            if changed is None or changed.any():
                self._end(changed)
                self._start_ns, self._blocks, self._came = stamp_ns, blocks, changed
        self._image, self._until_ns = image, until_ns

    def spans(self) -> list[FrozenSpan]:
        """All of them, after the last image."""
        self._end(None)
        self._start_ns = self._until_ns
        return self._spans

    def _changed(self, one: np.ndarray, other: np.ndarray) -> np.ndarray | None:
        """Blocks that differ ``[H/8, W/8]``; None if the images are of different sizes."""
        if one.shape != other.shape:
            return None
        return np.asarray((np.abs(one - other) > self._same).any(axis=-1))

    def _end(self, went: np.ndarray | None) -> None:
        start_ns, end_ns = self._start_ns, self._until_ns
        if end_ns - start_ns < MIN_STILL_NS:
            return
        changes = [each for each in (self._came, went) if each is not None]
        if changes and not any(_in_the_middle(each) for each in changes):
            return
        stamps = self._state.stamps
        values = self._state.values[(stamps >= start_ns) & (stamps <= end_ns)][:, self._joints]
        if not len(values):
            return
        motion = np.ptp(values, axis=0)
        most = int(np.argmax(motion / self._ranges))
        if motion[most] >= MIN_MOTION * self._ranges[most]:
            name = self._state.names[self._joints[most]]
            self._spans.append(FrozenSpan(self._role, start_ns, end_ns, name, float(motion[most])))


def _in_the_middle(changed: np.ndarray) -> bool:
    rows, columns = ((np.arange(side) + 0.5) / side for side in changed.shape)
    inner = [(places > EDGE) & (places < 1 - EDGE) for places in (rows, columns)]
    return bool(changed[np.ix_(*inner)].any())


def _blocks(image: np.ndarray) -> np.ndarray:
    """Means of blocks ``[H/8, W/8, 3]``; what is left over at the edges is left out."""
    height, width = (max(side // BLOCK, 1) for side in image.shape[:2])
    rows, columns = (min(BLOCK, side) for side in image.shape[:2])
    part = image[: height * rows, : width * columns]
    sums = part.reshape(height, rows, width * columns, -1).sum(axis=1, dtype=np.uint16)
    blocks = sums.reshape(height, width, columns, -1).sum(axis=2, dtype=np.float32)
    return np.asarray(blocks / (rows * columns))


def frozen_spans(demo: Demonstration) -> list[FrozenSpan]:
    """Where the cameras of a recording stand still."""
    found: list[FrozenSpan] = []
    same = SAME_IN_VIDEO if isinstance(demo.bag, DatasetRecording) else SAME
    for role in demo.roles:
        stamps = demo.frames[role]
        following = dict(zip(stamps, [*stamps[1:], int(demo.state.stamps[-1])], strict=True))
        still = StillImages(role, demo.state, same)
        for stamp, image in demo.stream(role, set(_sampled(stamps))):
            if image is not None:
                still.add(stamp, following[stamp], image)
        found += still.spans()
    return found


def _sampled(stamps: Sequence[int]) -> Iterator[int]:
    """Frames that are looked at: not all, but those before and after a pause."""
    due = stamps[0]
    for stamp, following in zip(stamps, [*stamps[1:], stamps[-1]], strict=True):
        if stamp >= due or following - stamp >= SAMPLE_NS:
            due = stamp + SAMPLE_NS
            yield stamp


def within(spans: Sequence[FrozenSpan], time_ns: int) -> bool:
    """Whether some camera shows an old image at a time."""
    return any(span.start_ns < time_ns < span.end_ns for span in spans)


def frozen_faults(
    demonstrations: Sequence[Demonstration],
    found: Sequence[Sequence[FrozenSpan]],
    errors: np.ndarray,
) -> list[Hypothesis]:
    """One fault for each camera that stands still; the number is for how many seconds in all.

    Args:
        demonstrations: recordings.
        found: spans of each.
        errors: of the policy ``[A]``; nothing corrects them.

    """
    faults = []
    for role in demonstrations[0].roles:
        all_of_role = [
            (span.seconds, index, span)
            for index, spans in enumerate(found)
            for span in spans
            if span.role == role
        ]
        if not all_of_role:
            continue
        _, index, longest = max(all_of_role, key=lambda item: item[0])
        demo = demonstrations[index]
        origin = min(int(demo.state.stamps[0]), *(s[0] for s in demo.frames.values()))
        text = f"{longest.text(origin)} ({demo.bag.path.name}"
        if len(all_of_role) > 1:
            places = len({place for _, place, _ in all_of_role})
            text += f", the longest of {len(all_of_role)} times in {places} recordings"
        total = sum(seconds for seconds, _, _ in all_of_role)
        faults.append(Hypothesis(KIND, text + ")", (), total, errors, corrected=False))
    return sorted(faults, key=lambda fault: -fault.number)
