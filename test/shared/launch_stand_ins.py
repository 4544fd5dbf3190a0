"""Stand-ins for ROS's `launch` and `launch_ros`, which are not on PyPI (its `launch` differs).

They record what a launch file builds: that checks arguments, parameters, remappings, scopes and
event handlers, not launch itself.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

ROOT = Path(__file__).parents[2]

STAND_INS = {
    "launch": ["LaunchContext", "LaunchDescription"],
    "launch.action": ["Action"],
    "launch.actions": [
        "DeclareLaunchArgument", "EmitEvent", "GroupAction", "IncludeLaunchDescription",
        "OpaqueFunction", "RegisterEventHandler", "Shutdown", "TimerAction",
    ],
    "launch.event_handlers": ["OnProcessExit", "OnProcessStart"],
    "launch.events": ["matches_action"],
    "launch.launch_description_sources": ["PythonLaunchDescriptionSource"],
    "launch.substitutions": ["LaunchConfiguration", "PathJoinSubstitution"],
    "launch_ros": [],
    "launch_ros.actions": ["LifecycleNode", "Node"],
    "launch_ros.event_handlers": ["OnStateTransition"],
    "launch_ros.events": [],
    "launch_ros.events.lifecycle": ["ChangeState"],
    "launch_ros.parameter_descriptions": ["ParameterValue"],
    "launch_ros.ros_adapters": ["get_ros_node"],
    "launch_ros.substitutions": ["FindPackageShare"],
}  # fmt: skip


def stand_in(name):
    def init(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs

    def perform(self, context):
        return context[self.args[0]]

    return type(name, (), {"__init__": init, "perform": perform})


def load(name):
    """Module of launch/NAME.launch.py."""
    path = ROOT / "launch" / f"{name}.launch.py"
    spec = importlib.util.spec_from_file_location(f"{name}_launch", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_with_stand_ins(name, monkeypatch):
    """The same, with stand-ins in place of launch."""
    for module_name, members in STAND_INS.items():
        module = ModuleType(module_name)
        module.__path__ = []
        for member in members:
            setattr(module, member, stand_in(member))
        monkeypatch.setitem(sys.modules, module_name, module)
    return load(name)


def arguments(module):
    """Launch argument -> what it was declared with."""
    (entities,) = module.generate_launch_description().args
    return {
        item.args[0]: SimpleNamespace(**item.kwargs)
        for item in entities
        if type(item).__name__ == "DeclareLaunchArgument"
    }


class Context(dict):
    """Stands in for LaunchContext: values by argument, and the configurations of its scope."""

    def __init__(self, values):
        super().__init__(values)
        self.launch_configurations = {}


def bring_up(module, **changes):
    """What the launch file starts with its defaults and these arguments."""
    values = {
        name: item.default_value if isinstance(item.default_value, str) else ""
        for name, item in arguments(module).items()
    }
    unknown = set(changes) - set(values)
    assert not unknown, f"no argument {unknown}"
    return module.bring_up(Context({**values, **changes}))
