"""Faults of the inputs whose correction is in the recording.

Images and joint states of another time, a joint whose measured value is not what its commands say,
and the prompts of the recordings.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from pi05_ros.bags.cdr_messages import NS
from pi05_ros.policy.interface import Observation
from pi05_ros.replay.demonstration import Demonstration
from pi05_ros.replay.faults.windows import BAD, STILL
from pi05_ros.replay.input_faults import InputFault, Moment, camera_groups, with_images

STALE_S = (0.1, 0.2, 0.4, 0.8)
STALE_STATE_S = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
"""Closer: what a state is too old by is added to all of a chunk that is relative to it."""
AHEAD_S = (-0.2, -0.4)
KNOWN = ((-1.0, 0.0), (-1.0, 1.0), (math.pi / 180, 0.0), (180 / math.pi, 0.0))
"""Factors and offsets that have a name of their own, see `state_faults`."""
SIMILAR = 0.1
"""Relative error up to which a measured joint is taken for another one."""


class RecordedFaults:
    """Makes corrected observations from what was recorded.

    Args:
        demonstrations: that the moments are of.
        moments: all that may be asked for.
        state_names: of the policy.

    """

    def __init__(
        self,
        demonstrations: Sequence[Demonstration],
        moments: Sequence[Moment],
        state_names: Sequence[str],
    ) -> None:
        self._demonstrations = demonstrations
        self._moments = moments
        self._names = list(state_names)
        self.unlike_commands = tuple(self._unlike_commands())
        """Faults of joints that do not do what they are told."""
        self._images: dict[tuple[str, int, int], np.ndarray] = {}

    def faults(self) -> Iterator[InputFault]:
        """All of them."""
        roles = self._demonstrations[0].roles
        for group in camera_groups(roles):
            for seconds in (*STALE_S, *(AHEAD_S if group == tuple(roles) else ())):
                yield self._fault(
                    "stale_image", f"images of {' and '.join(group)}", seconds, group
                )
        for seconds in (*STALE_STATE_S, *AHEAD_S):
            yield self._fault("stale_state", "joint states", seconds, ())
        yield from self.unlike_commands
        used = {moment.observation.prompt for moment in self._moments}
        told = {text for demo in self._demonstrations for _, text in demo.prompts}
        for text in sorted(told - used):
            yield InputFault(
                "prompt",
                f"the prompt is not that of the recordings, {text!r}",
                (),
                1.0,
                functools.partial(_prompted, text=text),
            )

    def _fault(self, kind: str, what: str, seconds: float, group: tuple[str, ...]) -> InputFault:
        word = f"{seconds:g} s old" if seconds > 0 else f"{-seconds:g} s ahead"
        change = (
            functools.partial(self._other_images, group=group, seconds=seconds)
            if group
            else functools.partial(self._other_state, seconds=seconds)
        )
        return InputFault(kind, f"the {what} are {word}", (), seconds, change)

    # -- another time -----------------------------------------------------------------------

    def _other_images(
        self, moment: Moment, group: Sequence[str], seconds: float
    ) -> Observation | None:
        """The observation with images that are so much newer."""
        demo = self._demonstrations[moment.demonstration]
        images = {}
        for role in group:
            stamp = demo.newest(role, moment.time_ns + int(seconds * NS)) or 0
            key = role, moment.demonstration, stamp
            if key not in self._images:
                self._load(role, moment.demonstration)
            if key not in self._images:
                return None
            images[role] = self._images[key]
        return with_images(moment.observation, images)

    def _load(self, role: str, index: int) -> None:
        """Frames of all moments of a recording for every age that is tried."""
        demo = self._demonstrations[index]
        times = [m.time_ns for m in self._moments if m.demonstration == index]
        ages = (*STALE_S, *AHEAD_S)
        wanted = [demo.newest(role, t + int(s * NS)) or 0 for t in times for s in ages]
        for (_, stamp), image in demo.images({role: wanted}).items():
            self._images[role, index, stamp] = image

    def _other_state(self, moment: Moment, seconds: float) -> Observation | None:
        demo = self._demonstrations[moment.demonstration]
        state = demo.state.at(np.array([moment.time_ns + int(seconds * NS)]))[0]
        if not np.isfinite(state).all():
            return None
        return dataclasses.replace(moment.observation, state=state.astype(np.float32))

    # -- joints that do not do what they are told -------------------------------------------

    def _unlike_commands(self) -> Iterator[InputFault]:
        """Each joint whose measured values are another joint's, or a line of its commands."""
        if not all(demo.commanded for demo in self._demonstrations):
            return
        measured, commanded = [], []
        for demo in self._demonstrations:
            at = demo.actions.at(demo.state.stamps)
            seen = np.isfinite(at).all(axis=1)
            measured.append(demo.state.values[seen])
            commanded.append(at[seen])
        state, done = np.concatenate(measured), np.concatenate(commanded)
        joints = self._demonstrations[0].actions.names
        columns = [self._names.index(name) for name in joints]
        spread = np.std(done, axis=0)
        floor = max(STILL * float(spread.max()), 1e-6)
        spread = np.maximum(spread, floor)
        # [state, joint]: how far what is measured is from what each joint was told.
        away = np.mean(((state[:, columns, None] - done[:, None, :]) / spread) ** 2, axis=0)
        for j, name in enumerate(joints):
            if away[j, j] <= BAD:
                continue
            other = np.where(np.arange(len(joints)) == j, np.inf, away[j])
            i = int(np.argmin(other))
            if other[i] < SIMILAR and np.std(done[:, i]) > floor:
                kind, number = "state_wrong_joint", 1.0
                text = f"the state of {name} is that of {joints[i]}"
            else:
                factor, offset = np.polyfit(state[:, columns[j]], done[:, j], 1)
                left = np.std(factor * state[:, columns[j]] + offset - done[:, j]) / spread[j]
                known = any(
                    abs(factor / word - 1) < 0.05 and abs(offset - at) < 0.1 * spread[j]
                    for word, at in KNOWN
                )
                if left**2 > BAD or known:
                    continue
                kind, number = "state_calibration", float(offset)
                text = f"the state of {name} is off: right is {factor:.3g} times it {offset:+.3g}"
            change = functools.partial(self._as_commanded, column=columns[j], joint=j)
            yield InputFault(kind, text, (name,), number, change)

    def _as_commanded(self, moment: Moment, column: int, joint: int) -> Observation | None:
        demo = self._demonstrations[moment.demonstration]
        # What it was told a step ago is where it is now.
        told = demo.actions.at(np.array([moment.time_ns - 1]))[0, joint]
        if not np.isfinite(told):
            return None
        state = np.array(moment.observation.state, np.float32)
        state[column] = told
        return dataclasses.replace(moment.observation, state=state)


def _prompted(moment: Moment, text: str) -> Observation:
    return dataclasses.replace(moment.observation, prompt=text)
