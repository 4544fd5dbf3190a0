"""Parameters of the task node: one dataclass names, describes, bounds and defaults them.

python -m pi05_ros.runtime.task.task_parameters --markdown     # the table of docs/tasks.md
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from pi05_ros.request_options import filled
from pi05_ros.runtime.parameter_specs import main, param, specs_of
from pi05_ros.runtime.task.task_goal import LONGEST_S
from pi05_ros.runtime.task.task_ports import TaskSettings

REFUSE, REPLACE = "refuse", "replace"
END, CONTINUE = "end", "continue"


@dataclass(frozen=True)
class TaskParameters:
    """Every parameter of the task node, all read-only."""

    policy_node: str = param("pi05_policy", "Name of the policy node.")
    executor_node: str = param("pi05_executor", "Name of the executor node.")
    recorder_node: str = param("episode_recorder", "Name of the recorder.")
    autostart: bool = param(False, "Configure and activate when the process starts.")
    second_goal: str = param(
        REFUSE,
        "What becomes of a goal while a task runs: it is refused, or it replaces the task.",
        choices=(REFUSE, REPLACE),
    )
    on_take_over: str = param(
        END,
        "When a person takes over: the task ends as they hand back, or it continues then.",
        choices=(END, CONTINUE),
    )
    default_time_limit_s: float = param(
        600.0, "Time limit of goals that have none.", within=(0.1, LONGEST_S)
    )
    success_topic: str = param("", "Topic of goals that end on a success topic and name none.")
    hold_tolerance: float = param(
        0.01,
        "Farthest that a joint of an arm that is still moves, in its unit.",
        within=(0.0, 1e6),
    )
    feedback_hz: float = param(5.0, "Feedback messages per second.", within=(0.1, 50.0))
    heartbeat_hz: float = param(
        0.0,
        "Heartbeats per second to the executor, so that the arm stops if this process dies (see "
        "heartbeat_timeout_s there). 0: none, for where another program sends them.",
        within=(0.0, 50.0),
    )
    step_timeout_s: float = param(
        TaskSettings.step_timeout_s,
        "Longest wait for each answer of policy, executor and recorder.",
        within=(0.1, 600.0),
    )
    first_chunk_timeout_s: float = param(
        TaskSettings.first_chunk_timeout_s,
        "Longest wait for a chunk after the policy was reset.",
        within=(0.1, 600.0),
    )
    chunk_timeout_s: float = param(
        TaskSettings.chunk_timeout_s,
        "Longest time without a chunk in a task, on the node's clock.",
        within=(0.1, 600.0),
    )
    status_timeout_s: float = param(
        TaskSettings.status_timeout_s,
        "Policy node and executor are taken for dead after this silence.",
        within=(1.5, 600.0),
    )

    @property
    def settings(self) -> TaskSettings:
        """Those that a task itself needs."""
        return filled(TaskSettings, self, end_on_take_over=self.on_take_over == END)


SPECS = specs_of(TaskParameters)

if __name__ == "__main__":
    sys.exit(main(SPECS, "task node"))
