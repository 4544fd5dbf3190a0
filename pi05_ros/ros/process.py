"""Runs a node as a process that outlives bad messages and ends properly on SIGINT and SIGTERM.

With rclpy's own signal handlers the context is gone before on_shutdown could run; so the
handlers here only set an event, and the node is shut down from the main thread while
everything still works.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import rclpy
from rclpy.clock import Clock, ClockType, JumpHandle, JumpThreshold
from rclpy.duration import Duration
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from pi05_ros.errors import Pi05Error
from pi05_ros.ros.library_logs import LibraryLogs
from pi05_ros.runtime.text import printable

Made = TypeVar("Made", bound=Node)


def age_s() -> float:
    """Seconds since this process was started (Linux)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    since_boot = float(Path("/proc/uptime").read_text().split()[0])
    return since_boot - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def tick_clock(node: Node) -> Clock:
    """Clock for a node's periodic work: ROS time under use_sim_time, otherwise steady.

    A timer on system time stands still after that was set back, for as long as it was set back.
    """
    if node.get_parameter("use_sim_time").value:
        return node.get_clock()
    return Clock(clock_type=ClockType.STEADY_TIME)


def on_step_back(node: Node, call: Callable[[], object]) -> JumpHandle:
    """Have a function called whenever the node's clock is set back, however little.

    Simulated time may be set back and forth again between two readings of it.

    Returns:
        What `unregister` ends.

    """
    any_step = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1))
    return node.get_clock().create_jump_callback(any_step, post_callback=lambda jump: call())


