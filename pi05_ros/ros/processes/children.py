"""Child processes of a live run: started together, watched, ended together.

Helpers (player, recorder) talk in JSON lines on stdout and read commands on stdin; everything
else they and the node print goes into one log file per child, which is shown if it dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from importlib import util
from pathlib import Path
from types import TracebackType
from typing import Any

import pi05_ros
from pi05_ros.errors import Pi05Error
from pi05_ros.resources import config_dir
from pi05_ros.ros.processes.domain import free_domain_id

STOP_S = 5.0  # time for a clean end before the next, harder signal
TAIL_LINES = 25
FASTDDS_PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")


class ChildError(Pi05Error, RuntimeError):
    """A child process died or did not answer in time; the text holds the end of its log."""


class RosMissingError(Pi05Error, RuntimeError):
    """What is to be run needs ROS 2; the text says how to get it."""


class Child:
    """One child process with its log and its events."""

    def __init__(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path, talks: bool
    ) -> None:
        self.name = name
        self.log = log
        self.expected_to_end = False
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log_file = log.open("wb")
        self.process = subprocess.Popen(
            list(argv),
            env=dict(env),
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE if talks else self._log_file,
            stderr=self._log_file,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which ends us in order
            preexec_fn=_die_with_parent,
        )
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        if talks:
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if isinstance(event, dict) and "event" in event:
                self.events.put(event)
            else:
                self._log_file.write(line)
                self._log_file.flush()

    def send(self, word: str) -> None:
        """Write one command line to the child's stdin."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(word.encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it died; the next wait says so with its log

    def tail(self) -> str:
        """Last lines of the log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"  {self.name}| {line}" for line in lines[-TAIL_LINES:])

    def resident_bytes(self) -> int:
        """Resident memory (Linux)."""
        text = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        """User and system time so far, all threads (Linux)."""
        text = Path(f"/proc/{self.process.pid}/stat").read_text()
        fields = text.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def signal(self, number: int) -> None:
        """Send a signal to it and to what it started."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def close(self) -> None:
        """Close pipes and log."""
        for stream in (self.process.stdin, self.process.stdout, self._log_file):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


class Children:
    """Context manager around all children of a run: leaving it ends every one of them."""

    def __init__(self, env: Mapping[str, str], log_dir: Path) -> None:
        self._env = dict(env)
        self._log_dir = log_dir
        self._children: list[Child] = []
        self._old_handler: Any = None

    def __enter__(self) -> Children:
        if threading.current_thread() is threading.main_thread():
            self._old_handler = signal.signal(signal.SIGTERM, _raise_interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop_all()
        if self._old_handler is not None:
            signal.signal(signal.SIGTERM, self._old_handler)

    def start(self, name: str, argv: Sequence[str], talks: bool = False) -> Child:
        """Start one child; `talks` if it is a helper with JSON events."""
        child = Child(name, argv, self._env, self._log_dir / f"{name}.log", talks)
        self._children.append(child)
        return child

    def start_module(self, name: str, module: str, *arguments: str, talks: bool = False) -> Child:
        """Start `python -m module` with the interpreter of this process."""
        return self.start(name, [sys.executable, "-u", "-m", module, *arguments], talks)

    def check(self) -> None:
        """Raise ChildError if a child ended that should be running."""
        for child in self._children:
            code = child.process.poll()
            if code is not None and not child.expected_to_end:
                raise ChildError(f"{child.name} ended with code {code}:\n{child.tail()}")

    def wait_event(self, child: Child, name: str, timeout_s: float) -> dict[str, Any]:
        """Next event of that name from a child.

        Raises:
            ChildError: the child reported an error, any child died, or time is up.

        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                event = child.events.get(timeout=0.1)
            except queue.Empty:
                self.check()
                if time.monotonic() > deadline:
                    raise ChildError(
                        f"{child.name} did not report '{name}' within {timeout_s:.0f} s; "
                        f"logs:\n{self.tails()}"
                    ) from None
                continue
            if event["event"] == "error":
                raise ChildError(f"{event.get('text', 'failed')}\n{self.tails()}")
            if event["event"] == name:
                return event

    def tails(self) -> str:
        """Last log lines of all children."""
        return "\n".join(tail for tail in (child.tail() for child in self._children) if tail)

    def stop(self, child: Child, timeout_s: float = STOP_S) -> int:
        """End one child: SIGINT, then SIGTERM, then SIGKILL; returns its exit code."""
        child.expected_to_end = True
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            child.signal(number)
            try:
                return child.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                continue
        return child.process.wait()

    def stop_all(self) -> None:
        """End what still runs, last started first, and close the logs."""
        for child in self._children:
            child.expected_to_end = True
            child.signal(signal.SIGINT)
        for child in reversed(self._children):
            self.stop(child)
            child.close()
        self._children.clear()


def ros_environment() -> tuple[dict[str, str], int]:
    """Environment for children: DDS on this machine only, in a domain of its own.

    Raises:
        RosMissingError: no ROS 2, or its environment is not set.

    """
    if util.find_spec("rclpy") is None:
        raise RosMissingError(
            "this needs ROS 2: source /opt/ros/<distro>/setup.bash, or run scripts/setup_env.sh "
            "and source .venv/ros_env.sh (pi05 replay --offline works without ROS)"
        )
    if not os.environ.get("AMENT_PREFIX_PATH"):
        raise RosMissingError(
            "the ROS 2 environment is not set: source /opt/ros/<distro>/setup.bash and your "
            "workspace's install/setup.bash, or .venv/ros_env.sh"
        )
    domain = free_domain_id()
    package_parent = str(Path(pi05_ros.__file__).resolve().parents[1])
    paths = [package_parent, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {
        **os.environ,
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_DOMAIN_ID": str(domain),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    environment.pop("ROS_LOCALHOST_ONLY", None)
    if os.environ.get("ROS_DISTRO") == "humble":
        environment["ROS_LOCALHOST_ONLY"] = "1"
    # Raw images do not fit into Fast DDS's default shared memory; the file says more.
    if not any(name in os.environ for name in FASTDDS_PROFILE_VARIABLES):
        profile = str(config_dir() / "fastdds_images.xml")
        environment.update(dict.fromkeys(FASTDDS_PROFILE_VARIABLES, profile))
    return environment, domain


def _raise_interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _die_with_parent() -> None:
    """In the child: end when the parent is killed without a chance to clean up (Linux)."""
    pr_set_pdeathsig = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
