"""The scripted run: starts a policy node and executors, plays faults, judges all that was heard.

    python -m pi05_ros.conformance                  # two to three minutes on an idle machine
    python -m pi05_ros.conformance --busy 2         # beside two busy loops

Prints a table; exit code 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import rclpy
from rclpy.node import Node
from rclpy.parameter import Parameter

from pi05_ros.conformance.listener import Listener
from pi05_ros.conformance.promises import PromiseFinding, PromiseOutcome, table, totals
from pi05_ros.conformance.scripted.clock_script import ClockScript
from pi05_ros.conformance.scripted.executor_permission import PermissionScript
from pi05_ros.conformance.scripted.executor_script import ExecutorScript
from pi05_ros.conformance.scripted.policy_script import PolicyScript
from pi05_ros.conformance.scripted.testbed import Testbed

PURPOSE = (__doc__ or "").splitlines()[0]
Script = PolicyScript | ExecutorScript | PermissionScript | ClockScript
SCRIPTS: dict[str, Callable[[Testbed], Script]] = {
    "policy": PolicyScript,
    "executor": ExecutorScript,
    "permission": PermissionScript,
    "clock": ClockScript,
}


def play(names: Sequence[str]) -> list[PromiseFinding]:
    """Findings of these scripts, and of everything that was heard while they were played."""
    findings: list[PromiseFinding] = []
    for name in names:
        simulated = Parameter("use_sim_time", value=name == "clock")
        listener = Listener(Node("conformance", parameter_overrides=[simulated]))
        try:
            with Testbed(listener, f"/conformance_{os.getpid()}/{name}") as stage:
                script = SCRIPTS[name](stage)
                script.play_all()
                findings += script.findings + listener.judge()
                script.end()
                findings += script.findings[-1:]
        finally:
            listener.executor.shutdown()
            listener.node.destroy_node()
    return findings


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute without end."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def main() -> int:
    """Read the options."""
    parser = argparse.ArgumentParser(
        prog="conformance", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--only", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--busy", type=int, default=0, help="busy loops beside it")
    parser.add_argument("--out", type=Path, help="also write the findings as JSON")
    args = parser.parse_args()
    rclpy.init(args=[])
    with busy(args.busy):
        findings = play(args.only)
    rclpy.try_shutdown()
    print(table(findings))
    counts = totals(findings)
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    if args.out:
        args.out.write_text(json.dumps([item.row() for item in findings]) + "\n", encoding="utf-8")
    return 1 if counts[PromiseOutcome.FAIL.value] else 0


if __name__ == "__main__":
    sys.exit(main())
