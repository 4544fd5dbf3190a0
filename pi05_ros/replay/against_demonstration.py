"""`pi05 replay BAG --against-demonstration`: does the policy do what the demonstrator did?

The policy runs over moments of recorded demonstrations, and its chunks are compared with the
actions that followed. If they differ, faults of convention are tried: those of the actions by
correcting the chunks (`convention_faults`), those of the inputs (exchanged or mirrored cameras,
old images, state columns) by running the policy again on corrected observations. A policy that
was trained on such demonstrations then agrees with them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pi05_ros.bags.bag import BagError
from pi05_ros.bags.cdr_messages import NS
from pi05_ros.bags.lerobot_recording import open_recording
from pi05_ros.policy.interface import ActionMeaning, Observation
from pi05_ros.replay.agreement import Agreement
from pi05_ros.replay.convention_faults import best, column_hypotheses, explains_all
from pi05_ros.replay.demonstration import Demonstration, read_demonstration
from pi05_ros.replay.faults.frozen_cameras import frozen_faults, frozen_spans, within
from pi05_ros.replay.faults.one_image import same_images, unseen_images
from pi05_ros.replay.faults.recorded_faults import RecordedFaults
from pi05_ros.replay.faults.windows import BAD, CAP, Hypothesis, Windows
from pi05_ros.replay.input_faults import (
    InputFault,
    Moment,
    image_faults,
    state_faults,
    with_images,
)
from pi05_ros.replay.run import choose
from pi05_ros.runtime.inference import PolicyLike

WINDOWS = 24
FEW = 4
"""Windows with which faults of the inputs are tried first."""
CANDIDATES = 24
"""Faults that are tried on all of these; on half of them each one is."""
FINALISTS = 4


class Comparer:
    """Runs a policy over demonstrations.

    Args:
        policy: loaded.
        demonstrations: read for the policy's joints.
        prompt: replaces those of the recordings; empty keeps them.
        count: windows in all.
        say: told what is going on.

    Raises:
        BagError: no column of the policy's actions is a joint of the bag, or the recordings are
            shorter than a chunk.

    """

    def __init__(
        self,
        policy: PolicyLike,
        demonstrations: Sequence[Demonstration],
        prompt: str = "",
        count: int = WINDOWS,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._policy = policy
        self._demonstrations = demonstrations
        self._say = say
        info = policy.info
        self._names = demonstrations[0].actions.names
        self._columns = [list(info.action_names).index(name) for name in self._names]
        self._state = [list(policy.robot.state_names).index(name) for name in self._names]
        if not self._names:
            raise BagError(
                f"none of the actions ({', '.join(info.action_names)}) is a joint of the state; "
                "only joint positions can be compared"
            )
        self._step_ns = info.step_s * NS
        self._horizon = int(info.horizon)
        self._frozen = [frozen_spans(demo) for demo in demonstrations]
        self._moments = list(self._choose(prompt, count))
        if not self._moments:
            raise BagError(
                f"no recording has {self._horizon * info.step_s:.2g} s of actions after a frame "
                "of every camera"
            )
        clean = [m for m in self._moments if not within(self._frozen[m.demonstration], m.time_ns)]
        self._left_out = 0
        self._blind = len(clean) < min(FEW, len(self._moments))
        if not self._blind:
            self._left_out = len(self._moments) - len(clean)
            self._moments = clean

    def compare(self) -> Agreement:
        """Run the policy, and look for faults if it does not follow."""
        w = self._windows(self._run(self._moments))
        commanded = all(each.commanded for each in self._demonstrations)
        lags = np.arange(-8, 9)
        by_lag = [np.minimum(w.errors(w.chunks, float(lag)), CAP).sum() for lag in lags]
        lag = int(lags[int(np.argmin(by_lag))])
        if not commanded and 0 < lag <= 6:  # the arm follows its commands by that much
            w = dataclasses.replace(w, before=w.before + lag)
        errors = w.errors(w.chunks)
        judged = bool(np.nanmax(np.ptp(w.slice(), axis=1)) > 1e-3)
        faults: list[Hypothesis] = []
        if judged and (errors > BAD).any():
            of_actions = list(column_hypotheses(w))
            faults = best(w, of_actions)
            base = np.minimum(errors, CAP)
            bad = base > BAD
            names = self._policy.robot.state_names
            recorded = RecordedFaults(self._demonstrations, self._moments, names)
            sure = bool(faults) and faults[0].fitted < 2 and not recorded.unlike_commands
            explained = sure and faults[0].left(bad) <= 0.1 * float(base[bad].sum())
            # With images that stand still no other fault of the inputs can be told.
            if not explained and not self._blind:
                faults = best(w, [*of_actions, *self._input_hypotheses(w, base, recorded)])
            of_slots = self._shared_slots(w, errors)
            faults = [*faults, *of_slots] if explained else [*of_slots, *faults]
        if judged:
            faults = [*frozen_faults(self._demonstrations, self._frozen, errors), *faults]
        return Agreement(
            w, errors, lag * w.step_s, tuple(faults), judged, commanded, self._left_out
        )

    def _shared_slots(self, w: Windows, errors: np.ndarray) -> list[Hypothesis]:
        """One image on two slots, as recorded or as the policy takes it."""
        roles = self._demonstrations[0].roles
        found = same_images([m.observation for m in self._moments], roles, errors)
        return found or unseen_images([r for r in roles if self._unseen(r, w)], roles, errors)

    def _unseen(self, role: str, w: Windows) -> bool:
        """Whether other images of a camera change nothing at all in the chunks."""
        few = sorted({0, len(self._moments) // 2})
        changed = []
        for index in few:
            moment = self._moments[index]
            image = 255 - np.asarray(moment.observation.images[role])
            observation = with_images(moment.observation, {role: image})
            changed.append(dataclasses.replace(moment, observation=observation))
        return bool(np.array_equal(self._run(changed), w.chunks[few]))

    def _choose(self, prompt: str, count: int) -> Iterator[Moment]:
        each = -(-count // len(self._demonstrations))
        seed = -1
        for index, demo in enumerate(self._demonstrations):
            times = demo.pick(each, int(self._horizon * self._step_ns))
            wanted = {role: [demo.newest(role, t) or 0 for t in times] for role in demo.roles}
            images = demo.images(wanted)
            for time_ns, *stamps in zip(times, *wanted.values(), strict=True):
                keys = list(zip(wanted, stamps, strict=True))
                state = demo.state.at(np.array([time_ns]))[0]
                if not np.isfinite(state).all() or any(key not in images for key in keys):
                    continue
                seed += 1
                yield Moment(
                    index,
                    time_ns,
                    seed,
                    Observation(
                        images={key[0]: images[key] for key in keys},
                        state=state.astype(np.float32),
                        prompt=prompt or demo.prompt_at(time_ns),
                        stamp_ns=time_ns,
                    ),
                )

    def _run(
        self, moments: Sequence[Moment], measured: Sequence[Observation] | None = None
    ) -> np.ndarray:
        """Chunks as absolute positions of the compared columns ``[N, H, A]``."""
        rows = []
        for index, moment in enumerate(moments):
            chunk = self._policy.infer(moment.observation, seed=moment.seed)
            actions = np.asarray(chunk.actions, np.float64)[:, self._columns]
            observed = moment.observation if measured is None else measured[index]
            start = np.asarray(observed.state, np.float64)[self._state]
            for j, column in enumerate(self._columns):
                meaning = chunk.meanings[column]
                if meaning == ActionMeaning.DELTA:
                    actions[:, j] += start[j]
                elif meaning == ActionMeaning.VELOCITY:
                    actions[:, j] = start[j] + np.cumsum(actions[:, j]) * chunk.dt
            rows.append(actions)
        return np.stack(rows)

    def _windows(self, chunks: np.ndarray) -> Windows:
        steps = np.arange(-self._horizon, 3 * self._horizon)
        done, state = [], []
        for moment in self._moments:
            demo = self._demonstrations[moment.demonstration]
            times = moment.time_ns + np.round(steps * self._step_ns).astype(np.int64)
            done.append(demo.actions.at(times + 1_000_000))  # stamps are rounded
            state.append(np.asarray(moment.observation.state, np.float64)[self._state])
        grippers = tuple("gripper" in name or "finger" in name for name in self._names)
        return Windows(
            self._names,
            grippers,
            chunks,
            np.stack(state),
            np.stack(done),
            self._horizon,
            self._policy.info.step_s,
        )

    # -- faults of the inputs ---------------------------------------------------------------

    def _input_hypotheses(
        self, w: Windows, base: np.ndarray, recorded: RecordedFaults
    ) -> list[Hypothesis]:
        """Run the policy on corrected observations: all faults on a few windows, then the best."""
        every = max(1, len(self._moments) // FEW)
        few = list(range(0, len(self._moments), every))[:FEW]
        roles, names = self._demonstrations[0].roles, self._policy.robot.state_names
        faults = [*image_faults(roles), *state_faults(names), *recorded.faults()]
        # Not the first one: what was before it is not recorded.
        _, tried = self._rank(w, faults, few[1::2] or few)
        before, tried = self._rank(w, [fault for _, fault in tried[:CANDIDATES]], few)
        self._say(f"tried {len(faults)} faults of the inputs on up to {len(few)} windows")
        found: list[Hypothesis] = []
        for total, fault in tried[:FINALISTS]:
            if total < 0.7 * before:
                found += self._try(fault, w, self._moments)
        # Inputs act on all columns: what mends one of them may be chance.
        bad = base > BAD
        return [h for h in found if explains_all(h, bad, float(base[bad].sum()))]

    def _rank(
        self, w: Windows, faults: Sequence[InputFault], few: Sequence[int]
    ) -> tuple[float, list[tuple[float, InputFault]]]:
        """Error on a few windows as they are, and with each fault corrected, least first."""
        part = dataclasses.replace(w, chunks=w.chunks[few], state=w.state[few], done=w.done[few])
        moments = [self._moments[index] for index in few]
        tried = [
            (float(np.minimum(h.errors, CAP).sum()), fault)
            for fault in faults
            for h in self._try(fault, part, moments)[:1]
        ]
        before = float(np.minimum(part.errors(part.chunks), CAP).sum())
        return before, sorted(tried, key=lambda item: item[0])

    def _try(self, fault: InputFault, w: Windows, moments: Sequence[Moment]) -> list[Hypothesis]:
        """The fault corrected in the inputs alone, and in the actions too; the better first.

        Windows whose correction was not recorded are left out; none if those are half of them.
        """
        changed, kept = [], []
        for index, moment in enumerate(moments):
            observation = fault.change(moment)
            if observation is not None:
                changed.append(dataclasses.replace(moment, observation=observation))
                kept.append(index)
        if 2 * len(kept) <= len(moments):
            return []
        w = dataclasses.replace(w, chunks=w.chunks[kept], state=w.state[kept], done=w.done[kept])
        chunks = self._run(changed, [moments[index].observation for index in kept])
        found = [Hypothesis(fault.kind, fault.text, fault.columns, fault.number, w.errors(chunks))]
        if fault.undo is not None:
            errors = w.errors(fault.undo(chunks, w.names))
            text = f"{fault.text}, and so are its actions"
            both = Hypothesis(fault.kind, text, fault.columns, fault.number, errors)
            found.append(both)
        return sorted(found, key=lambda h: float(np.minimum(h.errors, CAP).sum()))


def compare_bags(
    paths: Sequence[Path],
    policy: PolicyLike,
    mapping: Mapping[str, str],
    namespace: str = "",
    prompt: str = "",
    count: int = WINDOWS,
    say: Callable[[str], None] = lambda text: None,
) -> Agreement:
    """Compare a policy with the demonstrations in some bags.

    Raises:
        BagError: a bag lacks what is needed, or is too short.

    """
    with contextlib.ExitStack() as stack:
        demonstrations = []
        notes: set[str] = set()
        spread = np.linspace(0, len(paths) - 1, min(len(paths), count)).round().astype(int)
        if len(spread) < len(paths):
            say(f"{len(spread)} of {len(paths)} recordings are compared, spread over all")
        for path in (paths[index] for index in spread):
            bag = stack.enter_context(open_recording(path, policy.robot))
            for note in bag.notes:
                if note not in notes:
                    notes.add(note)
                    say(f"{path}: {note}")
            chosen = choose(bag, policy.robot, mapping, namespace)
            demonstrations.append(
                read_demonstration(
                    bag,
                    chosen.sources,
                    chosen.roles,
                    policy.robot.state_names,
                    policy.info.action_names,
                )
            )
        return Comparer(policy, demonstrations, prompt, count, say).compare()
