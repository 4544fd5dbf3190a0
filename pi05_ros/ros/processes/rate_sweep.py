"""Runs a policy node at one rate after the other and measures its chunks. A process of its own.

    python -m pi05_ros.ros.processes.rate_sweep --node /pi05_policy

It configures the node (event `configured`), then takes lines {"rate_hz": R, "seconds": S} on
stdin: the node gets the rate, is activated, watched and deactivated; events `active`, `inactive`
and `cell` with the figures of the cell. An empty line, or the end of stdin, ends it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParameters
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile

from pi05_ros.msg import ActionChunk
from pi05_ros.ros.processes.bring_up import BringUpError, emit_event, run_child
from pi05_ros.runtime.inputs.conversion import stamp_ns

SERVICE_S = 60.0
TRANSITIONS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
}
PERCENTILES = (50, 95, 99)


class Sweep:
    """Client of the node: its transitions, its rate, its chunks and counters."""

    def __init__(self, node: Node, target: str) -> None:
        self._node = node
        self._target = target
        self._chunks: list[tuple[int, ActionChunk]] = []
        self._counters: dict[str, str] = {}
        self._counted = 0
        self._last: dict[str, str] | None = None  # counters after the last cell
        self._change = node.create_client(ChangeState, f"{target}/change_state")
        self._set = node.create_client(SetParameters, f"{target}/set_parameters")
        node.create_subscription(
            ActionChunk, f"{target}/action_chunk", self._on_chunk, QoSProfile(depth=100)
        )
        node.create_subscription(
            DiagnosticArray, "/diagnostics", self._on_diagnostics, QoSProfile(depth=10)
        )

    def _on_chunk(self, message: ActionChunk) -> None:
        self._chunks.append((time.time_ns(), message))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.startswith(f"{self._target}:"):
                self._counters.update({item.key: item.value for item in status.values})
        self._counted += 1

    def change(self, name: str, limit_s: float = SERVICE_S) -> None:
        """One transition.

        Raises:
            BringUpError: the node is not there, refuses, or takes too long.

        """
        request = ChangeState.Request()
        request.transition.id = TRANSITIONS[name]
        if not self._call(self._change, request, name, limit_s).success:
            raise BringUpError(f"{self._target} refused to {name}; its log says why")

    def set_rate(self, rate_hz: float) -> None:
        """Set `rate_hz`; raises BringUpError if the node refuses it."""
        request = SetParameters.Request(
            parameters=[Parameter("rate_hz", value=rate_hz).to_parameter_msg()]
        )
        (result,) = self._call(self._set, request, "set rate_hz", SERVICE_S).results
        if not result.successful:
            raise BringUpError(f"{self._target} refused rate_hz {rate_hz:g}: {result.reason}")

    def _call(self, client: Any, request: Any, what: str, limit_s: float) -> Any:
        if not client.wait_for_service(timeout_sec=SERVICE_S):
            raise BringUpError(f"{self._target} did not start within {SERVICE_S:.0f} s")
        future = client.call_async(request)
        rclpy.spin_until_future_complete(self._node, future, timeout_sec=limit_s)
        if not future.done():
            raise BringUpError(f"{self._target} did not {what} within {limit_s:.0f} s")
        return future.result()

    def _spin(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            rclpy.spin_once(self._node, timeout_sec=left)

    def _fresh_counters(self) -> dict[str, str]:
        """Counters of the next diagnostics but one: the next may have been under way."""
        until, wanted = time.monotonic() + SERVICE_S, self._counted + 2
        while self._counted < wanted and time.monotonic() < until:
            rclpy.spin_once(self._node, timeout_sec=0.1)
        return dict(self._counters)

    def cell(self, rate_hz: float, seconds: float) -> dict[str, Any]:
        """Figures of one rate."""
        self.set_rate(rate_hz)
        # They do not rise between two cells.
        before = self._last if self._last is not None else self._fresh_counters()
        self._chunks.clear()
        self.change("activate")
        began = time.monotonic()
        emit_event("active")
        self._spin(seconds)
        took = time.monotonic() - began
        emit_event("inactive")
        self.change("deactivate")
        chunks = list(self._chunks)
        self._last = self._fresh_counters()
        return {
            "rate_hz": rate_hz,
            "seconds": took,
            "chunks": len(chunks),
            "asked": rate_hz * took,
            **figures(chunks),
            "counts": difference(before, self._last),
        }


PARTS = ("arrive", "wait", "convert", "answer", "leave")
"""Where the time between newest image and chunk goes besides the inference: stamp -> received by
the middleware, -> taken and inference due, conversion, checks and building the message, handed
over -> received by another process."""


def figures(chunks: Sequence[tuple[int, ActionChunk]]) -> dict[str, Any]:
    """Percentiles, ms, of arrival minus newest image, of the chunks' own timings, of `PARTS`."""
    newest, inference, total = [], [], []
    parts: dict[str, list[float]] = {name: [] for name in PARTS}
    for arrived_ns, chunk in chunks:
        stamps = zip(chunk.input_names, chunk.input_stamps, strict=True)
        images = [stamp_ns(stamp) for name, stamp in stamps if "camera" in name]
        took = (arrived_ns - max(images)) / 1e6 if images else float("nan")
        newest.append(took)
        times = chunk.timings
        inference.append(float(times.inference_ms))
        total.append(float(times.total_ms))
        answer = times.total_ms - times.queue_ms - times.convert_ms - times.inference_ms
        # The message is stamped when the chunk is ready, before it is built.
        leave = (arrived_ns - stamp_ns(chunk.published_stamp)) / 1e6 - answer
        row = (took - times.total_ms - leave, times.queue_ms, times.convert_ms, answer, leave)
        for name, value in zip(PARTS, row, strict=True):
            parts[name].append(float(value))
    return {
        "newest_image_to_chunk_ms": spread(newest),
        "inference_ms": spread(inference),
        "total_ms": spread(total),
        "parts_ms": {name: spread(values)["p50"] for name, values in parts.items()},
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and max; NaN without values."""
    known = np.asarray([value for value in values if np.isfinite(value)], np.float64)
    if not known.size:
        return dict.fromkeys(("p50", "p95", "p99", "max"), float("nan"))
    found = dict(zip(("p50", "p95", "p99"), np.percentile(known, PERCENTILES), strict=True))
    return {name: float(value) for name, value in (found | {"max": np.max(known)}).items()}


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, int]:
    """How far the node's counters rose; what did not is left out."""
    risen = {}
    for key, value in after.items():
        if value.isdecimal() and before.get(key, "0").isdecimal():
            risen[key] = int(value) - int(before.get(key, "0"))
    return {key: count for key, count in risen.items() if count > 0}


def main() -> int:
    """Run the sweep; exit code 1 after an `error` event."""
    parser = argparse.ArgumentParser(prog="rate_sweep")
    parser.add_argument("--node", default="/pi05_policy")
    parser.add_argument("--configure-timeout", type=float, default=600.0)
    args = parser.parse_args()

    def work(node: Node) -> int:
        sweep = Sweep(node, args.node)
        sweep.change("configure", args.configure_timeout)
        emit_event("configured")
        while line := sys.stdin.readline().strip():
            asked = json.loads(line)
            emit_event("cell", row=sweep.cell(float(asked["rate_hz"]), float(asked["seconds"])))
        return 0

    return run_child("pi05_rate_sweep", work)


if __name__ == "__main__":
    sys.exit(main())
