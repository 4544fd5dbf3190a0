"""Listens to the nodes that run and judges what they do: what `pi05 doctor --conformance` starts.

    python -m pi05_ros.conformance.watch --seconds 30

Prints the findings as JSON. Without `--active` it asks nodes for parameters and their state and
sends nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import rclpy
from rclpy.node import Node
from rclpy.parameter import Parameter

from pi05_ros.conformance.listener import Listener
from pi05_ros.conformance.probing import probe
from pi05_ros.conformance.promises import PromiseFinding

DISCOVERY_S = 3.0


def watch(namespace: str, seconds: float, active: bool) -> list[PromiseFinding]:
    """Findings about all nodes below a namespace; empty if there is none.

    Args:
        namespace: "" for all.
        seconds: how long to listen.
        active: also stop and resume executors, reset policy nodes and send chunks that must be
            refused; the arm brakes, and goes on if it did before.

    """
    listener = Listener(Node("pi05_conformance"))
    try:
        _find(listener, namespace)
        if any(item.parameters.get("use_sim_time") for item in listener.policies.values()):
            listener.node.set_parameters([Parameter("use_sim_time", value=True)])
        listener.forget()
        listener.spin(seconds)
        findings = listener.judge()
        return findings + probe(listener) if active else findings
    finally:
        listener.executor.shutdown()
        listener.node.destroy_node()


def _find(listener: Listener, namespace: str) -> None:
    """Find nodes until none is new for a while."""
    end = time.monotonic() + DISCOVERY_S
    while time.monotonic() < end:
        listener.find(namespace)
        listener.spin(0.2)
    listener.learn()
    records = [*listener.policies.values(), *listener.executors.values()]
    listener.spin(DISCOVERY_S, lambda: all(record.statuses for record in records))


def main() -> int:
    """Listen and print."""
    parser = argparse.ArgumentParser(prog="watch", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--namespace", default="")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--active", action="store_true")
    args = parser.parse_args()
    rclpy.init(args=[])
    findings = watch(args.namespace, args.seconds, args.active)
    print(json.dumps([finding.row() for finding in findings]))
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
