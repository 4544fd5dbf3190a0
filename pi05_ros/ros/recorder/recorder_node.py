"""The lifecycle node that records: a bag for each task that asks for one, and the last seconds.

Messages are taken as bytes and handed to a thread (`bags/recording`); docs/recording.md describes
the node for users.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.serialization import deserialize_message
from std_srvs.srv import SetBool, Trigger

from pi05_ros.bags.recording.recording_thread import RecordingState, RecordingThread
from pi05_ros.msg import ExecutorStatus, PolicyStatus, RecorderStatus, TaskStatus
from pi05_ros.ros import process, qos
from pi05_ros.ros.messages import time_msg
from pi05_ros.ros.parameter_server import declare
from pi05_ros.ros.recorder.image_packing import JpegPacking, as_they_are
from pi05_ros.ros.recorder.recorded_topics import RecordedTopics
from pi05_ros.ros.recorder.recorder_parameters import RecorderParameters
from pi05_ros.ros.recorder.recording_facts import RecordingFacts
from pi05_ros.runtime.text import printable

SUCCESS = TransitionCallbackReturn.SUCCESS
FAILURE = TransitionCallbackReturn.FAILURE
TICK_S = 0.05
END_S = 10.0
"""Longest wait for the thread to end its bag."""
FAULTS_APART_S = 10.0
"""The ring buffer is saved at most this often because of faults."""
BUSY = (
    TaskStatus.STATE_PREPARING, TaskStatus.STATE_RUNNING, TaskStatus.STATE_TAKEN_OVER,
    TaskStatus.STATE_ENDING,
)  # fmt: skip


class EpisodeRecorder(LifecycleNode):
    """Lifecycle node `episode_recorder`; keyword arguments are those of rclpy's Node."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("episode_recorder", **kwargs)
        self.parameters = declare(self, RecorderParameters)
        self._thread: RecordingThread | None = None
        self._topics: RecordedTopics | None = None
        self._facts: RecordingFacts | None = None
        self._news = threading.Event()  # set by the thread
        self._goal_id = ""
        self._task = TaskStatus()
        self._fault = ""
        self._saved_s = float("-inf")
        self._last: RecordingState | None = None  # of a thread that has ended
        self._problem = ""
        self._status = self.create_publisher(RecorderStatus, "~/status", qos.LATCHED)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.DIAGNOSTICS)
        self.create_service(SetBool, "~/record", self._record)
        self.create_service(Trigger, "~/save", self._save)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(TICK_S, self._tick, clock=steady)
        self.create_timer(0.5, self._look, clock=steady)
        self.create_timer(1.0, self._report, clock=steady)
        process.guard_change_state(self)
        self._publish_status()

    # -- transitions -----------------------------------------------------------------------

    def on_configure(self, state: Any) -> TransitionCallbackReturn:
        """Make the folder; FAILURE if bags cannot be written there."""
        folder = self._folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe_{self.get_name()}_{time.monotonic_ns()}"
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            self._problem = f"folder {folder}: {error.strerror or error}"
            self.get_logger().error(printable(f"configure failed: {self._problem}"))
            self._publish_status()
            return FAILURE
        self._problem = ""
        self._publish_status()
        return SUCCESS

    def on_activate(self, state: Any) -> TransitionCallbackReturn:
        """Subscribe; the ring buffer begins to fill."""
        p = self.parameters
        pack = JpegPacking(p.jpeg_quality, self._complain) if p.jpeg_quality else as_they_are
        self._thread = RecordingThread(p.settings, pack, self._news.set)
        self._facts = RecordingFacts(self, p, self._thread.note)
        self._topics = RecordedTopics(
            self, p, self._thread.offer, self._thread.lose,
            {
                f"{p.task_node}/status": self._on_task,
                f"{p.executor_node}/executor_status": self._on_executor,
                f"{p.policy_node}/status": self._on_policy,
            },
        )  # fmt: skip
        self._look()
        self._publish_status()
        return super().on_activate(state)

    def on_deactivate(self, state: Any) -> TransitionCallbackReturn:
        """End the bag; the ring buffer is forgotten."""
        self._close()
        return super().on_deactivate(state)

    def on_shutdown(self, state: Any) -> TransitionCallbackReturn:
        """End the bag."""
        self._close()
        return SUCCESS

    def on_error(self, state: Any) -> TransitionCallbackReturn:
        """End the bag."""
        self._close()
        return SUCCESS

    def end(self) -> bool:
        """End the bag before the process ends; False if the disk is still busy with it."""
        done = self._close()
        self._publish_status()
        return done

    def _close(self) -> bool:
        thread, self._thread = self._thread, None
        for part in (self._topics, self._facts):
            if part is not None:
                part.destroy()
        self._topics = self._facts = None
        if thread is None:
            return True
        thread.note({"note": "the recorder was ended"} if self._goal_id else {})
        done = thread.end(END_S)
        if not done:
            self.get_logger().error("the disk is still busy with the bag; it is not whole")
        self._goal_id = ""
        self._last = thread.state
        self._publish_status()
        return done

    # -- bags ------------------------------------------------------------------------------

    @property
    def _folder(self) -> Path:
        return Path(self.parameters.folder).expanduser().absolute()

    def _place(self, word: str) -> Path:
        base = self._folder / f"{datetime.now().strftime('%Y%m%d_%H%M%S')}_{word}"
        place, number = base, 1
        while place.exists():
            number += 1
            place = base.with_name(f"{base.name}_{number}")
        return place

    def _start(self, goal_id: str, word: str, facts: Mapping[str, str]) -> Path:
        assert self._thread is not None
        assert self._topics is not None
        assert self._facts is not None
        place = self._place(word)
        self._facts.renew()
        known = {**self._facts.values, **facts}
        first = self._topics.first(self.get_clock().now().nanoseconds)
        self._thread.start(place, goal_id, known, first)
        self.get_logger().info(printable(f"recording {place}"))
        return place

    def _on_task(self, raw: bytes) -> None:
        """Follow the tasks: a bag per goal that asks for one."""
        task = self._task = deserialize_message(raw, TaskStatus)
        if self._thread is None:
            return
        running = task.state in BUSY
        if self._goal_id and (not running or task.goal_id != self._goal_id):
            mine = task.goal_id == self._goal_id
            self._thread.stop(result_facts(task) if mine else {"note": "another task began"})
            self._goal_id = ""
        if running and task.record and not self._goal_id:
            self._goal_id = task.goal_id
            self._start(task.goal_id, task.goal_id[:8], goal_facts(task))
        if not running and task.termination_reason == "fault":
            self._save_fault(f"task {task.goal_id}: {task.message}")

    def _on_executor(self, raw: bytes) -> None:
        fault = deserialize_message(raw, ExecutorStatus).fault
        if fault and not self._fault:
            self._save_fault(f"executor: {fault}")
        self._fault = fault

    def _on_policy(self, raw: bytes) -> None:
        if self._facts is not None:
            self._facts.take_policy(deserialize_message(raw, PolicyStatus))

    def _save_fault(self, why: str) -> None:
        now_s = time.monotonic()
        if self.parameters.save_on_fault and now_s - self._saved_s > FAULTS_APART_S:
            self._saved_s = now_s
            self.get_logger().warning(printable(f"saving the last seconds: {why}"))
            self._save_ring("fault", {"fault": why})

    def _save_ring(self, word: str, facts: Mapping[str, str]) -> Path:
        assert self._thread is not None
        assert self._topics is not None
        assert self._facts is not None
        place = self._place(word)
        first = self._topics.first(0)
        self._thread.save(place, {**self._facts.values, **goal_facts(self._task), **facts}, first)
        return place

    def _record(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        """Begin or end a bag by hand."""
        if self._thread is None:
            response.message = "the recorder is not active"
        elif self._goal_id:
            response.message = "a task is being recorded; it ends its bag"
        elif request.data:
            response.success, response.message = True, str(self._start("", "manual", {}))
        else:
            response.success = self._thread.state.recording
            response.message = (
                self._thread.state.bag_path if response.success else "no bag is open"
            )
            self._thread.stop({})
        response.message = printable(response.message)
        return response

    def _save(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Write the ring buffer."""
        if self._thread is None:
            response.message = "the recorder is not active"
        else:
            response.success, response.message = True, printable(self._save_ring("saved", {}))
        return response

    # -- periodic work ---------------------------------------------------------------------

    def _complain(self, text: str) -> None:
        self.get_logger().warning(printable(text))

    def _tick(self) -> None:
        if self._news.is_set():
            self._news.clear()
            self._publish_status()

    def _look(self) -> None:
        if self._topics is not None and self._facts is not None:
            self._topics.look()
            self._facts.ask()

    @property
    def _unheard(self) -> str:
        return "" if self._topics is None else self._topics.unheard

    def _publish_status(self) -> None:
        message = RecorderStatus(
            state=RecorderStatus.STATE_INACTIVE, message=printable(self._problem)
        )
        state = self._last if self._thread is None else self._thread.state
        if self._thread is not None:
            message.state = RecorderStatus.STATE_READY
            if state is not None and state.recording:
                message.state = RecorderStatus.STATE_RECORDING
        if state is not None:
            message.goal_id, message.bag_path = state.goal_id, printable(state.bag_path)
            message.whole, message.messages = state.whole, state.messages
            message.bytes, message.lost = state.bytes, state.lost
            message.ring_s, message.ring_bytes = state.ring_s, state.ring_bytes
            message.message = printable(state.problem or self._problem or self._unheard)
        message.stamp = time_msg(self.get_clock().now().nanoseconds)
        self._status.publish(message)

    def _report(self) -> None:
        """Status and diagnostics, once per second."""
        self._publish_status()
        state = self._last if self._thread is None else self._thread.state
        shown: dict[str, Any] = {"active": self._thread is not None}
        lost = {}
        if state is not None:
            lost = state.lost_by_topic
            shown |= {
                "recording": state.recording, "bag": state.bag_path, "messages": state.messages,
                "bytes": state.bytes, "ring_s": f"{state.ring_s:.1f}",
                "ring_bytes": state.ring_bytes, "lost": state.lost,
                **{f"lost.{topic}": count for topic, count in sorted(lost.items())},
            }  # fmt: skip
        topics = () if self._topics is None else self._topics.topics
        shown["topics"], shown["unheard"] = ", ".join(topics), self._unheard
        problem = (state.problem if state is not None else "") or self._problem or self._unheard
        found = DiagnosticStatus(
            level=DiagnosticStatus.WARN if problem or lost else DiagnosticStatus.OK,
            name=f"{self.get_fully_qualified_name()}: recorder",
            message=printable(problem or ("recording" if shown.get("recording") else "ready")),
            values=[KeyValue(key=key, value=printable(value)) for key, value in shown.items()],
        )
        array = DiagnosticArray(status=[found])
        array.header.stamp = time_msg(self.get_clock().now().nanoseconds)
        self._diagnostics.publish(array)


def goal_facts(task: TaskStatus) -> dict[str, str]:
    """What a bag says about its goal."""
    if not task.goal_id:
        return {}
    return {
        "goal_id": task.goal_id, "prompt": task.prompt, "time_limit_s": f"{task.time_limit_s:g}",
        "speed_scale": f"{task.speed_scale:g}",
    }  # fmt: skip


def result_facts(task: TaskStatus) -> dict[str, str]:
    """What a bag says about how its task ended."""
    return {
        "termination_reason": task.termination_reason, "outcome": task.outcome,
        "message": task.message,
    }  # fmt: skip


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM."""

    def make(_: threading.Event) -> EpisodeRecorder:
        node = EpisodeRecorder()
        if node.parameters.autostart:
            process.autostart(node)
        return node

    return process.run(make, args)


if __name__ == "__main__":
    sys.exit(main())