class TolerantExecutor:
    """Single-threaded executor of one node that outlives the exceptions of callbacks.

    A message that does not deserialize, for example text that is not UTF-8, raises while spinning.
    Each new reason is logged once. Meanwhile what the library logs goes to the node's logger.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(node)
        self._last_error = ""
        self._library_logs = LibraryLogs(node)

    def spin_once(self, timeout_s: float) -> None:
        """Run the next callback that is due within the time, if one is."""
        try:
            self._executor.spin_once(timeout_sec=timeout_s)
        except ExternalShutdownException:
            raise
        except Exception as error:
            if str(error) != self._last_error:
                self._last_error = str(error)
                self._node.get_logger().error(
                    printable(f"in a callback: {traceback.format_exc()}")
                )

    def shutdown(self) -> None:
        """Release the node."""
        self._library_logs.detach()
        self._executor.shutdown()


def start(args: Sequence[str] | None = None) -> threading.Event | None:
    """Initialize rclpy and have SIGINT and SIGTERM set the event that is returned.

    Args:
        args: command line with ROS arguments; None takes the process's own.

    Returns:
        The event; None if the arguments are wrong, which has been said on stderr.

    """
    stop = threading.Event()
    # Before rclpy starts: a signal must not get lost between the two.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    given = list(sys.argv if args is None else args)
    if not _can_write_logs():
        print("no log file: the ROS log folder cannot be written", file=sys.stderr)
        given += ["--ros-args", "--disable-external-lib-logs"]
    try:
        rclpy.init(
            args=given,
            signal_handler_options=SignalHandlerOptions.NO,
        )
    except (RuntimeError, ValueError) as error:  # RCLError is a RuntimeError
        print(f"cannot start: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    return stop


def _can_write_logs() -> bool:
    """Whether rcl can make its log file; it refuses to start if not."""
    home = os.environ.get("ROS_HOME") or os.path.join(os.path.expanduser("~"), ".ros")
    folder = os.path.expanduser(os.environ.get("ROS_LOG_DIR") or os.path.join(home, "log"))
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def ignore_signals() -> None:
    """For the end of a process: a second Ctrl-C must not turn its exit code 0 into a failure."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def leave(code: int) -> NoReturn:
    """End the process at once: everything has been closed.

    Taking down an interpreter with torch in it takes seconds on a busy machine, and a model that
    still computes would crash meanwhile.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def made(make_node: Callable[[], Made], name: str) -> Made | None:
    """What `make_node` makes; None after one line on stderr, and rclpy shut down, if it cannot.

    Args:
        make_node: a node's constructor.
        name: of the program, in that line.

    """
    try:
        return make_node()
    except (ParameterException, Pi05Error) as error:  # the first: as of use_sim_time
        print(f"{name}: {error}", file=sys.stderr)
        rclpy.try_shutdown()
        return None


def run_plain(
    make_node: Callable[[], Made],
    name: str,
    args: Sequence[str] | None = None,
    ending: Callable[[Made], None] = lambda node: None,
) -> int:
    """Spin a node until a signal comes and `ending` is done; returns and arguments as of `run`."""
    stop = start(args)
    if stop is None:
        return 2
    node = made(make_node, name)
    if node is None:
        return 1
    executor = TolerantExecutor(node)
    while not stop.is_set():
        executor.spin_once(0.1)
    ending(node)
    end(node, executor)


def end(node: Node, executor: TolerantExecutor) -> NoReturn:
    """End a process whose node has ended its work."""
    ignore_signals()
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()
    leave(0)


def autostart(node: LifecycleNode) -> None:
    """Configure and activate a node; one that cannot stays, and the log says how to go on."""
    for trigger, word in (
        (node.trigger_configure, "configure"),
        (node.trigger_activate, "activate"),
    ):
        if trigger() != TransitionCallbackReturn.SUCCESS:
            node.get_logger().error(
                f"autostart: it could not {word}; mend what is said above, then "
                f"`ros2 lifecycle set {node.get_fully_qualified_name()} {word}`"
            )
            return


def run(
    make_node: Callable[[threading.Event], LifecycleNode], args: Sequence[str] | None = None
) -> int:
    """Spin a lifecycle node until a signal comes, then shut it down.

    Args:
        make_node: gets the event that a signal sets, for long callbacks to look at.
        args: command line with ROS arguments; None takes the process's own.

    Returns:
        Exit code of a node that could not start; else the process ends here, with code 0.

    """
    stop = start(args)
    if stop is None:
        return 2
    node = made(lambda: make_node(stop), "cannot start")
    if node is None:
        return 2
    executor = TolerantExecutor(node)
    while not stop.is_set():
        executor.spin_once(0.1)
    node.end()
    ignore_signals()
    executor.shutdown()
    node.destroy_node()
    # The state machine keeps the DDS participant alive as long as anything refers to the node,
    # and a thread that was left behind does. Others would see a ghost until its lease ends.
    node._state_machine.destroy_when_not_in_use()
    rclpy.try_shutdown()
    leave(0)


def guard_change_state(node: LifecycleNode) -> None:
    """Make change_state answer ``success = false`` to a transition the state does not allow.

    rclpy of Humble and Jazzy lets the RCLError of such a request escape from the change_state
    service into the executor, and the process dies. Later ones answer false by themselves.
    """
    service = getattr(node, "_service_change_state", None)
    if service is None:  # made without communication interface
        return
    original = service.callback

    def change_state(request: Any, response: Any) -> Any:
        try:
            return original(request, response)
        except rclpy_implementation.RCLError:
            state = node._state_machine.current_state[1]
            wanted = request.transition.label or request.transition.id
            node.get_logger().warning(
                f"transition {wanted} is not possible while the node is {state}"
            )
            response.success = False
            return response

    service.callback = change_state


def answer_state_requests(node: LifecycleNode) -> None:
    """Answer requests for state and transitions from within a long transition.

    The transition runs in the only thread of the executor, which cannot answer meanwhile.
    """
    for name in ("get_state", "get_available_states", "get_available_transitions"):
        service = getattr(node, f"_service_{name}", None)
        if service is None:
            continue
        with service.handle:
            request, header = service.handle.service_take_request(service.srv_type.Request)
            if header is not None:
                answer = service.callback(request, service.srv_type.Response())
                service.send_response(answer, header)
