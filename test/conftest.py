"""What all tests share: modules in shared/, and a DDS domain for every process that runs tests.

shared/ is on the path, this folder is not: its subfolders would hide packages, as tensorrt and
launch.
"""

import gc
import logging
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "shared"))

import pytest

from pi05_ros.ros.processes.domain import free_domain_id

# Workers of pytest-xdist and what they start talk in a domain, and so on ports, of their own.
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["ROS_DOMAIN_ID"] = str(free_domain_id())

# What a test file needs, by path below test/; the first entry that fits wins, an empty tuple is a
# plain unit test. `make test-fast` leaves out everything that is marked.
NEEDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ros/test_conversion.py", ()),
    ("ros/test_executor_parameters.py", ()),
    ("ros/test_inputs.py", ()),
    ("ros/test_parameters.py", ()),
    ("ros/test_node_onnx.py", ("ros", "compile")),
    ("ros/test_calibrate_delay.py", ("ros", "render")),
    ("ros/", ("ros",)),
    ("conformance/test_deviant_nodes.py", ("ros",)),
    ("launch/", ("ros", "render")),
    ("cli/test_bench.py", ("ros",)),
    ("cli/test_bench_compare.py", ("slow",)),
    ("cli/test_demo.py", ("ros", "render")),
    ("cli/test_doctor.py", ("ros", "render")),
    ("cli/test_live.py", ("ros",)),
    ("cli/test_replay_cli.py", ("slow",)),
    ("replay/test_dataset_recording.py", ("slow",)),
    ("replay/test_demo_bag.py", ("render",)),
    ("replay/test_offline.py", ("slow",)),
    ("replay/test_recording.py", ("slow",)),
    ("replay/test_handovers.py", ("slow",)),
    ("replay/test_release_0_1_0.py", ("slow",)),
    ("sim/test_demonstration_to_deployment.py", ("ros", "render")),
    ("sim/test_driver_node.py", ("ros", "render")),
    ("sim/test_driver_parameters.py", ()),
    ("sim/test_eval_report.py", ()),
    ("sim/test_fake_quant.py", ()),
    ("sim/test_lock_step.py", ("ros", "render")),
    ("sim/test_results_file.py", ()),
    ("sim/test_ros_session.py", ("ros", "render")),
    ("sim/test_run_identity.py", ()),
    ("sim/", ("render",)),
    ("view/", ("slow",)),
    ("tensorrt/", ("compile",)),
    ("backends/test_cuda_hopper_compile.py", ("compile",)),
    ("backends/test_cuda_interpreter.py", ("compile",)),
    ("backends/test_onnx.py", ("compile",)),
    ("packaging/test_build.py", ("compile",)),
    ("execution/test_space.py", ("slow",)),
    ("execution/test_jerk_limits.py", ("slow",)),
    ("hostile/", ("slow",)),
    ("model/test_hub.py", ("slow",)),
    ("model/test_memory.py", ("slow",)),
    ("runtime/test_isolation.py", ("slow",)),
    ("serving/test_array_codec.py", ("compile",)),
    ("serving/test_bench_serve.py", ("slow",)),
    ("serving/test_continued_sessions.py", ("slow",)),
    ("serving/test_network_faults.py", ("slow",)),
    ("serving/test_server.py", ("slow",)),
    ("serving/test_remote.py", ("slow",)),
    ("serving/test_request_socket.py", ("slow",)),
    ("gpu/", ("gpu",)),
)


# Files that take longest, by path below test/: they run first, so that the workers end together.
# Then come the other files that need something, then unit tests.
LONGEST = (
    "tensorrt/",
    "packaging/test_build.py",
    "sim/test_ros_session.py",
    "replay/test_against_demonstration.py",
    "conformance/test_deviant_nodes.py",
    "sim/test_demonstration_to_deployment.py",
    "serving/test_fleet.py",
    "runtime/test_isolation.py",
    "backends/test_onnx.py",
    "sim/test_evaluation.py",
    "cli/test_replay_cli.py",
    "cli/test_bench.py",
    "model/test_memory.py",
    "ros/test_lifecycle.py",
    "hostile/test_hostile.py",
    "cli/test_live.py",
    "replay/test_offline.py",
    "ros/test_node_onnx.py",
    "cli/test_doctor.py",
    "ros/test_executor_faults.py",
    "ros/test_node_isolation.py",
    "ros/test_task_node.py",
)

# Folders whose files share fixtures that are expensive: one worker runs all of them.
TOGETHER = ("tensorrt/",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test by what its file needs, and begin with the files that take longest."""
    here = Path(__file__).parent
    order = {}
    for item in items:
        path = item.path.relative_to(here).as_posix()
        marks = next((marks for start, marks in NEEDS if path.startswith(start)), ())
        for mark in marks:
            item.add_marker(mark)
        long = [i for i, start in enumerate(LONGEST) if path.startswith(start)]
        order[item] = (long[0] if long else len(LONGEST), not marks)
    items.sort(key=order.__getitem__)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`: files in the order above, those of TOGETHER in one worker."""
    from xdist.scheduler import LoadScopeScheduling

    class FileScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return next((f for f in TOGETHER if path.startswith((f, f"test/{f}"))), path)

        def remove_node(self, node: Any) -> str | None:
            """Also: xdist 3.8 hands finished files of a crashed worker out again, and hangs."""
            work = self.assigned_work[node]
            for scope in [scope for scope, done in work.items() if all(done.values())]:
                del work[scope]
            crashed: str | None = super().remove_node(node)
            return crashed

    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False  # most tests first: not those that take longest
    return FileScheduling(config, log)


def pytest_runtest_teardown() -> None:
    """Commands set the level of our logs; the next test of this process must not see more."""
    logging.getLogger("pi05_ros").setLevel(logging.NOTSET)


def pytest_collection_finish() -> None:
    """What is imported by now stays: collections of garbage need not look at it again."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure() -> None:
    """Pytest collects garbage five times here, ten seconds and more in a process with torch."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Any:
    """Workers send reports as UTF-8: a log line with half a surrogate pair would end the run."""
    return _sendable((yield))


def _sendable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_sendable(key): _sendable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_sendable(part) for part in value)
    return value
