"""What processes that play messages into a policy node share: events for the parent process, the
node's way to active, and their own end.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.node import Node
from rclpy.publisher import Publisher

from pi05_ros.errors import Pi05Error

SERVICE_WAIT_S = 30.0
MATCH_WAIT_S = 15.0


class BringUpError(Pi05Error, RuntimeError):
    """The node cannot be brought to active; the text says at which step."""


def emit_event(event: str, **values: Any) -> None:
    """Write one event for the parent process: a JSON line on stdout."""
    print(json.dumps({"event": event, **values}), flush=True)


def wait_for_start() -> bool:
    """Say "ready" and wait for "go" on stdin; False if the parent process has ended."""
    emit_event("ready")
    return sys.stdin.readline().strip() == "go"


def report_finished(late_ns: Sequence[int], **values: Any) -> None:
    """Say "done" with how late messages went out, and stay until the parent has what it wants."""
    late_ms = sorted(ns / 1e6 for ns in late_ns) or [0.0]
    p99 = late_ms[int(0.99 * (len(late_ms) - 1))]
    emit_event("done", late_p99_ms=p99, late_max_ms=late_ms[-1], **values)
    sys.stdin.readline()


def run_child(name: str, work: Callable[[Node], int], *errors: type[Exception]) -> int:
    """Run the work of such a process on a node of its own.

    Args:
        name: of the node.
        work: returns the exit code.
        errors: kinds that end it with an `error` event and code 1, besides BringUpError.

    """
    expected: tuple[type[Exception], ...] = (BringUpError, *errors)
    rclpy.init(args=[])
    node = Node(name)
    try:
        return work(node)
    except expected as error:
        emit_event("error", text=str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def bring_up(
    node: Node, target: str, configure_timeout_s: float, between: Callable[[], None]
) -> None:
    """Configure and activate a lifecycle node.

    Args:
        node: makes the requests.
        target: full name of the lifecycle node.
        configure_timeout_s: time for loading a checkpoint.
        between: called between the two transitions.

    Raises:
        BringUpError: it is not there, refuses, or takes too long.

    """
    client = node.create_client(ChangeState, f"{target}/change_state")
    if not client.wait_for_service(timeout_sec=SERVICE_WAIT_S):
        raise BringUpError(f"{target} did not start within {SERVICE_WAIT_S:.0f} s")
    _change(node, client, target, Transition.TRANSITION_CONFIGURE, configure_timeout_s)
    between()
    _change(node, client, target, Transition.TRANSITION_ACTIVATE, SERVICE_WAIT_S)


def _change(node: Node, client: Any, target: str, transition: int, limit_s: float) -> None:
    label = {Transition.TRANSITION_CONFIGURE: "configure"}.get(transition, "activate")
    request = ChangeState.Request()
    request.transition.id = transition
    future = client.call_async(request)
    rclpy.spin_until_future_complete(node, future, timeout_sec=limit_s)
    response = future.result() if future.done() else None
    if response is None:
        raise BringUpError(f"{target} did not {label} within {limit_s:.0f} s")
    if not response.success:
        raise BringUpError(f"{target} refused to {label}; its log says why")


def wait_matched(publishers: Mapping[str, Publisher]) -> None:
    """Wait until somebody listens to every publisher.

    Raises:
        BringUpError: nobody does; names the topics.

    """
    deadline = time.monotonic() + MATCH_WAIT_S
    while True:
        lonely = [n for n, p in publishers.items() if p.get_subscription_count() == 0]
        if not lonely:
            return
        if time.monotonic() > deadline:
            raise BringUpError(f"nobody subscribes to {', '.join(lonely)}")
        time.sleep(0.02)
