"""Runs one lifecycle node as a process that ends properly on SIGINT and SIGTERM.

With rclpy's own signal handlers the context is gone before on_shutdown could run; so the
handlers here only set an event, and the node is shut down from the main thread while
everything still works.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Protocol

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from rclpy.signals import SignalHandlerOptions


class Stoppable(Protocol):
    """What `run` asks of a node besides being a LifecycleNode."""

    def end(self) -> bool:
        """Shut down from any state, bounded in time; False if a thread had to be left behind."""


def run(
    make_node: Callable[[threading.Event], LifecycleNode], args: Sequence[str] | None = None
) -> int:
    """Spin the node until a signal comes, then shut it down.

    Args:
        make_node: gets the event that a signal sets, for long callbacks to look at.
        args: command line with ROS arguments; None takes the process's own.

    Returns:
        Exit code.

    """
    stop = threading.Event()
    try:
        rclpy.init(
            args=None if args is None else list(args),
            signal_handler_options=SignalHandlerOptions.NO,
        )
    except (RuntimeError, ValueError) as error:  # RCLError is a RuntimeError
        print(f"cannot start: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    node = make_node(stop)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    last_error = ""
    while not stop.is_set():
        try:
            executor.spin_once(timeout_sec=0.1)
        except Exception as error:
            # A message that does not deserialise ends up here; the node has to outlive it.
            if str(error) != last_error:
                last_error = str(error)
                node.get_logger().error(f"in a callback: {traceback.format_exc()}")
    clean = node.end()
    executor.shutdown()
    node.destroy_node()
    # The state machine keeps the DDS participant alive as long as anything refers to the node,
    # and a thread that was left behind does. Others would see a ghost until its lease ends.
    node._state_machine.destroy_when_not_in_use()
    rclpy.try_shutdown()
    if not clean:
        # A model that still computes would crash while the interpreter is taken down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0
