"""What a bag says about itself: checkpoint, robot profile, parameters of the nodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rcl_interfaces.srv import GetParameters
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python

from pi05_ros.errors import Pi05Error
from pi05_ros.msg import PolicyStatus
from pi05_ros.resources import robots_dir
from pi05_ros.ros.executor_parameters import SPECS as EXECUTOR_SPECS
from pi05_ros.ros.recorder.recorder_parameters import RecorderParameters
from pi05_ros.runtime.parameter_specs import Spec
from pi05_ros.runtime.parameters import SPECS as POLICY_SPECS
from pi05_ros.small_files import read_text

POLICY_FIELDS = (
    "checkpoint", "checkpoint_hash", "robot", "backend", "device", "policy_id", "precision_vision",
    "precision_prefill", "precision_denoise", "horizon", "step_s", "denoise_steps",
)  # fmt: skip


class RecordingFacts:
    """Asks the nodes for their parameters; `values` is what is known by now.

    Args:
        node: owner of the clients.
        parameters: name the nodes.
        on_news: called with facts that have become known.

    """

    def __init__(
        self,
        node: Node,
        parameters: RecorderParameters,
        on_news: Callable[[Mapping[str, str]], None],
    ) -> None:
        self._node, self._on_news = node, on_news
        self.values: dict[str, str] = {}
        self._policy_id = ""
        self._asks = {
            "policy_parameters": (parameters.policy_node, POLICY_SPECS),
            "executor_parameters": (parameters.executor_node, EXECUTOR_SPECS),
        }
        self._clients = {
            key: node.create_client(GetParameters, f"{name}/get_parameters")
            for key, (name, _) in self._asks.items()
        }
        self._waiting = set(self._asks)

    def take_policy(self, status: PolicyStatus) -> None:
        """Facts of the policy node's status."""
        news = {f"policy.{name}": str(getattr(status, name)) for name in POLICY_FIELDS}
        news["robot_profile"] = profile_text(status.robot)
        if status.policy_id != self._policy_id:
            self._policy_id = status.policy_id
            self._waiting = set(self._asks)
        self._learn(news)

    def ask(self) -> None:
        """Ask the nodes that have not answered yet; call it about once a second."""
        for key in tuple(self._waiting):
            client = self._clients[key]
            if client.service_is_ready():
                self._waiting.discard(key)
                specs: Mapping[str, Spec] = self._asks[key][1]
                names = list(specs)
                future = client.call_async(GetParameters.Request(names=names))
                future.add_done_callback(
                    lambda done, key=key, names=names: self._answered(key, names, done)
                )

    def renew(self) -> None:
        """Ask again: a recording begins, and parameters may have been set."""
        self._waiting = set(self._asks)
        self.ask()

    def destroy(self) -> None:
        """Release the clients."""
        for client in self._clients.values():
            self._node.destroy_client(client)

    def _answered(self, key: str, names: list[str], future: Any) -> None:
        answer = future.result()
        if answer is None:
            return
        values = [parameter_value_to_python(value) for value in answer.values]
        found = {
            name: list(value) if hasattr(value, "tolist") else value
            for name, value in zip(names, values, strict=False)
        }
        self._learn({key: json.dumps(found, default=str)})

    def _learn(self, news: Mapping[str, str]) -> None:
        if any(self.values.get(key) != value for key, value in news.items()):
            self.values.update(news)
            self._on_news(news)


def profile_text(robot: str) -> str:
    """Text of a robot profile's file; empty if it has none (a checkpoint brought it)."""
    try:
        for path in (robots_dir() / f"{robot}.yaml", Path(robot).expanduser()):
            if robot and path.suffix in (".yaml", ".yml") and path.is_file():
                return read_text(path)
    except (OSError, Pi05Error, ValueError):
        pass
    return ""
