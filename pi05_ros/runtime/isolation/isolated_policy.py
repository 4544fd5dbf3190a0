"""`IsolatedPolicy`: a policy computed in a process that is started again when it is lost."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pi05_ros.backends.engine import EngineHealth
from pi05_ros.policy.interface import ActionChunk, Observation, PolicyInfo
from pi05_ros.policy.robots.profile import RobotProfile
from pi05_ros.runtime.isolation.engine_process import EngineProcess
from pi05_ros.runtime.isolation.errors import EngineLostError, IsolationError
from pi05_ros.runtime.isolation.inference_times import InferenceTimes
from pi05_ros.runtime.isolation.records import unpack_chunk, unpack_health, unpack_info
from pi05_ros.runtime.refusal import is_plain_reason, reason

WATCH_S = 0.05
GRACE_S = 2.0  # a process that stands still may go on within this time before it is killed
LONGEST_BACKOFF_S = 30.0
OVERDUE = "the engine process does not answer"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IsolationOptions:
    """How an engine process is supervised.

    Attributes:
        stalled_s: without a heartbeat for so long the process stands still.
        timeout_s: an inference that takes longer hangs; 0: 20 times the 99th percentile of the
            newest 200, at least 2 s.
        backoff_s: wait before the first restart; doubled for each further one, up to 30 s.
        calm_s: after so long without a loss the backoff starts over.

    """

    stalled_s: float = 0.35
    timeout_s: float = 0.0
    backoff_s: float = 1.0
    calm_s: float = 60.0


class IsolatedPolicy:
    """A policy whose engine may die without taking its node along.

    Args:
        factory: "module:function" that makes the policy in the process.
        parameters: of the node, by ROS name.
        profile: of the robot; its horizon is taken from the loaded policy.
        options: see `IsolationOptions`.

    Raises:
        EngineFaultError: loading failed.
        EngineLostError: the process died while loading.

    """

    def __init__(
        self,
        factory: str,
        parameters: Mapping[str, Any],
        profile: RobotProfile,
        options: IsolationOptions | None = None,
    ) -> None:
        self._factory = factory
        self._parameters = dict(parameters)
        self._options = options or IsolationOptions()
        self._closing = threading.Event()
        self._lock = threading.Lock()  # of one inference, and of exchanging the process
        self._problem = ""
        self._restarts = 0
        self._telling = threading.RLock()
        self._times = InferenceTimes()
        self._kind: tuple[Any, ...] = ()  # of the newest inference, see `_kind_of`
        self._first_of_kind = False
        self._busy_since = 0.0  # monotonic; 0 while no inference runs
        self._forget = False
        self._health = EngineHealth()
        self._changed: Callable[[], None] = lambda: None
        self._engine, self.info = self._start()
        self.robot = dataclasses.replace(profile, horizon=self.info.horizon)
        self._supervisor = threading.Thread(
            target=self._supervise, name="pi05_engine_supervisor", daemon=True
        )
        self._supervisor.start()

    @property
    def problem(self) -> str:
        """Why the engine cannot answer now, empty if it can."""
        return self._problem

    @property
    def engine_pid(self) -> int:
        """Process id of the engine."""
        return self._engine.pid

    def on_change(self, call: Callable[[], None]) -> None:
        """Have a function called, in some thread, whenever `problem` has changed."""
        self._changed = call

    def infer(
        self, obs: Observation, *, seed: int | None = None, denoise_steps: int | None = None
    ) -> ActionChunk:
        """Actions for one observation; see `pi05_ros.policy.Policy.infer`.

        Raises:
            EngineLostError: the engine is dead, stands still or starts again.
            EngineFaultError: the policy raised.

        """
        if self._problem:
            raise EngineLostError(self._problem)
        with self._lock:
            engine = self._engine
            images, state = engine.memory.write(engine.slot(), obs.images, obs.state)
            kind = _kind_of(obs, denoise_steps)
            self._first_of_kind, self._kind = kind != self._kind, kind
            hang_s = self._times.first_hang_s if self._first_of_kind else self._times.hang_s
            began = self._busy_since = time.monotonic()
            try:
                answer = engine.infer(
                    self._options.timeout_s or hang_s,
                    images=images,
                    state=state,
                    prompt=obs.prompt,
                    stamp_ns=obs.stamp_ns,
                    age_s=obs.age_s,
                    seed=seed,
                    denoise_steps=denoise_steps,
                    forget=self._forget,
                )
            finally:
                with self._telling:
                    self._busy_since = 0.0
                    if self._problem == OVERDUE:
                        self._tell("")
            self._times.add(time.monotonic() - began)
            self._forget = False
        self._health = unpack_health(answer["health"])
        return unpack_chunk(answer["chunk"])

    def prefill(
        self, obs: Observation, *, seed: int | None = None, denoise_steps: int | None = None
    ) -> Any:
        """Not offered: halves of inferences would need KV caches in both processes."""
        raise IsolationError("overlap needs isolation:=thread")

    def denoise(self, prefilled: Any) -> ActionChunk:
        """Not offered, see `prefill`."""
        raise IsolationError("overlap needs isolation:=thread")

    def forget(self) -> None:
        """Have the next chunk continue none."""
        self._forget = True

    def warm_up(self) -> None:
        """Nothing to do: the process warms up while it loads."""

    def health(self) -> EngineHealth:
        """What the engine found, and how often it was started again."""
        values = {
            **self._health.values,
            "engine_pid": str(self._engine.pid),
            "engine_restarts": str(self._restarts),
        }
        return EngineHealth(values, self._problem or self._health.warning)

    def close(self) -> None:
        """End the process."""
        self._closing.set()
        self._supervisor.join()
        self._engine.close()

    def _overdue(self) -> str:
        """Told, while an inference takes longer than nearly all others; it may still end."""
        since = self._busy_since
        patience_s = self._times.hang_s if self._first_of_kind else self._times.late_s
        return OVERDUE if since > 0.0 and time.monotonic() - since > patience_s else ""

    def _start(self) -> tuple[EngineProcess, PolicyInfo]:
        engine = EngineProcess(self._factory, self._parameters, self._options.stalled_s)
        try:
            ready = engine.wait_ready(self._closing)
        except BaseException:
            engine.close()
            raise
        self._times.add(float(ready["inference_s"]))
        return engine, unpack_info(ready["info"])

    def _supervise(self) -> None:
        """Supervisor thread: notice a lost engine and start another."""
        backoff_s, since = self._options.backoff_s, time.monotonic()
        while not self._closing.wait(WATCH_S):
            trouble = self._engine.trouble()
            with self._telling:
                self._tell(trouble or self._overdue())
            if not trouble:
                if time.monotonic() - since > self._options.calm_s:
                    backoff_s = self._options.backoff_s
                continue
            stands_still = "stands still" in trouble
            if stands_still and self._engine.still_s < self._options.stalled_s + GRACE_S:
                continue  # it may have been stopped for a moment
            self._engine.give_up(trouble)
            with self._lock:
                self._engine.close()
            while not self._closing.wait(backoff_s):
                backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)
                if self._restart(trouble):
                    break
            since = time.monotonic()

    def _restart(self, trouble: str) -> bool:
        self._restarts += 1
        try:
            engine, info = self._start()
        except Exception as error:  # whatever is lacking now may be there at the next attempt
            if not is_plain_reason(error):
                logger.exception("the engine process could not be started")
            self._tell(f"{trouble}; starting it again failed: {reason(error)}")
            return False
        if info.checkpoint_hash != self.info.checkpoint_hash:
            engine.close()
            self._tell(f"{trouble}; the checkpoint has changed since: configure again")
            return False
        with self._lock:
            self._engine = engine
            self._forget = True
        self._tell("")
        return True

    def _tell(self, problem: str) -> None:
        with self._telling:
            if problem == self._problem:
                return
            self._problem = problem
            if problem:
                logger.error("%s", problem)
            else:
                logger.warning("the engine answers again (%d restarts)", self._restarts)
            self._changed()


def _kind_of(obs: Observation, denoise_steps: int | None) -> tuple[Any, ...]:
    """What an engine may have to prepare for: sizes of the images, prompt, denoise steps."""
    shapes = tuple((role, image.shape) for role, image in obs.images.items())
    return (*shapes, obs.prompt, denoise_steps)
