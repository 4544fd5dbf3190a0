"""Watches the simulated arm's episodes as sim_demo.launch.py runs them, and says how they went.

It waits for the policy's first chunk, starts each next scene by the nodes' services, prints
success, chunk rate and latencies, leaves a video and a plot, and ends.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import rclpy
from rclpy.executors import SingleThreadedExecutor

from pi05_ros.ros import process
from pi05_ros.ros.parameter_server import declare
from pi05_ros.ros.processes.children import ChildError
from pi05_ros.runtime.parameter_specs import ParameterError, param
from pi05_ros.sim.evaluation.ros_session import SessionWatcher, watch_episodes
from pi05_ros.sim.evaluation.session_results import RosSession, write_session

REMIND_S = 20.0


@dataclass(frozen=True)
class RefereeParameters:
    """Every parameter of the referee, all read-only."""

    seed: int = param(0, "The driver's.", within=(0, 2**31 - 1))
    episodes: int = param(2, "How many, one scene after the other.", within=(1, 1000))
    out: str = param("out/sim_demo", "Directory of results.")


class _AskedToEndError(Exception):
    """A signal came."""


def main(args: list[str] | None = None) -> int:
    """Watch the episodes; 0 if all were done or a signal came, else 1."""
    stop = process.start(args)
    if stop is None:
        return 2
    node, executor = SessionWatcher(RosSession()), SingleThreadedExecutor()
    node.session.real_time = not node.get_parameter("use_sim_time").value

    def check() -> None:
        if stop.is_set():
            raise _AskedToEndError

    def say(text: str) -> None:
        print(text, flush=True)

    try:
        p = declare(node, RefereeParameters)
        out = Path(p.out).expanduser()
        out.mkdir(parents=True, exist_ok=True)
        executor.add_node(node)
        remind_at = time.monotonic() + REMIND_S
        while not node.heard:
            check()
            executor.spin_once(timeout_sec=0.1)
            if time.monotonic() > remind_at:
                say("no chunk from the policy yet; its log and /diagnostics say why")
                remind_at += REMIND_S
        node.session.film.clear()
        seeds = range(p.seed, p.seed + p.episodes)
        watch_episodes(
            node, executor, seeds, check,
            lambda seed, done: say(f"seed {seed}: {'done' if done else 'failed'}"),
        )  # fmt: skip
        say(node.session.text)
        say("wrote " + ", ".join(map(str, write_session(node.session, out / "sim_demo"))))
        return 0 if all(node.session.done.values()) else 1
    except _AskedToEndError:
        return 0
    except ModuleNotFoundError as error:
        print(f"sim_referee: no plot: {error}", file=sys.stderr)
        return 1
    except (ParameterError, ChildError, OSError) as error:
        print(f"sim_referee: {error}", file=sys.stderr)
        return 1
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
