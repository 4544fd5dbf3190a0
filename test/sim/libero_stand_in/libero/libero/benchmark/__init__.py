"""Suites of two tasks with three initial states each."""

from typing import NamedTuple

import numpy as np

INITIAL_STATES = 3


class Task(NamedTuple):
    """As in the original."""

    name: str
    language: str
    problem: str
    problem_folder: str
    bddl_file: str
    init_states_file: str


class _Suite:
    def __init__(self, task_order_index=0):
        names = ["open_the_drawer", "push_the_plate"]
        print(f"[info] using task orders {task_order_index}")
        self.tasks = [
            Task(n, n.replace("_", " "), "Libero", "libero_goal", f"{n}.bddl", f"{n}.pruned_init")
            for n in names
        ]
        self.n_tasks = len(self.tasks)

    def get_task(self, i):
        """Task by number."""
        return self.tasks[i]

    def get_task_init_states(self, i):
        """Rows of flattened simulator states."""
        return np.arange(INITIAL_STATES * 92, dtype=np.float64).reshape(INITIAL_STATES, 92) + i


class LiberoSpatial(_Suite):
    """One suite."""


class LiberoGoal(_Suite):
    """Another suite."""


def get_benchmark_dict(help=False):
    """Name -> class."""
    return {"libero_spatial": LiberoSpatial, "libero_goal": LiberoGoal, "libero_100": _Suite}
