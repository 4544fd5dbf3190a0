"""Launch arguments of nodes, made from their parameters; needs no `launch`."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from pathlib import Path, PurePath

from pi05_ros.runtime.parameter_specs import ParameterError, Spec
from pi05_ros.runtime.parameters import SPECS

PRECISION = "precision"
"""Argument that sets the parameters ``precision.*`` of all three stages."""

LOG_LEVELS = {
    "debug": "debug", "info": "info", "warn": "warn", "warning": "warn", "error": "error",
    "fatal": "fatal",
}  # fmt: skip


def argument_name(parameter: str) -> str:
    """Launch argument of a parameter: dots are underscores."""
    return parameter.replace(".", "_")


def parameter_arguments(specs: Mapping[str, Spec] = SPECS) -> dict[str, str]:
    """Launch argument -> description, for all parameters of a node; default: the policy node."""
    texts = {argument_name(spec.name): _described(spec) for spec in specs.values()}
    if "precision.vision" in specs:
        texts[PRECISION] = f"all of precision.*: {specs['precision.vision'].accepted}"
    return texts


def overrides(values: Mapping[str, str], specs: Mapping[str, Spec] = SPECS) -> dict[str, object]:
    """Parameters by ROS name for the arguments that are not empty.

    Raises:
        ParameterError: a text that is not accepted.

    """
    result: dict[str, object] = {}
    if values.get(PRECISION):
        for name, spec in specs.items():
            if name.startswith("precision."):
                result[name] = spec.read(values[PRECISION])
    for spec in specs.values():
        text = values.get(argument_name(spec.name), "")
        if text:
            value = spec.read(text)
            result[spec.name] = list(value) if isinstance(value, tuple) else value
    return result


def parameter_files(text: str) -> list[str]:
    """Paths of an argument params_file: separated by commas, all of them must be there.

    Raises:
        ParameterError: names the file; launch itself only warns, and the node would run with
            defaults.

    """
    files = [name.strip() for name in text.split(",") if name.strip()]
    for name in files:
        if not Path(name).is_file():
            raise ParameterError(f"params_file:={name} is not a file")
    return files


def is_true(name: str, text: str) -> bool:
    """Read a boolean launch argument."""
    words = {"true": True, "1": True, "false": False, "0": False}
    if text.strip().lower() not in words:
        raise ParameterError(f"{name}:={text} is not a boolean; accepted: true, false")
    return words[text.strip().lower()]


def log_level(text: str) -> str:
    """Level as rcl reads it; Python's word for warn is taken too."""
    level = LOG_LEVELS.get(text.strip().lower())
    if level is None:
        raise ParameterError(f"log_level:={text} is unknown; accepted: {', '.join(LOG_LEVELS)}")
    return level


def refuse_unknown(
    launch_file: str, known: Collection[str], argv: Sequence[str] | None = None
) -> None:
    """Refuse ``name:=value`` on the command line of a launch file that has no such argument.

    ros2 launch itself takes any name. A file that another one includes is not looked at: the
    arguments are the other's.

    Raises:
        ParameterError: names the arguments and what is accepted.

    """
    words = sys.argv if argv is None else argv
    if not any(PurePath(word).name == launch_file for word in words):
        return
    names = [word.partition(":=")[0] for word in words if ":=" in word]
    unknown = [name for name in names if name.isidentifier() and name not in known]
    if unknown:
        raise ParameterError(
            f"{launch_file} has no argument {', '.join(unknown)}; accepted: "
            f"{', '.join(sorted(known))}"
        )


def refuse_second_include(configurations: MutableMapping[str, str], launch_file: str) -> None:
    """Refuse a launch file that is included twice in one scope.

    What one include sets holds for everything after it in its scope: a second robot would get the
    checkpoint, limits and topics of the first where it names none.

    Raises:
        RuntimeError: names the file.

    """
    key = f"pi05_ros_{launch_file}_included"
    if key in configurations:
        raise RuntimeError(
            f"{launch_file} is included twice in one scope, so that the second node would inherit "
            "arguments of the first; put each IncludeLaunchDescription into a GroupAction([...])"
        )
    configurations[key] = "true"


def _described(spec: Spec) -> str:
    text = spec.text.replace("`", "")
    return f"{text} ({spec.accepted})" if spec.accepted and spec.accepted not in text else text
